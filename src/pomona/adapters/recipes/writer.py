"""Answers that a model writes: the best of several, if it passes the rules and the content explains it.

A writer is any model with sessions: one on a server (RemoteModel) or the local 16-bit one. Candidates are
sampled with different seeds; rules drop those of a wrong form or with inventions. A local model then scores
what is left: the mean log-probability of the answer's tokens after the whole prompt, minus that after a
prompt without the content. An answer that would be as likely about any text says nothing about this one.
Best-of-n with filters is the report's recipe for synthetic data; the score and its threshold are our own
choice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pomona.adapters.tasks.task import Request, Task
from pomona.errors import PomonaError
from pomona.runtime.backend import LanguageModel
from pomona.runtime.model import Model
from pomona.runtime.sampling import Sampling

LEAST_GAIN = 0.3  # nats per token
TOGETHER = 8  # contents at a time
_NOTHING = "(empty)"


@dataclass(frozen=True)
class Writer:
    """model: writes. scorer: a local model that scores; None: the first candidate that passes is taken."""

    model: LanguageModel
    name: str
    scorer: Model | None = None
    candidates: int = 4
    temperature: float = 0.7
    seed: int = 0

    def write(
        self, task: Task, requests: Sequence[Request], passes: Callable[[str, Request], bool]
    ) -> Iterator[tuple[Request, str]]:
        """The requests for which there is a good answer, each with its best. Others are left out."""
        for start in range(0, len(requests), TOGETHER):
            batch = requests[start : start + TOGETHER]
            sampled = asyncio.run(self._sampled(task, batch, start))
            for request, texts in zip(batch, sampled, strict=True):
                good = [text for text in texts if passes(text, request)]
                best = self._best(task, request, good)
                if best is not None:
                    yield request, best

    async def _sampled(self, task: Task, requests: Sequence[Request], first: int) -> list[list[str]]:
        """[requests][candidates]: texts, without those that could not be made."""

        async def one(request: Request, seed: int) -> str | None:
            instructions, prompt = task.entries(request)
            session = self.model.session(
                instructions=instructions.text,
                sampling=Sampling(temperature=self.temperature, seed=seed),
                max_new_tokens=task.tokens(len(request.content) // 3),
            )
            try:
                reply = await session.arespond(prompt.text, **task.form(request))
                return None if reply.finish_reason == "length" else str(task.parse(reply.text))
            except PomonaError:
                return None  # too long for the context, or unusable: this candidate alone is lost

        jobs = [
            one(request, self.seed + (first + number) * self.candidates + candidate)
            for number, request in enumerate(requests)
            for candidate in range(self.candidates)
        ]
        texts = await asyncio.gather(*jobs)
        n = self.candidates
        return [[t for t in texts[i * n : i * n + n] if t] for i in range(len(requests))]

    def _best(self, task: Task, request: Request, texts: Sequence[str]) -> str | None:
        different = list(dict.fromkeys(texts))
        if not different or self.scorer is None:
            return different[0] if different else None
        gains = {text: content_gain(self.scorer, task, request, text) for text in different}
        best = max(different, key=lambda text: gains[text])
        return best if gains[best] >= LEAST_GAIN else None


def content_gain(model: Model, task: Task, request: Request, answer: str) -> float:
    """Nats per token by which the content makes the answer likelier."""
    blank = replace(request, content=_NOTHING)
    return _mean_log_probability(model, task, request, answer) - _mean_log_probability(
        model, task, blank, answer
    )


def _mean_log_probability(model: Model, task: Task, request: Request, answer: str) -> float:
    prompt = model.render(task.messages(request))
    ids = model.tokenizer.encode(answer, parse_special=False)
    if not ids:
        return float("-inf")
    return float(model.engine.score([*prompt, *ids])[len(prompt) - 1 :].mean())
