"""Distillation: the loss, the teacher's tokens against transformers', and whole runs with a teacher."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pretrain_samples import settings, windows
from test_loss import Table

from pomona.errors import PomonaError
from pomona.models.random_init import random_model
from pomona.pretraining.prepare import read_prepared
from pomona.pretraining.pretrain import RunReport, pretrain
from pomona.pretraining.recipe import load_recipe
from pomona.pretraining.training import teacher as teacher_module
from pomona.pretraining.training.distillation import DistillationLoss
from pomona.pretraining.training.loss import Batch, NextTokenLoss
from pomona.pretraining.training.stage import start_processes
from pomona.pretraining.training.teacher import teach

Finished = tuple[Path, RunReport]


def batch(size: int = 6) -> Batch:
    rows = torch.as_tensor(np.stack(windows(3, length=7))) % size
    return Batch(rows[:, :-1], rows[:, 1:], torch.tensor([4, 0, 9]))


def says(index: int) -> np.ndarray:
    """A teacher of seven positions whose tokens depend on the window."""
    found: np.ndarray = (np.arange(7) * 5 + index) % 6
    return found


# --- the loss --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.9, 0.3, 1.0])
def test_it_is_the_cross_entropy_of_the_mixed_target(weight: float) -> None:
    """Against torch's cross-entropy of whole distributions q = w onehot(teacher) + (1 - w) onehot(truth)."""
    model, one = Table(6), batch()
    found = DistillationLoss(says, weight=weight, z_weight=0.0)(model, one)
    taught = torch.as_tensor(np.stack([says(index) for index in (4, 0, 9)]))
    q = weight * torch.nn.functional.one_hot(taught, 6) + (1 - weight) * torch.nn.functional.one_hot(
        one.labels_BS, 6
    )
    logits = model(one.ids_BS, False).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), q.double().flatten(0, 1))
    assert float(found.total) == pytest.approx(float(expected), rel=1e-5)


def test_the_curve_shows_the_truth_and_z_is_added() -> None:
    model, one = Table(6), batch()
    plain = NextTokenLoss(0.1)(model, one)
    found = DistillationLoss(says, weight=0.9, z_weight=0.1)(model, one)
    assert float(found.next_token) == pytest.approx(float(plain.next_token), rel=1e-6)
    parts = 0.9 * found.parts["taught"] + 0.1 * found.next_token + 0.1 * found.parts["z"]
    assert float(found.total) == pytest.approx(float(parts), rel=1e-6)


def test_a_teacher_who_says_the_truth_changes_nothing() -> None:
    model, one = Table(6), batch()
    truth = dict(zip((4, 0, 9), one.labels_BS.numpy(), strict=True))
    found = DistillationLoss(lambda index: truth[index], weight=0.9)(model, one)
    assert float(found.total) == pytest.approx(float(NextTokenLoss()(model, one).total), rel=1e-6)


def test_its_gradient_is_softmax_less_target() -> None:
    model, one = Table(6), batch()
    loss = DistillationLoss(says, weight=0.9, z_weight=0.0)
    loss(model, one).total.backward()
    taught = torch.as_tensor(np.stack([says(index) for index in (4, 0, 9)]))
    p = model.table.detach()[one.ids_BS].softmax(-1)
    target = 0.9 * torch.nn.functional.one_hot(taught, 6) + 0.1 * torch.nn.functional.one_hot(
        one.labels_BS, 6
    )
    expected = torch.zeros_like(model.table)
    for token, row in zip(one.ids_BS.flatten(), (p - target).flatten(0, 1) / p[..., 0].numel(), strict=True):
        expected[token] += row
    assert torch.allclose(model.table.grad, expected, atol=1e-6)


# --- the teacher's tokens --------------------------------------------------------------------------------


def stage_windows(finished: Finished, count: int = 30) -> Any:
    recipe = load_recipe(finished[0] / "tiny.yaml")
    stage = recipe.stages[0].model_copy(update={"tokens": count * 32, "batch": 1, "warm_up": 0})
    return read_prepared(finished[0] / "out").windows(stage, 5)


def taught(finished: Finished, cache: Path, **changes: Any) -> Any:
    options: dict[str, Any] = {"precision": "float32", "batch": 4, "processes": start_processes()}
    return teach(stage_windows(finished), finished[1].model, cache, **(options | changes))


@pytest.fixture(scope="module")
def cache(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "cache"
    taught(finished, folder)
    return folder


def test_they_are_the_likeliest_of_transformers(finished: Finished, cache: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(finished[1].model, dtype=torch.float32)
    teacher, _ = taught(finished, cache)
    data = stage_windows(finished)
    differing = 0
    for index in range(len(data)):
        with torch.no_grad():
            logits = model(torch.as_tensor(data[index][None, :-1])).logits[0]
        differing += int((teacher(index) != logits.argmax(-1).numpy()).sum())
    assert differing == 0
    assert len({int(token) for index in range(len(data)) for token in teacher(index)}) > 5


def test_a_second_run_does_not_run_the_teacher(
    finished: Finished, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(teacher_module, "build_model", never)
    teacher, mark = taught(finished, cache)
    assert teacher.missing(0, 1) == [] and len(mark) == 32


def test_an_interrupted_teacher_goes_on_where_it_stopped(
    finished: Finished, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    def stop(label: str, done: int, total: int) -> None:
        if done == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        taught(finished, tmp_path / "cache", progress=stop)
    rows = []
    whole = teacher_module.likeliest

    def counted(model: Any, rows_BS: Any, *others: Any) -> Any:
        rows.append(len(rows_BS))
        return whole(model, rows_BS, *others)

    monkeypatch.setattr(teacher_module, "likeliest", counted)
    again, _ = taught(finished, tmp_path / "cache")
    assert sum(rows) == 30 - 3 * 4
    monkeypatch.undo()
    first, _ = taught(finished, cache)
    assert all(np.array_equal(again(index), first(index)) for index in range(30))


def test_ids_beyond_the_tokenizer_are_never_said() -> None:
    class Padded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            logits = torch.arange(8.0).expand(*input_ids.shape, 8)
            return type("Out", (), {"logits": logits})

    found = teacher_module.likeliest(Padded(), np.zeros((2, 3), np.int64), 6, "float32")
    assert found.tolist() == [[5, 5, 5], [5, 5, 5]]


def test_a_teacher_with_another_tokenizer_is_refused(finished: Finished, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished[1].model, other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    with pytest.raises(PomonaError, match="the teacher has another tokenizer"):
        teach(
            stage_windows(finished),
            other,
            tmp_path / "cache",
            precision="float32",
            batch=4,
            processes=start_processes(),
        )
    assert not (tmp_path / "cache").exists()


# --- whole runs ------------------------------------------------------------------------------------------


def student(folder: Path, finished: Finished, **changes: Any) -> Path:
    """A recipe of a narrower student on the finished run's packed tokens, with its model as the teacher."""
    values = settings(tokens=8 * 32 * 6, evaluate_every=6, save_every=2)
    values["model"]["intermediate_size"] = 64
    out = finished[0] / "out"
    values["tokenizer"] = {"path": str(out / "tokenizer")}
    values["data"] = {
        "sources": {"text": {"packed": str(out / "data" / "text.train")}},
        "validation": {"text": str(out / "data" / "text.held-out")},
    }
    values["stages"][0]["distill"] = {"teacher": str(finished[1].model), "batch": 4} | changes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "student.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def distilled(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("distill")
    report = pretrain(load_recipe(student(folder, finished)), folder / "out")
    assert report is not None
    return folder, report


def test_a_run_with_a_teacher_learns_and_keeps_its_tokens(distilled: Finished) -> None:
    folder, report = distilled
    assert report.stages[0].validation_loss < np.log(320)
    assert [path.name for path in (folder / "out" / "teacher").iterdir()] == ["text-32"]


def test_interrupted_it_ends_with_the_same_bits(
    finished: Finished, distilled: Finished, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(stage: Any, point: Any) -> None:
        if point.step == 5:
            raise StoppedError

    recipe = load_recipe(student(tmp_path, finished))
    with pytest.raises(StoppedError):
        pretrain(recipe, tmp_path / "out", on_point=stop)
    again = pretrain(recipe, tmp_path / "out", resume=True)
    assert again is not None
    assert (again.model / "model.safetensors").read_bytes() == (
        distilled[1].model / "model.safetensors"
    ).read_bytes()


def test_another_teacher_in_the_same_place_is_refused(finished: Finished, tmp_path: Path) -> None:
    from pomona.models.config import ModelConfig

    moved = tmp_path / "teacher"
    shutil.copytree(finished[1].model, moved)
    recipe = load_recipe(student(tmp_path, finished, teacher=str(moved), cache="kept"))
    report = pretrain(recipe, tmp_path / "out")
    assert report is not None and (tmp_path / "kept" / "text-32").is_dir()
    config = ModelConfig.from_directory(moved)
    random_model(config, moved, seed=8, tokenizer_from=finished[1].model, overwrite=True)
    before = (report.model / "model.safetensors").read_bytes()
    with pytest.raises(PomonaError, match=r"something else.*teacher"):
        pretrain(recipe, tmp_path / "out", resume=True)
    assert (report.model / "model.safetensors").read_bytes() == before
