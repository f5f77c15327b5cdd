"""The formulas of a plan against measured small runs: FLOP, kept activations, checkpoints, parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_samples import config_of, recipe_of, settings, windows

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.presets import preset
from pomona.models.random_init import initial_values
from pomona.pretraining.flops import flop_per_token, peak_flops
from pomona.pretraining.plan import (
    REPORT_STAGES,
    PlannedStage,
    activation_bytes,
    devices,
    layer_parameters,
    memory,
    plan,
)
from pomona.pretraining.training.loss import cross_entropy
from pomona.pretraining.training.model import build_model
from pomona.pretraining.training.stage import start_processes, train_stage

SMALL = replace(
    preset("afm-nano"),
    hidden_size=128,
    intermediate_size=320,
    num_hidden_layers=3,
    num_attention_heads=3,
    num_key_value_heads=1,
    vocab_size=512,
)


def model_of(config: ModelConfig, **settings: Any) -> Any:
    return build_model(config, lambda name, shape: initial_values(name, shape, seed=0), **settings)


def loss_of(model: Any, tokens: int) -> torch.Tensor:
    ids = torch.arange(tokens + 1)[None] % 500
    return cross_entropy(model(input_ids=ids[:, :-1], use_cache=False).logits, ids[:, 1:])[0]


@pytest.mark.parametrize("tokens", [32, 96])
def test_flop_are_those_that_torch_counts(tokens: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = model_of(SMALL)
    model.set_attn_implementation("eager")  # the counter does not see into the fused kernel of the CPU
    with FlopCounterMode(display=False) as counter:
        loss_of(model, tokens).backward()
    assert counter.get_total_flops() / tokens == pytest.approx(flop_per_token(SMALL, tokens), rel=0.01)


def kept_bytes(config: ModelConfig, tokens: int, *, recompute: bool) -> float:
    """Bytes that a bfloat16 pass really keeps for its backward pass, parameters aside."""
    model = model_of(config, checkpoint_activations=recompute).to(torch.bfloat16)
    model.train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(model, tokens)
    return float(sum(size for size, _ in kept.values()))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"intermediate_size": 1024},
        {"hidden_size": 256},
        {"num_attention_heads": 6, "num_key_value_heads": 3},
    ],
)
def test_activations_are_those_that_autograd_keeps(changes: dict[str, int]) -> None:
    config = replace(SMALL, **changes)
    deeper = replace(config, num_hidden_layers=5)
    measured = kept_bytes(deeper, 256, recompute=False) - kept_bytes(config, 256, recompute=False)
    formula = activation_bytes(deeper, 256, recompute=False) - activation_bytes(config, 256, recompute=False)
    assert formula == pytest.approx(measured, rel=0.05)


def test_with_recomputation_each_block_keeps_its_input() -> None:
    deeper = replace(SMALL, num_hidden_layers=6)
    measured = kept_bytes(deeper, 256, recompute=True) - kept_bytes(SMALL, 256, recompute=True)
    formula = activation_bytes(deeper, 256, recompute=True) - activation_bytes(SMALL, 256, recompute=True)
    assert formula == pytest.approx(measured, rel=0.05)


def test_a_checkpoint_is_as_large_as_planned(tmp_path: Path) -> None:
    recipe = recipe_of(settings(tokens=256 * 4, save_every=4))
    config = config_of(recipe)
    last = train_stage(
        recipe,
        recipe.stages[0],
        config,
        tmp_path / "core",
        processes=start_processes(),
        windows=windows(32),
        validation=windows(2, seed=1),
        identity={},
    )
    size = sum(file.stat().st_size for file in last.iterdir())
    planned = plan(config, devices("H100"), [PlannedStage("core", 1024, 32)])
    assert planned.checkpoint_bytes == pytest.approx(size, rel=0.05)
    assert planned.parameters == sum(parameter.numel() for parameter in model_of(config).parameters())


def test_states_are_shared_among_devices_and_gathered_layers_are_not() -> None:
    config = preset("afm-on-device")
    few, many = (memory(config, devices(f"{n}xH100"), 4096, recompute=True) for n in (8, 64))
    assert few.states == pytest.approx(8 * many.states)
    assert many.states == pytest.approx(16 * 2.738e9 / 64, rel=1e-3)
    assert few.gathered == many.gathered and few.activations == many.activations
    assert layer_parameters(config) == pytest.approx(99.48e6, rel=1e-3)  # AFM report, section 1.4


def test_days_follow_from_the_stated_utilisation() -> None:
    one = plan(preset("afm-on-device"), devices("64xH100"), utilisation=0.4)
    core = one.stages[0]
    assert core.tokens_per_second == pytest.approx(64 * 989e12 * 0.4 / core.flop_per_token)
    assert core.days == pytest.approx(6.3e12 / core.tokens_per_second / 86_400)
    assert plan(preset("afm-on-device"), devices("128xH100"), utilisation=0.4).days == pytest.approx(
        one.days / 2
    )
    # 6 N D of the non-embedding weights and the head, plus attention: between one and two times 6 N D.
    assert 1 < core.flop_per_token / (6 * 2.738e9) < 1.5
    assert [stage.checkpoints for stage in one.stages] == [151, 24, 3]
    assert one.model_bytes == pytest.approx(5.48e9, rel=1e-3)


def test_what_does_not_fit_is_said() -> None:
    kept = plan(preset("afm-on-device"), devices("8xA100"), REPORT_STAGES, recompute=False)
    assert not kept.memory.fits
    assert plan(preset("afm-on-device"), devices("8xA100"), REPORT_STAGES[:1]).memory.fits


@pytest.mark.parametrize("text", ["64xToaster", "x", "", "0xH100", "H100x64"])
def test_devices_that_are_not_known_are_refused(text: str) -> None:
    with pytest.raises(PomonaError, match="64xH100"):
        devices(text)


@pytest.mark.parametrize("utilisation", [0.0, 1.5, float("nan")])
def test_an_impossible_utilisation_is_refused(utilisation: float) -> None:
    with pytest.raises(PomonaError, match="utilisation"):
        plan(SMALL, devices("H100"), utilisation=utilisation)


def test_a_device_is_found_by_its_full_name() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA GeForce GTX 970") is None
