"""Code (AFM report, section 4.2): interview-like questions from topics, unit tests and candidate solutions by
the author, and execution that decides.

Every candidate runs against every test in the sandbox (sandbox.py). The candidate that passes most tests is
kept if it passes at least `threshold` of them. Tests that every candidate fails are most likely wrong, and
count against all. The report has 71 topics and does not print them; those in texts/topics.txt are ours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pomona.posttraining.options import Options, Positive
from pomona.posttraining.sandbox import Limits, run_programs
from pomona.posttraining.synth import Author, Different, Question, Row, chat_row, cycled

STALE = 30
LICENSE = "Apache-2.0"
TOPICS = Path(__file__).parent / "texts" / "topics.txt"

INSTRUCTIONS = "You are a Python programmer who interviews candidates."
ASK = (
    "Write a short programming question about {topic}. The candidate is to write one Python function named "
    "`{name}` that uses the standard library alone. Say what it takes, what it returns, and give one "
    "example. Write the question alone, without a solution."
)
TESTS = (
    "Write {count} unit tests for the answer to this question, as Python assert statements that call "
    "`{name}`, one per line, in a code block. Test edge cases too.\n\n{question}"
)
SOLVE = "{question}\n\nAnswer with the Python function `{name}` in one code block."

_BLOCK = re.compile(r"```(?:python|py)?\s*\n(.*?)```", re.DOTALL)


class CodeOptions(Options):
    """tests, candidates: that the author is asked for. least_tests: below them the question is dropped.
    threshold: share of the tests that the best candidate must pass. seconds: of one test."""

    tests: Annotated[int, Field(ge=1, le=32)] = 5
    least_tests: Annotated[int, Field(ge=1, le=32)] = 3
    candidates: Annotated[int, Field(ge=1, le=32)] = 4
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    seconds: Positive = 2.0


@dataclass(frozen=True)
class Judged:
    """A candidate and how many tests it passed."""

    code: str
    passed: int


def topics() -> list[str]:
    return TOPICS.read_text(encoding="utf-8").split("\n")[:-1]


def samples(
    subjects: Sequence[str], author: Author, options: CodeOptions, *, seed: int = 0
) -> Iterator[tuple[str, Row]]:
    """("code", row) without end, until STALE questions in a row gave none."""
    rng = random.Random(f"{seed}/code")
    different = Different()
    stale = 0
    for topic in cycled(subjects, rng):
        row = _sample(topic, author, options, rng, different)
        stale = 0 if row else stale + 1
        if row is not None:
            yield "code", row
        if stale >= STALE:
            return


def _sample(
    topic: str, author: Author, options: CodeOptions, rng: random.Random, different: Different
) -> Row | None:
    drop = author.report.drop
    name = rng.choice(("solve", "answer", "compute", "run", "find"))
    question = author.ask_one(Question(ASK.format(topic=topic, name=name), INSTRUCTIONS))
    if question is None or name not in (question := str(question).strip()):
        drop("code", "no question that names the function")
        return None
    if not different.add(question):
        drop("code", "nearly the same as another question")
        return None
    text = TESTS.format(count=options.tests, name=name, question=question)
    tests = asserts(str(author.ask_one(Question(text, INSTRUCTIONS)) or ""), name)[: options.tests]
    if len(tests) < options.least_tests:
        drop("code", "too few tests")
        return None
    solve = Question(SOLVE.format(question=question, name=name), INSTRUCTIONS)
    texts = [str(answer) for answer in author.ask([solve] * options.candidates) if answer is not None]
    codes = list(dict.fromkeys(code for code in map(code_block, texts) if code and f"def {name}" in code))
    if not codes:
        drop("code", "no candidate with the function")
        return None
    best = max(judge(codes, tests, Limits(seconds=options.seconds)), key=lambda one: one.passed)
    if best.passed < options.threshold * len(tests):
        drop("code", "no candidate passes enough tests")
        return None
    answer = f"```python\n{best.code.strip()}\n```"
    return chat_row(question, answer, "code", author.name, LICENSE)


def judge(codes: Sequence[str], tests: Sequence[str], limits: Limits) -> list[Judged]:
    """Every candidate against every test, in the order of the candidates."""
    found = []
    for code in codes:
        outcomes = run_programs([f"{code}\n\n{test}\n" for test in tests], limits)
        found.append(Judged(code, sum(one.status == "passed" for one in outcomes)))
    return found


def code_block(text: str) -> str | None:
    """The longest code block of an answer; None without one."""
    return max(_BLOCK.findall(text), key=len, default=None)


def asserts(text: str, name: str) -> list[str]:
    """The different assert statements, of one line each, that call the function and are Python."""
    code = code_block(text) or text
    found = []
    for line in code.splitlines():
        line = line.strip()
        if line.startswith("assert ") and f"{name}(" in line and _is_python(line):
            found.append(line)
    return list(dict.fromkeys(found))


def _is_python(line: str) -> bool:
    try:
        compile(line, "<test>", "exec")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True
