"""muParam (simple): which tensors are scaled, by how much, and that their decay is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pomona.models.presets import preset
from pomona.pretraining.training.muparam import parameter_groups, update_factor
from pomona.pretraining.training.optimizer import RMSPropMomentum


def test_only_the_matrices_of_attention_and_ffn_are_scaled() -> None:
    shapes = preset("afm-on-device").tensor_shapes()
    scaled = {name for name in shapes if update_factor(name, 3072, 768) != 1.0}
    assert scaled == {name for name in shapes if "proj" in name}
    assert len(scaled) == 7 * 26
    assert {update_factor(name, 3072, 768) for name in scaled} == {0.25}  # the report's model


@pytest.mark.parametrize(
    ("width", "base", "factor"), [(384, 768, 1.0), (768, 768, 1.0), (8192, 768, 0.09375)]
)
def test_the_factor_never_exceeds_one(width: int, base: int, factor: float) -> None:
    assert update_factor("model.layers.0.mlp.up_proj.weight", width, base) == factor


def test_without_a_base_width_nothing_is_scaled() -> None:
    assert update_factor("model.layers.0.mlp.up_proj.weight", 3072, None) == 1.0


def test_every_parameter_is_in_one_group() -> None:
    config = replace(preset("afm-nano"), hidden_size=128)
    named = [(name, torch.nn.Parameter(torch.zeros(shape))) for name, shape in config.tensor_shapes().items()]
    groups = parameter_groups(named, 128, 64)
    assert [group["factor"] for group in groups] == [1.0, 0.5]
    assert sum(len(group["params"]) for group in groups) == len(named)
    rates = parameter_groups(named, 128, 64, lr=0.02)
    assert [group["lr"] for group in rates] == [0.02, 0.01]


def test_the_update_is_scaled_and_the_decay_is_not() -> None:
    plain, scaled = (torch.nn.Parameter(torch.full((4,), 2.0, dtype=torch.float64)) for _ in range(2))
    optimizer = RMSPropMomentum([{"params": [plain]}, {"params": [scaled], "factor": 0.25}], lr=0.1)
    for w in (plain, scaled):
        w.grad = torch.ones(4, dtype=torch.float64)
    optimizer.step()
    decayed = 2.0 * (1 - 3.16e-4)
    learnt = decayed - float(plain[0].detach())
    assert learnt == pytest.approx(0.1 * 0.05)
    assert decayed - float(scaled[0].detach()) == pytest.approx(0.25 * learnt)
