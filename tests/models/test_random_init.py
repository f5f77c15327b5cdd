"""random_model: AFM's initialisation, reproducible, in bounded memory, as a directory that others load."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.presets import preset
from pomona.models.random_init import random_model
from pomona.models.safetensors_file import Checkpoint, bf16_from_float32, float32_from_bf16

TINY = replace(
    preset("afm-nano"), vocab_size=512, hidden_size=128, intermediate_size=320, num_hidden_layers=2
)
FAMILIES = {
    "qwen3": TINY,
    "qwen2": replace(TINY, model_type="qwen2", tie_word_embeddings=False),
    "llama": replace(TINY, model_type="llama", eos_token_ids=(1, 2), bos_token_id=3),
}


def weights(directory: Path) -> dict[str, NDArray[np.float32]]:
    with Checkpoint(directory) as checkpoint:
        return {name: float32_from_bf16(checkpoint.array(name)) for name in checkpoint.tensors}


def write_tokenizer(directory: Path, tokens: int) -> None:
    directory.mkdir()
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(tokens)}, unk_token="w0"))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text("{}")
    (directory / "unrelated.txt").touch()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_directory_holds_the_config_and_exactly_its_tensors(family: str, tmp_path: Path) -> None:
    config = FAMILIES[family]
    assert random_model(config, tmp_path / "m") == tmp_path / "m"
    assert sorted(os.listdir(tmp_path / "m")) == ["config.json", "model.safetensors"]
    assert ModelConfig.from_directory(tmp_path / "m") == config
    with Checkpoint(tmp_path / "m") as checkpoint:
        assert {name: info.shape for name, info in checkpoint.tensors.items()} == config.tensor_shapes()
        assert {info.dtype for info in checkpoint.tensors.values()} == {"BF16"}
        assert all(info.start % 64 == 0 for info in checkpoint.tensors.values())


def test_the_variance_is_1_over_fan_in_and_norms_are_1(tmp_path: Path) -> None:
    config = preset("afm-nano")
    for name, values in weights(random_model(config, tmp_path / "m")).items():
        if values.ndim == 1:
            assert (values == 1).all(), name
            continue
        # The embedding is [vocab, hidden]: by the same formula its variance is 1 / hidden, as in AFM.
        deviation = 1 / math.sqrt(values.shape[1])
        assert abs(values.std() / deviation - 1) < 5 / math.sqrt(2 * values.size), name
        assert abs(values.mean()) < 5 * deviation / math.sqrt(values.size), name
        normal = values / deviation
        assert abs(float((normal**4).mean()) - 3) < 0.2, name  # normal, not uniform or cut off


def test_norms_and_biases_can_be_made_to_matter(tmp_path: Path) -> None:
    plain = weights(random_model(FAMILIES["qwen2"], tmp_path / "plain"))
    moved = weights(random_model(FAMILIES["qwen2"], tmp_path / "moved", perturb_norms=True))
    for name, values in plain.items():
        if values.ndim == 2:
            np.testing.assert_array_equal(values, moved[name])
        elif name.endswith(".bias"):
            assert (values == 0).all()
            assert moved[name].std() > 0.3
        else:
            assert (values == 1).all()
            assert 0.5 <= moved[name].min() < 0.6 < 1.4 < moved[name].max() <= 1.5


def test_a_seed_gives_the_same_file_and_another_seed_another(tmp_path: Path) -> None:
    files = [
        (random_model(TINY, tmp_path / name, seed=seed) / "model.safetensors").read_bytes()
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    ]
    assert files[0] == files[1] != files[2]
    with pytest.raises(PomonaError, match="seed -1"):
        random_model(TINY, tmp_path / "d", seed=-1)


def test_a_tensor_depends_on_its_name_and_not_on_its_neighbours(tmp_path: Path) -> None:
    two = weights(random_model(TINY, tmp_path / "two"))
    three = weights(random_model(replace(TINY, num_hidden_layers=3), tmp_path / "three"))
    for name, values in two.items():
        np.testing.assert_array_equal(values, three[name])
    projections = [values.tobytes() for name, values in three.items() if name.endswith("q_proj.weight")]
    assert len(set(projections)) == 3


def test_values_are_the_rounded_draw_of_the_whole_tensor_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing in pieces is not visible in the result."""
    whole = (random_model(TINY, tmp_path / "whole") / "model.safetensors").read_bytes()
    monkeypatch.setattr("pomona.models.random_init.CHUNK", 1001)
    assert (random_model(TINY, tmp_path / "pieces") / "model.safetensors").read_bytes() == whole
    name = "model.layers.1.mlp.up_proj.weight"
    drawn = np.random.default_rng([0, zlib.crc32(name.encode())]).standard_normal(
        (320, 128), dtype=np.float32
    )
    expected = float32_from_bf16(bf16_from_float32(drawn * np.float32(1 / math.sqrt(128))))
    np.testing.assert_array_equal(weights(tmp_path / "whole")[name], expected)


@pytest.mark.skipif(
    sys.platform != "linux", reason="reads /proc and needs an address space limit that is obeyed"
)
def test_a_large_model_needs_little_memory(tmp_path: Path) -> None:
    """A process whose address space could not hold the embedding in float32 writes the model all the same."""
    program = f"""
        import resource
        from dataclasses import replace
        from pathlib import Path
        from pomona.models.presets import preset
        from pomona.models.random_init import random_model
        config = replace(preset("afm-nano"), vocab_size=1 << 17, hidden_size=1024, num_hidden_layers=1)
        in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        limit = in_use + 300_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        random_model(config, Path({str(tmp_path / "m")!r}))
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    # In float32 the embedding alone would take 537 MB.
    assert (tmp_path / "m" / "model.safetensors").stat().st_size > 2 * (1 << 27)


def test_without_a_tokenizer_none_is_written_and_with_one_it_is_copied(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "t", 512)
    random_model(TINY, tmp_path / "m", tokenizer_from=tmp_path / "t")
    assert sorted(os.listdir(tmp_path / "m")) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert ModelConfig.from_directory(tmp_path / "m") == TINY


def test_the_special_tokens_come_with_the_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "t", 100)
    other = replace(FAMILIES["llama"], bos_token_id=5, eos_token_ids=(6, 7), pad_token_id=None)
    (tmp_path / "t" / "config.json").write_text(json.dumps(other.to_hf()))
    config = ModelConfig.from_directory(random_model(TINY, tmp_path / "m", tokenizer_from=tmp_path / "t"))
    assert config == replace(TINY, bos_token_id=5, eos_token_ids=(6, 7), pad_token_id=None)


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "t", 513)
    with pytest.raises(PomonaError, match="has 513 tokens, the model only 512"):
        random_model(TINY, tmp_path / "m", tokenizer_from=tmp_path / "t")
    (tmp_path / "t" / "tokenizer.json").write_text("{}")
    with pytest.raises(PomonaError, match="not a usable tokenizer"):
        random_model(TINY, tmp_path / "m", tokenizer_from=tmp_path / "t")
    with pytest.raises(PomonaError, match=r"has no tokenizer\.json"):
        random_model(TINY, tmp_path / "m", tokenizer_from=tmp_path)
    assert not (tmp_path / "m").exists()


def test_an_existing_target_is_only_replaced_on_demand(tmp_path: Path) -> None:
    random_model(TINY, tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    with pytest.raises(PomonaError, match="already exists"):
        random_model(TINY, tmp_path / "m", seed=1)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    random_model(TINY, tmp_path / "m", seed=1, overwrite=True)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() != before


def test_progress_counts_the_tensors(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    random_model(TINY, tmp_path / "m", progress=lambda *call: calls.append(call))
    count = len(TINY.tensor_shapes())
    assert calls == [("random weights", done, count) for done in range(count + 1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_it_without_a_missing_or_surplus_weight(family: str, tmp_path: Path) -> None:
    """transformers is the `train` extra; the project's own test run always installs it."""
    transformers = pytest.importorskip("transformers")
    random_model(FAMILIES[family], tmp_path / "m", perturb_norms=True)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert str(model.dtype) == "torch.bfloat16"
    ours = weights(tmp_path / "m")
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(ours[name], parameter.float().detach().numpy())
