"""A GGUF file becomes a bf16 Hugging Face directory with the same weights; what is not a whole model is
refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_samples import (
    FFN,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    byte_level_metadata,
    model_metadata,
    model_tensors,
    write_gguf,
)
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models import import_gguf as module
from pomona.models.config import ModelConfig, RopeScaling
from pomona.models.gguf_file import GgufFile
from pomona.models.gguf_tokenizer import convert_tokenizer
from pomona.models.import_gguf import import_gguf, read_config
from pomona.models.safetensors_file import SafetensorsFile, bf16_from_float32

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def imported(directory: Path) -> dict[str, NDArray[np.uint16]]:
    """The bf16 bits of every tensor of an imported directory."""
    with SafetensorsFile(directory / "model.safetensors") as file:
        assert {info.dtype for info in file.tensors.values()} == {"BF16"}
        return {name: file.array(name).copy() for name in file.tensors}


def expected(values: dict[str, NDArray[np.float32]], name: str) -> NDArray[np.float32]:
    """The GGUF tensor that a Hugging Face name stands for."""
    for theirs, ours in NAMES.items():
        name = name.replace(f".{theirs}.", f".{ours}.")
    name = name.replace("model.layers.", "blk.").replace("model.embed_tokens.", "token_embd.")
    return values[name.replace("model.norm.", "output_norm.").replace("lm_head.", "output.")]


def refusal(path: Path, target: Path) -> str:
    before = sorted(target.parent.rglob("*"))
    with pytest.raises(PomonaError) as caught:
        import_gguf(path, target)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and "; " in text
    assert sorted(target.parent.rglob("*")) == before  # no target, no leftover beside it
    return text


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_equals_the_decoded_one_in_bf16(
    tmp_path: Path, architecture: str, kind: str, tied: bool
) -> None:
    path = tmp_path / "m.gguf"
    values = write_gguf(path, model_metadata(architecture), model_tensors(architecture, tied=tied), kind=kind)
    assert import_gguf(path, tmp_path / "out") == tmp_path / "out"
    config = ModelConfig.from_directory(tmp_path / "out")
    assert (config.model_type, config.tie_word_embeddings) == (architecture, tied)
    tensors = imported(tmp_path / "out")
    assert {name: array.shape for name, array in tensors.items()} == config.tensor_shapes()
    assert len(tensors) == len(values)
    for name, bits in tensors.items():
        wanted = bf16_from_float32(expected(values, name))
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            assert not np.array_equal(bits, wanted)  # the same rows in another order: see the rotary test
            bits, wanted = np.sort(bits, axis=0), np.sort(wanted, axis=0)
        np.testing.assert_array_equal(bits, wanted, err_msg=name)


def test_attention_scores_are_those_of_interleaved_rotary_embedding(tmp_path: Path) -> None:
    """GGUF's Llama rotates rows (2j, 2j+1) of a head, Hugging Face's (j, j + head_dim/2). The scores of query
    and key at two positions must be the same, whatever the order of the rows."""
    path = tmp_path / "m.gguf"
    values = write_gguf(path, model_metadata(), model_tensors(), kind="BF16")
    tensors = imported(import_gguf(path, tmp_path / "out"))
    random = np.random.default_rng(1)
    x, y = random.normal(size=HIDDEN), random.normal(size=HIDDEN)
    frequencies = 100_000.0 ** (-np.arange(HEAD_DIM // 2) * 2 / HEAD_DIM)

    def rotate(
        vector: NDArray[np.float64], position: int, pairs: list[tuple[int, int]]
    ) -> NDArray[np.float64]:
        out = vector.copy()
        for (a, b), frequency in zip(pairs, frequencies, strict=True):
            c, s = np.cos(position * frequency), np.sin(position * frequency)
            out[:, a], out[:, b] = c * vector[:, a] - s * vector[:, b], s * vector[:, a] + c * vector[:, b]
        return out

    def scores(
        q: NDArray[np.floating[Any]], k: NDArray[np.floating[Any]], pairs: list[tuple[int, int]]
    ) -> list[float]:
        queries = rotate((q.astype(np.float64) @ x).reshape(HEADS, HEAD_DIM), 7, pairs)
        keys = rotate((k.astype(np.float64) @ y).reshape(KV_HEADS, HEAD_DIM), 3, pairs)
        return [float(queries[head] @ keys[head * KV_HEADS // HEADS]) for head in range(HEADS)]

    interleaved = [(2 * j, 2 * j + 1) for j in range(HEAD_DIM // 2)]
    halves = [(j, j + HEAD_DIM // 2) for j in range(HEAD_DIM // 2)]
    for layer in range(2):
        prefix = f"model.layers.{layer}.self_attn"
        q, k = ((tensors[f"{prefix}.{n}_proj.weight"].astype(np.uint32) << 16).view(np.float32) for n in "qk")
        theirs = scores(
            values[f"blk.{layer}.attn_q.weight"], values[f"blk.{layer}.attn_k.weight"], interleaved
        )
        np.testing.assert_allclose(scores(q, k, halves), theirs, rtol=1e-9)


def test_the_config_is_what_the_metadata_says(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, model_metadata(), model_tensors())
    config = ModelConfig.from_directory(import_gguf(path, tmp_path / "out"))
    vocabulary = len(byte_level_metadata()["tokenizer.ggml.tokens"])
    assert config == ModelConfig(
        model_type="llama",
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=256,
        rope_theta=100_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_ids=(2, 0),
        pad_token_id=2,
    )
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 2}


def test_transformers_loads_the_directory_and_computes_with_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the peer of this test")
    transformers = pytest.importorskip("transformers", reason="the peer of this test")
    for architecture in ("llama", "qwen2", "qwen3"):
        path = tmp_path / f"{architecture}.gguf"
        write_gguf(path, model_metadata(architecture), model_tensors(architecture, tied=False))
        out = import_gguf(path, tmp_path / architecture)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(str(out), output_loading_info=True)
        assert not any(report.values()), report  # no missing, unexpected or mismatched tensor
        assert torch.isfinite(model(torch.tensor([[1, 5, 9]])).logits).all()


def test_progress_reaches_the_end_and_memory_stays_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, model_metadata(), model_tensors(), kind="Q8_0")
    whole = imported(import_gguf(path, tmp_path / "whole"))
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 3 * HIDDEN)  # three rows at a time
    calls: list[tuple[str, int, int]] = []
    pieces = imported(import_gguf(path, tmp_path / "pieces", progress=lambda *call: calls.append(call)))
    assert all(np.array_equal(whole[name], pieces[name]) for name in whole)
    total = sum(bits.nbytes for bits in whole.values())
    assert calls[0] == ("importing weights", 0, total) and calls[-1] == ("importing weights", total, total)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_an_existing_target_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, model_metadata(), model_tensors(seed=1))
    target = import_gguf(path, tmp_path / "out")
    before = imported(target)
    write_gguf(path, model_metadata(), model_tensors(seed=2))
    with pytest.raises(PomonaError, match="exists"):
        import_gguf(path, target)
    assert all(np.array_equal(bits, before[name]) for name, bits in imported(target).items())
    import_gguf(path, target, overwrite=True)
    assert not np.array_equal(imported(target)["model.norm.weight"], before["model.norm.weight"])


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in model_metadata().items() if key != name}


REFUSED_METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown architecture": (
        model_metadata("gemma3"),
        "architecture 'gemma3' is not supported; use a model of llama",
    ),
    "no architecture": (without("general.architecture"), r"architecture \(not named\) is not supported"),
    "an adapter": (model_metadata() | {"general.type": "adapter"}, "holds 'adapter' and not a model"),
    "a part of a split file": (model_metadata() | {"split.count": 3}, "one part of a split model"),
    "no tokenizer": (without("tokenizer.ggml.tokens"), "no tokenizer in the file"),
    "another vocabulary size": (
        model_metadata() | {"llama.vocab_size": 99},
        "vocab_size 99, .* do not agree",
    ),
    "no layer count": (without("llama.block_count"), "llama.block_count is missing"),
    "no epsilon": (without("llama.attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon is missing"),
    "a context of 0": (
        model_metadata() | {"llama.context_length": 0},
        "llama.context_length has an impossible value",
    ),
    "an infinite epsilon": (
        model_metadata() | {"llama.attention.layer_norm_rms_epsilon": np.float32(np.inf)},
        "impossible value",
    ),
    "heads per layer": (
        model_metadata() | {"llama.attention.head_count": [4, 4]},
        "head_count that differs from layer to layer",
    ),
    "5 heads for 2": (model_metadata() | {"llama.attention.head_count": 5}, "5 .*heads"),
    "partial rotary": (model_metadata() | {"llama.rope.dimension_count": 8}, "rope.dimension_count 8"),
    "yarn": (model_metadata() | {"llama.rope.scaling.type": "yarn"}, "rope.scaling.type 'yarn'"),
    "linear scaling": (
        model_metadata() | {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": np.float32(4)},
        "llama.rope.scaling.factor is in use",
    ),
    "experts": (model_metadata() | {"llama.expert_count": 8}, "llama.expert_count is in use"),
    "a sliding window": (
        model_metadata() | {"llama.attention.sliding_window": 512},
        "sliding_window is in use",
    ),
    "an unknown key": (
        model_metadata() | {"llama.logit_scale": np.float32(2)},
        "metadata llama.logit_scale is not known",
    ),
}


@pytest.mark.parametrize("case", REFUSED_METADATA)
def test_metadata_that_is_not_supported_is_refused_by_name(tmp_path: Path, case: str) -> None:
    metadata, expected = REFUSED_METADATA[case]
    path = tmp_path / "m.gguf"
    write_gguf(path, metadata, model_tensors())
    with pytest.raises(PomonaError, match=expected):
        import_gguf(path, tmp_path / "out")
    refusal(path, tmp_path / "out")


def test_metadata_of_the_wrong_type_is_refused_or_harmless(tmp_path: Path) -> None:
    """Every key in turn as a boolean, a negative number, a fraction, a text, a list, the largest number."""
    path = tmp_path / "m.gguf"
    odd = [True, np.int32(-1), 0, 1.5, "x", [1, 2], ["a", "b"], np.uint32(2**32 - 1)]
    refused = 0
    extra = {
        "general.type": "model",
        "split.count": 1,
        "llama.rope.scaling.type": "none",
        "llama.expert_count": 0,
    }
    for key in [*model_metadata(), *extra]:
        if key == "general.architecture":
            continue  # the writer takes texts only
        for value in odd:
            write_gguf(
                path,
                model_metadata() | extra | {key: value},
                {"token_embd.weight": np.zeros((300, 4), np.float32)},
            )
            try:
                with GgufFile(path) as file:
                    read_config(file, convert_tokenizer(file.metadata, path, max_length=256))
            except PomonaError as error:
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
                refused += 1
    assert refused > 150


def test_an_import_of_a_mutated_file_leaves_a_whole_directory_or_nothing(tmp_path: Path) -> None:
    path, target = tmp_path / "m.gguf", tmp_path / "models" / "out"
    target.parent.mkdir()
    write_gguf(path, model_metadata(), model_tensors(), kind="Q8_0")
    whole = path.read_bytes()
    random = np.random.default_rng(7)
    imports = 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(3):
            content[random.integers(4, len(whole))] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(content)
        try:
            import_gguf(path, target, overwrite=True)
            imports += 1
            assert ModelConfig.from_directory(target).tensor_shapes().keys() == imported(target).keys()
        except PomonaError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        assert [entry.name for entry in target.parent.iterdir()] == ["out"] * bool(imports)
    assert 10 < imports < 140


def test_a_missing_surplus_or_wrong_tensor_is_refused_by_name(tmp_path: Path) -> None:
    path, target = tmp_path / "m.gguf", tmp_path / "out"
    tensors = model_tensors()
    for name in ("token_embd.weight", "blk.1.ffn_up.weight", "output_norm.weight"):
        write_gguf(path, model_metadata(), {key: value for key, value in tensors.items() if key != name})
        assert f"tensor {name} is missing" in refusal(path, target)
    write_gguf(path, model_metadata(), tensors | {"blk.0.attn_q.weight": tensors["blk.0.attn_k.weight"]})
    assert "tensor blk.0.attn_q.weight has the shape [32, 64], [64, 64] is expected" in refusal(path, target)
    write_gguf(path, model_metadata(), tensors | {"blk.0.attn_q.bias": np.zeros(64, np.float32)})
    assert "tensor blk.0.attn_q.bias is not part of a llama model" in refusal(path, target)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, model_metadata(), model_tensors(), kind="Q4_1")
    path.write_bytes(path.read_bytes()[:-1000])
    assert "damaged or truncated GGUF file" in refusal(path, tmp_path / "out")


def test_values_that_are_no_numbers_are_refused_and_nothing_stays(tmp_path: Path) -> None:
    path, tensors = tmp_path / "m.gguf", model_tensors()
    for bad in (np.nan, np.inf, 3.4e38):  # the last one is finite in float32 and infinite in bf16
        tensors["blk.1.ffn_down.weight"][-1, -1] = bad
        write_gguf(path, model_metadata(), tensors)
        assert "tensor blk.1.ffn_down.weight holds values that are infinite" in refusal(
            path, tmp_path / "out"
        )


def llama_3_factors(factor: float, theta: float) -> NDArray[np.float32]:
    """The factors that llama.cpp's converter writes for Llama 3.1, frequency by frequency."""
    factors = []
    for j in range(HEAD_DIM // 2):
        wavelength = 2 * np.pi * theta ** (2 * j / HEAD_DIM)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_rotary_scaling_is_recovered_from_its_factors(tmp_path: Path, factor: float) -> None:
    path, theta = tmp_path / "m.gguf", 500_000.0
    metadata = model_metadata() | {"llama.rope.freq_base": np.float32(theta)}
    factors = llama_3_factors(factor, theta)
    assert 1 < len(set(factors.tolist())) < len(factors)
    write_gguf(path, metadata, model_tensors() | {"rope_freqs.weight": factors})
    config = ModelConfig.from_directory(import_gguf(path, tmp_path / "out"))
    assert config.rope_scaling == RopeScaling("llama3", factor, 1.0, 4.0, 8192)
    assert config.rope_theta == theta

    write_gguf(path, metadata, model_tensors() | {"rope_freqs.weight": factors[::-1].copy()})
    assert "no rotary scaling that pomona knows" in refusal(path, tmp_path / "other")
    write_gguf(path, metadata, model_tensors() | {"rope_freqs.weight": np.ones_like(factors)})
    assert ModelConfig.from_directory(import_gguf(path, tmp_path / "ones")).rope_scaling is None


def test_the_real_model_answers_a_question(smollm2_dir: Path) -> None:
    """Wrong rows, scales or special tokens do not survive this: greedy decoding by transformers, bf16."""
    torch = pytest.importorskip("torch", reason="the peer of this test")
    transformers = pytest.importorskip("transformers", reason="the peer of this test")
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(smollm2_dir))
    model = transformers.AutoModelForCausalLM.from_pretrained(str(smollm2_dir), dtype=torch.bfloat16)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        out = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
