"""The scheduler's memory: never short in the middle of a step, and adapter versions that do not mix."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from scheduler_helpers import WAIT, Steps, alone, answers, prompt, results

from pomona.errors import PomonaError
from pomona.runtime.adapters import AdapterCache, load_adapter
from pomona.runtime.engine import Engine, StepInput
from pomona.runtime.scheduler import Request, Scheduler

# --- memory -----------------------------------------------------------------------------------------------


def test_answers_that_outgrow_the_memory_are_preempted_and_stay_right(
    directory: Path, plain: Engine, adapter_dirs: dict[str, Path]
) -> None:
    """Eight answers of 400 tokens on a cache of 1,024: promised at the door is only their beginning."""
    engine = Engine.load(directory, threads=1, kv_tokens=1024)
    steps = Steps(engine)
    requests = [Request(prompt(20, i), max_new_tokens=400) for i in range(8)]
    with Scheduler(engine) as scheduler:
        tickets = [scheduler.submit(request) for request in requests]
        done = results(tickets)
        stats = scheduler.stats()
    assert [list(c.token_ids) for c in done] == [alone(plain, request) for request in requests]
    assert stats.preemptions > 0 and stats.failed_steps == 0
    assert done[0].preemptions == 0, "the oldest was preempted"
    assert max(len(step) for step in steps.log) >= 4, "they ran one after the other"
    assert engine.native.free_tokens == 1024


def test_memory_that_others_hold_is_waited_for(directory: Path) -> None:
    engine = Engine.load(directory, threads=1, kv_tokens=256)
    with Scheduler(engine) as scheduler, engine.new_sequence() as outside:
        engine.step([StepInput(outside, prompt(200))])
        ticket = scheduler.submit(Request(prompt(100), max_new_tokens=4))
        with pytest.raises(TimeoutError):
            ticket.result(0.3)
        outside.close()
        assert len(ticket.result(WAIT).token_ids) == 4


def test_memory_that_others_take_in_the_middle_stops_nothing_for_good(directory: Path, plain: Engine) -> None:
    engine = Engine.load(directory, threads=1, kv_tokens=256)
    steps = Steps(engine)
    request = Request(prompt(60), max_new_tokens=100)
    with Scheduler(engine) as scheduler, engine.new_sequence() as outside:
        steps.open.clear()
        ticket = scheduler.submit(request)
        assert steps.arrived.wait(WAIT)
        steps.unwatched([StepInput(outside, prompt(200))])  # the step that waits now has no room any more
        steps.open.set()
        with pytest.raises(TimeoutError):
            ticket.result(0.5)
        assert scheduler.stats().failed_steps == 1
        outside.close()
        assert list(ticket.result(WAIT).token_ids) == alone(plain, request)


def test_a_big_request_is_not_passed_by_small_ones_of_others(directory: Path, adapter_dirs: Any) -> None:
    """It finds no room beside those who run; what comes later would fit, and waits behind it."""
    engine = Engine.load(directory, threads=1, kv_tokens=1024)
    cache = AdapterCache(engine)
    cache.register("a", adapter_dirs["a"])
    cache.acquire("a")
    steps = Steps(engine)
    small = Request((7,), max_new_tokens=60, adapter="a")
    with Scheduler(engine, adapters=cache) as scheduler:
        steps.hold(scheduler)
        first = [scheduler.submit(small) for _ in range(10)]
        steps.run(3)
        big = scheduler.submit(Request(prompt(900), max_new_tokens=20))
        later = [scheduler.submit(small) for _ in range(20)]
        steps.open.set()
        assert len(big.result(WAIT).token_ids) == 20
        assert all(ticket.done for ticket in first) and not any(ticket.done for ticket in later)
        results(later)
        assert scheduler.stats().preemptions == 0


def test_adapters_stay_within_their_budget(
    engine: Engine, plain: Engine, adapter_dirs: dict[str, Path], steps: Steps
) -> None:
    """Six adapters at once where two have room: they take turns, and none is there twice."""
    size = load_adapter(plain, adapter_dirs["a"]).bytes
    cache = AdapterCache(engine, budget_bytes=2 * size)
    for name, path in adapter_dirs.items():
        cache.register(name, path)
    most = 0

    def watch() -> None:
        nonlocal most
        most = max(most, cache.alive_bytes)

    steps.watch = watch
    requests = [Request(prompt(30, i), max_new_tokens=12, adapter="abcdef"[i % 6]) for i in range(18)]
    with Scheduler(engine, adapters=cache) as scheduler:
        got = answers([scheduler.submit(request) for request in requests])
    for request, answer in zip(requests, got, strict=True):
        assert answer == alone(plain, request, load_adapter(plain, adapter_dirs[str(request.adapter)]))
    assert size <= most <= 2 * size


def test_an_adapter_without_room_is_not_passed_for_ever(
    engine: Engine, plain: Engine, adapter_dirs: dict[str, Path], steps: Steps
) -> None:
    """The one adapter that has room is asked for without end; after a second the other one has its turn."""
    cache = AdapterCache(engine, budget_bytes=load_adapter(plain, adapter_dirs["a"]).bytes)
    for name, path in adapter_dirs.items():
        cache.register(name, path)
    steps.watch = lambda: time.sleep(0.002)
    with Scheduler(engine, adapters=cache, max_running=4) as scheduler:
        flood = [  # of different lengths: at no time all of them end together
            scheduler.submit(Request((7,), max_new_tokens=60 + 13 * (i % 7), adapter="a")) for i in range(60)
        ]
        next(iter(flood[0]))
        other = scheduler.submit(Request((7,), max_new_tokens=4, adapter="b"))
        assert other.result(WAIT).adapter_version == 1
        assert any(not ticket.done for ticket in flood), "it waited for the flood"
        assert cache.alive_bytes <= cache.budget_bytes
        for ticket in flood:
            ticket.cancel()


# --- adapter versions -------------------------------------------------------------------------------------


def test_a_request_keeps_the_version_that_it_started_with(
    engine: Engine, plain: Engine, adapters: AdapterCache, adapter_dirs: dict[str, Path], steps: Steps
) -> None:
    """One that runs keeps the old version, one that still waits gets the new one, and both say which."""
    old, new = (load_adapter(plain, adapter_dirs[name]) for name in "ab")
    request = Request(prompt(30), max_new_tokens=100, adapter="a")
    with Scheduler(engine, adapters=adapters, max_running=1) as scheduler:
        steps.hold(scheduler)
        running, waiting = scheduler.submit(request), scheduler.submit(request)
        steps.run(3)
        adapters.replace("a", adapter_dirs["b"])
        steps.open.set()
        first, second = results([running, waiting])
    assert (first.adapter_version, list(first.token_ids)) == (1, alone(plain, request, old))
    assert (second.adapter_version, list(second.token_ids)) == (2, alone(plain, request, new))


def test_the_version_is_kept_across_preemption(
    engine: Engine, plain: Engine, adapters: AdapterCache, adapter_dirs: dict[str, Path], steps: Steps
) -> None:
    old = load_adapter(plain, adapter_dirs["a"])
    request = Request(prompt(30), max_new_tokens=100, adapter="a")
    other = adapters.acquire("b")
    with Scheduler(engine, adapters=adapters, max_running=2) as scheduler:
        steps.hold(scheduler)
        tickets = [scheduler.submit(request) for _ in range(2)]
        steps.run(3)
        adapters.replace("a", adapter_dirs["c"])
        intruder = scheduler.submit(Request((3,), max_new_tokens=3, adapter=other.name))
        steps.open.set()
        done = results(tickets)
        intruder.result(WAIT)
    assert [completion.preemptions for completion in done] == [0, 1]
    assert [completion.adapter_version for completion in done] == [1, 1]
    assert [list(completion.token_ids) for completion in done] == [alone(plain, request, old)] * 2


def test_an_adapter_that_is_removed_while_a_request_waits_fails_that_request_alone(
    engine: Engine, adapters: AdapterCache, steps: Steps
) -> None:
    with Scheduler(engine, adapters=adapters) as scheduler:
        held = steps.hold(scheduler)
        orphan = scheduler.submit(Request((1,), max_new_tokens=3, adapter="a"))
        other = scheduler.submit(Request((1,), max_new_tokens=3, adapter="b"))
        adapters.remove("a")
        steps.open.set()
        with pytest.raises(PomonaError, match="adapter a: is not known"):
            orphan.result(WAIT)
        assert [len(done.token_ids) for done in results([held, other])] == [1, 3]
