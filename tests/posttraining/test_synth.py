"""Synthetic rows: what is kept, what is dropped and counted, with authors whose answers are known."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pomona.adapters.data import read_rows
from pomona.adapters.tasks.tools import calls_of
from pomona.errors import PomonaError
from pomona.posttraining.sandbox import Limits
from pomona.posttraining.synth import Author, Different, SynthReport, write_synth
from pomona.posttraining.synth_code import CodeOptions, asserts, judge, samples, topics
from pomona.posttraining.synth_math import (
    MathOptions,
    Problem,
    final_answer,
    number_of,
    numbers,
    problems,
    read_seeds,
    reversion,
)
from pomona.posttraining.synth_tools import OWN_TOOLS, ToolOptions, cases, grounded, read_tools, similar
from tests.features.answering_helpers import AnsweringModel

SEED = Problem("Ann has 3 boxes of 4 apples and eats 2. How many are left?", Decimal(10))


def author(answer: Callable[[str], Any], technique: str = "math") -> Author:
    return Author(AnsweringModel(answer), "tester", SynthReport(technique))


def texts(row: dict[str, Any]) -> tuple[str, str]:
    return row["messages"][-2]["content"], row["messages"][-1]["content"]


# --- mathematics


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("... The answer is 72.", 72),
        ("The answer is $1,234.50", "1234.5"),
        ("The answer is 3. No: the final answer is -4.", -4),
        ("Therefore 5.", None),
        ("The answer is x.", None),
    ],
)
def test_the_last_answer_of_a_solution_is_read(text: str, value: Any) -> None:
    assert final_answer(text) == (None if value is None else Decimal(value))


def test_numbers_are_read_as_values() -> None:
    assert number_of("1,000.50") == Decimal("1000.5") and number_of("a") is None
    assert numbers("3 apples, $3.00 and 1,000; room B12") == {Decimal(3): 2, Decimal(1000): 1}


def test_a_reversed_problem_gives_the_answer_and_asks_for_a_number_that_stands_there_once() -> None:
    for seed in range(8):
        made = reversion(SEED, random.Random(seed))
        assert made is not None and made.answer in (3, 4, 2)
        assert " x " in made.question or " x." in made.question
        assert "The answer to this question is 10. What is the value of x?" in made.question
        assert (
            SEED.question == made.question.split("\n")[0].replace("x", str(made.answer), 1)
            or "boxes" in made.question
        )
    assert reversion(Problem("2 and 2?", Decimal(4)), random.Random(0)) is None


def test_only_solutions_with_the_known_answer_are_kept() -> None:
    solutions = itertools.cycle(["It is so. The answer is 10.", "Well. The answer is 11.", "No idea."])

    def answer(prompt: str) -> str:
        if prompt.startswith("Say the following"):
            return "Ann eats 2 of her 3 times 4 apples. What remains?"
        return next(solutions)

    pen = author(answer)
    options = MathOptions(kinds=("rephrase",), solutions=3, keep=2)
    kind, row = next(problems([SEED], pen, options))
    assert kind == "rephrase"
    assert texts(row) == ("Ann eats 2 of her 3 times 4 apples. What remains?", "It is so. The answer is 10.")
    assert row["source"] == "pomona synth math rephrase by tester"
    assert pen.report.asked == 4


@pytest.mark.parametrize(
    ("restated", "reason"),
    [
        ("Ann has 5 boxes of 4 apples and eats 2. What is left?", "other numbers than the seed"),
        (SEED.question.upper(), "copies the seed"),
        ("  ", "no problem was written"),
        (("cut off",), "no problem was written"),
        (PomonaError("no"), "no problem was written"),
    ],
)
def test_a_restated_problem_that_is_another_one_is_dropped_and_counted(restated: Any, reason: str) -> None:
    pen = author(lambda prompt: restated if prompt.startswith("Say") else "The answer is 10.")
    assert list(problems([SEED], pen, MathOptions(kinds=("rephrase",)))) == []
    assert pen.report.dropped["rephrase", reason] > 0


def test_evolved_problems_must_be_judged_solvable_hard_enough_and_agreed_on() -> None:
    counter = itertools.count()

    def writer(yes: str, grade: str, answers: list[str]) -> Callable[[str], str]:
        said = itertools.cycle(answers)

        def answer(prompt: str) -> str:
            if prompt.startswith("Is this"):
                return yes
            if prompt.startswith("How hard"):
                return grade
            if prompt.startswith("Make the"):
                return f"Problem {' '.join(f'w{next(counter)}' for _ in range(9))}?"
            return next(said)

        return answer

    options = MathOptions(kinds=("depth",), solutions=4, agreement=0.75)
    agreed = ["A. The answer is 7.", "B. The answer is 7.", "C. The answer is 7.0.", "D. The answer is 8."]
    _, row = next(problems([SEED], author(writer("yes", "6", agreed)), options))
    assert texts(row)[1] == "A. The answer is 7."
    for yes, grade, answers, reason in (
        ("no", "6", agreed, "judged not solvable"),
        ("yes", "2", agreed, "judged too easy"),
        ("yes", "6", ["The answer is 1.", "The answer is 2."], "the solutions do not agree"),
        ("yes", "6", ["Nobody knows."], "no solution ends with an answer"),
    ):
        pen = author(writer(yes, grade, answers))
        assert list(problems([SEED], pen, options)) == []
        assert pen.report.dropped["depth", reason] > 0


def test_seeds_are_read_in_gsm8ks_form_and_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"question": "q?", "answer": "so\\n#### 1,200"}\n{"question": "p?", "answer": 3}\n')
    assert [seed.answer for seed in read_seeds(path)] == [1200, 3]
    path.write_text('{"question": "q?", "answer": "many"}\n')
    with pytest.raises(PomonaError, match="line 1: needs a question"):
        read_seeds(path)


# --- tools


def tool_answer(prompt: str) -> str:
    if "get_weather" in prompt and prompt.startswith("A person"):
        return json.dumps({"request": "Is it raining in Oslo?", "arguments": {"city": "Oslo"}})
    if prompt.startswith("A person"):
        return json.dumps({"request": "Wake me when 7 minutes are over", "arguments": {"minutes": 7}})
    if prompt.startswith("Write one short"):
        return "Why do cats purr?"
    return "Because they are content."


def test_calls_stand_among_their_likest_tools_and_can_be_read_off_the_request() -> None:
    tools = read_tools(OWN_TOOLS)
    weather, timer = (next(t for t in tools if t.name == name) for name in ("get_weather", "set_timer"))
    assert similar(weather, tools, 1)[0].name == "get_forecast"
    pen = author(tool_answer, "tools")
    found = list(itertools.islice(cases([weather, timer], pen, ToolOptions(distractors=1), seed=3), 3))
    assert {kind for kind, _ in found} == {"single", "parallel", "none"}
    for kind, row in found:
        calls = calls_of(row["messages"][-1]["content"])
        assert len(calls) == {"single": 1, "parallel": 2, "none": 0}[kind]
        shown = json.dumps(row["messages"])
        assert "get_weather" in shown and "set_timer" in shown
    parallel = dict(found)["parallel"]
    assert "Oslo" in texts(parallel)[0] and "7 minutes" in texts(parallel)[0]


@pytest.mark.parametrize(
    ("request_text", "arguments", "reason"),
    [
        ("Is it raining in Oslo?", {"city": "Rome"}, "a value does not stand in the request"),
        ("Is it raining in Oslo?", {"town": "Oslo"}, "arguments do not obey the schema"),
        ("Call get_weather for Oslo", {"city": "Oslo"}, "the request speaks of the function"),
    ],
)
def test_a_call_that_does_not_fit_its_request_is_dropped(
    request_text: str, arguments: dict[str, Any], reason: str
) -> None:
    tools = [tool for tool in read_tools(OWN_TOOLS) if tool.name in ("get_weather", "get_forecast")]
    pen = author(lambda _: json.dumps({"request": request_text, "arguments": arguments}), "tools")
    weather = [tool for tool in tools if tool.name == "get_weather"]
    assert list(cases(weather, pen, ToolOptions(kinds=("single",)))) == []
    # Under a schema the session itself refuses what does not obey it; then the author gave nothing.
    reasons = {why for _, why in pen.report.dropped}
    assert reasons & {reason, "no request was written"}
    if reason != "arguments do not obey the schema":
        assert reasons == {reason}


def test_values_are_found_as_words_and_as_numbers() -> None:
    [tool] = [tool for tool in read_tools(OWN_TOOLS) if tool.name == "convert_currency"]
    request = "How much are 1,200 euros in Swiss francs?"
    assert grounded({"amount": 1200, "source": "Euros", "target": "swiss francs"}, tool, request)
    assert not grounded({"amount": 120, "source": "euros", "target": "francs"}, tool, request)
    assert not grounded({"amount": 1200, "source": "euro", "target": "francs"}, tool, request)


def test_a_file_of_tools_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"name": "a", "description": "b", "parameters": {}}\n' * 2)
    with pytest.raises(PomonaError, match="line 2: a second tool a"):
        read_tools(path)
    path.write_text('{"description": "b"}\n')
    with pytest.raises(PomonaError, match="line 1: is no tool"):
        read_tools(path)


# --- code


def test_execution_picks_the_candidate_that_passes_most_tests() -> None:
    codes = ["def f(x): return x", "def f(x): return 2 * x", "def f(x): return abs(2 * x)", "def f(:"]
    tests = ["assert f(1) == 2", "assert f(0) == 0", "assert f(-1) == -2"]
    assert [one.passed for one in judge(codes, tests, Limits(seconds=2))] == [1, 3, 2, 0]


def test_code_rows_come_from_questions_whose_tests_are_passed() -> None:
    names = iter(range(10_000))
    answers = itertools.cycle(
        ["```python\ndef {n}(x):\n    return x\n```", "Sure:\n```python\ndef {n}(x):\n    return 2 * x\n```"]
    )

    def answer(prompt: str) -> str:
        name = prompt.split("`")[1]
        if prompt.startswith("Write a short"):
            return f"Write `{name}` that doubles, variant {next(names)}, of w{next(names)} w{next(names)}."
        if prompt.startswith("Write 5"):
            lines = [f"assert {name}({x}) == {2 * x}" for x in (1, 2, -1)]
            return "\n".join(["```python", *lines, "print(1)", "```"])
        return next(answers).replace("{n}", name)

    pen = author(answer, "code")
    _, row = next(samples(topics(), pen, CodeOptions(candidates=2)))
    assert "return 2 * x" in texts(row)[1]
    bad = author(
        lambda p: (
            answer(p) if p.startswith(("Write a short", "Write 5")) else "```python\ndef g(): pass\n```"
        ),
        "code",
    )
    assert list(itertools.islice(samples(topics(), bad, CodeOptions(candidates=2)), 1)) == []
    assert bad.report.dropped["code", "no candidate with the function"] > 0


def test_tests_are_single_asserts_that_call_the_function() -> None:
    text = "```python\nassert f(1) == 2\nassert f(1) == 2\nassert g(1)\nassert f(\nimport os\n```"
    assert asserts(text, "f") == ["assert f(1) == 2"]
    assert len(topics()) == 71 == len(set(topics()))


# --- what they share


def test_rows_are_written_once_and_read_by_sft(tmp_path: Path) -> None:
    report = SynthReport("math")
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    other = {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]}
    out = tmp_path / "o.jsonl"
    assert write_synth(out, iter([("x", row), ("x", row), ("y", other), ("y", row)]), report, count=2) == 2
    assert report.kept == {"x": 1, "y": 1} and report.dropped["x", "repeats a row"] == 1
    assert len(read_rows(out)[0]) == 2
    with pytest.raises(PomonaError, match="is there already"):
        write_synth(out, iter([]), report, count=2)
    empty = SynthReport("math")
    empty.drop("depth", "judged too easy")
    with pytest.raises(PomonaError, match=r"no row was kept .depth: judged too easy"):
        write_synth(tmp_path / "none.jsonl", iter([]), empty, count=2)
    assert not (tmp_path / "none.jsonl").exists()


def test_texts_of_the_same_words_are_not_different() -> None:
    seen = Different(0.9)
    assert seen.add("How many apples are there in the box?")
    assert not seen.add("how many apples ARE there, in the box")
    assert seen.add("What is the way to Rome?")


def test_the_same_author_and_seed_give_the_same_rows() -> None:
    def once() -> list[Any]:
        options = MathOptions(kinds=("reversion",), solutions=1)
        # The author always answers 3: kept where x was 3.
        pen = author(lambda _: "The answer is 3.")
        return list(itertools.islice(problems([SEED], pen, options, seed=5), 3))

    assert once() == once() and len(once()) == 3
