"""Training: what is learnt of a row, and a whole run on a tiny model and small data of our own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from guarded_model import small_data, tiny_model

from pomona.adapters.metadata import read_record
from pomona.errors import PomonaError
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.model import Model
from pomona.safety.guardrail import Guardrail
from pomona.safety.guardrail_data import GuardedText, training_rows
from pomona.safety.guardrail_evaluate import auroc, judged
from pomona.safety.guardrail_head import LEVELS, GuardrailHead, Prompts
from pomona.safety.guardrail_train import (
    ANSWER_TOKENS,
    INPUT_TOKENS,
    GuardrailOptions,
    encoded,
    train_guardrail,
    usable_rows,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"))


def test_of_a_row_the_verdict_alone_is_learnt(base: Path) -> None:
    tokenizer, head = Tokenizer.from_directory(base), GuardrailHead.new()
    rows = [
        GuardedText("input", "Hello.", "safe", "pomona"),
        GuardedText("output", "No.", "weapons", "pomona", "Why?"),
    ]
    prompts, tokens = Prompts(tokenizer, head.window), head.tokens(tokenizer)
    one, two = encoded(rows, tokenizer, head)
    assert tuple(one.ids) == (*prompts.of_input("Hello.")[0], tokens["safe"])
    assert tuple(two.ids) == (*prompts.of_output("Why?", "No.")[0], tokens["weapons"])
    assert one.answers == two.answers == 1 and one.learnt[-1] and two.learnt[-1]


def test_requests_are_whole_and_answers_cut(base: Path) -> None:
    tokenizer = Tokenizer.from_directory(base)
    rows = [
        GuardedText("input", "a" * (INPUT_TOKENS + 1), "safe", "dolly"),
        GuardedText("input", "a" * INPUT_TOKENS, "safe", "dolly"),
        *(GuardedText("output", "b" * 500, "safe", "dolly", f"Q{n}") for n in range(20)),
    ]
    kept = usable_rows(rows, tokenizer, GuardrailOptions())
    assert [row.text for row in kept if row.side == "input"] == ["a" * INPUT_TOKENS]
    lengths = {len(row.text) for row in kept if row.side == "output"}
    assert ANSWER_TOKENS[0] <= min(lengths) < max(lengths) <= ANSWER_TOKENS[1]


def test_a_run_learns_and_calibrates_and_writes_what_it_did(base: Path, tmp_path: Path) -> None:
    data = small_data(tmp_path / "data")
    options = GuardrailOptions(epochs=3, batch=8, lr=2e-2)
    report = train_guardrail(
        base, data, tmp_path / "guard", work=tmp_path / "work", options=options, threads=1
    )
    assert report.loss < report.start_loss and report.stopped in ("done", "early")
    record = read_record(tmp_path / "guard")
    assert record is not None and record.task == "guardrail" and record.recipe is not None
    assert record.recipe["held_out"] == ["cybercrime", "privacy_property"] and record.data
    with Model.load(str(base), threads=1) as model:
        guardrail = Guardrail.of(model, str(tmp_path / "guard"))
        for side in ("input", "output"):
            values = [guardrail.head.threshold(side, level) for level in LEVELS]  # type: ignore[arg-type]
            assert values == sorted(values, reverse=True)
        rows = [row for row in training_rows(data) if row.side == "input"][:120]
        harms = np.array([verdict.harm for verdict in judged(guardrail, rows)])
        bad = np.array([row.harmful for row in rows])
        assert auroc(harms[bad], harms[~bad]) > 0.9
    with pytest.raises(PomonaError, match="is there already"):
        train_guardrail(base, data, tmp_path / "guard", work=tmp_path / "work")


@pytest.mark.parametrize("wrong", [{"held_out": ("nonsense",)}, {"rank": 0}, {"validation": 0.9}, {"lr": -1}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(PomonaError):
        GuardrailOptions(**wrong)  # type: ignore[arg-type]


def test_a_set_that_is_missing_is_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match="advbench"):
        train_guardrail(base, tmp_path, tmp_path / "guard", work=tmp_path / "work")
