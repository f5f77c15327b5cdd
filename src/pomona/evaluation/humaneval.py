"""HumanEval: functions from their signature and docstring, judged by running them (Chen et al., 2107.03374).

Programs run in our sandbox (posttraining/sandbox.py), never in this process. pass@k is the paper's unbiased
estimate from n answers of which c are right: 1 - C(n - c, k) / C(n, k). Raw prompts are continued up to the
paper's stop sequences; through a chat template the function is asked for in a code block.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pomona.errors import PomonaError
from pomona.evaluation.generation_task import GenerationTask, Message, Question, Score, Setting, text_of
from pomona.posttraining.sandbox import MAX_PROGRAMS, Limits, run_programs

NEW_TOKENS = 512
LIMITS = Limits(seconds=5.0)  # of one program; the paper gives 3 s on another machine
KS = (1, 10, 100)
_PLACE = "humaneval/HumanEval.jsonl.gz"
_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
_ASK = "Complete this Python function. Answer with the whole function in one code block.\n\n```python\n{}```"
_OPENING = "```python\n"
_NAME = re.compile(r"[A-Za-z_]\w*")


def _questions(setting: Setting) -> list[Question]:
    found = []
    for row in setting.rows(_PLACE, ("openai/openai_humaneval", None, "test")):
        key = text_of(row, "task_id", _PLACE)
        prompt, test = text_of(row, "prompt", _PLACE), text_of(row, "test", _PLACE)
        entry = text_of(row, "entry_point", _PLACE)
        if not _NAME.fullmatch(entry):
            raise PomonaError(f"{_PLACE}: {key}: {entry!r} is no name of a function; get the set again")
        chat: tuple[Message, ...] = ({"role": "user", "content": _ASK.format(prompt)},)
        found.append(
            Question(
                key,
                chat if setting.template else prompt,
                NEW_TOKENS,
                opening=_OPENING if setting.template else "",
                stops=("```",) if setting.template else _STOPS,
                samples=setting.samples,
                expected=(prompt, test, entry, setting.template),
            )
        )
    return found


def program(expected: tuple[str, str, str, bool], answer: str) -> str:
    """The answer with its tests behind it. A whole function stands behind the prompt's imports."""
    prompt, test, entry, whole = expected
    code = prompt + answer
    if whole and f"def {entry}" in answer:
        code = f"{prompt[: prompt.find(f'def {entry}')]}\n{answer}"
    return f"{code}\n\n{test}\n\ncheck({entry})\n"


def pass_at_k(answers: int, right: int, k: int) -> float:
    """The share of draws of k of the answers, without repetition, with a right one among them."""
    if not 0 <= right <= answers or not 1 <= k <= answers:
        raise PomonaError(f"pass@{k} of {right} right ones in {answers} answers; give 0 <= c <= n and k <= n")
    fail = 1.0
    for drawn in range(k):
        fail *= max(answers - right - drawn, 0) / (answers - drawn)
    return 1.0 - fail


def _scores(questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> list[dict[str, Score]]:
    programs = [
        program(one.expected, answer)
        for one, found in zip(questions, answers, strict=True)
        for answer in found
    ]
    passed = iter(_passed(programs))
    found: list[dict[str, Score]] = []
    for one in answers:
        right = sum(next(passed) for _ in one)
        ks = [k for k in KS if k <= len(one)]
        found.append({f"pass@{k}": (pass_at_k(len(one), right, k), 1.0) for k in ks})
    return found


def _passed(programs: Sequence[str]) -> list[bool]:
    outcomes: list[Any] = []
    for start in range(0, len(programs), MAX_PROGRAMS):
        outcomes += run_programs(programs[start : start + MAX_PROGRAMS], LIMITS)
    return [one.status == "passed" for one in outcomes]


HUMANEVAL = GenerationTask("humaneval", "1", 0, ("pass@1",), _questions, _scores)
