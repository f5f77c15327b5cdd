"""Function calling: the single-turn categories of the Berkeley function-calling leaderboard, from its files.

The report gives BFCL's categories by the native function-calling interface (section 7.4): the functions go to
the model as tools of our runtime, in its own dialect, and what it calls is judged by bfcl_checker.py. Our
runtime admits only calls that obey the functions' schemas, as the native interfaces of other providers do.
*irrelevance*: no function fits, and the right answer calls none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pomona.adapters.tasks.tools import calls_of, tool_of
from pomona.errors import PomonaError
from pomona.evaluation.bfcl_checker import Wanted, right
from pomona.evaluation.generation_task import GenerationTask, Message, Question, Score, Setting, each

VERSION = "v4"
NEW_TOKENS = 384
# Task -> BFCL's name of the category.
CATEGORIES = {
    "bfcl_simple": "simple_python",
    "bfcl_multiple": "multiple",
    "bfcl_parallel": "parallel",
    "bfcl_parallel_multiple": "parallel_multiple",
    "bfcl_live_simple": "live_simple",
    "bfcl_irrelevance": "irrelevance",
}
UNANSWERED = {"irrelevance"}  # categories without a file of possible answers


@dataclass(frozen=True)
class Expected:
    """functions: as BFCL describes them. wanted: the calls, empty where none is right."""

    functions: tuple[dict[str, Any], ...]
    wanted: tuple[Wanted, ...]


def files(category: str) -> tuple[str, ...]:
    """Below the data folder."""
    name = f"BFCL_v4_{category}.json"
    answers = () if category in UNANSWERED else (f"bfcl/possible_answer/{name}",)
    return (f"bfcl/{name}", *answers)


def _questions(category: str, setting: Setting) -> list[Question]:
    place, *more = files(category)
    answers: dict[str, Any] = {}
    if more:
        answers = {str(row.get("id")): row.get("ground_truth") for row in setting.rows(more[0])}
    found = []
    for row in setting.rows(place):
        try:
            [turn] = row["question"]
            messages: tuple[Message, ...] = tuple(
                {"role": str(one["role"]), "content": str(one["content"])} for one in turn
            )
            functions = tuple(row["function"])
            wanted = tuple(answers[str(row["id"])] if more else ())
            if any(len(one) != 1 for one in wanted) or {one["role"] for one in messages} - {"system", "user"}:
                raise ValueError("a call of several functions, or an unknown role")
            tools = tuple(tool_of(one) for one in functions)
        except (KeyError, TypeError, ValueError, AttributeError, PomonaError) as error:
            raise PomonaError(f"{place}: a case has another form ({error!r}); get the file again") from error
        expected = Expected(functions, wanted)
        found.append(Question(str(row["id"]), messages, NEW_TOKENS, tools=tools, expected=expected))
    return found


def _score(question: Question, answer: str) -> dict[str, Score]:
    expected: Expected = question.expected
    calls = calls_of(answer)
    return {"accuracy": (float(right(calls, expected.wanted, expected.functions)), 1.0)}


def _task(name: str, category: str) -> GenerationTask:
    questions: Callable[[Setting], Sequence[Question]] = partial(_questions, category)
    needs = files(category)
    return GenerationTask(name, VERSION, 0, ("accuracy",), questions, each(_score), needs, optional=True)


BFCL = tuple(_task(name, category) for name, category in CATEGORIES.items())
