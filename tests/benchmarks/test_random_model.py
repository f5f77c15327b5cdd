"""benchmarks.random_model: sound files in the shape of a preset, for us and for llama.cpp."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import random_model
from benchmarks.common import BenchmarkError
from benchmarks.random_model import make_models, missing_files, packed_directory, write_gguf, write_packed
from pomona.models.gguf_file import GgufFile
from pomona.models.palettized import dequantize_tensor, describe
from pomona.models.presets import PRESETS
from pomona.models.safetensors_file import Checkpoint
from pomona.runtime.engine import Engine

NANO = PRESETS["afm-nano"]

# A quantiser that copies: what the program calls, without llama.cpp.
STAND_IN = """
import pathlib, shutil, sys
_, module, command, folder, source, *names = sys.argv[1:]
assert (module, command) == ("benchmarks.peer", "quantize")
for name in names:
    shutil.copy(source, pathlib.Path(folder) / name)
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("random") / "nano"
    write_packed(NANO, target, 4.0)
    return target


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{STAND_IN}")
    python.chmod(0o755)
    return python


class TestPacked:
    def test_the_engine_runs_it_and_its_logits_are_those_of_a_sane_model(self, packed: Path) -> None:
        logits = Engine.load(packed, threads=1).logits([1, 2, 3, 4])
        assert np.isfinite(logits).all()
        assert 0.3 < logits.std() < 3

    def test_projections_have_four_bits_and_the_embedding_eight(self, packed: Path) -> None:
        description = describe(packed)
        formats = {tensor.format for tensor in description.tensors if "proj" in tensor.name}
        assert formats == {"palette4"}
        assert description.tensors[0].format == "int8"
        assert 4.0 < description.projection_bits_per_weight < 4.2

    @pytest.mark.parametrize("bits", [4.0, 3.5, 3.0, 2.5, 2.0])
    def test_the_layers_take_the_bits_in_turn(self, bits: float, tmp_path: Path) -> None:
        write_packed(NANO, tmp_path / "model", bits)
        weights = sum(math.prod(shape) for shape in NANO.linear_shapes().values())
        with Checkpoint(tmp_path / "model") as checkpoint:
            tensors = checkpoint.tensors
            indices = sum(t.end - t.start for name, t in tensors.items() if name.endswith("_indices"))
            colors = [tensors[f"model.layers.{i}.mlp.up_proj.weight_tables"].shape[2] for i in (0, 1)]
        assert 8 * indices == bits * weights
        assert colors == [2 ** math.ceil(bits), 2 ** math.floor(bits)]

    def test_bits_that_no_kernel_reads_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match="choose 2"):
            write_packed(NANO, tmp_path / "model", 3.7)

    def test_weights_have_a_variance_of_one_over_their_columns(self, packed: Path) -> None:
        with Checkpoint(packed) as checkpoint:
            for module in ("model.embed_tokens", "model.layers.1.mlp.down_proj"):
                weight = dequantize_tensor(checkpoint, module)
                assert weight.std() == pytest.approx(1 / math.sqrt(weight.shape[1]), rel=0.1)

    def test_the_same_seed_gives_the_same_bytes(self, packed: Path, tmp_path: Path) -> None:
        write_packed(NANO, tmp_path / "again", 4.0)
        write_packed(NANO, tmp_path / "other", 4.0, seed=1)
        first, again, other = (
            describe(path).fingerprint for path in (packed, tmp_path / "again", tmp_path / "other")
        )
        assert first == again != other


class TestGguf:
    def test_it_has_the_shape_of_the_preset(self, tmp_path: Path) -> None:
        write_gguf(NANO, tmp_path / "nano.gguf")
        with GgufFile(tmp_path / "nano.gguf") as file:
            assert file.metadata["general.architecture"] == "qwen3"
            assert file.metadata["qwen3.block_count"] == NANO.num_hidden_layers
            assert file.metadata["qwen3.attention.head_count_kv"] == NANO.num_key_value_heads
            assert file.metadata["qwen3.vocab_size"] == NANO.vocab_size
            shapes = sorted(tensor.shape for tensor in file.tensors.values())
            assert shapes == sorted(NANO.tensor_shapes().values())
            assert file.tensors["token_embd.weight"].type_name == "F16"
            assert file.tensors["blk.0.attn_q_norm.weight"].type_name == "F32"

    def test_another_architecture_is_refused(self, tmp_path: Path) -> None:
        from dataclasses import replace

        with pytest.raises(BenchmarkError, match="only llama and qwen3"):
            write_gguf(replace(NANO, model_type="qwen2"), tmp_path / "x.gguf")


class TestAll:
    def test_everything_is_made_and_the_16_bit_file_goes(
        self, peer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "made"
        make_models("afm-nano", folder, peer)
        assert sorted(path.name for path in folder.iterdir()) == [
            packed_directory(folder, "afm-nano").name,
            "q4_0_pure.gguf",
            "q4_k_m.gguf",
        ]
        assert "GB" in capsys.readouterr().out
        make_models("afm-nano", folder, peer)
        assert "everything is there" in capsys.readouterr().out

    def test_what_a_stopped_run_left_is_deleted(self, peer: Path, tmp_path: Path) -> None:
        folder = tmp_path / "made"
        make_models("afm-nano", folder, peer)
        (folder / "f16.gguf").touch()
        make_models("afm-nano", folder, peer)
        assert not (folder / "f16.gguf").exists()

    def test_an_interrupted_run_goes_on_with_what_is_missing(self, peer: Path, tmp_path: Path) -> None:
        folder = tmp_path / "made"
        make_models("afm-nano", folder, peer)
        kept = packed_directory(folder, "afm-nano") / "config.json"
        before = kept.stat().st_mtime_ns
        (folder / "q4_k_m.gguf").unlink()
        (folder / "f16.part").write_bytes(b"half a file")
        assert missing_files(folder, "afm-nano") == ["q4_k_m.gguf"]
        make_models("afm-nano", folder, peer)
        assert missing_files(folder, "afm-nano") == []
        assert kept.stat().st_mtime_ns == before
        assert not (folder / "f16.part").exists()

    def test_a_full_disk_is_noticed_before_work(
        self, peer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(random_model.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
        with pytest.raises(BenchmarkError, match="GB are free"):
            make_models("afm-nano", tmp_path / "made", peer)
        assert list((tmp_path / "made").iterdir()) == []

    def test_without_llama_cpp_it_says_what_to_run(self, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match="make bench-setup"):
            make_models("afm-nano", tmp_path / "made", tmp_path / "nothing")
