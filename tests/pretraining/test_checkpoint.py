"""Checkpoints: what is in them, that they are whole or absent, and what is said of a damaged one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pomona.errors import PomonaError
from pomona.models.safetensors_file import SafetensorsFile
from pomona.pretraining.training import checkpoint
from pomona.pretraining.training.checkpoint import Progress, Saved
from pomona.pretraining.training.model import named_tensors
from pomona.pretraining.training.optimizer import RMSPropMomentum

IDENTITY = {"recipe": {"seed": 0, "stages": [{"peak_lr": 0.01}]}, "stage": "core"}


class Masks(torch.nn.Module):
    """A loss with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(torch.linspace(0, 1, 5))


def world(kind: str = "ours") -> tuple[torch.nn.Module, Masks, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model, masks = torch.nn.Linear(4, 3), Masks()
    parameters = [*model.parameters(), *masks.parameters()]
    optimizer = RMSPropMomentum(parameters) if kind == "ours" else torch.optim.AdamW(parameters)
    return model, masks, optimizer


def train(parts: tuple[torch.nn.Module, Masks, torch.optim.Optimizer], steps: int, seed: int = 0) -> None:
    model, masks, optimizer = parts
    for step in range(steps):
        torch.manual_seed(100 * seed + step)
        for parameter in (*model.parameters(), *masks.parameters()):
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()


def save(folder: Path, parts: Any, step: int, keep: int = 2) -> Path:
    model, masks, optimizer = parts
    return checkpoint.save(
        folder,
        Progress(step, step * 256),
        IDENTITY,
        model=named_tensors(model),
        loss=named_tensors(masks),
        optimizer=optimizer,
        keep=keep,
        main=True,
    )


@pytest.mark.parametrize("kind", ["ours", "adamw"])
def test_everything_that_a_step_depends_on_comes_back(tmp_path: Path, kind: str) -> None:
    parts = world(kind)
    train(parts, 3)
    save(tmp_path, parts, 3)
    train(parts, 4, seed=1)

    again = world(kind)
    with checkpoint.latest(tmp_path) as saved:
        assert saved is not None and saved.progress == Progress(3, 768)
        saved.check(IDENTITY)
        model, masks, optimizer = again
        with torch.no_grad():
            for name, tensor in named_tensors(model).items():
                tensor.copy_(torch.from_numpy(saved.weights()[name].copy()))
        saved.load_loss(named_tensors(masks))
        saved.load_optimizer(optimizer, named_tensors(model), named_tensors(masks))
    train(again, 4, seed=1)
    for one, other in zip(parts[:2], again[:2], strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


def test_it_is_plain_safetensors_in_float32(tmp_path: Path) -> None:
    parts = world()
    train(parts, 1)
    path = save(tmp_path, parts, 1)
    with SafetensorsFile(path / "optimizer.safetensors") as file:
        assert {info.dtype for info in file.tensors.values()} == {"F32"}
        assert set(file.tensors) == {
            f"{kind}/{name}"
            for kind in ("step", "square", "momentum")
            for name in ("weight", "bias", "loss.scores")
        }
    with SafetensorsFile(path / "model.safetensors") as file:
        assert np.array_equal(file.array("weight"), parts[0].weight.detach().numpy())  # type: ignore[union-attr]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    parts = world()
    train(parts, 1)
    for step in (1, 2, 3, 12):
        save(tmp_path, parts, step)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [
        "checkpoint-00000003",
        "checkpoint-00000012",
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "loss.safetensors"])
@pytest.mark.parametrize("damage", ["one bit", "cut short", "missing"])
def test_a_damaged_file_is_found_and_named(tmp_path: Path, name: str, damage: str) -> None:
    parts = world()
    train(parts, 1)
    path = save(tmp_path, parts, 1)
    raw = bytearray((path / name).read_bytes())
    if damage == "one bit":
        raw[-1] ^= 1
    (path / name).write_bytes(raw[:-4] if damage == "cut short" else raw)
    if damage == "missing":
        (path / name).unlink()
    with pytest.raises(PomonaError) as error:
        Saved(path)
    assert name in str(error.value) and "remove this folder to go on from the one before" in str(error.value)
    assert path.is_dir()


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"progress": {"step": 1, "surplus": 2}},
        {"files": {}},
        {"files": {"../../x": {"bytes": 1, "sha256": ""}}},
        {"files": []},
    ],
)
def test_a_damaged_state_is_found(tmp_path: Path, change: dict[str, Any]) -> None:
    parts = world()
    train(parts, 1)
    path = save(tmp_path, parts, 1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | change))
    with pytest.raises(PomonaError, match="checkpoint-00000001"):
        Saved(path)


def test_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    parts = world()
    train(parts, 1)
    save(tmp_path, parts, 1)
    other = {**IDENTITY, "recipe": {"seed": 0, "stages": [{"peak_lr": 0.02}]}}
    with checkpoint.latest(tmp_path) as saved:
        assert saved is not None
        with pytest.raises(PomonaError, match=r"recipe\.stages\.0\.peak_lr: 0\.01 -> 0\.02"):
            saved.check(other)


def test_what_a_killed_process_left_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-00000004.partial-1234").mkdir()
    with checkpoint.latest(tmp_path) as saved:
        assert saved is None
    checkpoint.remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == []
