"""Masks on the FFN: their schedule, what they learn, and the smaller model that is cut out."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pretrain_samples import config_of, recipe_of, settings, windows, write_recipe

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.random_init import initial_values
from pomona.pretraining.curve import CLOCK, Point, read_curve
from pomona.pretraining.pretrain import RunReport, pretrain
from pomona.pretraining.pruning import budget, cut, kept_channels, prune_checkpoint, temperature
from pomona.pretraining.recipe import PruneSettings, load_recipe
from pomona.pretraining.training.loss import Batch, NextTokenLoss
from pomona.pretraining.training.model import build_model
from pomona.pretraining.training.pruning import PruningLoss

KEPT = 48
PRUNE = PruneSettings(intermediate_size=KEPT)


def values(**changes: Any) -> dict[str, Any]:
    """A stage of masks on the tiny recipe's FFN of 128, and an ordinary one after it."""
    made = settings(prune={"intermediate_size": KEPT}, **changes)
    made["stages"][0]["name"] = "masks"
    after = {"name": "core", "prune": None, "tokens": 8 * 32 * 4, "warm_up": 1, "evaluate_every": 4}
    made["stages"].append(made["stages"][0] | after)
    return made


def model_and_loss(**changes: Any) -> tuple[Any, PruningLoss, ModelConfig]:
    """A random model, and masks with random scores on it."""
    recipe = recipe_of(values(**changes))
    config = config_of(recipe)
    model = build_model(config, lambda name, shape: initial_values(name, shape, seed=1))
    loss = PruningLoss(config, recipe.stages[0], PRUNE)
    torch.nn.init.normal_(loss.scores, generator=torch.Generator().manual_seed(2))
    return model, loss, config


def batch(step: int) -> Batch:
    rows = torch.as_tensor(np.stack(windows(8)))
    return Batch(rows[:, :-1], rows[:, 1:], torch.arange(8 * step, 8 * step + 8))


# --- the schedule ----------------------------------------------------------------------------------------


def test_the_budget_falls_from_the_whole_width_to_what_is_kept() -> None:
    assert [budget(PRUNE, 128, share) for share in (0.0, 0.2, 0.4, 1.0)] == pytest.approx([128, 88, 48, 48])


def test_the_temperature_falls_by_equal_factors_to_its_end() -> None:
    found = [temperature(PRUNE, share) for share in (0.0, 0.4, 0.8, 1.0)]
    assert found == pytest.approx([0.1, math.sqrt(0.1 * 0.005), 0.005, 0.005])


def test_the_first_step_is_that_of_the_whole_model() -> None:
    model, loss, _ = model_and_loss()
    torch.nn.init.zeros_(loss.scores)
    plain = NextTokenLoss()(model, batch(0)).total.detach()
    masked = loss(model.train(), batch(0)).total.detach()
    assert float(masked) == pytest.approx(float(plain), abs=1e-6)


def test_later_steps_are_masked_and_the_last_ones_all_but_hard() -> None:
    model, loss, _ = model_and_loss(tokens=8 * 32 * 100)
    loss.gain = 1.0
    parts = [loss(model.train(), batch(step)).parts["decided"] for step in (20, 99)]
    assert parts[0] < parts[1] and parts[1] > 0.95
    soft, hard = loss.masks(99).detach(), loss.hard_masks()
    assert soft.sum(-1).tolist() == pytest.approx([KEPT, KEPT], rel=1e-5)
    assert hard.sum(-1).tolist() == [KEPT, KEPT] and float((soft - hard).abs().mean()) < 0.03


def test_scores_and_weights_are_trained_together() -> None:
    model, loss, _ = model_and_loss()
    loss.gain = 1.0
    loss(model.train(), batch(3)).total.backward()
    assert loss.scores.grad is not None and float(loss.scores.grad.abs().max()) > 0
    assert float(model.model.layers[0].mlp.up_proj.weight.grad.abs().max()) > 0


def test_recomputing_activations_changes_no_gradient() -> None:
    found = []
    for recompute in (False, True):
        model, loss, _ = model_and_loss()
        loss.gain = 1.0
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss(model.train(), batch(3)).total.backward()
        found.append(loss.scores.grad)
    assert torch.allclose(found[0], found[1], atol=1e-7)


class Toy(torch.nn.Module):
    """One "FFN" of 16 channels; the logits of the next token depend on the first four alone."""

    def __init__(self) -> None:
        super().__init__()
        mlp = torch.nn.Module()
        mlp.down_proj = torch.nn.Linear(16, 16, bias=False)
        layer = torch.nn.Module()
        layer.mlp = mlp
        self.layers = torch.nn.ModuleList([layer])
        with torch.no_grad():
            mlp.down_proj.weight.copy_(3 * torch.eye(16))

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        x = torch.nn.functional.one_hot(input_ids % 4, 16).float()
        x[..., 4:] = torch.randn(*input_ids.shape, 12, generator=torch.Generator().manual_seed(7))
        return SimpleNamespace(logits=self.layers[0].mlp.down_proj(x))


def test_channels_that_help_are_kept() -> None:
    toy = Toy().requires_grad_(False)
    stage = recipe_of(settings(tokens=8 * 32 * 60)).stages[0]
    config = replace(
        config_of(recipe_of(settings())), num_hidden_layers=1, intermediate_size=16, vocab_size=16
    )
    loss = PruningLoss(config, stage, PruneSettings(intermediate_size=4))
    optimizer = torch.optim.Adam(loss.parameters(), lr=stage.peak_lr)
    rng = torch.Generator().manual_seed(0)
    for step in range(60):
        ids = torch.randint(0, 4, (8, 32), generator=rng)
        optimizer.zero_grad()
        loss(toy.train(), Batch(ids, ids % 4, torch.arange(8 * step, 8 * step + 8))).total.backward()
        optimizer.step()
    assert kept_channels(loss.scores.detach().numpy(), 4).tolist() == [[0, 1, 2, 3]]


# --- the smaller model -----------------------------------------------------------------------------------


def test_of_equal_scores_the_first_are_kept_in_their_order() -> None:
    scores = np.array([[0, 1, 0, 1, 0], [5, 4, 3, 2, 1]], np.float32)
    assert kept_channels(scores, 3).tolist() == [[0, 1, 3], [0, 1, 2]]


def test_the_model_cut_out_computes_what_the_hard_masks_leave() -> None:
    model, loss, config = model_and_loss()
    loss(model.train(), batch(0))  # puts the masks on
    kept = kept_channels(loss.scores.detach().numpy(), KEPT)
    tensors = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    small = build_model(
        replace(config, intermediate_size=KEPT), lambda name, shape: cut(name, tensors[name], kept)
    )
    ids = batch(0).ids_BS
    with torch.no_grad():
        masked, dense = (one.eval()(input_ids=ids).logits for one in (model, small))
        whole = build_model(config, lambda name, shape: tensors[name]).eval()(input_ids=ids).logits
    assert float((masked - dense).abs().max()) < 1e-4
    assert float((masked - whole).abs().max()) > 0.05


Pruned = tuple[Path, RunReport]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    """Masks and the stage after them, run to their end."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("prune")
    report = pretrain(load_recipe(write_recipe(folder, values())), folder / "out")
    assert report is not None
    return folder, report


def test_the_run_ends_in_a_narrower_model_that_ordinary_tools_load(pruned: Pruned) -> None:
    from transformers import AutoModelForCausalLM

    from pomona.runtime.engine import Engine

    _folder, report = pruned
    assert ModelConfig.from_directory(report.model).intermediate_size == KEPT
    loaded = AutoModelForCausalLM.from_pretrained(report.model, dtype=torch.float32)
    ids = [5, 9, 13, 40, 41]
    with torch.no_grad():
        theirs = loaded(torch.tensor([ids])).logits[0].numpy()
    ours = Engine.load(report.model, threads=1).logits(ids)
    assert np.abs(ours - theirs).max() < 0.05
    assert report.sample is not None and report.stages[1].loss < report.stages[0].loss + 0.3


def test_held_out_losses_of_the_curve_are_those_of_the_model_that_is_cut_out(pruned: Pruned) -> None:
    """The next stage's first loss would hide it: so the pruned weights are judged on the same windows."""
    from pomona.models.safetensors_file import SafetensorsFile
    from pomona.pretraining.prepare import read_prepared
    from pomona.pretraining.training.loss import cross_entropy

    folder, report = pruned
    recipe = load_recipe(folder / "tiny.yaml")
    prepared = read_prepared(folder / "out")
    held_out = prepared.held_out(recipe.stages[0], recipe.seed, recipe.evaluation_windows)
    with SafetensorsFile(folder / "out" / "stages" / "masks" / "pruned" / "model.safetensors") as file:
        config = prepared.config(recipe.result(recipe.stages[0]))
        model = build_model(config, lambda name, shape: file.array(name)).eval()
    rows = torch.as_tensor(np.stack([held_out[number] for number in range(len(held_out))]))
    with torch.no_grad():
        logits = model(input_ids=rows[:, :-1]).logits
    assert float(cross_entropy(logits, rows[:, 1:])[0]) == pytest.approx(
        report.stages[0].validation_loss, abs=1e-4
    )


def test_the_record_tells_which_channels_stayed(pruned: Pruned) -> None:
    record = json.loads((pruned[0] / "out" / "stages" / "masks" / "pruned" / "pruned.json").read_text())
    assert [len(channels) for channels in record["channels"]] == [KEPT, KEPT]
    assert record["channels"][0] != record["channels"][1] and max(record["channels"][0]) < 128


class _StoppedError(Exception):
    pass


def _stop(stage: str, at: int) -> Callable[[Any, Point], None]:
    def on_point(settings: Any, point: Point) -> None:
        if (settings.name, point.step) == (stage, at):
            raise _StoppedError

    return on_point


@pytest.mark.parametrize(("stage", "at"), [("masks", 8), ("core", 2)])
def test_an_interrupted_run_ends_with_the_same_bits(
    pruned: Pruned, tmp_path: Path, stage: str, at: int
) -> None:
    folder, report = pruned
    recipe = load_recipe(write_recipe(tmp_path, values()))
    with pytest.raises(_StoppedError):
        pretrain(recipe, tmp_path / "out", on_point=_stop(stage, at))
    again = pretrain(recipe, tmp_path / "out", resume=True)
    assert again is not None
    assert (again.model / "model.safetensors").read_bytes() == (
        report.model / "model.safetensors"
    ).read_bytes()
    for name in ("masks", "core"):
        one, other = (
            [
                {key: value for key, value in asdict(point).items() if key not in CLOCK}
                for point in read_curve(where / "out" / "stages" / name / "curve.csv")
            ]
            for where in (folder, tmp_path)
        )
        assert one == other


def test_pruning_is_not_done_again_and_never_half(pruned: Pruned, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    shutil.copytree(pruned[0] / "out" / "stages" / "masks", masks)
    (checkpoint,) = (path for path in masks.glob("checkpoint-*") if path.name.endswith("12"))
    config = config_of(recipe_of(values()))
    before = (masks / "pruned" / "model.safetensors").stat().st_mtime_ns
    prune_checkpoint(checkpoint, config, PRUNE, masks / "pruned")
    assert (masks / "pruned" / "model.safetensors").stat().st_mtime_ns == before
    (masks / "pruned" / "pruned.json").write_text('{"from": {}}')
    prune_checkpoint(checkpoint, config, PRUNE, masks / "pruned")
    assert (masks / "pruned" / "model.safetensors").stat().st_mtime_ns != before
    with pytest.raises(PomonaError, match="no scores for this shape"):
        prune_checkpoint(checkpoint, replace(config, intermediate_size=64), PRUNE, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_stage_of_pruning_may_be_the_last(tmp_path: Path) -> None:
    made = values()
    del made["stages"][1]
    report = pretrain(load_recipe(write_recipe(tmp_path, made)), tmp_path / "out")
    assert report is not None and ModelConfig.from_directory(report.model).intermediate_size == KEPT
