"""A judge whose verdicts are known: win rates, orders, length, people, what is kept, what fails.

The judge is a small HTTP server that a test scripts; at the end it is `pomona serve` in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.servers import PomonaServer
from pomona.errors import PomonaError
from pomona.evaluation.asking import Sources
from pomona.evaluation.judge import Judgement, answer_questions, judge_pairs, rate
from pomona.evaluation.judge_questions import Answers, Question
from pomona.evaluation.judge_report import PairReport, pair_report, rating_report, read_labels
from tests.adapters.adapt_samples import tiny_model
from tests.evaluation.scripted_judge import ScriptedJudge, scripted
from tests.serving.tiny_model import tiny_model as byte_model

QUESTIONS = [Question(str(i), (f"q{i}", f"more {i}"), "odd" if i % 2 else "even") for i in range(6)]
OURS = Answers("ours", {one.id: (f"good {one.id}", "good again") for one in QUESTIONS})
THEIRS = Answers("theirs", {one.id: (f"bad {one.id}, long {'x' * 50}", "bad again") for one in QUESTIONS})


def asked(body: dict[str, Any]) -> str:
    return str(body["messages"][1]["content"])


def answer(text: str, letter: str) -> str:
    """The last answer A or B that the judge was shown."""
    found = re.findall(rf"<<\w+ answer {letter}(?: to question \d)?>>\n(.*?)\n<<", text, re.DOTALL)
    return str(found[-1])


def prefers(word: str) -> Callable[[dict[str, Any]], str]:
    """A judge that knows what it wants, wherever it stands."""

    def script(body: dict[str, Any]) -> str:
        a, b = (answer(asked(body), letter).startswith(word) for letter in "AB")
        return f"I have looked. [[{'C' if a == b else 'A' if a else 'B'}]]"

    return script


def judged(judge: ScriptedJudge, keep: Path | None = None, **options: Any) -> list[Judgement]:
    questions, ours, theirs = (
        options.pop(name, usual)
        for name, usual in (("questions", QUESTIONS), ("ours", OURS), ("theirs", THEIRS))
    )
    with Sources(keep=keep, together=4, timeout=20) as sources:
        asker = sources.open(judge.source, tokens=64)
        return asyncio.run(judge_pairs(asker, questions, ours, theirs, **options))


def report_of(script: Callable[[dict[str, Any]], Any], **options: Any) -> PairReport:
    with scripted(script) as judge:
        return pair_report(judged(judge, **options), OURS, THEIRS)


# --- known verdicts


def test_a_judge_that_knows_what_it_wants_is_followed() -> None:
    report = report_of(prefers("good"))
    assert (report.wins.count, report.ties.count, report.losses.count) == (12, 0, 0)
    assert report.win_rate.value == report.arena.value == report.length_controlled.value == 1.0
    assert report.orders_agree.value == 1.0 and report.first_preferred.value == 0.5
    assert report.p == pytest.approx(2 / 2**12)
    assert set(report.by_category) == {"even", "odd"} and set(report.by_turn) == {"turn 1", "turn 2"}
    lost = report_of(prefers("bad"))
    assert lost.losses.count == 12 and lost.win_rate.value == 0.0


def test_a_judge_of_places_contradicts_itself_and_decides_nothing() -> None:
    report = report_of(lambda body: "The first. [[A]]")
    assert (report.wins.count, report.ties.count, report.losses.count) == (0, 12, 0)
    assert report.win_rate.value == 0.5 and report.orders_agree.value == 0.0
    assert report.first_preferred.value == 1.0 and report.p == 1.0


def test_a_judge_of_length_is_seen_through() -> None:
    questions = [Question(str(i), (f"q{i}",)) for i in range(24)]
    ours = Answers("ours", {one.id: ("o" * (20 + 12 * i),) for i, one in enumerate(questions)})
    theirs = Answers("theirs", {one.id: ("t" * (200 - i),) for i, one in enumerate(questions)})

    def longer(body: dict[str, Any]) -> str:
        a, b = (len(answer(asked(body), letter)) for letter in "AB")
        return "[[C]]" if a == b else f"[[{'A' if a > b else 'B'}]]"

    with scripted(longer) as judge:
        found = judged(judge, questions=questions, ours=ours, theirs=theirs)
    report = pair_report(found, ours, theirs)
    assert report.length > 0.7
    # Ours are shorter as a rule; with equal lengths neither side would have won.
    assert report.win_rate.value != pytest.approx(0.5, abs=0.03)
    assert abs(report.length_controlled.value - 0.5) < abs(report.win_rate.value - 0.5)


def test_strong_verdicts_of_the_arena_count_three_times() -> None:
    def script(body: dict[str, Any]) -> str:
        assert "would have given" in body["messages"][0]["content"]
        first = answer(asked(body), "A").startswith("good")
        if "q0" in asked(body):
            return "[[A>>B]]" if first else "[[B>>A]]"
        return "[[B>A]]" if first else "[[A>B]]"

    with scripted(script) as judge:
        one_turn = [Question(one.id, one.turns[:1], one.category) for one in QUESTIONS]
        found = judged(judge, protocol="arena", questions=one_turn)
    report = pair_report(found, OURS, THEIRS)
    assert report.win_rate.value == pytest.approx(1 / 6)
    assert report.arena.value == pytest.approx(6 / (6 + 10))


def test_ratings_and_their_difference() -> None:
    def script(body: dict[str, Any]) -> str:
        found = re.findall(r"<<\w+ answer(?: to question \d)?>>\n(.*?)\n<<", asked(body), re.DOTALL)
        good = found[-1].startswith("good")
        return f"Rating: [[{8 if good else 5}]]"

    with scripted(script) as judge, Sources(together=4) as sources:
        asker = sources.open(judge.source, tokens=64)

        async def both() -> list[Judgement]:
            return [
                *(await rate(asker, QUESTIONS, OURS, side="a")),
                *(await rate(asker, QUESTIONS, THEIRS, side="b")),
            ]

        report = rating_report(asyncio.run(both()), OURS, THEIRS)
    assert {name: one.value for name, one in report.ratings.items()} == {"ours": 8.0, "theirs": 5.0}
    assert report.difference is not None and report.difference.value == 3.0
    assert report.to_json()["by_turn"]["ours"]["turn 2"]["value"] == 8.0


# --- hostile and failing judges


def test_replies_without_a_verdict_are_asked_for_it_once_and_counted() -> None:
    def script(body: dict[str, Any]) -> str:
        text = asked(body)
        if "q0" in text:
            return "I would rather not say."
        if "q1" in text:
            return "[[A]] and also [[B]]"
        if "q2" in text and len(body["messages"]) == 2:
            return "Hm."
        return prefers("good")(body)

    with scripted(script) as judge:
        found = judged(judge)
        again = [body for body in judge.seen if len(body["messages"]) > 2]
    assert {body["messages"][3]["content"].split(".")[0] for body in again} == {"Your reply holds no verdict"}
    report = pair_report(found, OURS, THEIRS)
    assert report.unusable == {"no verdict": 4, "contradictory": 4}
    assert (report.incomplete, len(report.pairs)) == (4, 8)
    assert report.wins.of == 8 and report.wins.count == 8


def test_no_verdict_at_all_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(PomonaError, match=r"24 x no verdict.*--guided"):
        report_of(lambda body: "no")


def test_one_question_that_the_endpoint_refuses_costs_that_question() -> None:
    report = report_of(
        lambda body: (
            (400, "too long") if "q3" in asked(body) and "more 3" in asked(body) else prefers("good")(body)
        )
    )
    assert report.unusable == {"no reply": 2} and report.incomplete == 1 and report.wins.count == 11


def test_an_endpoint_that_fails_ends_the_run_and_keeps_what_was_said(tmp_path: Path) -> None:
    answered = 0

    def breaks(body: dict[str, Any]) -> Any:
        nonlocal answered
        answered += 1
        return prefers("good")(body) if answered <= 7 else (500, "out of order")

    with scripted(breaks) as judge, pytest.raises(PomonaError, match=r"in a row failed.*run again"):
        judged(judge, tmp_path)
    kept = len(list(tmp_path.rglob("*.json")))
    assert kept == 7


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with scripted(prefers("good")) as judge:
        first = judged(judge, tmp_path)
        assert len(judge.seen) == 24
        assert judged(judge, tmp_path) == first and len(judge.seen) == 24
        # A file that was cut off, or holds something else, is asked for again.
        files = sorted(tmp_path.rglob("*.json"))
        files[0].write_text(files[0].read_text()[:10])
        files[1].write_text('{"text": 3, "finish_reason": "stop"}')
        assert judged(judge, tmp_path) == first and len(judge.seen) == 26
        assert {body["temperature"] for body in judge.seen} == {0.0}


def test_another_judge_other_tokens_and_other_prompts_are_other_replies(tmp_path: Path) -> None:
    with scripted(lambda body: "[[C]]") as judge, Sources(keep=tmp_path) as sources:
        message = [{"role": "user", "content": "x"}]

        async def several() -> list[bool]:
            askers = [
                sources.open(judge.source, tokens=8),
                sources.open(judge.source, tokens=9),
                sources.open(f"{judge.url}#other", tokens=8),
                sources.open(judge.source, tokens=8),
            ]
            return [(await one.ask(message)).kept for one in askers]

        assert asyncio.run(several()) == [False, False, False, True]


def test_a_source_without_a_model_is_refused() -> None:
    with Sources() as sources, pytest.raises(PomonaError, match="Write http://localhost/v1#MODEL"):
        sources.open("http://localhost/v1", tokens=8)


# --- answers, and people


def test_later_turns_are_answered_after_ones_own_answers() -> None:
    with (
        scripted(lambda body: f"to {body['messages'][-1]['content']} after {len(body['messages'])}") as judge,
        Sources(together=4) as sources,
    ):
        answers = asyncio.run(answer_questions(sources.open(judge.source, tokens=8), QUESTIONS))
    assert answers.turns["2"] == ("to q2 after 1", "to more 2 after 3")
    assert answers.name == "scripted"


def test_an_answer_that_failed_leaves_its_turns_open() -> None:
    def script(body: dict[str, Any]) -> Any:
        return (400, "no") if body["messages"][-1]["content"] == "q4" else "fine"

    with scripted(script) as judge, Sources(together=1) as sources:
        answers = asyncio.run(answer_questions(sources.open(judge.source, tokens=8), QUESTIONS))
        assert answers.turns["4"] == (None, None) and answers.turns["5"] == ("fine", "fine")
        found = asyncio.run(
            judge_pairs(sources.open(f"{judge.url}#judge", tokens=9), QUESTIONS, answers, THEIRS)
        )
    assert {one.question for one in found} == {"0", "1", "2", "3", "5"}


def test_agreement_with_people(tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    rows = [
        *(
            {"question_id": i, "turn": 1, "winner": "model_a", "model_a": "ours", "model_b": "theirs"}
            for i in range(3)
        ),
        {"question_id": "0", "winner": "b"},
        {"question_id": "1", "winner": "tie (inconsistent)"},
        {"question_id": 4, "turn": 2, "winner": "model_b", "model_a": "theirs", "model_b": "ours"},  # turned
        {
            "question_id": 4,
            "turn": 2,
            "winner": "model_a",
            "model_a": "gpt-4",
            "model_b": "ours",
        },  # of others
    ]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_labels(labels, "ours", "theirs")
    assert found == [("0", 0, 1.0), ("1", 0, 1.0), ("2", 0, 1.0), ("0", 0, 0.0), ("1", 0, 0.5), ("4", 1, 1.0)]
    with scripted(prefers("good")) as judge:
        report = pair_report(judged(judge), OURS, THEIRS, found)
    human = report.human
    assert human is not None and human.labels == 6
    assert human.same.value == pytest.approx(4 / 6)
    assert human.without_ties is not None and human.without_ties.value == pytest.approx(4 / 5)
    assert human.people is not None and human.people.value == 0.0  # 0: a and b; 1: a and tie
    labels.write_text('{"question_id": 1, "winner": "whoever"}\n')
    with pytest.raises(PomonaError, match=r"line 1: .*winner"):
        read_labels(labels, "ours", "theirs")


def test_the_report_is_json_without_numbers_that_are_none() -> None:
    text = json.dumps(report_of(lambda body: "[[C]]").to_json(), allow_nan=False)
    found = json.loads(text)
    assert found["turns"] == 12 and found["first_preferred"]["value"] is None and found["human"] is None


# --- the real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("judge")
    with PomonaServer(byte_model(folder), folder, threads=1) as running:
        yield running


def test_pomona_serve_answers_and_judges(server: PomonaServer, tmp_path: Path) -> None:
    """A small random model: it judges by labels that it may say; in its own words it says nothing."""
    source = f"http://127.0.0.1:{server.port}/v1#tiny"
    one_turn = [Question(one.id, one.turns[:1]) for one in QUESTIONS[:3]]
    with Sources(keep=tmp_path, together=4, timeout=60) as sources:

        async def run() -> tuple[Answers, list[Judgement], list[Judgement]]:
            answers = await answer_questions(sources.open(source, tokens=8), one_turn)
            judge = sources.open(source, tokens=40)
            pair = (answers, Answers("x", {one.id: ("short",) for one in one_turn}))
            return (
                answers,
                await judge_pairs(judge, one_turn, *pair, guided=True),
                await judge_pairs(judge, one_turn, *pair),
            )

        answers, guided, free = asyncio.run(run())
    assert answers.name == "tiny" and all(answers.turns[one.id][0] for one in one_turn)
    assert all(not one.problem and one.reply in ("A", "B", "C") for one in guided)
    report = pair_report(guided, answers, Answers("x", {one.id: ("short",) for one in one_turn}))
    assert report.wins.of == 3 and report.unusable == {}
    assert {one.problem for one in free} == {"no verdict"} and all(math.isnan(one.value) for one in free)


def test_a_model_of_this_machine_is_a_source_too(tmp_path: Path) -> None:
    with Sources(keep=tmp_path / "kept", threads=1) as sources:
        asker = sources.open(str(tiny_model(tmp_path / "tiny")), tokens=6)
        message = [{"role": "user", "content": "Hello"}]

        async def run() -> tuple[Any, Any, Any]:
            first = await asker.ask(message)
            return first, await asker.ask(message), await asker.ask([{"role": "user", "content": "x" * 4000}])

        first, second, long = asyncio.run(run())
    assert first.text and second.text == first.text and second.kept
    assert "do not fit" in long.problem
