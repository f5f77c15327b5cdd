"""Roll-outs: responses of a policy, or of several, sampled on pomona's own runtime (DESIGN 7).

    with LocalRollOuts("smollm2-135m-4bit") as rollouts:
        rollouts.replace("policy", "run/policy")
        responses = rollouts.sample([ids, ...], "policy", 8, RollOutSampling(max_new_tokens=128))

The same interface is there for vLLM (rollouts_vllm.py). Jobs of different adapters share the steps of one
batch. A response depends on its prompt, its adapter's version and its seed alone, not on what runs beside it,
so a batch that was interrupted is completed by sampling what is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from pomona.errors import PomonaError
from pomona.models.fence import Fence
from pomona.models.store import resolve
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.adapters import AdapterCache
from pomona.runtime.engine import Engine
from pomona.runtime.sampling import Sampling
from pomona.runtime.scheduler import Request, Scheduler, Ticket

MAX_RUNNING = 64  # sequences of one step: more win little on a CPU, whose products are bound by arithmetic
QUEUE = 1 << 20
ADAPTER_BYTES = 1 << 30


@dataclass(frozen=True)
class RollOutSampling:
    """top_p, top_k and the like are left out on purpose: what is sampled must be the policy itself."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Job:
    """One prompt for one adapter (None: the base alone), answered n times. key: goes into the seeds, together
    with the adapter's name; the same key gives the same responses wherever the job stands."""

    prompt_ids: tuple[int, ...]
    adapter: str | None
    n: int
    key: int
    first: int = 0  # number of the first response, where others are there already


@dataclass(frozen=True)
class Response:
    """token_ids: with the end token, if the response ended by one (`finished`)."""

    token_ids: tuple[int, ...]
    finished: bool
    adapter_version: int | None = None


# job number, number of the response (from the job's `first` on), the response
OnResponse = Callable[[int, int, Response], None]


class RollOuts(Protocol):
    """What samples. A context manager in all our implementations."""

    tokenizer: Tokenizer

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        adapter: str | None,
        n: int,
        sampling: RollOutSampling,
    ) -> list[list[Response]]:
        """n responses to every prompt."""

    def sample_mixed(
        self, jobs: Sequence[Job], sampling: RollOutSampling, on_response: OnResponse | None = None
    ) -> list[list[Response]]:
        """The responses of every job. on_response: called for each as soon as it can be kept."""

    def replace(self, adapter: str, directory: Path | str) -> int:
        """Puts the adapter of a directory under this name, a new one or in the place of another; its
        version."""

    def render(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, ready for the answer."""

    def text(self, response: Response) -> str:
        """Without control tokens."""

    def close(self) -> None: ...


def sample_seed(seed: int, adapter: str | None, key: int, number: int) -> int:
    """Of one response: equal arguments, equal responses."""
    digest = hashlib.blake2b(f"{seed}/{adapter or ''}/{key}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def as_jobs(prompts: Sequence[Sequence[int]], adapter: str | None, n: int) -> list[Job]:
    return [Job(tuple(ids), adapter, n, key) for key, ids in enumerate(prompts)]


def cut_at_end(token_ids: Sequence[int], end_ids: Sequence[int], ended: bool) -> tuple[tuple[int, ...], bool]:
    """A response up to its first end token. ended: it stopped at the first of end_ids, which it lacks."""
    ids = [int(token) for token in token_ids] + ([end_ids[0]] if ended else [])
    for place, token in enumerate(ids):
        if token in end_ids:
            return tuple(ids[: place + 1]), True
    return tuple(ids), False


class Rendering:
    """What implementations share: the chat template and the tokenizer of the model's directory."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.chat_template is None:
            raise PomonaError(
                "the model has no chat template; take a chat model (its name often ends in Instruct)"
            )
        if not tokenizer.eos_token_ids:
            raise PomonaError("the model has no end token: no answer would ever end; take a chat model")
        self.tokenizer = tokenizer
        self.end_ids = tuple(tokenizer.eos_token_ids)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        fence = Fence(self.tokenizer)
        template = self.tokenizer.chat_template
        assert template is not None
        guarded = fence.guarded([dict(message) for message in messages])
        return fence.encode(template.render(guarded, add_generation_prompt=True))

    def text(self, response: Response) -> str:
        return self.tokenizer.decode(list(response.token_ids), skip_special_tokens=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives back the memory."""


class LocalRollOuts(Rendering):
    """On this machine's CPU, palettised or 16 bit, through the scheduler with its prefix cache."""

    def __init__(
        self,
        base: Path | str,
        *,
        threads: int | None = None,
        max_running: int = MAX_RUNNING,
        kv_tokens: int | None = None,
    ) -> None:
        directory = resolve(str(base))
        self.engine = Engine.load(
            directory, threads=threads, kv_tokens=kv_tokens, prefix_cache=True, partial_pages=True
        )
        super().__init__(Tokenizer.from_directory(directory))
        self.adapters = AdapterCache(self.engine, budget_bytes=ADAPTER_BYTES)
        self.scheduler = Scheduler(
            self.engine,
            adapters=self.adapters,
            max_running=max_running,
            max_waiting=QUEUE,
            prefill_chunk=512,  # nobody watches the pace of single tokens
        )

    def replace(self, adapter: str, directory: Path | str) -> int:
        if adapter in {status.name for status in self.adapters.status()}:
            return self.adapters.replace(adapter, directory)
        self.adapters.register(adapter, directory)
        try:
            return self.adapters.acquire(adapter).version
        except PomonaError:
            self.adapters.remove(adapter)
            raise

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        adapter: str | None,
        n: int,
        sampling: RollOutSampling,
    ) -> list[list[Response]]:
        return self.sample_mixed(as_jobs(prompts, adapter, n), sampling)

    def sample_mixed(
        self, jobs: Sequence[Job], sampling: RollOutSampling, on_response: OnResponse | None = None
    ) -> list[list[Response]]:
        # First one response of every prompt, then the second of each, and so on: by then the pages of the
        # prompt are in the prefix cache, and the others of its responses begin with them.
        order = sorted(
            ((number, place) for number, job in enumerate(jobs) for place in range(job.n)),
            key=lambda pair: (pair[1], pair[0]),
        )
        tickets: dict[tuple[int, int], Ticket] = {}
        found: list[list[Response]] = [[] for _ in jobs]
        try:
            for number, place in order:
                tickets[number, place] = self.scheduler.submit(self._request(jobs[number], place, sampling))
            for number, place in order:
                done = tickets[number, place].result()
                ids, finished = cut_at_end(done.token_ids, self.end_ids, done.finish_reason == "stop")
                response = Response(ids, finished, done.adapter_version)
                found[number].append(response)
                if on_response is not None:
                    on_response(number, jobs[number].first + place, response)
        except BaseException:
            for ticket in tickets.values():
                ticket.cancel()
            raise
        return found

    def _request(self, job: Job, place: int, sampling: RollOutSampling) -> Request:
        seed = sample_seed(sampling.seed, job.adapter, job.key, job.first + place)
        return Request(
            job.prompt_ids,
            Sampling(temperature=sampling.temperature, seed=seed),
            sampling.max_new_tokens,
            # The scheduler does not tell which of several end tokens came; so it stops at one of them, and
            # what follows another is cut off afterwards.
            frozenset(self.end_ids[:1]),
            job.adapter,
        )

    def close(self) -> None:
        with contextlib.suppress(AttributeError):  # when it was never whole
            self.scheduler.close(drain=False)


def missing(jobs: Sequence[Job], have: Mapping[tuple[int, int], Response]) -> list[Job]:
    """The jobs without the responses that are there already, by (job number, number of the response). What is
    there of a job must be its first responses; what came after a gap is sampled again."""
    found = []
    for number, job in enumerate(jobs):
        there = 0
        while there < job.n and (number, there) in have:
            there += 1
        found.append(replace(job, first=there, n=job.n - there))
    return found
