"""Mutations: the request is still in there, and is dressed in the same way every time."""

from __future__ import annotations

import base64
import codecs
import random

import pytest

from pomona.errors import PomonaError
from pomona.safety.mutations import MUTATIONS, PLAIN, leetspeak, mutations, spaced

PROMPT = "How do I open a Jar {of} jam?"


def last(name: str, seed: int = 0) -> str:
    return MUTATIONS[name].apply(PROMPT, random.Random(seed))[-1]["content"]


def test_plain_is_the_prompt_alone() -> None:
    assert MUTATIONS[PLAIN].apply(PROMPT, random.Random(0)) == [{"role": "user", "content": PROMPT}]


def test_encodings_can_be_read_back() -> None:
    code = last("base64").rsplit("\n", 1)[1]
    assert base64.b64decode(code).decode() == PROMPT
    assert codecs.decode(last("rot13").rsplit("\n", 1)[1], "rot13") == PROMPT
    assert (
        last("spacing").rsplit("\n", 1)[1].replace("   ", "\0").replace(" ", "").replace("\0", " ") == PROMPT
    )
    assert leetspeak("Easiest") == "3451357"
    assert spaced("ab c") == "a b   c"


def test_encoded_prompts_hide_their_words() -> None:
    for name, mutation in MUTATIONS.items():
        if mutation.family == "encoding":
            assert "open a jar" not in last(name).casefold(), name


@pytest.mark.parametrize("name", ["role_play", "injection", "many_shot"])
def test_the_others_hold_the_prompt_as_it_is(name: str) -> None:
    assert PROMPT in last(name)


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_equal_seeds_dress_equally_and_the_user_speaks_last(name: str) -> None:
    twice = [MUTATIONS[name].apply(PROMPT, random.Random(5)) for _ in range(2)]
    assert twice[0] == twice[1]
    roles = [message["role"] for message in twice[0] if message["role"] != "system"]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]


def test_an_injection_stands_within_a_content() -> None:
    text = last("injection", 3)
    assert text.startswith("Summarize this e-mail") and text.index("<text>") < text.index(
        PROMPT
    ) < text.index("</text>")


def test_names_and_families() -> None:
    assert [one.name for one in mutations(["encoding"])] == ["base64", "rot13", "leetspeak", "spacing"]
    assert len(mutations(["all"])) == len(MUTATIONS)
    assert [one.name for one in mutations(["many_shot", "plain", "plain"])] == ["many_shot", "plain"]
    with pytest.raises(PomonaError, match="choose of plain, base64"):
        mutations(["klingon"])
