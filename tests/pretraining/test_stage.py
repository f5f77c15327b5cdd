"""One stage: learning, resuming to the bit, dropping steps, passes and batches, precision, other losses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretrain_samples import config_of, recipe_of, settings, windows

from pomona.errors import PomonaError
from pomona.models.safetensors_file import SafetensorsFile
from pomona.pretraining.curve import CLOCK, Point, read_curve
from pomona.pretraining.training import trainer as trainer_module
from pomona.pretraining.training.loss import Batch, Loss, NextTokenLoss
from pomona.pretraining.training.stage import CURVE, start_processes, train_stage

DATA, HELD_OUT = windows(96), windows(6, seed=1)


def run(folder: Path, values: dict[str, Any] | None = None, **others: Any) -> Path:
    recipe = recipe_of(values or settings())
    arguments: dict[str, Any] = {"windows": DATA, "validation": HELD_OUT, "identity": {"recipe": "tiny"}}
    return train_stage(
        recipe,
        recipe.stages[0],
        config_of(recipe),
        folder,
        processes=start_processes(),
        **(arguments | others),
    )


def weights(checkpoint: Path, name: str = "model.safetensors") -> dict[str, np.ndarray[Any, Any]]:
    with SafetensorsFile(checkpoint / name) as file:
        return {key: file.array(key).copy() for key in file.tensors}


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The curve without what depends on the clock."""
    rows = [asdict(point) for point in read_curve(folder / CURVE)]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def assert_same(one: Path, other: Path) -> None:
    """Curves and checkpoints equal to the bit."""
    assert timeless(one.parent) == timeless(other.parent)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of an uninterrupted run."""
    return run(tmp_path_factory.mktemp("stage") / "core")


def test_the_loss_falls_and_the_curve_tells(whole: Path) -> None:
    curve = read_curve(whole.parent / CURVE)
    assert [point.step for point in curve] == list(range(1, 13))
    assert [point.tokens for point in curve] == [256 * step for step in range(1, 13)]
    assert curve[-1].loss < curve[0].loss - 0.5
    assert curve[0].loss == pytest.approx(np.log(320), abs=0.6)  # it begins by guessing
    assert [point.step for point in curve if point.validation_loss is not None] == [6, 12]
    assert all(point.z and point.z > 1 and point.gradient_norm > 0 for point in curve)
    assert all(point.tokens_per_second and point.seconds for point in curve)
    assert curve[2].lr == 0.01 and curve[-1].lr == pytest.approx(5e-5)
    assert (whole.name, len(list(whole.parent.glob("checkpoint-*")))) == ("checkpoint-00000012", 2)


def test_the_same_run_twice_gives_the_same_bits(whole: Path, tmp_path: Path) -> None:
    assert_same(whole, run(tmp_path / "core"))


class _InterruptedError(Exception):
    pass


@pytest.mark.parametrize("at", [1, 4, 6, 11])
def test_a_run_that_was_interrupted_goes_on_to_the_same_bits(whole: Path, tmp_path: Path, at: int) -> None:
    def stop(point: Point) -> None:
        if point.step == at:
            raise _InterruptedError

    with pytest.raises(_InterruptedError):
        run(tmp_path / "core", on_point=stop)
    assert len(read_curve(tmp_path / "core" / CURVE)) == at
    assert_same(whole, run(tmp_path / "core"))


def test_a_finished_stage_is_not_run_again(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "core"
    shutil.copytree(whole.parent, copy)

    def never(point: Point) -> None:
        raise AssertionError

    assert run(copy, on_point=never) == copy / whole.name


def test_a_corrupt_checkpoint_is_an_error_and_removing_it_mends(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "core"
    shutil.copytree(whole.parent, copy)
    (copy / whole.name / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(PomonaError, match="corrupt"):
        run(copy)
    shutil.rmtree(copy / whole.name)
    assert_same(whole, run(copy))  # from the checkpoint before


def test_another_recipe_is_refused(whole: Path) -> None:
    with pytest.raises(PomonaError, match="belongs to another recipe"):
        run(whole.parent, identity={"recipe": "other"})


def test_passes_of_a_step_add_up_to_the_whole_batch(whole: Path, tmp_path: Path) -> None:
    at_once = run(tmp_path / "core", settings(micro_batch=8))
    for one, other in zip(timeless(whole.parent), timeless(at_once.parent), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
    a, b = weights(whole), weights(at_once)
    assert max(float(np.abs(a[name] - b[name]).max()) for name in a) < 2e-3


def test_activation_checkpointing_changes_no_number(whole: Path, tmp_path: Path) -> None:
    again = run(tmp_path / "core", settings(activation_checkpointing=True))
    assert_same(whole, again)


class _Spike:
    """The ordinary loss, but at one step far too large, or no number."""

    def __init__(self, first: int, last: int, factor: float) -> None:
        self.plain, self.factor = NextTokenLoss(), factor
        self.windows = range(8 * first, 8 * (last + 1))  # eight windows a step

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Loss:
        found = self.plain(model, batch)
        if int(batch.index_B[0]) not in self.windows:
            return found
        return Loss(found.total * self.factor, found.next_token, found.parts)


@pytest.mark.parametrize("factor", [1e4, float("nan"), float("inf")])
def test_a_step_with_a_gradient_of_100_or_more_is_dropped(tmp_path: Path, factor: float) -> None:
    last = run(tmp_path / "core", loss=_Spike(4, 4, factor))
    curve = read_curve(tmp_path / "core" / CURVE)
    assert [point.step for point in curve if point.dropped] == [5]
    assert not curve[4].gradient_norm < 100
    assert all(np.isfinite(tensor).all() for tensor in weights(last).values())
    states = weights(last, "optimizer.safetensors")
    assert {float(value) for name, value in states.items() if name.startswith("step/")} == {11.0}


def test_a_dropped_step_leaves_weights_and_states_alone(tmp_path: Path) -> None:
    kept = []
    for last_step in (4, 5):
        values = settings(tokens=256 * 6, save_every=1, warm_up=1) | {"keep_checkpoints": 6}
        run(tmp_path / str(last_step), values, loss=_Spike(4, last_step, 1e6))
        kept.append(tmp_path / str(last_step))
    before, during, after = (kept[1] / f"checkpoint-{step:08d}" for step in (4, 5, 6))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (before / name).read_bytes() == (during / name).read_bytes() == (after / name).read_bytes()
    assert (kept[0] / "checkpoint-00000006" / "model.safetensors").read_bytes() != (
        kept[1] / "checkpoint-00000006" / "model.safetensors"
    ).read_bytes()


def test_when_every_step_is_dropped_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "MAX_DROPPED_IN_A_ROW", 3)
    with pytest.raises(PomonaError, match="4 steps in a row; lower peak_lr"):
        run(tmp_path / "core", loss=_Spike(2, 12, 1e6))


def test_bfloat16_follows_float32(whole: Path, tmp_path: Path) -> None:
    half = run(tmp_path / "core", settings() | {"precision": "bfloat16"})
    for one, other in zip(timeless(whole.parent), timeless(half.parent), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=0.05)
    with SafetensorsFile(half / "model.safetensors") as file:
        assert {info.dtype for info in file.tensors.values()} == {"F32"}  # the weights stay whole


@pytest.mark.parametrize("kind", ["rmsprop-momentum", "adamw"])
def test_muparam_scales_what_a_step_learns(tmp_path: Path, kind: str) -> None:
    """The first update of a matrix is exactly proportional to the factor; that of a norm is not touched."""
    moved = {}
    for base in (None, 16):
        values = settings(tokens=256, save_every=1, warm_up=0, weight_decay=0.0, floor=1.0)
        values["optimizer"] = {"kind": kind, "muparam_base_width": base}
        start = run(
            tmp_path / f"{base}-start",
            settings(tokens=256, warm_up=0, peak_lr=1e-12, floor=1.0, weight_decay=0.0),
        )
        end = run(tmp_path / str(base), values)
        moved[base] = {name: weights(end)[name] - tensor for name, tensor in weights(start).items()}
    matrix, norm = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
    assert np.allclose(moved[16][matrix], moved[None][matrix] * 16 / 64, atol=1e-6)
    assert np.array_equal(moved[16][norm], moved[None][norm])
    assert np.abs(moved[None][matrix]).max() > 1e-4


class _WithScale(torch.nn.Module):
    """A loss that brings a parameter along: the logits' temperature, learnt beside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, model: torch.nn.Module, batch: Batch) -> Loss:
        logits = model(input_ids=batch.ids_BS, use_cache=False).logits.float() * self.scale
        cross = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels_BS.flatten())
        return Loss(cross, cross)


def test_a_loss_may_bring_parameters_which_are_trained_and_resumed(tmp_path: Path) -> None:
    def interrupted(at: int) -> Callable[[Point], None]:
        def stop(point: Point) -> None:
            if point.step == at:
                raise _InterruptedError

        return stop

    one = run(tmp_path / "whole", loss=_WithScale())
    with pytest.raises(_InterruptedError):
        run(tmp_path / "core", loss=_WithScale(), on_point=interrupted(8))
    other = run(tmp_path / "core", loss=_WithScale())
    assert_same(one, other)
    scale = weights(one, "loss.safetensors")["scale"]
    assert scale != 1.0 and np.array_equal(scale, weights(other, "loss.safetensors")["scale"])


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match="no multiple of micro_batch 3"):
        run(tmp_path / "core", settings(micro_batch=3))
