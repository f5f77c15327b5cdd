"""The long set: the same questions every time, as long as they say, with what is asked for in them."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from pomona.errors import PomonaError
from pomona.evaluation.generation_task import Question, Setting
from pomona.evaluation.long_context import ITEMS, KINDS, LENGTHS, NEW_TOKENS, TASKS, keys
from pomona.models.tokenizer import Tokenizer

WORDS = Setting(None)  # counts words; good enough for what does not depend on a tokenizer


def text(question: Question) -> str:
    assert not isinstance(question.prompt, str)
    return question.prompt[0]["content"]


def test_there_are_five_kinds_at_four_lengths() -> None:
    assert len(TASKS) == 5 * len(LENGTHS) == 20
    assert all(len(task.questions(WORDS)) == ITEMS for name, task in TASKS.items() if name.endswith("_1024"))


@pytest.mark.parametrize("kind", [*KINDS, "common_words"])
def test_a_set_is_the_same_every_time_and_its_items_differ(kind: str) -> None:
    task = TASKS[f"long_{kind}_1024"]
    first, again = task.questions(WORDS), task.questions(WORDS)
    assert first == again
    assert len({text(one) for one in first}) == len({one.key for one in first}) == ITEMS
    random.seed(1)  # nothing hangs on the global generator
    assert task.questions(WORDS) == first


@pytest.mark.parametrize("kind", [*KINDS, "common_words"])
def test_what_is_asked_for_stands_in_the_text(kind: str) -> None:
    for question in TASKS[f"long_{kind}_1024"].questions(WORDS)[:10]:
        body = text(question)
        for word in question.expected:
            assert re.search(rf"\b{word}\b", body)
        assert question.opening


@pytest.mark.parametrize("kind", [*KINDS, "common_words"])
@pytest.mark.parametrize("length", [1024, 4096])
def test_a_prompt_is_as_long_as_it_says_and_not_longer(kind: str, length: int, smollm2_dir: Path) -> None:
    """Prompt, answer's beginning and answer, in tokens of the model; almost all of the room is used."""
    tokenizer = Tokenizer.from_directory(smollm2_dir)
    setting = Setting(None, count=lambda text: len(tokenizer.encode(text, parse_special=False)))
    from pomona.evaluation import long_context

    for item in range(2):
        made = long_context.common_words if kind == "common_words" else None
        body, drawn = (
            made(length, item, setting) if made else long_context.haystack(kind, length, item, setting)
        )
        tokens = setting.count(body) + setting.count(drawn[0]) + setting.count(drawn[1]) + NEW_TOKENS
        low = 0.75 if kind == "common_words" else 0.95
        assert low * length <= tokens <= length, (item, tokens)


def test_a_needle_has_one_key_and_its_distractors_others() -> None:
    question = TASKS["long_niah_multikey_1024"].questions(WORDS)[0]
    codes = re.findall(r"access code of the (\S+) is (\d+)\.", text(question))
    assert len(codes) == 8 and len({key for key, _ in codes}) == 8
    [value] = question.expected
    asked = re.search(r"access code of the (\S+)\?", text(question))
    assert asked is not None and dict(codes)[asked[1]] == value


def test_the_needle_that_is_asked_for_is_not_always_the_first() -> None:
    places = set()
    for question in TASKS["long_niah_multikey_1024"].questions(WORDS):
        codes = re.findall(r"access code of the \S+ is (\d+)\.", text(question))
        places.add(codes.index(question.expected[0]))
    assert len(places) == 8


def test_a_chain_of_variables_leads_to_its_value() -> None:
    question = TASKS["long_variable_tracking_1024"].questions(WORDS)[3]
    values: dict[str, str] = {}
    for name, of, value in re.findall(r"VAR (\w+) = (?:VAR (\w+)|(\d+))\.", text(question)):
        values[name] = value or values[of]  # a variable is used only after it was set
    wanted = re.search(r"hold the value (\d+), directly", text(question))
    assert wanted is not None and len(values) == 10
    assert {name for name, value in values.items() if value == wanted[1]} == set(question.expected)


def test_common_words_are_the_most_common_ones() -> None:
    question = TASKS["long_common_words_1024"].questions(WORDS)[5]
    listed = re.findall(r"\d+\. ([a-z]+)", text(question))
    often = sorted(set(listed), key=listed.count)[-len(question.expected) :]
    assert set(often) == set(question.expected)
    rest = max(listed.count(word) for word in set(listed) - set(often))
    assert min(listed.count(word) for word in often) > 2 * rest


def test_the_score_is_the_share_of_wanted_words_whole_ones_alone() -> None:
    task = TASKS["long_niah_multivalue_1024"]
    question = Question("q", "", 1, expected=("123456", "654321"))
    answers = [["654321 and 123456."], ["1234567, 654321"], ["none"]]
    scores = [one["contained"][0] for one in task.score([question] * 3, answers)]
    assert scores == [1.0, 0.5, 0.0]


def test_a_model_of_a_shorter_context_is_told_so() -> None:
    with pytest.raises(PomonaError, match="context is too short"):
        TASKS["long_niah_single_8192"].questions(Setting(None, room=2048))
    assert TASKS["long_niah_single_8192"].questions(Setting(None, room=8192 - 96))


def test_keys_are_different_ones() -> None:
    assert len(set(keys(random.Random(0), 100))) == 100
