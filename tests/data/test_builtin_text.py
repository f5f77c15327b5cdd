"""The built-in texts: there, clean, varied, and of the promised size."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from pomona.data import builtin_text
from pomona.data.builtin_text import calibration_prompts, demo_prompts, evaluation_text
from pomona.errors import PomonaError


def test_the_evaluation_text_has_about_two_thousand_words_of_clean_prose() -> None:
    text = evaluation_text()
    assert 2_000 <= len(text.split()) <= 2_600
    assert text.isascii(), "a typographic quote here and a plain one there would be noise in a perplexity"
    assert "\r" not in text
    assert "\t" not in text
    assert not re.search(r"[ ]\n|\n{3,}|  ", text), "stray spaces or blank lines"
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_the_evaluation_text_mixes_kinds_of_writing() -> None:
    text = evaluation_text()
    for sign in ("Subject: ", "1. ", '"I had no idea', "MIRA: ", "1.42 million", "Annual report"):
        assert sign in text


def test_there_are_sixty_four_calibration_prompts_of_many_kinds() -> None:
    prompts = calibration_prompts()
    assert len(prompts) == 64
    assert len({prompt.user for prompt in prompts}) == 64
    kinds = Counter(prompt.category for prompt in prompts)
    assert len(kinds) >= 10
    assert min(kinds.values()) >= 4
    assert {
        "explain",
        "write",
        "summarise",
        "list",
        "code",
        "arithmetic",
        "rewrite",
        "extract",
        "dialogue",
    } <= set(kinds)


def test_a_prompt_is_ready_for_a_chat_template() -> None:
    prompts = calibration_prompts()
    for prompt in prompts:
        assert prompt.messages[-1] == {"role": "user", "content": prompt.user}
        assert prompt.user == prompt.user.strip() != ""
    with_system = [prompt for prompt in prompts if prompt.system is not None]
    assert with_system
    assert with_system[0].messages[0] == {"role": "system", "content": with_system[0].system}
    assert [len(prompt.messages) for prompt in prompts if prompt.system is None] == [1] * (
        64 - len(with_system)
    )


def test_calibration_and_evaluation_share_no_passage() -> None:
    """A model calibrated on its answers to the prompts is judged on text that it has not seen."""

    def passages(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"[a-z0-9']+", text.lower())
        return {tuple(words[start : start + 6]) for start in range(len(words) - 5)}

    asked = set().union(*(passages(prompt.user) for prompt in calibration_prompts()))
    assert len(asked) > 500
    assert not asked & passages(evaluation_text())


def test_the_quickstart_has_two_questions() -> None:
    assert len(demo_prompts()) == 2
    assert all(question.strip() == question != "" for question in demo_prompts())


def test_a_missing_file_is_one_line_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin_text, "_EVALUATION_FILES", ("not_there.txt",))
    with pytest.raises(PomonaError, match=r"not_there\.txt: built-in text is missing; reinstall pomona"):
        evaluation_text()
