"""import_hf: a Hugging Face directory becomes a bf16 model directory, or an error names what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.import_hf import import_hf
from pomona.models.presets import preset
from pomona.models.safetensors_file import (
    Checkpoint,
    SafetensorsWriter,
    TensorSpec,
    bf16_from_float32,
    float32_from_bf16,
)

TINY = replace(preset("afm-nano"), vocab_size=256, hidden_size=64, intermediate_size=192, num_hidden_layers=2)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Tensors = dict[str, NDArray[Any]]


def random_tensors(config: ModelConfig = TINY, dtype: type = np.float32) -> Tensors:
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in config.tensor_shapes().items()}


def write_source(directory: Path, tensors: Tensors, config: ModelConfig = TINY, **changes: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**config.to_hf(), **changes}))
    (directory / "tokenizer.json").write_text('{"any": "bytes are copied"}')
    (directory / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
    (directory / "LICENSE").write_text("Be good.")
    (directory / "training_args.bin").write_text("not ours")
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    return directory


def imported(directory: Path) -> dict[str, NDArray[np.uint16]]:
    with Checkpoint(directory) as checkpoint:
        assert {info.dtype for info in checkpoint.tensors.values()} == {"BF16"}
        return {name: checkpoint.array(name) for name in checkpoint.tensors}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_are_rounded_to_bf16_and_files_copied(dtype: type, tmp_path: Path) -> None:
    tensors = random_tensors(dtype=dtype)
    write_source(tmp_path / "s", tensors)
    assert import_hf(tmp_path / "s", tmp_path / "t") == tmp_path / "t"
    assert sorted(os.listdir(tmp_path / "t")) == [
        "LICENSE",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    for name in ("LICENSE", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "t" / name).read_bytes() == (tmp_path / "s" / name).read_bytes()
    assert ModelConfig.from_directory(tmp_path / "t") == TINY
    weights = imported(tmp_path / "t")
    assert set(weights) == set(TINY.tensor_shapes())
    for name, bits in weights.items():
        np.testing.assert_array_equal(bits, bf16_from_float32(tensors[name].astype(np.float32)))


def test_bf16_is_taken_over_bit_for_bit_and_shards_are_joined(tmp_path: Path) -> None:
    write_source(tmp_path / "s", random_tensors())
    first = import_hf(tmp_path / "s", tmp_path / "first")
    bits = imported(first)
    (tmp_path / "s" / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((list(bits)[::2], list(bits)[1::2])):
        shard = f"model-{number}-of-2.safetensors"
        specs = [TensorSpec(name, "BF16", bits[name].shape) for name in names]
        with SafetensorsWriter(tmp_path / "s" / shard, specs) as writer:
            for name in names:
                writer.write(name, bits[name])
                weight_map[name] = shard
    (tmp_path / "s" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    second = import_hf(tmp_path / "s", tmp_path / "second")
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_what_was_imported_can_be_imported_again(tmp_path: Path) -> None:
    first = import_hf(write_source(tmp_path / "s", random_tensors()), tmp_path / "first")
    second = import_hf(first, tmp_path / "second")
    for name in os.listdir(first):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_transformers_computes_the_same_before_and_after(tmp_path: Path) -> None:
    """transformers is the `train` extra; the project's own test run always installs it."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    auto = transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    auto.from_config(transformers.AutoConfig.for_model(**TINY.to_hf())).bfloat16().save_pretrained(
        tmp_path / "s"
    )
    (tmp_path / "s" / "tokenizer.json").write_text("{}")
    before, after = (
        auto.from_pretrained(path) for path in (tmp_path / "s", import_hf(tmp_path / "s", tmp_path / "t"))
    )
    tokens = torch.arange(17)[None]
    assert before(tokens).logits.std() > 0.01
    assert torch.equal(before(tokens).logits, after(tokens).logits)


def test_an_output_matrix_equal_to_a_tied_embedding_is_dropped(tmp_path: Path) -> None:
    tensors = random_tensors()
    write_source(tmp_path / "s", {**tensors, HEAD: tensors[EMBEDDING]})
    assert HEAD not in imported(import_hf(tmp_path / "s", tmp_path / "t"))


def test_an_output_matrix_that_differs_from_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    tensors = random_tensors()
    other = tensors[EMBEDDING].copy()
    other[-1, -1] += 1
    write_source(tmp_path / "s", {**tensors, HEAD: other})
    with pytest.raises(PomonaError, match=r"ties 'lm_head\.weight' to the embedding, but the two differ"):
        import_hf(tmp_path / "s", tmp_path / "t")


def test_an_untied_output_matrix_is_kept(tmp_path: Path) -> None:
    config = replace(TINY, tie_word_embeddings=False)
    tensors = random_tensors(config)
    weights = imported(import_hf(write_source(tmp_path / "s", tensors, config), tmp_path / "t"))
    np.testing.assert_array_equal(weights[HEAD], bf16_from_float32(tensors[HEAD]))
    assert not ModelConfig.from_directory(tmp_path / "t").tie_word_embeddings


def test_buffers_of_rotary_frequencies_are_ignored(tmp_path: Path) -> None:
    extra = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(32, np.float32) for i in range(2)}
    write_source(
        tmp_path / "s", random_tensors() | extra | {"model.rotary_emb.inv_freq": np.ones(32, np.float32)}
    )
    assert set(imported(import_hf(tmp_path / "s", tmp_path / "t"))) == set(TINY.tensor_shapes())


def drop_one(tensors: Tensors) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def drop_layer(tensors: Tensors) -> None:
    for name in [name for name in tensors if ".layers.1." in name]:
        del tensors[name]


def add_bias(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(256, np.float32)


def reshape(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = np.ones(63, np.float32)


def transpose(tensors: Tensors) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)


def make_integers(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = np.ones(64, np.int8)


def poison(tensors: Tensors) -> None:
    tensors["model.norm.weight"][5] = np.nan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_one, "its checkpoint lacks the tensor 'model.layers.1.mlp.up_proj.weight'; get a checkpoint"),
        (drop_layer, "lacks the tensor 'model.layers.1.input_layernorm.weight' and 10 more"),
        (add_bias, "has, against its config, the tensor 'model.layers.0.self_attn.q_proj.bias'"),
        (reshape, "tensor 'model.norm.weight' is [63], by its config [64]"),
        (transpose, "tensor 'model.layers.0.mlp.up_proj.weight' is [64, 192], by its config [192, 64]"),
        (make_integers, "tensor 'model.norm.weight' is I8, only BF16, F16, F32 can be imported"),
        (poison, "tensor 'model.norm.weight' has a value that is not finite"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_tensor(
    change: Callable[[Tensors], None], words: str, tmp_path: Path
) -> None:
    tensors = random_tensors()
    change(tensors)
    write_source(tmp_path / "s", tensors)
    with pytest.raises(PomonaError) as caught:
        import_hf(tmp_path / "s", tmp_path / "t")
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "s"))
    assert os.listdir(tmp_path) == ["s"]


def test_a_directory_without_tokenizer_json_says_how_to_make_one(tmp_path: Path) -> None:
    write_source(tmp_path / "s", random_tensors())
    (tmp_path / "s" / "tokenizer.json").unlink()
    with pytest.raises(PomonaError, match=r"no tokenizer\.json; write one with transformers: AutoTokenizer"):
        import_hf(tmp_path / "s", tmp_path / "t")


def test_a_compressed_or_unsupported_model_is_refused(tmp_path: Path) -> None:
    write_source(tmp_path / "s", random_tensors(), quantization_config={"quant_method": "palettized"})
    with pytest.raises(PomonaError, match="is compressed already"):
        import_hf(tmp_path / "s", tmp_path / "t")
    write_source(tmp_path / "s", random_tensors(), quantization_config={"quant_method": "awq"})
    with pytest.raises(PomonaError, match="quantization method 'awq'"):
        import_hf(tmp_path / "s", tmp_path / "t")


def test_an_existing_target_is_refused_before_the_source_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with pytest.raises(PomonaError, match="already exists"):
        import_hf("nobody/nothing", tmp_path / "t")


def test_progress_counts_the_tensors(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    write_source(tmp_path / "s", random_tensors())
    import_hf(tmp_path / "s", tmp_path / "t", progress=lambda *call: calls.append(call))
    count = len(TINY.tensor_shapes())
    assert calls == [("import weights", done, count) for done in range(count + 1)]


# --- hub ids


def test_what_is_neither_a_directory_nor_a_hub_id_is_refused(tmp_path: Path) -> None:
    for source in ("nothing-here", "a/b/c", "https://example.org/x", "../x/y", "org/.hidden", ""):
        with pytest.raises(PomonaError, match="neither a directory nor a hub id"):
            import_hf(source, tmp_path / "t")


def test_a_hub_model_is_imported_from_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_source(tmp_path / "s", random_tensors())
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(repo_id: str, *, allow_patterns: list[str]) -> str:
        asked.append((repo_id, allow_patterns))
        return str(tmp_path / "s")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    import_hf("org/name", tmp_path / "t")
    assert set(imported(tmp_path / "t")) == set(TINY.tensor_shapes())
    ((repo_id, patterns),) = asked
    assert repo_id == "org/name"
    assert "*.safetensors" in patterns
    assert not any("bin" in pattern for pattern in patterns)  # no pickles


def test_offline_the_error_says_so(tmp_path: Path) -> None:
    """The real library, in a process that is told to stay offline, with an empty cache."""
    program = (
        "import sys\nfrom pomona.errors import PomonaError\nfrom pomona.models.import_hf import import_hf\n"
        "try:\n    import_hf('org/name', sys.argv[1])\nexcept PomonaError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "t")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
    )
    assert done.stdout.startswith(
        "org/name: is not in the local hub cache and HF_HUB_OFFLINE is set; unset it"
    )
    assert done.stdout.count("\n") == 1
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("GatedRepoError", "403", "consent to its licence"),
        ("RepositoryNotFoundError", "404", "no such model, or it is private"),
        (
            "ConnectError",
            "Name or service not known\nmore lines",
            "be downloaded (Name or service not known);",
        ),
        ("TimeoutError", "", "cannot be downloaded (TimeoutError); check the network"),
    ],
)
def test_hub_problems_are_one_line_with_advice(
    kind: str, text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> str:
        raise type(kind, (Exception,), {})(text)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(PomonaError) as caught:
        import_hf("org/name", tmp_path / "t")
    assert str(caught.value).startswith("org/name: ")
    assert words in str(caught.value)


def test_without_huggingface_hub_the_error_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PomonaError, match="pip install huggingface_hub"):
        import_hf("org/name", tmp_path / "t")


def test_the_comparison_of_tied_matrices_goes_through_all_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pomona.models.import_hf.CHUNK", 1000)
    test_an_output_matrix_that_differs_from_a_tied_embedding_is_refused(tmp_path / "a")
    test_an_output_matrix_equal_to_a_tied_embedding_is_dropped(tmp_path / "b")
    # A head in float32 equals an embedding in bfloat16 if it rounds to it.
    tensors = random_tensors()
    exact = float32_from_bf16(bf16_from_float32(tensors[EMBEDDING]))
    write_source(tmp_path / "c", {**tensors, HEAD: exact})
    assert HEAD not in imported(import_hf(tmp_path / "c", tmp_path / "t"))
