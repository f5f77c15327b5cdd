"""Which tokens of which requests enter the next step: fairness, admission against memory, preemption.

Requests stand in lanes, one lane for each adapter and one for none. Every running request that waits for its
next token gets a row of each step. What is left of the step is prefill, cut into chunks and dealt out in
equal shares to the lanes that have prompts, beginning with the lane that has the fewest running; within a
lane, first come, first served. So a flood of one adapter costs the others no more than their equal share.

Memory: a request is admitted when there are pages for its prompt and the first GROWTH_TOKENS of its answer
beside what was promised to others. Beyond that answers grow into free memory; when there is none, the newest
request of the lane with the most running gives its pages up, goes back to the head of its lane, and is taken
up again from its tokens, through the prefix cache where that still has them. That costs time and changes no
token: what the engine computes does not depend on how tokens were cut into steps.

Only the scheduler's thread comes here.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pomona import _native
from pomona.errors import PomonaError
from pomona.runtime.adapters import AdapterCache, AdapterMemoryFullError, LoadedAdapter
from pomona.runtime.engine import BATCH_TOKENS, Engine, Sequence
from pomona.runtime.guided import GuidedTokens
from pomona.runtime.lookup import Lookup
from pomona.runtime.ticket import Request, Ticket

PAGE_TOKENS = 16  # of a page of the key/value cache
GROWTH_TOKENS = 64  # of its answer for which a request must find room before it begins
PATIENCE_SECONDS = 1.0  # how long others may be admitted past a lane that waits for adapter memory
MAX_STRIDE = 8


def pages(tokens: int) -> int:
    return -(-tokens // PAGE_TOKENS)


class Run:
    """A request from submit to its end. `ids[:length]` are in its sequence, the others are to be computed."""

    def __init__(self, request: Request, max_new_tokens: int, guide: GuidedTokens | None) -> None:
        self.request = request
        self.number = -1  # in the order of submission
        self.ids = [int(token) for token in request.prompt_ids]
        self.max_length = len(self.ids) + max_new_tokens
        self.guide = guide
        self.lookup: Lookup | None = None  # made when it is asked for first
        self.logprobs: _native.Logprobs | None = None  # where steps leave them, if they are asked for
        self.ticket: Ticket
        self.lane: Lane
        self.adapter: LoadedAdapter | None = None
        self.sequence: Sequence | None = None
        self.length = 0
        self.reused = 0  # tokens of its sequence that were found in the prefix cache
        self.stride = 1  # how far a chunk may go beyond its rows, because the cache has most of it
        self.prompt_reused = 0  # the same when its first token came
        self.preemptions = 0
        self.submitted = time.perf_counter()
        self.deadline = self.submitted + (request.deadline_seconds or math.inf)
        self.admitted = self.first_token = self.last_token = 0.0  # times; 0: not yet

    @property
    def pending(self) -> int:
        return len(self.ids) - self.length

    @property
    def promised_pages(self) -> int:
        """Of its prompt and the next of its answer, held or not."""
        return pages(min(len(self.ids) + GROWTH_TOKENS, self.max_length))


@dataclass
class LaneCounts:
    admitted: int = 0
    finished: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0


class Lane:
    """The requests of one adapter."""

    def __init__(self, adapter: str | None) -> None:
        self.adapter = adapter
        self.waiting: deque[Run] = deque()
        self.running = 0
        self.served = 0  # the step in which it had prefill rows last
        self.counts = LaneCounts()
        self.loading: Future[LoadedAdapter] | None = None
        self.crowded_since: float | None = None  # it waits for adapter memory
        self.crowded_at = -1  # how many requests had ended when it last tried


@dataclass
class Batch:
    """One step in the making."""

    counts: dict[Run, int]  # tokens that each brings
    rows: int  # left for prefill
    room: int  # left in the native step: cached tokens take room and no rows
    free: int  # pages left in this step
    spare: int  # pages that are promised to nobody
    admitting: bool = True
    crowded: bool = False  # a lane has waited long for adapter memory: nobody else may take any
    again: bool = False  # a request was preempted for another: begin again


class Batcher:
    """Lanes and running requests; next_batch() admits, preempts and deals out the rows."""

    def __init__(
        self,
        engine: Engine,
        adapters: AdapterCache | None,
        max_running: int,
        prefill_chunk: int,
        fail: Callable[[Run, BaseException], None],
        wake: Callable[[], None],
    ) -> None:
        self.lanes: dict[str | None, Lane] = {}
        self.running: list[Run] = []  # in the order of admission
        self.queued = 0  # never admitted so far
        self.admissions = self.preemptions = self.ended = 0
        self._engine = engine
        self._adapters = adapters
        self._max_running = max_running
        self._prefill_chunk = prefill_chunk
        self._fail = fail
        self._wake = wake
        self._step = 0
        self._loader = ThreadPoolExecutor(2, thread_name_prefix="pomona-adapters")

    def close(self) -> None:
        self._loader.shutdown(wait=True, cancel_futures=True)

    def everybody(self) -> list[Run]:
        return self.running + [run for lane in self.lanes.values() for run in lane.waiting]

    def enqueue(self, run: Run) -> None:
        name = run.request.adapter
        if name not in self.lanes:
            self.lanes[name] = Lane(name)
        run.lane = self.lanes[name]
        run.lane.waiting.append(run)
        self.queued += 1

    def remove(self, run: Run) -> None:
        """Takes a request out, wherever it is, and frees its memory."""
        lane = run.lane
        if run.sequence is not None:
            self._stop(run)
        elif run in lane.waiting:
            lane.waiting.remove(run)
        run.adapter = None
        self.queued -= not run.admitted
        if not lane.waiting:
            lane.loading = lane.crowded_since = None
        lane.counts.finished += 1
        self.ended += 1

    def preempt(self) -> None:
        """The newest request of the lane with the most running goes back to the head of its lane."""
        most = max(self.lanes.values(), key=lambda lane: lane.running).running
        fullest = [run for run in self.running if run.lane.running == most]
        self._preempt(max(fullest, key=lambda run: run.number))

    def note_reuse(self, run: Run, count: int) -> None:
        """After a chunk of `count` tokens: lets the next one be longer if the prefix cache had most of it."""
        assert run.sequence is not None
        found = run.sequence.reused_tokens - run.reused
        run.reused += found
        run.stride = min(2 * run.stride, MAX_STRIDE) if count - found <= PAGE_TOKENS < count else 1

    def next_batch(self) -> dict[Run, int]:
        """Tokens that each request brings to the next step; empty when nothing can run now."""
        self._step += 1
        while True:
            counts = self._compose()
            if counts is not None:
                return counts

    def _compose(self) -> dict[Run, int] | None:
        """None: a request was preempted, begin again."""
        decoding = [run for run in self.running if run.pending == 1]
        free = self._engine.native.free_tokens // PAGE_TOKENS
        room = BATCH_TOKENS - len(decoding)
        batch = Batch(
            dict.fromkeys(decoding, 1),
            # A long chunk would keep those who decode waiting.
            rows=min(room, self._prefill_chunk) if decoding else room,
            room=room,
            free=free - sum(run.length % PAGE_TOKENS == 0 for run in decoding),
            spare=free,
        )
        if batch.free < 0:
            self.preempt()
            return None
        waiting = [lane for lane in self.lanes.values() if lane.waiting]
        if waiting or len(decoding) < len(self.running):
            batch.spare -= sum(run.promised_pages - pages(run.length) for run in self.running)
            self._deal(batch, waiting)
        if batch.again:
            return None
        if not batch.counts and self.running:  # pages are short for everybody's prompt
            self.preempt()
            return None
        return batch.counts

    def _deal(self, batch: Batch, waiting: list[Lane]) -> None:
        """Shares the prefill rows out, and admits."""
        prompts: dict[Lane, list[Run]] = {lane: [] for lane in waiting}
        for run in self.running:
            if run.pending > 1:
                prompts.setdefault(run.lane, []).append(run)
        lanes = sorted(prompts, key=lambda lane: (lane.running, lane.served))
        while lanes and batch.rows > 0:
            share = max(PAGE_TOKENS, batch.rows // len(lanes))
            for lane in list(lanes):
                first = next((run for run in prompts[lane] if self._left(batch, run) > 0), None)
                if first is None:
                    first = self._admit(lane, batch)
                    if batch.again:
                        return
                    if first is not None:
                        prompts[lane].append(first)
                if first is not None and self._feed(first, min(share, batch.rows), batch):
                    lane.served = self._step
                else:
                    lanes.remove(lane)

    def _left(self, batch: Batch, run: Run) -> int:
        return run.pending - batch.counts.get(run, 0)

    def _feed(self, run: Run, rows: int, batch: Batch) -> int:
        """Gives the next tokens of its prompt to the step, as many as `rows` and memory allow."""
        have = batch.counts.get(run, 0)
        end = run.length + have
        # Where the last chunk was found in the prefix cache the next one probably is, and costs no rows.
        count = min(rows * run.stride, batch.room, self._left(batch, run))
        count = min(count, pages(end) * PAGE_TOKENS - end + batch.free * PAGE_TOKENS)
        if count < self._left(batch, run):  # the prefix cache goes on at full pages only
            count = (end + count) // PAGE_TOKENS * PAGE_TOKENS - end
        if count <= 0:
            return 0
        batch.free -= pages(end + count) - pages(end)
        batch.room -= count
        batch.rows -= -(-count // run.stride)
        batch.counts[run] = have + count
        return count

    # --- admission ----------------------------------------------------------------------------------------

    def _admit(self, lane: Lane, batch: Batch) -> Run | None:
        """The first of the lane, if there is a place for it, memory and its adapter."""
        if not lane.waiting or not batch.admitting:
            return None
        run = lane.waiting[0]
        need = run.promised_pages
        giver = None
        if len(self.running) >= self._max_running or need > batch.spare:
            giver = self._giver(lane, need, batch)
            if giver is None:
                batch.admitting = False  # else those who need little would pass it for ever
                return None
        if lane.adapter is not None and run.adapter is None:
            run.adapter = self._adapter(lane, run, batch)
            if run.adapter is None:
                return None
        if giver is not None:
            self._preempt(giver)
            batch.again = True
            return None
        lane.waiting.popleft()
        run.sequence = self._engine.new_sequence(run.adapter)
        run.stride, run.reused = 1, 0
        if not run.admitted:
            run.admitted = time.perf_counter()
            lane.counts.admitted += 1
            self.admissions += 1
            self.queued -= 1
        lane.running += 1
        self.running.append(run)
        batch.spare -= need
        return run

    def _giver(self, lane: Lane, need: int, batch: Batch) -> Run | None:
        """When a lane has nothing running: the newest request of the lane with the most, which gives way."""
        most = max((other.running for other in self.lanes.values()), default=0)
        if lane.running > 0 or most < 2:
            return None
        rich = next(other for other in self.lanes.values() if other.running == most)
        own = sorted((run for run in self.running if run.lane is rich), key=lambda run: run.number)
        if need > batch.spare:
            # Not if the newcomer had more than its giver then, nor if all that can be given is too little.
            held = sum(pages(run.length) for run in own)
            if held <= need or held - pages(own[0].length) < need - batch.spare:
                return None
        return own[-1]

    def _adapter(self, lane: Lane, run: Run, batch: Batch) -> LoadedAdapter | None:
        """The version that is current now; None while another thread reads it, or while it has no room."""
        assert self._adapters is not None and lane.adapter is not None
        if batch.crowded:
            return None
        read, lane.loading = _finished(lane.loading)
        try:
            loaded = self._adapters.in_memory(lane.adapter)
            if loaded is None and read is not None:
                read.result()  # raises what went wrong; else it was replaced meanwhile and is read again
        except AdapterMemoryFullError:
            lane.crowded_at = self.ended
            if lane.crowded_since is None:
                lane.crowded_since = time.perf_counter()
        except PomonaError as error:
            self._fail(run, error)
            return None
        except Exception as error:
            self._fail(run, PomonaError(f"adapter {lane.adapter}: cannot be read ({error!r})"))
            return None
        if loaded is not None:
            lane.crowded_since = None
            return loaded
        long = False
        if lane.crowded_since is not None:
            # There is room when others end. If that takes long, nobody else may take it.
            batch.crowded = long = time.perf_counter() - lane.crowded_since > PATIENCE_SECONDS
            if self.running and lane.crowded_at == self.ended:
                return None
        if lane.loading is None:
            # Those who hold adapters outside the scheduler are not waited for without end.
            within_budget = bool(self.running) or not long
            lane.loading = self._loader.submit(
                self._adapters.acquire, lane.adapter, within_budget=within_budget
            )
            lane.loading.add_done_callback(lambda _: self._wake())
        return None

    # --- leaving ------------------------------------------------------------------------------------------

    def _preempt(self, run: Run) -> None:
        self._stop(run)
        run.length = 0
        run.preemptions += 1
        self.preemptions += 1
        lane = run.lane
        at = sum(other.number < run.number for other in lane.waiting)
        lane.waiting.insert(at, run)

    def _stop(self, run: Run) -> None:
        assert run.sequence is not None
        run.sequence.close()
        run.sequence = None
        self.running.remove(run)
        run.lane.running -= 1


def _finished(
    loading: Future[LoadedAdapter] | None,
) -> tuple[Future[LoadedAdapter] | None, Future[LoadedAdapter] | None]:
    """(what has been read, what is still being read)"""
    return (loading, None) if loading is not None and loading.done() else (None, loading)
