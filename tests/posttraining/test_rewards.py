"""Rewards: verifiers, functions that hang, die or give no number, and what is counted."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pomona.errors import PomonaError
from pomona.posttraining.isolated import Isolated
from pomona.posttraining.prompts import Prompt, as_prompt, read_prompts, write_prompts
from pomona.posttraining.rewards import (
    FunctionReward,
    ModelReward,
    Verdict,
    VerifierReward,
    judge,
    parse_reward,
)

PROMPT = Prompt(
    ({"role": "user", "content": "Say something short in small letters."},),
    ({"check": "lowercase"}, {"check": "words", "count": 3, "relation": "at most"}),
)
FUNCTIONS = """
import os, time
def length(messages, row):
    return len(messages[-1]["content"]) + len(row["verify"])
def moody(messages, row):
    text = messages[-1]["content"]
    if text == "hang":
        time.sleep(600)
    if text == "die":
        os._exit(3)
    if text == "raise":
        raise ValueError("no such thing")
    if text == "nan":
        return float("nan")
    if text == "none":
        return None
    print("this goes nowhere")
    return 1
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("functions")
    (folder / "reward_functions.py").write_text(FUNCTIONS)
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", f"{folder}:{':'.join(path for path in sys.path if path)}")
    yield "reward_functions"
    patch.undo()


def test_a_verifier_gives_the_share_of_checks_that_pass() -> None:
    texts = ["yes indeed", "Yes indeed", "yes this is too long", "YES THIS IS TOO LONG"]
    pairs = [(PROMPT, text) for text in texts]
    assert judge(VerifierReward(), pairs).values == [1.0, 0.5, 0.5, 0.0]
    assert judge(VerifierReward(strict=True), pairs).values == [1.0, 0.0, 0.0, 0.0]


def test_an_empty_response_is_counted_and_never_judged() -> None:
    class Refusing:
        name = "refusing"

        def score(self, pairs: Sequence[Any]) -> list[Verdict]:
            assert all(text.strip() for _, text in pairs)
            return [Verdict(5.0) for _ in pairs]

        def close(self) -> None:
            pass

    found = judge(Refusing(), [(PROMPT, ""), (PROMPT, "a"), (PROMPT, " \n")], empty_reward=-1.0)
    assert found.values == [-1.0, 5.0, -1.0] and found.problems == {"empty": 2}


def test_a_reward_that_is_no_number_is_none(functions: str) -> None:
    """Of seven responses one hangs, one kills its process, one raises, two have no number: the others are
    judged, and each failure is counted by its kind."""
    reward = FunctionReward(f"{functions}.moody", seconds=1.0)
    texts = ["fine", "hang", "die", "raise", "nan", "none", "fine"]
    try:
        found = judge(reward, [(PROMPT, text) for text in texts])
    finally:
        reward.close()
    assert found.values[0] == found.values[6] == 1.0
    assert all(math.isnan(value) for value in found.values[1:6])
    assert found.problems == {"timeout": 1, "crashed": 1, "error": 2, "nan": 1}
    assert any("no such thing" in example for example in found.examples)


def test_a_function_sees_the_conversation_and_the_row(functions: str) -> None:
    with Isolated(f"{functions}.length") as function:
        outcome = function.call([PROMPT.conversation("four"), PROMPT.to_json()])
        assert outcome.value == 6.0


@pytest.mark.parametrize("dotted", ["no dots", "one", "pomona.posttraining.nothing.here"])
def test_a_function_that_is_none_is_refused(dotted: str) -> None:
    with pytest.raises(PomonaError):
        Isolated(dotted).call([1])


def test_a_reward_model_sees_conversations() -> None:
    class Model:
        def score(self, conversations: Sequence[Any]) -> list[float]:
            assert all(one[-1]["role"] == "assistant" for one in conversations)
            return [
                float(len(one[-1]["content"])) if one[-1]["content"] != "nan" else math.nan
                for one in conversations
            ]

    found = judge(ModelReward("model", Model()), [(PROMPT, "four"), (PROMPT, "nan")])
    assert found.values[0] == 4.0 and math.isnan(found.values[1]) and found.problems == {"nan": 1}


def test_code_is_tested_in_the_sandbox() -> None:
    prompt = Prompt(PROMPT.messages, ({"tests": ["assert double(2) == 4", "assert double(0) == 0"]},))
    right = "Here it is:\n```python\ndef double(x):\n    return 2 * x\n```\nDone."
    wrong = "```python\ndef double(x):\n    return x ** 2 + 1\n```"
    assert judge(VerifierReward(), [(prompt, right), (prompt, wrong), (prompt, "no code")]).values == [
        1,
        0,
        0,
    ]


def test_rewards_are_named_by_a_text(tmp_path: Path) -> None:
    assert parse_reward("verify").name == "verify" and parse_reward("verify:strict").strict  # type: ignore[attr-defined]
    assert parse_reward("function:os.path.join").name == "function:os.path.join"
    for wrong in ("verify:maybe", "model", "", "function:", f"model:{tmp_path / 'none'}"):
        with pytest.raises(PomonaError):
            parse_reward(wrong)


# --- prompts


def test_prompts_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [PROMPT, Prompt(PROMPT.messages, (), {"source": "mine"})]
    write_prompts(tmp_path / "p.jsonl", rows)
    assert read_prompts(tmp_path / "p.jsonl") == rows
    with pytest.raises(PomonaError, match=r"line 2.*verify"):
        read_prompts(tmp_path / "p.jsonl", verifiable=True)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ([], "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 3}]}, "content"),
        ({"messages": [{"role": "god", "content": "x"}]}, "role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "user's"),
        ({"messages": [{"role": "user", "content": "x"}], "verify": {}}, "verify"),
        ({"messages": [{"role": "user", "content": "x"}], "verify": [{"check": "nothing"}]}, "not known"),
        ({"messages": [{"role": "user", "content": "x"}], "verify": [{"check": "words"}]}, "count"),
        ({"messages": [{"role": "user", "content": "x"}], "verify": [{"tests": []}]}, "tests"),
    ],
)
def test_a_bad_row_is_refused(row: Any, part: str) -> None:
    with pytest.raises(PomonaError, match=part):
        as_prompt(row)
