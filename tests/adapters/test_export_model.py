"""A model with its adapters for other engines: what is written computes what our runtime computes."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_samples import TINY, adapter_for, edit_weights, peft_adapter, tiny_model
from numpy.typing import NDArray

from pomona.adapters.export_model import ExportedModel, export_model, vllm_command
from pomona.adapters.store import list_adapters
from pomona.compression.compress import compress
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.palettized import describe
from pomona.runtime.adapters import load_adapter
from pomona.runtime.engine import Engine

MEAN_KL, MEAN_KL_PACKED = 1e-4, 1e-3  # as in tests/runtime/test_parity.py


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small compressed model with two adapters and a recovery adapter."""
    folder = tmp_path_factory.mktemp("packed")
    model = folder / "tiny-4bit"
    compress(tiny_model(folder / "tiny"), model, calibration="none", table_columns=64)
    for seed, (name, rank) in enumerate({"recovery": 16, "summarize": 4, "rewrite": 9}.items()):
        adapter_for(model, model / "adapters" / name, seed=seed, rank=rank, lora_dropout=0.0)
    return model


@pytest.fixture(scope="module")
def exported(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    return export_model(packed, tmp_path_factory.mktemp("exported") / "server")


@pytest.fixture
def model(packed: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(packed, tmp_path / packed.name))


def our_logits(directory: Path, adapter: str | None, ids: Sequence[int]) -> NDArray[np.float32]:
    engine = Engine.load(directory, threads=1)
    loaded = None if adapter is None else load_adapter(engine, directory / "adapters" / adapter)
    logits = np.empty((len(ids), engine.config.vocab_size), np.float32)
    with engine.new_sequence(loaded) as sequence:
        engine.native.logits(sequence.handle, np.asarray(ids, np.int32), logits)
    return logits


def their_logits(directory: Path, adapter: str | None, ids: Sequence[int]) -> NDArray[np.float32]:
    """transformers and PEFT in float32, from the directory alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(directory / "adapters" / adapter))
    with torch.no_grad():
        logits: NDArray[np.float32] = model.eval()(torch.tensor([list(ids)])).logits[0].numpy()
    return logits


def mean_kl(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
        shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return result

    p, q = log_softmax(reference), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def numbers(config: ModelConfig, count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(1).integers(0, config.vocab_size, count)]


class TestWhatIsWritten:
    def test_a_plain_model_and_every_adapter_as_a_peft_directory(self, exported: ExportedModel) -> None:
        assert exported.name == "tiny-4bit"
        assert exported.adapters == {"recovery": 16, "rewrite": 9, "summarize": 4}
        config = json.loads((exported.directory / "config.json").read_text())
        assert "quantization_config" not in config
        folders = {path.name: path for path in (exported.directory / "adapters").iterdir()}
        assert set(folders) == set(exported.adapters)
        for folder in folders.values():
            assert (folder / "adapter_model.safetensors").is_file()
            assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"

    def test_pomona_loads_it_with_its_adapters(self, exported: ExportedModel, packed: Path) -> None:
        found = list_adapters(exported.directory)
        assert [adapter.problem for adapter in found] == [None] * 3
        assert describe(exported.directory).fingerprint != describe(packed).fingerprint

    @pytest.mark.parametrize("adapter", [None, "recovery", "summarize", "rewrite"])
    def test_transformers_and_peft_compute_the_same(
        self, exported: ExportedModel, packed: Path, adapter: str | None
    ) -> None:
        ids = numbers(TINY, 60)
        theirs = their_logits(exported.directory, adapter, ids)
        assert mean_kl(theirs, our_logits(exported.directory, adapter, ids)) < MEAN_KL
        assert mean_kl(theirs, our_logits(packed, adapter, ids)) < MEAN_KL_PACKED
        other = "rewrite" if adapter != "rewrite" else None
        assert mean_kl(theirs, our_logits(packed, other, ids)) > 10 * MEAN_KL_PACKED  # the check can fail

    @pytest.mark.slow
    def test_the_real_model_too(self, smollm2_4bit_dir: Path, tmp_path: Path) -> None:
        from benchmarks.adapter_files import RandomAdapter
        from benchmarks.servers import linked_model
        from pomona.models.tokenizer import Tokenizer

        model = linked_model(smollm2_4bit_dir, tmp_path / smollm2_4bit_dir.name)
        config = ModelConfig.from_directory(model)
        for number in range(2):
            RandomAdapter(config, number).write_peft(model / "adapters" / str(number))
        exported = export_model(model, tmp_path / "server")
        text = "The cellar keeps apples through the winter, if it is dry and nobody forgets the door." * 4
        ids = Tokenizer.from_directory(model).encode(text)
        for adapter in (None, "0", "1"):
            theirs = their_logits(exported.directory, adapter, ids)
            plain, compressed = (our_logits(m, adapter, ids) for m in (exported.directory, model))
            lost = {"16 bit": mean_kl(theirs, plain), "compressed": mean_kl(theirs, compressed)}
            same = float((theirs.argmax(-1) == compressed.argmax(-1)).mean())
            print(f"\nadapter {adapter}: mean KL {lost}, same top token {same:.3f}")
            assert lost["16 bit"] < MEAN_KL
            assert lost["compressed"] < 2 * MEAN_KL_PACKED  # activations of 8 bits, adapters that are strong
            assert same > 0.95


class TestChoosing:
    def test_some_adapters_and_always_the_recovery_adapter(self, packed: Path, tmp_path: Path) -> None:
        assert export_model(packed, tmp_path / "s", names=["rewrite"]).adapters == {
            "recovery": 16,
            "rewrite": 9,
        }
        assert export_model(packed, tmp_path / "n", names=[]).adapters == {"recovery": 16}

    def test_a_model_without_adapters(self, tmp_path: Path) -> None:
        exported = export_model(tiny_model(tmp_path / "tiny"), tmp_path / "server")
        assert exported.adapters == {}
        assert not (exported.directory / "adapters").exists()

    def test_an_unknown_adapter_is_refused_by_name_before_anything_is_written(
        self, packed: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(PomonaError, match="has no adapter translate"):
            export_model(packed, tmp_path / "s", names=["translate"])
        assert list(tmp_path.iterdir()) == []

    def test_an_adapter_that_the_runtime_would_refuse_is_not_handed_on(
        self, model: Path, tmp_path: Path
    ) -> None:
        edit_weights(model / "adapters" / "summarize", float("nan"))
        with pytest.raises(PomonaError, match="not finite"):
            export_model(model, tmp_path / "s")
        shutil.rmtree(model / "adapters" / "summarize")
        peft_adapter(model / "adapters" / "summarize", record={"version": 1, "base_fingerprint": "other"})
        with pytest.raises(PomonaError, match="was made for base other"):
            export_model(model, tmp_path / "s")
        assert not (tmp_path / "s").exists()

    def test_what_is_there_is_replaced_on_demand_alone(self, packed: Path, tmp_path: Path) -> None:
        tiny_model(tmp_path / "s")
        with pytest.raises(PomonaError, match="already exists"):
            export_model(packed, tmp_path / "s")
        export_model(packed, tmp_path / "s", overwrite=True)
        assert (tmp_path / "s" / "adapters" / "rewrite").is_dir()


class TestCommand:
    def test_vllm_serves_the_ids_of_our_server(self, exported: ExportedModel) -> None:
        words = shlex.split(vllm_command(exported))
        assert words[:3] == ["vllm", "serve", str(exported.directory)]
        assert words[words.index("--served-model-name") + 1] == "tiny-4bit:base"
        assert words[words.index("--max-lora-rank") + 1] == "16"
        modules = dict(word.split("=") for word in words[words.index("--lora-modules") + 1 :])
        assert set(modules) == {"tiny-4bit", *(f"tiny-4bit:{name}" for name in exported.adapters)}
        assert modules["tiny-4bit"] == modules["tiny-4bit:recovery"]  # what runs by default
        for name, path in modules.items():
            assert Path(path, "adapter_config.json").is_file(), name

    def test_without_a_recovery_adapter_the_plain_name_is_the_base(self, tmp_path: Path) -> None:
        words = shlex.split(vllm_command(ExportedModel(tmp_path, "small", {"summarize": 20})))
        at = words.index("--served-model-name")
        assert words[at + 1 : at + 3] == ["small", "small:base"]
        assert words[words.index("--max-lora-rank") + 1] == "32"
        assert "--enable-lora" not in vllm_command(ExportedModel(tmp_path, "small", {}))

    def test_a_rank_that_vllm_does_not_take_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(PomonaError, match="rank 600, vLLM takes at most 512"):
            vllm_command(ExportedModel(tmp_path, "small", {"big": 600}))
