"""Mathematics (AFM report, section 4.2): new problems out of seed problems, then solutions that are checked.

- *rephrase*: the author restates a seed. The numbers must stay, so the answer stays.
- *reversion* (as in MetaMath): a number of the statement becomes x, the answer is given, and x is asked for.
  It is made by rule; the answer is the number.
- *evolution* (as in Evol-Instruct): in depth, a harder version of a seed; in breadth, a new problem on
  another subject. The answer is not known: the author's solutions must agree with each other.

For every problem the author writes `solutions` chains of thought that end with "The answer is N". Those with
the known answer are kept; without one, those of the majority if its share is at least `agreement` and a judge
finds the problem solvable. N, thresholds and prompts are ours: the report gives none.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pomona.data.public_sets import read
from pomona.errors import PomonaError
from pomona.models.model_directory import parse_json_object
from pomona.posttraining.options import Options
from pomona.posttraining.synth import Author, Different, Question, Row, chat_row, cycled, plain

MathKind = Literal["rephrase", "reversion", "depth", "breadth"]
KINDS: tuple[MathKind, ...] = ("rephrase", "reversion", "depth", "breadth")
STALE = 50  # problems in a row of which nothing was kept: the author cannot do it

_NUMBER = re.compile(r"(?<![\w.])-?\$?\d[\d,]*(?:\.\d+)?(?![\w]|\.\d)")
_ANSWER = re.compile(r"[Tt]he (?:final )?answer is:?\s*\**\s*(-?\$?\d[\d,]*(?:\.\d+)?)")

INSTRUCTIONS = "You write mathematics problems for school and solve them with care."
SOLVE = 'Solve the problem step by step. End with the sentence "The answer is N.", N a number.\n\n{question}'
REPHRASE = (
    "Say the following problem in other words. Keep every number and what is asked. Write the problem alone."
    "\n\n{question}"
)
DEPTH = (
    "Make the following problem harder: add one more condition or step, so that its solution needs more "
    "reasoning. It must have one number as its answer. Write the problem alone.\n\n{question}"
)
BREADTH = (
    "Write a new mathematics problem on another subject than the following one, about as hard, with one "
    "number as its answer. Write the problem alone.\n\n{question}"
)
DIFFICULTY = (
    "How hard is this problem, from 1 (one step) to 10 (an olympiad)? Answer with the number.\n\n{question}"
)
SOLVABLE = "Is this problem complete, coherent and solvable? Answer yes or no.\n\n{question}"


class MathOptions(Options):
    """solutions: chains of thought per problem; keep: how many right ones at most. difficulty: what a problem
    of `depth` must have at least."""

    kinds: tuple[MathKind, ...] = KINDS
    solutions: Annotated[int, Field(ge=1, le=64)] = 4
    keep: Annotated[int, Field(ge=1, le=64)] = 1
    agreement: Annotated[float, Field(gt=0, le=1)] = 0.75
    difficulty: Annotated[int, Field(ge=1, le=10)] = 4


@dataclass(frozen=True)
class Problem:
    """answer None: not known."""

    question: str
    answer: Decimal | None
    license: str = "Apache-2.0"


def read_seeds(path: Path, license: str = "MIT") -> list[Problem]:
    """Problems of a .jsonl with `question` and `answer`: GSM8K's form ("... #### 72"), or a number alone.

    PomonaError: a row without them, or an answer that ends with no number."""
    found = []
    for number, line in enumerate(read(path).split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json_object(line.encode(), f"{path}, line {number}")
        question, answer = row.get("question"), row.get("answer")
        value = number_of(str(answer).rpartition("####")[2]) if answer is not None else None
        if not isinstance(question, str) or not question.strip() or value is None:
            raise PomonaError(f"{path}, line {number}: needs a question and an answer that is a number")
        found.append(Problem(question.strip(), value, license))
    if not found:
        raise PomonaError(f"{path}: holds no problem; give some")
    return found


def problems(
    seeds: Sequence[Problem], author: Author, options: MathOptions, *, seed: int = 0
) -> Iterator[tuple[str, Row]]:
    """(kind, row) without end, until STALE problems in a row gave none."""
    rng = random.Random(f"{seed}/math")
    different = Different()
    stale = 0
    kinds = list(options.kinds)
    for number, one in enumerate(cycled(seeds, rng)):
        kind = kinds[number % len(kinds)]
        made = _made(kind, one, author, options, rng)
        rows: list[Row] = []
        if made is not None:
            # Rephrased seeds are meant to be near each other; evolved ones are not.
            if kind in ("depth", "breadth") and not different.add(made.question):
                author.report.drop(kind, "nearly the same as another problem")
            else:
                rows = _solved(kind, made, author, options)
        stale = 0 if rows else stale + 1
        yield from ((kind, row) for row in rows)
        if stale >= STALE:
            return


def _made(
    kind: MathKind, seed: Problem, author: Author, options: MathOptions, rng: random.Random
) -> Problem | None:
    if kind == "reversion":
        made = reversion(seed, rng)
        if made is None:
            author.report.drop(kind, "no number that stands there once")
        return made
    template = {"rephrase": REPHRASE, "depth": DEPTH, "breadth": BREADTH}[kind]
    text = author.ask_one(Question(template.format(question=seed.question), INSTRUCTIONS))
    if text is None or not (text := str(text).strip()):
        author.report.drop(kind, "no problem was written")
        return None
    if plain(text) == plain(seed.question):
        author.report.drop(kind, "copies the seed")
        return None
    if kind == "rephrase":
        if numbers(text) != numbers(seed.question):
            author.report.drop(kind, "other numbers than the seed")
            return None
        return Problem(text, seed.answer, seed.license)
    if not _good(kind, text, author, options):
        return None
    return Problem(text, None, seed.license)


def _good(kind: str, text: str, author: Author, options: MathOptions) -> bool:
    """Whether an evolved problem is solvable and, in depth, hard enough, as the author judges."""
    ask = Question(SOLVABLE.format(question=text), INSTRUCTIONS, {"choices": ["yes", "no"]})
    if author.ask_one(ask, temperature=0.0) != "yes":
        author.report.drop(kind, "judged not solvable")
        return False
    if kind == "depth":
        grades = [str(value) for value in range(1, 11)]
        ask = Question(DIFFICULTY.format(question=text), INSTRUCTIONS, {"choices": grades})
        grade = author.ask_one(ask, temperature=0.0)
        if grade is None or int(grade) < options.difficulty:
            author.report.drop(kind, "judged too easy")
            return False
    return True


def reversion(seed: Problem, rng: random.Random) -> Problem | None:
    """The problem that gives the answer and asks for one of the numbers; None if none stands there once."""
    if seed.answer is None:
        return None
    found = [match for match in _NUMBER.finditer(seed.question) if number_of(match[0]) is not None]
    counts = Counter(number_of(match[0]) for match in found)
    single = [match for match in found if counts[number_of(match[0])] == 1]
    if not single:
        return None
    match = rng.choice(single)
    sign = "$" if match[0].startswith("$") else ""
    question = (
        f"{seed.question[: match.start()]}{sign}x{seed.question[match.end() :]}\n"
        f"The answer to this question is {shown(seed.answer)}. What is the value of x?"
    )
    return Problem(question, number_of(match[0]), seed.license)


def _solved(kind: str, problem: Problem, author: Author, options: MathOptions) -> list[Row]:
    """The right solutions as rows; the reason is counted where there is none."""
    ask = Question(SOLVE.format(question=problem.question), INSTRUCTIONS)
    texts = [str(t).strip() for t in author.ask([ask] * options.solutions) if t is not None]
    answers = {text: final_answer(text) for text in dict.fromkeys(texts)}
    right = problem.answer
    if right is None:
        votes = Counter(final_answer(text) for text in texts)
        votes.pop(None, None)
        if not votes:
            author.report.drop(kind, "no solution ends with an answer")
            return []
        right, count = votes.most_common(1)[0]
        if count < options.agreement * options.solutions:
            author.report.drop(kind, "the solutions do not agree")
            return []
    good = [text for text, answer in answers.items() if answer is not None and answer == right]
    if not good:
        author.report.drop(kind, "no solution has the known answer")
    return [
        chat_row(problem.question, text, f"math {kind}", author.name, problem.license)
        for text in good[: options.keep]
    ]


def final_answer(solution: str) -> Decimal | None:
    """The number of the last "The answer is N"."""
    found = _ANSWER.findall(solution)
    return number_of(found[-1]) if found else None


def number_of(text: str) -> Decimal | None:
    """72, 1,234.5, $20 -> the number; None for anything else."""
    try:
        value = Decimal(text.strip().replace("$", "").replace(",", "").rstrip("."))
    except InvalidOperation:
        return None
    return value.normalize() if value.is_finite() else None


def numbers(text: str) -> Counter[Decimal]:
    """The numbers of a text, as often as they stand there."""
    found = (number_of(match) for match in _NUMBER.findall(text))
    return Counter(value for value in found if value is not None)


def shown(value: Decimal) -> str:
    return json.dumps(int(value)) if value == value.to_integral() else format(value, "f")
