"""IFEval's checks on the given prompts, and its four measures."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from pomona.errors import PomonaError
from pomona.evaluation.ifeval import MEASURES, evaluate, loose_variants, read_cases

ROWS = [
    {"key": 1, "prompt": "No comma.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "Two bullets in small letters.",
        "instruction_id_list": ["detectable_format:number_bullet_lists", "punctuation:no_comma"],
        "kwargs": [{"num_bullets": 2, "relation": None}, {}],
    },
]


def cases_file(tmp_path: Path, rows: list[Any]) -> Path:
    path = tmp_path / "input_data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_strict_and_loose_by_prompt_and_by_instruction(tmp_path: Path) -> None:
    cases = read_cases(cases_file(tmp_path, ROWS))
    result = evaluate(cases, ["Sure, here it is:\nnone", "* one, a\n* two, three"])
    assert {name: result.value(name) for name in MEASURES} == {
        "prompt_strict": 0.0,  # a comma in each
        "instruction_strict": pytest.approx(1 / 3),
        "prompt_loose": 0.5,  # without its first line the first answer has none
        "instruction_loose": pytest.approx(2 / 3),
    }
    assert result.by_instruction == {
        "detectable_format:number_bullet_lists": (1, 1),
        "punctuation:no_comma": (0, 2),
    }


def test_an_interval_holds_its_value_and_a_gain_compares_the_same_prompts(tmp_path: Path) -> None:
    cases = read_cases(cases_file(tmp_path, ROWS * 20))
    before = evaluate(cases, ["a, b"] * 40)
    after = evaluate(cases, ["a", "* a\n* b"] * 10 + ["a, b"] * 20)
    low, high = after.interval("prompt_strict")
    assert low < after.value("prompt_strict") == 0.5 < high
    gain, low, high = after.gain(before, "prompt_strict")
    assert gain == 0.5 and 0.3 < low < 0.5 < high < 0.7
    assert before.gain(before, "prompt_strict") == (0.0, 0.0, 0.0)
    with pytest.raises(PomonaError, match="different prompts"):
        after.gain(evaluate(cases[:3], ["a"] * 3), "prompt_strict")


def test_an_empty_answer_follows_nothing(tmp_path: Path) -> None:
    result = evaluate(read_cases(cases_file(tmp_path, ROWS)), ["", " "])
    assert all(result.value(name) == 0 for name in MEASURES)


def test_the_loose_measure_looks_without_the_outer_lines_and_stars() -> None:
    found = loose_variants("Sure!\n*body*\nBye")
    assert {"*body*\nBye", "Sure!\n*body*", "*body*", "body", "Sure!\nbody\nBye"} <= set(found)


@pytest.mark.parametrize(
    "row",
    [
        {**ROWS[0], "instruction_id_list": ["no:such"]},
        {**ROWS[0], "kwargs": []},
        {**ROWS[1], "kwargs": [{}, {}]},
        {**ROWS[1], "kwargs": [{"num_bullets": "2"}, {}]},
        {"key": 1},
        [],
    ],
)
def test_a_case_that_cannot_be_checked_is_refused(tmp_path: Path, row: Any) -> None:
    with pytest.raises(PomonaError, match="line 1"):
        read_cases(cases_file(tmp_path, [row]))


@pytest.mark.data
def test_every_given_prompt_can_be_checked() -> None:
    cases = read_cases(Path(os.environ["POMONA_DATA"]) / "ifeval" / "input_data.jsonl")
    names = [one.name for case in cases for one in case.instructions]
    assert len(cases) == 541 and len(names) == 834 and len(set(names)) == 25
    by_hand = {
        "1001": ("Thou shalt sail to Edo at dawn.", "First, we sail."),
        "1019": ("are two young boys playing with toy guns and horns?", "Are they?"),
        "102": ("* Hi\n* Ho\n* Bye", "* Hi\n* Ho"),
    }
    for case in cases:
        if case.key in by_hand:
            good, bad = by_hand.pop(case.key)
            assert all(one.followed(good) for one in case.instructions)
            assert not all(one.followed(bad) for one in case.instructions)
    assert not by_hand


PIECES = [
    "hello world", "* point one", "- point two", "*star*", "**bold text**", "<<A title>>", "P.S. more",
    "P.P.S more", "p.s. x", "[name]", "[a b]", "SECTION 1", "Section 2", "PARAGRAPH 1", "***", "******",
    "\n\n", "\n", '{"a": 1}', "```json\n[1,2]\n```", '"quoted"', ", and", "My answer is yes.", "THE END",
    "weekend", "president", "story story", "I'm fine.",
]  # fmt: skip
# Sentences and capital words stand on a trained splitter there, languages on another program.
APART = ("language:", "length_constraints:number_sentences", "change_case:")


def random_text(rng: random.Random) -> str:
    return rng.choice((" ", "\n")).join(rng.choices(PIECES, k=rng.randint(1, 14)))


@pytest.mark.data
def test_the_checks_agree_with_those_of_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """On texts put together at random, for every instruction of the given set that needs no foreign tool."""
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk, "download", lambda *_, **__: True)
    registry = pytest.importorskip("lm_eval.tasks.ifeval.instructions_registry").INSTRUCTION_DICT
    path = Path(os.environ["POMONA_DATA"]) / "ifeval" / "input_data.jsonl"
    rng = random.Random(0)
    compared = 0
    for line, case in zip(path.read_text().splitlines(), read_cases(path), strict=True):
        row = json.loads(line)
        for name, given, ours in zip(
            row["instruction_id_list"], row["kwargs"], case.instructions, strict=True
        ):
            # Theirs replaces a sign that is no letter by a letter of its own choice.
            if name.startswith(APART) or given.get("letter") in ("!", "#"):
                continue
            theirs = registry[name](name)
            theirs.build_description(**{key: value for key, value in given.items() if value})
            texts = [
                rng.choice((" ", "\n")).join(rng.choices(PIECES, k=rng.randint(1, 14))) for _ in range(6)
            ]
            texts += [f"x {value}" for value in given.values() if isinstance(value, str)]
            texts += [f"{value} x" for value in given.values() if isinstance(value, str)]
            for text in texts:
                if text.strip():
                    assert ours.followed(text) == bool(theirs.check_following(text)), (name, given, text)
                    compared += 1
    assert compared > 3000
