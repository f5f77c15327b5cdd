"""A judge of answers: MT-bench and Arena-Hard with any model as the judge.

    answers = await answer_questions(asker, questions)
    judgements = await judge_pairs(judge, questions, ours, theirs, protocol="pair")
    report = pair_report(judgements, ours, theirs)                     # judge_report.py

Every pair is judged twice, each answer shown first once: a judge that prefers a place then says so by
contradicting itself. Each turn of a question is judged for itself, with what came before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pomona.errors import PomonaError
from pomona.evaluation.asking import Asker, Reply, together
from pomona.evaluation.judge_prompts import (
    AGAIN,
    JudgePrompts,
    Message,
    Protocol,
    Verdict,
    labels,
    read_label,
    read_verdict,
)
from pomona.evaluation.judge_questions import Answers, Question

Progress = Callable[[str, int, int], None]
Order = Literal["ab", "ba", "a", "b"]  # which answer is shown first; or the only one
ATTEMPTS = 2  # a reply without a verdict is followed by one request for it, as in Arena-Hard


@dataclass(frozen=True)
class Judgement:
    """One game, or one rating. value: of pairs how much better A is (-2 to 2), of ratings 1 to 10; NaN where
    there is no verdict, and `problem` says why."""

    question: str
    category: str
    turn: int
    order: Order
    value: float
    problem: str
    reply: str

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "value": None if math.isnan(self.value) else self.value}


async def answer_questions(
    asker: Asker, questions: Sequence[Question], *, progress: Progress | None = None
) -> Answers:
    """Every turn of every question, the later ones after one's own earlier answers. After an answer that
    failed the question's later turns have none."""
    done = 0

    async def one(question: Question) -> tuple[str | None, ...]:
        nonlocal done
        talk: list[Message] = []
        found: list[str | None] = []
        for turn in question.turns:
            talk.append({"role": "user", "content": turn})
            reply = await asker.ask(talk)
            if reply.problem:
                break
            found.append(reply.text)
            talk.append({"role": "assistant", "content": reply.text})
        done += 1
        if progress is not None:
            progress(f"answers of {asker.name}", done, len(questions))
        return (*found, *[None] * (len(question.turns) - len(found)))

    turns = await together([one(question) for question in questions])
    return Answers(asker.name, {question.id: given for question, given in zip(questions, turns, strict=True)})


async def judge_pairs(
    judge: Asker,
    questions: Sequence[Question],
    ours: Answers,
    theirs: Answers,
    *,
    protocol: Protocol = "pair",
    prompts: JudgePrompts | None = None,
    guided: bool = False,
    progress: Progress | None = None,
) -> list[Judgement]:
    """Both orders of every turn that both have answered. guided: the reply is a label and nothing else, which
    even a small judge gets right in form."""
    if protocol == "single":
        raise PomonaError("single: is about one answer; ask for ratings, or choose pair or arena")
    orders: tuple[Order, ...] = ("ab", "ba")
    work = [(question, turn, order) for question, turn in _turns(questions, ours, theirs) for order in orders]
    if not work:
        raise PomonaError(
            f"{ours.name} and {theirs.name}: have answered no question in common; check the ids"
        )
    return await _judged(judge, work, (ours, theirs), protocol, prompts or JudgePrompts(), guided, progress)


async def rate(
    judge: Asker,
    questions: Sequence[Question],
    answers: Answers,
    *,
    side: Literal["a", "b"] = "a",
    prompts: JudgePrompts | None = None,
    guided: bool = False,
    progress: Progress | None = None,
) -> list[Judgement]:
    """A rating of every turn. side: how the judgements name these answers."""
    order: Order = side
    work = [(question, turn, order) for question, turn in _turns(questions, answers)]
    if not work:
        raise PomonaError(f"{answers.name}: has answered none of the questions; check the ids")
    return await _judged(
        judge, work, (answers, answers), "single", prompts or JudgePrompts(), guided, progress
    )


def _turns(questions: Sequence[Question], *answers: Answers) -> list[tuple[Question, int]]:
    return [
        (question, turn)
        for question in questions
        for turn in range(len(question.turns))
        if all(one.of(question, turn) is not None for one in answers)
    ]


async def _judged(
    judge: Asker,
    work: Sequence[tuple[Question, int, Order]],
    sides: tuple[Answers, Answers],
    protocol: Protocol,
    prompts: JudgePrompts,
    guided: bool,
    progress: Progress | None,
) -> list[Judgement]:
    done = 0

    async def one(question: Question, turn: int, order: Order) -> Judgement:
        nonlocal done
        shown = [sides[0] if letter == "a" else sides[1] for letter in order]
        texts = [[one.of(question, number) or "" for number in range(turn + 1)] for one in shown]
        messages = prompts.messages(protocol, question, turn, texts, guided=guided)
        verdict, reply = await _verdict(judge, messages, protocol, guided)
        done += 1
        if progress is not None:
            progress(f"judged by {judge.name}", done, len(work))
        value = -verdict.value if order == "ba" else verdict.value
        return Judgement(question.id, question.category, turn, order, value, verdict.problem, reply)

    return await together([one(*item) for item in work])


async def _verdict(
    judge: Asker, messages: list[Message], protocol: Protocol, guided: bool
) -> tuple[Verdict, str]:
    """The verdict, and all that the judge said."""
    if guided:
        reply = await judge.ask(messages, choices=labels(protocol))
        return _problem(reply) or read_label(reply.text, protocol), reply.text
    said: list[str] = []
    verdict = Verdict(math.nan, "no verdict")
    for _ in range(ATTEMPTS):
        reply = await judge.ask(messages)
        if (failed := _problem(reply)) is not None:
            return failed, "\n\n".join(said)
        said.append(reply.text)
        verdict = read_verdict(reply.text, protocol)
        if verdict.problem != "no verdict":
            break
        messages = [
            *messages,
            {"role": "assistant", "content": reply.text},
            {"role": "user", "content": AGAIN},
        ]
    return verdict, "\n\n".join(said)


def _problem(reply: Reply) -> Verdict | None:
    return Verdict(math.nan, "no reply") if reply.problem else None
