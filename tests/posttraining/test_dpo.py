"""DPO and IPO against their formulas in float64, from log-probabilities of the model itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pomona.errors import PomonaError
from pomona.models.palettized import describe
from pomona.models.tokenizer import Tokenizer
from pomona.posttraining.conversations import encode
from pomona.posttraining.dpo import PreferenceResult, preference_optimize
from pomona.posttraining.options import PreferenceOptions, SftOptions
from pomona.posttraining.preferences import Preference, PreferenceReport, Response
from pomona.posttraining.training.base import adapter_start, get_pairs, set_pairs
from pomona.posttraining.training.dpo_trainer import PreferenceExample, implicit_rewards, new_trainer
from pomona.posttraining.training.sft_trainer import new_policy
from tests.posttraining.conftest import QUICK

ROWS = [
    Preference(i, ({"role": "user", "content": f"{i} sky?"},), Response("blue"), Response("a sort of red"))
    for i in range(24)
]


def run(base: Path, target: Path, loss: str, **more: Any) -> PreferenceResult:
    start = more.pop("start", None)
    return preference_optimize(
        base,
        ROWS,
        target,
        work=target.parent / "work",
        data=PreferenceReport("p.jsonl", "", read=len(ROWS)),
        options=PreferenceOptions(loss=loss, **{**QUICK, "validation": 0.25, "epochs": 3, **more}),  # type: ignore[arg-type]
        start=start,
        threads=1,
    )


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_the_loss_is_the_papers(loss: str, tiny_dir: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(tiny_dir)
    model = new_policy(tiny_dir, SftOptions(rank=4, seed=1), None)
    sides = [encode(ROWS[0].conversation(response), tokenizer) for response in ROWS[0].responses]
    example = PreferenceExample(sides[0].prompt, sides[0].answer, sides[1].answer)
    options = PreferenceOptions(loss=loss, beta=0.3, precision="float32", rank=4)  # type: ignore[arg-type]
    trainer = new_trainer(model, [example], tokenizer, options, tmp_path)

    def log_probability(side: Any) -> tuple[float, int]:
        model.eval()
        with torch.no_grad():
            logs = model(torch.tensor([side.ids])).logits[0].double().log_softmax(-1)
        at = len(side.prompt)
        wanted = zip(range(at - 1, len(side) - 1), side.answer, strict=True)
        return sum(float(logs[place, token]) for place, token in wanted), len(side.answer)

    reference = [log_probability(side) for side in sides]
    torch.manual_seed(3)
    set_pairs(
        model, {k: (a, b + 0.05 * torch.randn(b.shape).numpy()) for k, (a, b) in get_pairs(model).items()}
    )
    policy = [log_probability(side) for side in sides]
    ratios = [p - r for (p, _), (r, _) in zip(policy, reference, strict=True)]
    assert abs(ratios[0]) > 1e-3
    if loss == "dpo":
        wanted = math.log1p(math.exp(-0.3 * (ratios[0] - ratios[1])))
    else:
        gap = ratios[0] / policy[0][1] - ratios[1] / policy[1][1]
        wanted = (gap - 1 / (2 * 0.3)) ** 2
    found = implicit_rewards(trainer, [example])
    assert found["loss"] == pytest.approx(wanted, rel=1e-4)
    assert found["margin"] == pytest.approx(0.3 * (ratios[0] - ratios[1]), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("loss", "first"), [("dpo", math.log(2)), ("ipo", 25.0)])
def test_training_begins_at_its_reference_and_learns_held_out_pairs(
    loss: str, first: float, tiny_dir: Path, tmp_path: Path
) -> None:
    found = run(tiny_dir, tmp_path / loss, loss)
    assert found.run.first["loss"] == pytest.approx(first, rel=1e-5)
    assert found.run.last["accuracy"] == 1.0 and found.run.last["margin"] > 0
    again = run(tiny_dir, tmp_path / "again", loss, start=found.directory, max_steps=1, lr=1e-6)
    assert again.run.first["loss"] == pytest.approx(
        first, rel=1e-5
    )  # the reference is the adapter it began as
    begun = adapter_start(tiny_dir, again.directory, 4, 0)
    before = adapter_start(tiny_dir, found.directory, 4, 0)
    assert begun is not None and before is not None
    for name, (_, b_NR) in begun.pairs.items():
        assert abs(b_NR - before.pairs[name][1]).max() < 1e-4
    assert describe(tiny_dir).fingerprint in (again.directory / "pomona.json").read_text()


def test_gradings_alone_are_no_pairs(tiny_dir: Path, tmp_path: Path) -> None:
    rows = [Preference(1, ROWS[0].prompt, Response("x", {"truthfulness": "good"}))]
    with pytest.raises(PomonaError, match="0 pairs can be used"):
        preference_optimize(
            tiny_dir, rows, tmp_path / "x", work=tmp_path, data=PreferenceReport("p.jsonl", ""), threads=1
        )
