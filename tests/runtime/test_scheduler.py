"""The scheduler gives the same answers in any mix and shares its steps fairly."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from scheduler_helpers import DRAWN, GUIDES, WAIT, Steps, alone, answers, prompt, results

from pomona.runtime.adapters import AdapterCache, load_adapter
from pomona.runtime.engine import Engine
from pomona.runtime.generate import generate
from pomona.runtime.guided import Guide
from pomona.runtime.sampling import Sampling
from pomona.runtime.scheduler import Request, Scheduler


def mixed_requests(count: int) -> list[Request]:
    """Prompts of 1 to 300 tokens, every adapter and none, greedy and drawn, guided and free."""
    random = np.random.default_rng(11)
    return [
        Request(
            prompt(int(random.integers(1, 300)), seed=i),
            sampling=DRAWN if i % 3 == 0 else Sampling(),
            max_new_tokens=int(random.integers(1, 40)),
            stop_ids=frozenset(prompt(12, seed=900 + i)),
            adapter=[None, *"abcdef"][i % 7],
            guide=Guide("regex", "9") if i % 4 == 1 else None,
            lookup=i % 5 < 3 and i % 4 != 1,
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def mixed(plain: Engine, adapter_dirs: dict[str, Path]) -> list[tuple[Request, list[int]]]:
    loaded = {name: load_adapter(plain, path) for name, path in adapter_dirs.items()}
    return [(r, alone(plain, r, loaded[r.adapter] if r.adapter else None)) for r in mixed_requests(42)]


# --- the same answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_tokens", [4096, 640])
@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize(("max_running", "chunk"), [(64, 128), (5, 16), (1, 512)])
def test_every_answer_is_that_of_the_request_alone(
    directory: Path,
    adapter_dirs: dict[str, Path],
    mixed: list[tuple[Request, list[int]]],
    kv_tokens: int,
    prefix_cache: bool,
    max_running: int,
    chunk: int,
) -> None:
    engine = Engine.load(directory, threads=1, kv_tokens=kv_tokens, prefix_cache=prefix_cache)
    cache = AdapterCache(engine)
    for name, path in adapter_dirs.items():
        cache.register(name, path)
    with Scheduler(
        engine, adapters=cache, guides=GUIDES, max_running=max_running, prefill_chunk=chunk
    ) as scheduler:
        tickets = [scheduler.submit(request) for request, _ in mixed]
        assert answers(tickets) == [expected for _, expected in mixed]
        finished = scheduler.stats().finished
        assert finished["stop"] + finished["length"] == len(mixed) and finished["stop"] > 5
    assert engine.native.free_tokens == kv_tokens


def test_drafts_save_steps_and_change_no_answer(engine: Engine, plain: Engine) -> None:
    """The tiny model falls into a loop, which drafts from its own answer foresee."""
    requests = [Request(prompt(20, seed=i), max_new_tokens=200, lookup=True) for i in range(3)]
    expected = [alone(plain, request) for request in requests]
    with Scheduler(engine, adapters=None, guides=None) as scheduler:
        assert answers([scheduler.submit(request) for request in requests]) == expected
        assert answers([scheduler.submit(request) for request in requests]) == expected
        assert scheduler.stats().steps < 390  # 400 and more without drafts; fewer where nothing is held up


def test_requests_from_many_threads(
    engine: Engine, adapters: AdapterCache, mixed: list[tuple[Request, list[int]]]
) -> None:
    wrong: list[int] = []

    def client(at: int) -> None:
        for i in range(at, len(mixed), 14):
            request, expected = mixed[i]
            if list(scheduler.submit(request)) != expected:
                wrong.append(i)

    with Scheduler(engine, adapters=adapters, guides=GUIDES, max_running=8) as scheduler:
        threads = [threading.Thread(target=client, args=(at,)) for at in range(14)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert scheduler.stats().finished["error"] == 0
    assert wrong == []


def test_guides_of_the_real_model(smollm2_dir: Path) -> None:
    from pomona.runtime.model import Model

    model = Model.load(str(smollm2_dir), kv_tokens=2048)
    guides = [
        Guide.regex("[0-9]{4}"),
        Guide.choices(["red", "green"]),
        Guide.json_schema({"type": "boolean"}),
        Guide.json_schema({"const": ["forced", "as", "a", "whole"]}),  # cut off: it has 8 tokens
        Guide.json_schema({"const": True}),
        Guide.json_schema({"type": "object", "properties": {"a_b": {"type": "string"}}, "required": ["a_b"]}),
    ]
    stop = frozenset(model.tokenizer.eos_token_ids)
    ids = tuple(model.tokenizer.encode("The answer is"))
    requests = [Request(ids, max_new_tokens=8, stop_ids=stop, guide=guide) for guide in [*guides, None]]
    expected = []
    for r in requests:
        guide = None if r.guide is None else model.guides.start(r.guide)
        with model.engine.new_sequence() as sequence:
            expected.append(
                list(
                    generate(
                        model.engine,
                        list(ids),
                        sampling=r.sampling,
                        max_new_tokens=8,
                        stop_ids=stop,
                        sequence=sequence,
                        guide=guide,
                    )
                )
            )
    with Scheduler(model.engine, guides=model.guides) as scheduler:
        assert answers([scheduler.submit(request) for request in requests]) == expected


# --- sharing a step ---------------------------------------------------------------------------------------


def test_a_long_prompt_comes_in_chunks_and_stalls_nobody(engine: Engine, steps: Steps) -> None:
    with Scheduler(engine, prefill_chunk=32) as scheduler:
        held = steps.hold(scheduler)
        running = scheduler.submit(Request((1, 2), max_new_tokens=200))
        steps.run(3)
        before = len(steps.log)
        long = scheduler.submit(Request(prompt(700), max_new_tokens=2))
        steps.open.set()
        results([held, long, running])
    prefill = [rows for rows in steps.rows[before:] if max(rows) > 2]
    assert len(prefill) >= 700 // 32
    assert all(rows.count(1) == 1 and sum(rows) <= 1 + 32 for rows in prefill), "a decode row in every step"


def test_a_prompt_alone_takes_the_whole_step(engine: Engine, steps: Steps) -> None:
    with Scheduler(engine, prefill_chunk=32) as scheduler:
        results([scheduler.submit(Request(prompt(700), max_new_tokens=2))])
    assert steps.rows == [[512], [188], [1]]


def test_a_step_is_shared_equally_between_adapters(
    engine: Engine, adapters: AdapterCache, steps: Steps
) -> None:
    for name in "abc":
        adapters.acquire(name)
    with Scheduler(engine, adapters=adapters, prefill_chunk=96) as scheduler:
        held = steps.hold(scheduler)
        busy = scheduler.submit(Request((1,), max_new_tokens=300))
        steps.run(3)
        before = len(steps.log)
        flood = [scheduler.submit(Request(prompt(400, i), max_new_tokens=1, adapter="a")) for i in range(6)]
        others = [scheduler.submit(Request(prompt(400), max_new_tokens=1, adapter=name)) for name in "bc"]
        steps.open.set()
        results([held, *flood, *others])
        busy.cancel()
    shares: dict[str, int] = dict.fromkeys("abc", 0)
    for step in steps.log[before:]:
        for name, count in step:
            if name is not None:
                shares[name] += count
        if min(shares["b"], shares["c"]) >= 400:
            break
    assert shares["a"] <= 400 + 96, "the flood got more than its share while the others had prompts"


def test_a_flood_of_one_adapter_does_not_starve_the_single_request_of_another(
    engine: Engine, adapters: AdapterCache, steps: Steps
) -> None:
    """Long answers of one adapter take all places and its queue is long; the other goes in at once."""
    for name in "ab":
        adapters.acquire(name)
    with Scheduler(engine, adapters=adapters, max_running=4) as scheduler:
        held = steps.hold(scheduler)
        flood = [scheduler.submit(Request(prompt(40, i), max_new_tokens=150, adapter="a")) for i in range(12)]
        steps.run(8)
        assert len(steps.log[-1]) == 4
        single = scheduler.submit(Request(prompt(40), max_new_tokens=5, adapter="b"))
        steps.open.set()
        completion = single.result(WAIT)
        unfinished = [ticket for ticket in flood if not ticket.done]
        assert len(unfinished) >= 11, "it waited for the flood"
        assert len(completion.token_ids) == 5
        assert all(len(done.token_ids) == 150 for done in results([held, *flood])[1:])
        assert 1 <= scheduler.stats().preemptions <= 3


def test_what_was_preempted_goes_on_where_it_was(
    engine: Engine, adapters: AdapterCache, plain: Engine, adapter_dirs: dict[str, Path]
) -> None:
    a = load_adapter(plain, adapter_dirs["a"])
    requests = [
        Request(prompt(40, i), max_new_tokens=60, adapter="a", sampling=DRAWN, guide=Guide("regex", "50"))
        for i in range(4)
    ]
    with Scheduler(engine, adapters=adapters, guides=GUIDES, max_running=2) as scheduler:
        tickets = [scheduler.submit(request) for request in requests]
        for _ in range(3):
            scheduler.submit(Request((3,), max_new_tokens=3, adapter="b")).result(WAIT)
        done = results(tickets)
    assert [list(c.token_ids) for c in done] == [alone(plain, request, a) for request in requests]


def test_cached_prompts_take_few_steps(directory: Path) -> None:
    engine = Engine.load(directory, threads=1, kv_tokens=4096, prefix_cache=True)
    steps = Steps(engine)
    with Scheduler(engine, prefill_chunk=32) as scheduler:
        results([scheduler.submit(Request(prompt(900), max_new_tokens=1))])
        steps.hold(scheduler)
        busy = scheduler.submit(Request((1,), max_new_tokens=300))
        steps.run(3)
        before = len(steps.log)
        again = scheduler.submit(Request(prompt(900), max_new_tokens=1))
        steps.open.set()
        # Every chunk computes its last page anew.
        assert again.result(WAIT).reused_tokens >= 900 - 16 * 8
        busy.cancel()
    assert sum(max(rows) > 1 for rows in steps.rows[before:]) <= 8
