"""How requests end, are refused, and are read: by threads and under asyncio."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scheduler_helpers import GUIDES, WAIT, Steps, alone, answers, prompt, results

from pomona.errors import PomonaError
from pomona.runtime.adapters import AdapterCache
from pomona.runtime.engine import Engine
from pomona.runtime.guided import Guide
from pomona.runtime.scheduler import Completion, Overloaded, Request, Scheduler, Ticket

# --- endings ----------------------------------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_back(engine: Engine, steps: Steps) -> None:
    with Scheduler(engine, max_waiting=3, max_running=1) as scheduler:
        held = steps.hold(scheduler)
        tickets = [scheduler.submit(Request((1,), max_new_tokens=2)) for _ in range(3)]
        with pytest.raises(Overloaded, match="3 requests are waiting already; try again in") as caught:
            scheduler.submit(Request((1,), max_new_tokens=2))
        assert 0.1 <= caught.value.retry_seconds <= 60
        assert scheduler.stats().refused == 1
        steps.open.set()
        results([held, *tickets])
        assert len(scheduler.submit(Request((1,), max_new_tokens=2)).result(WAIT).token_ids) == 2


def test_a_reader_may_wait_for_several_tokens(engine: Engine) -> None:
    async def read() -> tuple[list[list[int]], tuple[int, ...]]:
        with Scheduler(engine) as scheduler:
            ticket = scheduler.submit(Request((1,), max_new_tokens=20))
            parts: list[list[int]] = []
            while new := await asyncio.wait_for(ticket.more(sum(map(len, parts)), 8), WAIT):
                parts.append(new)
            return parts, (await ticket.wait()).token_ids

    parts, tokens = asyncio.run(read())
    assert tuple(token for part in parts for token in part) == tokens
    assert len(parts) <= 3 and all(len(part) >= 8 for part in parts[:-1])


def test_what_is_submitted_together_comes_into_one_step(engine: Engine) -> None:
    with Scheduler(engine) as scheduler:
        for _ in range(5):
            steps = scheduler.stats().steps
            with scheduler.together():
                tickets = [scheduler.submit(Request((token,), max_new_tokens=1)) for token in (1, 2, 3)]
            results(tickets)
            assert scheduler.stats().steps == steps + 1


def test_cancelling_frees_the_memory(engine: Engine, steps: Steps) -> None:
    free = engine.native.free_tokens
    with Scheduler(engine, max_running=1) as scheduler:
        steps.hold(scheduler)
        running = scheduler.submit(Request(prompt(300), max_new_tokens=500))
        steps.run(3)
        waiting = scheduler.submit(Request(prompt(300), max_new_tokens=500))
        waiting.cancel()
        steps.run(1)
        assert waiting.result(WAIT).finish_reason == "cancelled"
        assert not running.done
        running.cancel()
        steps.open.set()
        completion = running.result(WAIT)
        assert completion.finish_reason == "cancelled" and 0 < len(completion.token_ids) < 500
        assert engine.native.free_tokens == free
        running.cancel()  # too late: nothing happens
        with scheduler.submit(Request((1,), max_new_tokens=900)) as left:
            next(iter(left))
        assert left.result(WAIT).finish_reason == "cancelled"


def test_deadlines_hold_for_those_who_wait_and_those_who_run(engine: Engine, steps: Steps) -> None:
    steps.watch = lambda: time.sleep(0.005)
    with Scheduler(engine, max_running=1) as scheduler:
        running = scheduler.submit(Request((1,), max_new_tokens=900, deadline_seconds=1.0))
        waiting = scheduler.submit(Request((1,), max_new_tokens=900, deadline_seconds=0.05))
        in_time = scheduler.submit(Request((1,), max_new_tokens=3, deadline_seconds=WAIT))
        late, ended, fine = results([waiting, running, in_time])
    assert (late.finish_reason, late.token_ids) == ("deadline", ())
    assert ended.finish_reason == "deadline" and 1 < len(ended.token_ids) < 900
    assert fine.finish_reason == "length"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt_ids": tuple([1] * 1024)}, "1,024 tokens, the context holds 1,024; shorten it"),
        ({"prompt_ids": (1, 512)}, "512 is outside the vocabulary"),
        ({"prompt_ids": (-1,)}, "-1 is outside the vocabulary"),
        ({"adapter": "zebra"}, "adapter zebra: is not known"),
        ({"adapter": "broken"}, "no such adapter directory"),
        ({"guide": Guide("regex", "nonsense")}, "cannot be used"),
    ],
)
def test_what_cannot_run_is_refused_at_the_door(
    engine: Engine, adapters: AdapterCache, options: dict[str, Any], words: str
) -> None:
    adapters.register("broken", "no-such-directory")
    with Scheduler(engine, adapters=adapters, guides=GUIDES) as scheduler:
        with pytest.raises(PomonaError, match=words):
            scheduler.submit(Request(**{"prompt_ids": (1,), **options}))
        assert len(scheduler.submit(Request((1,), max_new_tokens=2)).result(WAIT).token_ids) == 2
        assert scheduler.stats().submitted == 1


@pytest.mark.parametrize(
    "options",
    [{"prompt_ids": ()}, {"max_new_tokens": 0}, {"deadline_seconds": 0}, {"deadline_seconds": float("nan")}],
)
def test_a_request_that_makes_no_sense_cannot_be_written(options: dict[str, Any]) -> None:
    with pytest.raises(PomonaError):
        Request(**{"prompt_ids": (1,), **options})


@pytest.mark.parametrize("options", [{"adapter": "a"}, {"guide": Guide("regex", "9")}])
def test_a_scheduler_without_adapters_or_guides_says_so(engine: Engine, options: dict[str, Any]) -> None:
    with Scheduler(engine) as scheduler, pytest.raises(PomonaError, match="was made without"):
        scheduler.submit(Request((1,), **options))


@pytest.mark.parametrize(
    "options", [{"max_running": 0}, {"max_running": 257}, {"max_waiting": 0}, {"prefill_chunk": 15}]
)
def test_options_out_of_range_are_refused(engine: Engine, options: dict[str, int]) -> None:
    with pytest.raises(PomonaError, match="must lie in"):
        Scheduler(engine, **options)


def test_a_guide_that_fails_on_the_way_hurts_nobody_else(engine: Engine, plain: Engine) -> None:
    request = Request(prompt(20), max_new_tokens=30)
    with Scheduler(engine, guides=GUIDES) as scheduler:
        stuck = scheduler.submit(Request((1,), max_new_tokens=30, guide=Guide("regex", "stuck at 5")))
        other = scheduler.submit(request)
        said = []
        with pytest.raises(PomonaError, match="the guide is stuck"):
            said.extend(stuck)
        assert stuck.completion is not None and stuck.completion.finish_reason == "error"
        assert len(stuck.completion.token_ids) == 5
        assert list(other) == alone(plain, request)


def test_a_step_that_fails_fails_its_requests_and_no_others(
    engine: Engine, plain: Engine, steps: Steps
) -> None:
    free = engine.native.free_tokens
    request = Request(prompt(20), max_new_tokens=30)
    with Scheduler(engine, max_running=2) as scheduler:
        held = steps.hold(scheduler)
        tickets = [scheduler.submit(request) for _ in range(4)]
        faults: Iterator[BaseException | None] = iter([None] * 5 + [RuntimeError("broken")])
        steps.fault = lambda: next(faults, None)
        steps.open.set()
        held.result(WAIT)
        for ticket in tickets[:2]:
            with pytest.raises(RuntimeError, match="broken"):
                ticket.result(WAIT)
        assert answers(tickets[2:]) == [alone(plain, request)] * 2
        stats = scheduler.stats()
        assert (stats.failed_steps, stats.finished["error"]) == (1, 2)
        assert engine.native.free_tokens == free


def test_closing_finishes_what_is_there_or_cancels_it(engine: Engine, steps: Steps) -> None:
    steps.watch = lambda: time.sleep(0.001)
    free = engine.native.free_tokens
    for drain, reason in ((True, "length"), (False, "cancelled")):
        scheduler = Scheduler(engine, max_running=2)
        tickets = [scheduler.submit(Request(prompt(50, i), max_new_tokens=900)) for i in range(4)]
        next(iter(tickets[0]))
        scheduler.close(drain=drain)
        assert {completion.finish_reason for completion in results(tickets)} == {reason}
        assert engine.native.free_tokens == free
        scheduler.close()  # once more does nothing
        with pytest.raises(PomonaError, match="closed"):
            scheduler.submit(Request((1,)))


def test_a_forgotten_scheduler_does_not_hold_the_program_open(directory: Path) -> None:
    program = (
        "from pathlib import Path; from pomona.runtime.engine import Engine\n"
        "from pomona.runtime.scheduler import Request, Scheduler\n"
        f"scheduler = Scheduler(Engine.load(Path({str(directory)!r}), threads=2))\n"
        "print(next(iter(scheduler.submit(Request((1,), max_new_tokens=1000)))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=True
    )
    assert done.stdout.strip().isdigit() and done.stderr == ""


# --- readers ----------------------------------------------------------------------------------------------


def test_several_readers_have_all_tokens_each(engine: Engine, plain: Engine) -> None:
    request = Request(prompt(20), max_new_tokens=50)
    expected = alone(plain, request)
    with Scheduler(engine) as scheduler:
        ticket = scheduler.submit(request)
        heard: list[list[int]] = [[], [], []]
        threads = [threading.Thread(target=lambda into=into: into.extend(ticket)) for into in heard]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert heard == [expected] * 3
        assert list(ticket) == list(ticket.result().token_ids) == expected


def test_asyncio_reads_many_at_once(engine: Engine, plain: Engine) -> None:
    requests = [Request(prompt(10 + i, i), max_new_tokens=25) for i in range(12)]

    async def read(ticket: Ticket) -> list[int]:
        return [token async for token in ticket]

    async def everything(scheduler: Scheduler) -> tuple[list[list[int]], Completion]:
        tickets = [scheduler.submit(request) for request in requests]
        last = scheduler.submit(requests[0])
        return await asyncio.gather(*map(read, tickets)), await last.wait()

    with Scheduler(engine) as scheduler:
        said, last = asyncio.run(everything(scheduler))
    assert said == [alone(plain, request) for request in requests]
    assert list(last.token_ids) == said[0]


def test_asyncio_hears_of_errors_and_cancellation(engine: Engine, steps: Steps) -> None:
    async def everything(scheduler: Scheduler) -> None:
        broken = scheduler.submit(Request((1,), guide=Guide("regex", "stuck at 3")))
        said = []
        with pytest.raises(PomonaError, match="stuck"):
            async for token in broken:
                said.append(token)  # noqa: PERF401 - the comprehension would lose what came before the error
        assert len(said) == 3
        with pytest.raises(PomonaError, match="stuck"):
            await broken.wait()
        ticket = scheduler.submit(Request((1,), max_new_tokens=1000))
        async for _ in ticket:
            ticket.cancel()
        assert (await ticket.wait()).finish_reason == "cancelled"

    with Scheduler(engine, guides=GUIDES) as scheduler:
        asyncio.run(everything(scheduler))


def test_a_reader_whose_loop_is_gone_stops_nothing(engine: Engine) -> None:
    async def first_token(ticket: Ticket) -> None:
        async for _ in ticket:
            return

    with Scheduler(engine) as scheduler:
        ticket = scheduler.submit(Request((1,), max_new_tokens=200))
        asyncio.run(first_token(ticket))
        assert len(ticket.result(WAIT).token_ids) == 200


def test_the_figures_add_up(engine: Engine, adapters: AdapterCache) -> None:
    with Scheduler(engine, adapters=adapters) as scheduler:
        done = results(
            [
                scheduler.submit(Request(prompt(40, i), max_new_tokens=10, adapter=name))
                for i, name in enumerate([None, "a", "a", "b"])
            ]
        )
        stats = scheduler.stats()
    assert (stats.submitted, stats.finished["length"], stats.running, stats.waiting) == (4, 4, 0, 0)
    assert stats.new_tokens == 40 and stats.rows == 4 * 40 + 4 * 9
    assert {name: lane.new_tokens for name, lane in stats.lanes.items()} == {None: 10, "a": 20, "b": 10}
    assert stats.lanes["a"].prompt_tokens == 80 and stats.lanes["a"].finished == 2
    assert stats.step_seconds > 0
    for completion in done:
        assert completion.prompt_tokens == 40
        assert completion.prefill_seconds > 0 and completion.decode_seconds > 0
        assert completion.queue_seconds >= 0
