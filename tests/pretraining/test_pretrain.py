"""A whole run: what it leaves behind, who can load it, and what happens to a folder that is not empty."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pretrain_samples import settings, write_recipe

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.safetensors_file import SafetensorsFile
from pomona.pretraining.pretrain import RunReport, pretrain
from pomona.pretraining.recipe import LONG_ROPE_BASE, load_recipe

ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / ".peer" / "bin" / "python"

Finished = tuple[Path, RunReport]


def logits_of_transformers(model: Path, ids: list[int]) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert type(loaded).__name__ == "Qwen3ForCausalLM"
    with torch.no_grad():
        found: np.ndarray = loaded(torch.tensor([ids])).logits[0].numpy()
    return found


def prompt(model: Path) -> list[int]:
    from pomona.models.tokenizer import Tokenizer

    return Tokenizer.from_directory(model).encode("The sea was calm and a ship came home.\n")


def test_the_report_tells_both_stages(finished: Finished) -> None:
    folder, report = finished
    assert [(stage.name, stage.steps, stage.tokens) for stage in report.stages] == [
        ("core", 24, 6144),
        ("lengthening", 8, 2048),
    ]
    assert report.stages[0].validation_loss < np.log(320) - 1
    assert report.stages[1].validation_loss < report.stages[0].validation_loss + 0.3
    assert json.loads((folder / "out" / "report.json").read_text())["parameters"] == report.parameters
    assert report.sample is not None and report.sample.startswith("The") and len(report.sample) > 20
    for stage in ("core", "lengthening"):
        assert (folder / "out" / "stages" / stage / "curve.svg").read_text().startswith("<svg")


def test_the_model_has_the_last_stages_shape_and_the_tokenizers_tokens(finished: Finished) -> None:
    config = ModelConfig.from_directory(finished[1].model)
    assert (config.model_type, config.rope_theta) == ("qwen3", LONG_ROPE_BASE)
    assert config.vocab_size == 320 and config.eos_token_ids == (1,) and config.pad_token_id == 0


def test_it_is_the_checkpoint_rounded_to_bfloat16(finished: Finished) -> None:
    folder, report = finished
    with (
        SafetensorsFile(report.model / "model.safetensors") as model,
        SafetensorsFile(
            folder / "out" / "stages" / "lengthening" / "checkpoint-00000008" / "model.safetensors"
        ) as saved,
    ):
        assert set(model.tensors) == set(saved.tensors)
        for name in saved.tensors:
            expected = torch.tensor(saved.array(name)).to(torch.bfloat16).view(torch.uint16).numpy()
            assert np.array_equal(model.array(name), expected), name


def test_our_runtime_computes_what_transformers_computes(finished: Finished) -> None:
    from pomona.runtime.engine import Engine

    ids = prompt(finished[1].model)
    theirs = logits_of_transformers(finished[1].model, ids)
    ours = Engine.load(finished[1].model, threads=1).logits(ids)
    assert np.abs(ours - theirs).max() < 0.05
    assert np.array_equal(ours.argmax(-1), theirs.argmax(-1))


def test_it_is_imported_and_compressed(finished: Finished, tmp_path: Path) -> None:
    from pomona.compression.compress import compress
    from pomona.models.import_hf import import_hf
    from pomona.runtime.model import Model

    imported = import_hf(finished[1].model, tmp_path / "imported")
    compress(imported, tmp_path / "4bit", calibration="none", table_columns=64)
    model = Model.load(tmp_path / "4bit", threads=1)
    assert "".join(model.complete("the sea ", max_new_tokens=8))


@pytest.mark.skipif(not PEER.is_file(), reason="llama.cpp is not built (make bench-setup)")
def test_llama_cpp_loads_the_gguf_and_agrees(finished: Finished) -> None:
    """Token ids and logits, in a process of llama.cpp's environment."""
    report = finished[1]
    text = "The sea was calm and a ship came home.\n  With 12 loaves, and salt: café!"
    program = """
import json, sys
import llama_cpp, numpy
model = llama_cpp.Llama(sys.argv[1], n_ctx=256, logits_all=True, verbose=False, n_threads=1)
ids = model.tokenize(sys.argv[2].encode(), add_bos=False, special=False)
model.eval(ids)
print(json.dumps({"ids": ids, "logits": numpy.array(model.scores[:len(ids)]).tolist()}))
"""
    done = subprocess.run(
        [str(PEER), "-c", program, str(report.gguf), text],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    from pomona.models.tokenizer import Tokenizer

    assert found["ids"] == Tokenizer.from_directory(report.model).encode(text, parse_special=False)
    ours = logits_of_transformers(report.model, found["ids"])
    theirs = np.array(found["logits"])
    assert np.abs(ours - theirs).max() < 0.05
    assert (ours.argmax(-1) == theirs.argmax(-1)).mean() > 0.95


def test_a_finished_run_is_told_again_and_nothing_is_trained(finished: Finished) -> None:
    folder, report = finished
    before = (report.model / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(PomonaError, match="holds a run already; give --resume"):
        pretrain(load_recipe(folder / "tiny.yaml"), folder / "out")
    assert (report.model / "model.safetensors").stat().st_mtime_ns == before
    again = pretrain(load_recipe(folder / "tiny.yaml"), folder / "out", resume=True, gguf=True)
    assert again is not None and again.stages == report.stages


def test_a_changed_recipe_is_refused_before_anything_is_touched(finished: Finished) -> None:
    folder, _ = finished
    values = yaml.safe_load((folder / "tiny.yaml").read_text())
    values["stages"][0]["peak_lr"] = 0.02
    (folder / "changed.yaml").write_text(yaml.safe_dump(values))
    before = sorted((path, path.stat().st_mtime_ns) for path in (folder / "out").rglob("*"))
    with pytest.raises(PomonaError, match=r"another recipe \(stages\.0\.peak_lr: 0\.01 -> 0\.02\)"):
        pretrain(load_recipe(folder / "changed.yaml"), folder / "out", resume=True)
    assert sorted((path, path.stat().st_mtime_ns) for path in (folder / "out").rglob("*")) == before


def test_a_run_that_stopped_between_stages_goes_on_in_another_place(
    finished: Finished, tmp_path: Path
) -> None:
    folder, report = finished
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "out" / "stages" / "lengthening")
    again = pretrain(load_recipe(tmp_path / "copy" / "tiny.yaml"), tmp_path / "copy" / "out", resume=True)
    assert again is not None
    assert (again.model / "model.safetensors").read_bytes() == (
        report.model / "model.safetensors"
    ).read_bytes()


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "recipe", settings()))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("text")
    for options in ({}, {"restart": True}, {"resume": True}):
        with pytest.raises(PomonaError, match="holds no run"):
            pretrain(recipe, tmp_path / "out", **options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_packed_text_that_is_not_there_is_said(tmp_path: Path) -> None:
    values = settings()
    values["data"] = {"sources": {"text": {"packed": "nowhere"}}}
    values["tokenizer"] = {"path": "nothing"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(PomonaError, match=r"has no tokenizer\.json"):
        pretrain(load_recipe(tmp_path / "tiny.yaml"), tmp_path / "out")
