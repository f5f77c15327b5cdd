"""Training prompts: JSONL rows of a conversation that waits for an answer, and how the answer is verified.

    {"messages": [{"role": "user", "content": "Name three rivers. Write no comma."}],
     "verify": [{"check": "no_comma"}, {"check": "words", "relation": "at most", "count": 40}]}

`verify` may hold checks (checks.py) and {"tests": ["assert double(2) == 4", ...]}: the answer's code must
pass them in the sandbox. It may be missing where a reward model or a function judges. Other keys are kept for
functions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pomona.errors import PomonaError
from pomona.posttraining.checks import validate

MAX_BYTES = 1 << 30
MAX_TESTS = 64


@dataclass(frozen=True)
class Prompt:
    """messages: up to the last one of the user. extra: the row's other keys."""

    messages: tuple[dict[str, str], ...]
    verify: tuple[dict[str, Any], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def conversation(self, answer: str) -> list[dict[str, str]]:
        return [*self.messages, {"role": "assistant", "content": answer}]

    def to_json(self) -> dict[str, Any]:
        return {**self.extra, "messages": list(self.messages), "verify": list(self.verify)}


def read_prompts(path: Path | str, *, verifiable: bool = False) -> list[Prompt]:
    """verifiable: every row must say how its answer is verified. PomonaError names the first bad line."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PomonaError(f"{path}: is larger than {MAX_BYTES >> 20} MiB; give fewer prompts")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PomonaError(f"{path}: cannot be read ({error}); give a .jsonl file") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PomonaError(f"{path}: line {number} is no JSON ({error}); mend it") from error
        try:
            prompt = as_prompt(row)
        except PomonaError as error:
            raise PomonaError(f"{path}: line {number}: {error}") from error
        if verifiable and not prompt.verify:
            raise PomonaError(f"{path}: line {number}: has no `verify`; say how the answer is checked")
        found.append(prompt)
    if not found:
        raise PomonaError(f"{path}: holds no prompts; give rows with `messages`")
    return found


def as_prompt(row: Any) -> Prompt:
    """PomonaError: what is wrong with the row."""
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
        raise PomonaError("`messages` must be a list of messages")
    for message in row["messages"]:
        if (
            not isinstance(message, dict)
            or set(message) != {"role", "content"}
            or message["role"] not in ("system", "user", "assistant")
            or not isinstance(message["content"], str)
        ):
            raise PomonaError("a message must have a role (system, user, assistant) and a text as content")
    if row["messages"][-1]["role"] != "user":
        raise PomonaError("the last message must be the user's: the answer is sampled")
    verify = row.get("verify", [])
    if not isinstance(verify, list) or not all(isinstance(one, dict) for one in verify):
        raise PomonaError("`verify` must be a list of checks")
    for one in verify:
        if "tests" in one:
            tests = one["tests"]
            if (
                set(one) != {"tests"}
                or not isinstance(tests, list)
                or not 0 < len(tests) <= MAX_TESTS
                or not all(isinstance(test, str) for test in tests)
            ):
                raise PomonaError(
                    f"`tests` must be a list of 1 .. {MAX_TESTS} Python texts, with nothing beside it"
                )
        else:
            validate(one)
    extra = {key: value for key, value in row.items() if key not in ("messages", "verify")}
    return Prompt(tuple(row["messages"]), tuple(verify), extra)


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    lines = [json.dumps(prompt.to_json(), ensure_ascii=False) + "\n" for prompt in prompts]
    new = path.with_name(path.name + ".new")
    new.write_text("".join(lines), encoding="utf-8")
    new.replace(path)
