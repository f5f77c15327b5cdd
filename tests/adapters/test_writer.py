"""Written answers: best of several, filtered by rules, scored by how much the content explains them."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "features"))
from answering_helpers import AnsweringModel

from pomona.adapters.recipes import writer as writing
from pomona.adapters.recipes.writer import Writer, content_gain
from pomona.adapters.tasks.registry import get
from pomona.adapters.tasks.task import Request
from pomona.errors import PomonaError

REQUESTS = [Request(f"mail {n}", "one line", "e-mail") for n in range(3)]


def test_the_first_candidate_that_passes_is_taken_without_a_scorer() -> None:
    answers = itertools.cycle(["bad one", "good one", "good two", "bad two"])
    model = AnsweringModel(lambda _: next(answers))
    found = list(Writer(model, "m").write(get("summarize"), REQUESTS, lambda text, _: "good" in text))
    assert found == [(request, "good one") for request in REQUESTS]
    seeds = [generation.sampling.seed for generation in model.generations]
    assert len(seeds) == len(set(seeds)) == 12 and all(
        g.sampling.temperature == 0.7 for g in model.generations
    )


def test_contents_without_a_good_answer_are_left_out() -> None:
    def answer(prompt: str) -> str | tuple[str] | PomonaError:
        if "mail 0" in prompt:
            return PomonaError("too long")
        return ("cut off",) if "mail 1" in prompt else "fine"

    found = list(Writer(AnsweringModel(answer), "m").write(get("summarize"), REQUESTS, lambda *_: True))
    assert found == [(REQUESTS[2], "fine")]


def test_the_best_scored_answer_wins_if_it_is_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = itertools.cycle(["poor", "better", "best", "poor"])
    gains = {"poor": 0.1, "better": 0.5, "best": 0.9}
    monkeypatch.setattr(writing, "content_gain", lambda model, task, request, text: gains[text])
    pen = Writer(AnsweringModel(lambda _: next(answers)), "m", scorer=object())  # type: ignore[arg-type]
    assert list(pen.write(get("summarize"), REQUESTS[:1], lambda *_: True)) == [(REQUESTS[0], "best")]
    gains["best"] = gains["better"] = 0.2
    assert list(pen.write(get("summarize"), REQUESTS[:1], lambda *_: True)) == []


@pytest.mark.slow
def test_a_summary_of_another_mail_gains_less(smollm2_dir: Path) -> None:
    from pomona.runtime.model import Model

    task = get("summarize")
    mail = Request("Anna wants to move the meeting with Ben to Thursday at 14:00.", "one line", "e-mail")
    with Model.load(str(smollm2_dir)) as model:
        right = content_gain(model, task, mail, "Anna moves the meeting with Ben to Thursday.")
        wrong = content_gain(model, task, mail, "The garden needs water and new plants in spring.")
    assert right > 0.5 > wrong
