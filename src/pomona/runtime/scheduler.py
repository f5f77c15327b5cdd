"""Continuous batching: many requests, each with its own adapter, guide and sampling, in one step at a time.

    with Scheduler(engine, adapters=cache, guides=guides) as scheduler:
        ticket = scheduler.submit(Request(prompt_ids=(1, 2, 3), adapter="summarize"))
        for token in ticket: ...

One thread of the scheduler's own runs the steps. submit() may be called from any thread and from asyncio: it
checks what can be checked, so that a bad request is refused at the door, and returns at once. What a request
answers does not depend on what runs beside it. runtime/batching.py says who runs when.
"""

from __future__ import annotations

import atexit
import contextlib
import heapq
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType

from pomona import _native
from pomona.errors import PomonaError
from pomona.runtime.adapters import AdapterCache
from pomona.runtime.batching import PAGE_TOKENS, Batcher, Run
from pomona.runtime.engine import BATCH_TOKENS, Engine, Mask, StepInput
from pomona.runtime.guided import GuidedTokens, Guides
from pomona.runtime.lookup import Lookup
from pomona.runtime.sampling import Sampling
from pomona.runtime.ticket import (
    UNLIKELY,
    Completion,
    FinishReason,
    LaneStats,
    Overloaded,
    Request,
    SchedulerStats,
    Ticket,
    TokenLogprobs,
    Wakeups,
)

__all__ = ["Completion", "LaneStats", "Overloaded", "Request", "Scheduler", "SchedulerStats", "Ticket"]

POLL_SECONDS = 0.05  # how often is looked for memory that others than the scheduler hold
MAX_RUNNING = BATCH_TOKENS // 2
GREEDY = Sampling()


class Scheduler:
    """Runs requests on one engine. A context manager; close() ends its thread.

    adapters, guides: needed for requests that name an adapter or bring a guide. max_running: requests in a
    step at the most. max_waiting: beyond that submit() raises Overloaded. prefill_chunk: tokens of prompts in
    a step beside those that decode; a smaller one keeps their pace steadier and gets through prompts slower.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        adapters: AdapterCache | None = None,
        guides: Guides | None = None,
        max_running: int = 64,
        max_waiting: int = 256,
        prefill_chunk: int = 64,
    ) -> None:
        for name, value, low, high in (
            ("max_running", max_running, 1, MAX_RUNNING),
            ("max_waiting", max_waiting, 1, 1 << 20),
            ("prefill_chunk", prefill_chunk, PAGE_TOKENS, BATCH_TOKENS),
        ):
            if not low <= value <= high:
                raise PomonaError(f"{name} = {value}: must lie in {low} .. {high}")
        self._engine = engine
        self._adapters = adapters
        self._guides = guides
        self._guides_lock = threading.Lock()
        self._max_waiting = max_waiting
        self._limit = min(engine.config.max_position_embeddings, engine.native.kv_tokens)
        self._batcher = Batcher(engine, adapters, max_running, prefill_chunk, self._fail, self._wake)

        # Shared with the callers, under the lock of `_changed`:
        self._changed = threading.Condition()  # its lock may be taken again by who has it: together()
        self._news = False
        self._incoming: list[Run] = []
        self._cancelled: list[Run] = []
        self._submitted = 0
        self._refused = 0
        self._closing = False
        self._aborting = False

        # The thread's own:
        self._deadlines: list[tuple[float, int, Run]] = []
        self._wakeups = Wakeups()
        self._busy = False
        self._finished: dict[FinishReason, int] = dict.fromkeys(
            ("stop", "length", "cancelled", "deadline", "error"), 0
        )
        self._steps = self._failed_steps = self._rows = self._new_tokens = 0
        self._step_seconds = 0.0
        self._free_tokens = engine.native.free_tokens
        self._admissions = 0
        self._last_admission = time.perf_counter()
        self._admission_seconds = 0.1  # between two admissions under load, a moving average

        self._thread = threading.Thread(target=self._run, name="pomona-scheduler", daemon=True)
        self._thread.start()
        # A daemon, so that a forgotten scheduler holds no program open, but not to be torn out of a step.
        self._at_exit = partial(_close, weakref.ref(self))
        atexit.register(self._at_exit)

    # --- for callers --------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Ticket:
        """Puts a request in the queue and returns at once (a guide is compiled first, and an adapter's files
        are checked, when they are new).

        Raises Overloaded when the queue is full, and PomonaError for what cannot run: a prompt that is too
        long or outside the vocabulary, an adapter that is not known or no good, a guide that cannot be used.
        The adapter's version is the one that is current when the request is admitted: a request that was
        submitted after a replacement never runs with the version before it.
        """
        with self._changed:
            self._check_open()
        max_new_tokens = self._check(request)
        guide = self._start_guide(request)
        run = Run(request, max_new_tokens, guide)
        if request.logprobs is not None:
            run.logprobs = _native.Logprobs(request.logprobs)
        if guide is not None:  # what the answer must begin with goes in with the prompt
            run.ids += guide.begin(max_new_tokens, force=run.logprobs is None)
        run.ticket = Ticket(request, partial(self._cancel, run))
        with self._changed:
            self._check_open()
            run.number = self._submitted
            self._submitted += 1
            self._incoming.append(run)
            self._notify()
        return run.ticket

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What this thread submits within the block comes into one step, if there is room. The scheduler
        waits meanwhile: keep it short."""
        with self._changed:
            yield

    def stats(self) -> SchedulerStats:
        lanes = {
            name: LaneStats(len(lane.waiting), lane.running, **vars(lane.counts))
            for name, lane in list(self._batcher.lanes.items())
        }
        return SchedulerStats(
            waiting=sum(lane.waiting for lane in lanes.values()) + len(self._incoming),
            running=len(self._batcher.running),
            free_tokens=self._free_tokens,
            submitted=self._submitted,
            refused=self._refused,
            finished=dict(self._finished),
            steps=self._steps,
            failed_steps=self._failed_steps,
            rows=self._rows,
            new_tokens=self._new_tokens,
            preemptions=self._batcher.preemptions,
            step_seconds=self._step_seconds,
            lanes=lanes,
        )

    def close(self, drain: bool = True) -> None:
        """Takes no more requests, finishes those that are there (without `drain`: cancels them), and ends."""
        with self._changed:
            self._closing = True
            self._aborting = self._aborting or not drain
            self._notify()
        self._thread.join()
        self._batcher.close()
        atexit.unregister(self._at_exit)

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)

    def _check_open(self) -> None:
        if self._closing:
            raise PomonaError("the scheduler is closed; make another one")
        queued = self._batcher.queued + len(self._incoming)
        if queued >= self._max_waiting:
            self._refused += 1
            # By then about half of those who wait now will have been admitted.
            seconds = self._admission_seconds * queued / 2
            raise Overloaded(queued, min(max(seconds, 0.1), 60.0))

    def _check(self, request: Request) -> int:
        """Refuses what cannot run; the number of new tokens that there is room for."""
        prompt = request.prompt_ids
        if len(prompt) >= self._limit:
            raise PomonaError(
                f"the prompt has {len(prompt):,} tokens, the context holds {self._limit:,}; shorten it"
            )
        vocabulary = self._engine.config.vocab_size
        for wrong in (min(prompt), max(prompt)):
            if not 0 <= wrong < vocabulary:
                raise PomonaError(f"token id {wrong} is outside the vocabulary of {vocabulary:,}")
        for token, _ in request.sampling.logit_bias:
            if not 0 <= token < vocabulary:  # it would end the step of all
                raise PomonaError(f"logit_bias: token {token} is outside the vocabulary of {vocabulary:,}")
        if request.adapter is not None:
            if self._adapters is None:
                raise PomonaError(f"adapter {request.adapter}: this scheduler was made without adapters")
            self._adapters.check(request.adapter)
        return min(request.max_new_tokens, self._limit - len(prompt))

    def _start_guide(self, request: Request) -> GuidedTokens | None:
        if request.guide is None:
            return None
        if self._guides is None:
            raise PomonaError("guide: this scheduler was made without guides")
        with self._guides_lock:
            return self._guides.start(request.guide)

    def _cancel(self, run: Run) -> None:
        with self._changed:
            self._cancelled.append(run)
            self._notify()

    def _wake(self) -> None:
        with self._changed:
            self._notify()

    def _notify(self) -> None:
        self._news = True
        self._changed.notify()

    # --- the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._receive():
            try:
                self._busy = self._turn()
            except Exception as error:  # a fault of the scheduler itself: nobody may be left waiting
                self._busy = True
                for run in self._batcher.everybody():
                    with contextlib.suppress(Exception):
                        self._finish(run, "error", error)
        self._wakeups.send()

    def _receive(self) -> bool:
        """Takes in what callers brought; sleeps when there is nothing to do. False: the end."""
        batcher = self._batcher
        waiting = any(lane.waiting for lane in batcher.lanes.values())
        if not self._busy:
            self._wakeups.send()
        with self._changed:
            if not (self._busy or self._news or (self._closing and not waiting)):
                # Those who wait now wait for memory that others hold, and nobody tells when that is free.
                self._changed.wait(POLL_SECONDS if waiting else None)
            self._news = False
            incoming, self._incoming = self._incoming, []
            cancelled, self._cancelled = self._cancelled, []
            closing, aborting = self._closing, self._aborting
            for run in incoming:
                batcher.enqueue(run)
        for run in incoming:
            if run.request.deadline_seconds is not None:
                heapq.heappush(self._deadlines, (run.deadline, run.number, run))
        if len(self._deadlines) > 2 * len(batcher.running) + self._max_waiting:
            self._deadlines = [entry for entry in self._deadlines if not entry[2].ticket.done]
            heapq.heapify(self._deadlines)
        for run in batcher.everybody() if aborting else cancelled:
            self._finish(run, "cancelled")
        return not closing or bool(batcher.everybody())

    def _turn(self) -> bool:
        """One step. False when nothing can run now."""
        now = time.perf_counter()
        while self._deadlines and self._deadlines[0][0] <= now:
            self._finish(heapq.heappop(self._deadlines)[2], "deadline")
        ended = self._batcher.ended
        batch = self._batcher.next_batch()
        self._note_admissions(now)
        inputs = self._inputs(batch)
        self._wakeups.send()  # last of all: the sleepers run while the engine computes
        if not inputs:
            return self._batcher.ended != ended
        started = time.perf_counter()
        try:
            sampled = self._step([step_input for _, step_input in inputs])
        except Exception as error:
            self._failed_steps += 1
            if isinstance(error.__cause__, MemoryError):
                self._batcher.preempt()  # somebody else took the pages in the meantime
            else:
                for run, _ in inputs:
                    self._finish(run, "error", error)
            return True
        ended_at = time.perf_counter()
        self._steps += 1
        self._step_seconds += ended_at - started
        rows = sum(len(step_input.tokens) + len(step_input.drafts) for _, step_input in inputs)
        self._rows += rows
        self._engine.step_costs.observe(rows, ended_at - started)
        for (run, step_input), new in zip(inputs, sampled, strict=True):
            count = len(step_input.tokens)
            run.length += count
            if run.pending == 0:
                self._accept_all(run, new, len(step_input.drafts), ended_at)
            else:
                self._batcher.note_reuse(run, count)
        self._free_tokens = self._engine.native.free_tokens
        return True

    def _step(self, inputs: list[StepInput]) -> list[list[int]]:
        if any(step_input.drafts for step_input in inputs):
            return self._engine.step_with_drafts(inputs)
        return [[token] for token in self._engine.step(inputs)]

    def _inputs(self, batch: Mapping[Run, int]) -> list[tuple[Run, StepInput]]:
        """What each brings to the step. A request whose guide fails ends here and hurts nobody."""
        inputs = []
        rows = sum(batch.values())
        for run, count in batch.items():
            assert run.sequence is not None
            if count < run.pending:  # what is sampled in the middle of a prompt is not used
                tokens: Sequence[int] = run.ids[run.length : run.length + count]
                inputs.append((run, StepInput(run.sequence, tokens, GREEDY)))
                continue
            try:
                mask, drafts = self._mask(run, self._drafts(run, rows))
            except Exception as error:
                self._finish(run, "error", error)
                continue
            rows += len(drafts)
            tokens = run.ids[run.length :]
            request = run.request
            start = len(request.prompt_ids)
            step_input = StepInput(run.sequence, tokens, request.sampling, mask, drafts, start, run.logprobs)
            inputs.append((run, step_input))
        # Rows of an adapter lie together, so that the engine reads its weights once for all of them.
        inputs.sort(key=lambda pair: pair[0].request.adapter or "")
        return inputs

    def _drafts(self, run: Run, rows: int) -> list[int]:
        """What probably comes next, as far as it pays beside the step's other rows."""
        if not run.request.lookup or run.first_token == 0.0 or run.pending > 1:
            return []
        if run.lookup is None:
            run.lookup = Lookup(run.ids, self._engine.step_costs)
        limit = min(run.max_length - len(run.ids) - 1, BATCH_TOKENS - rows)
        return run.lookup.propose(limit, rows=rows, stop_ids=run.request.stop_ids)

    def _mask(self, run: Run, drafts: list[int]) -> tuple[Mask | None, list[int]]:
        """The tokens that may come next, and with drafts after each of them; computed while the step runs."""
        if run.guide is None or run.guide.stopped:
            return None, drafts
        if drafts:
            drafts, masks = run.guide.masks(drafts)
            if drafts:
                return masks, drafts
        return run.guide.mask(), drafts

    def _accept_all(self, run: Run, new: list[int], drafted: int, now: float) -> None:
        """The drafts of a request that were right, and the token after them."""
        if run.logprobs is not None:
            run.ticket.logprobs += [
                TokenLogprobs(chosen, tuple(top)) for chosen, top in run.logprobs.entries()
            ]
        right = new[:-1]
        if right:
            run.ids += right
            run.length += len(right)
            try:
                for token in right if run.guide is not None else ():
                    run.guide.accept(token)  # type: ignore[union-attr]
            except Exception as error:
                self._finish(run, "error", error)
                return
            self._push(run, right)
        known = len(run.ids)
        self._accept(run, new[-1], now)
        if run.lookup is not None:
            run.lookup.extend(new, drafted=drafted)
            if forced := run.ids[known + 1 :]:
                run.lookup.extend(forced)

    def _accept(self, run: Run, token: int, now: float) -> None:
        """The next token of a request has been sampled."""
        counts = run.lane.counts
        if run.first_token == 0.0:
            assert run.sequence is not None
            run.first_token = now
            self._batcher.note_reuse(run, 0)
            run.prompt_reused = run.reused
            prompt = len(run.request.prompt_ids)
            counts.prompt_tokens += prompt
            counts.reused_tokens += run.prompt_reused
            if self._push(run, run.ids[prompt:]):
                return
        if token in run.request.stop_ids:
            self._finish(run, "stop")
            return
        run.last_token = now
        tokens = [token]
        if run.guide is not None:
            try:
                tokens = run.guide.advance(token)
            except Exception as error:
                self._finish(run, "error", error)
                return
            if run.logprobs is not None and tokens[0] != token:  # the guide had to come to an end
                top = run.ticket.logprobs[-1].top
                run.ticket.logprobs[-1] = TokenLogprobs(dict(top).get(tokens[0], UNLIKELY), top)
        run.ids += tokens
        self._push(run, tokens)

    def _push(self, run: Run, tokens: Sequence[int]) -> bool:
        """Hands tokens out that stand in `run.ids`. True: the request ended with them."""
        run.lane.counts.new_tokens += len(tokens)
        self._new_tokens += len(tokens)
        for token in tokens:
            run.ticket.push(token, self._wakeups)
        if run.guide is not None and run.guide.stopped:
            self._finish(run, "length" if run.guide.cut else "stop")
        elif len(run.ids) == run.max_length:
            self._finish(run, "length")
        return run.ticket.done

    def _fail(self, run: Run, error: BaseException) -> None:
        self._finish(run, "error", error)

    def _note_admissions(self, now: float) -> None:
        """How fast the queue moves, for the hint to those whom it has no place for."""
        count = self._batcher.admissions - self._admissions
        if count and self._batcher.queued:
            seconds = (now - self._last_admission) / count
            self._admission_seconds += 0.1 * (seconds - self._admission_seconds)
        if count or not self._batcher.queued:
            self._last_admission = now
        self._admissions += count

    def _finish(self, run: Run, reason: FinishReason, error: BaseException | None = None) -> None:
        """The end of a request; its memory is free afterwards."""
        if run.ticket.done:
            return
        now = time.perf_counter()
        version = None if run.adapter is None else run.adapter.version
        admitted, first, last = run.admitted or now, run.first_token or now, run.last_token or now
        prompt = len(run.request.prompt_ids)
        completion = Completion(
            tuple(run.ids[prompt:]) if run.first_token else (),
            reason,
            prompt,
            run.prompt_reused,
            admitted - run.submitted,
            max(first - admitted, 0.0),
            max(last - first, 0.0),
            version,
            run.preemptions,
        )
        self._finished[reason] += 1
        try:
            self._batcher.remove(run)
            run.guide = None
        finally:
            run.ticket.finish(completion, error, self._wakeups)


def _close(scheduler: weakref.ref[Scheduler]) -> None:
    alive = scheduler()
    if alive is not None:
        alive.close(drain=False)
