"""What the scheduler costs, and how steady it keeps a running answer while a long prompt comes in.

    python -m benchmarks.scheduler --quick
    python -m benchmarks.scheduler --model smollm2-135m-4bit --threads 2 --json scheduler.json

*Hand-over*: 8 sequences decode together, in a bare loop over Engine.step and through the scheduler, whose
tokens are read at the end, by 8 threads as they come, or by 8 tasks under asyncio. They take turns;
the ratio of the time per step is taken in every round.

*Long prompt*: one request decodes while a prompt of 4,000 tokens arrives. The gaps between its tokens, until
that prompt has its first token, by the number of prompt tokens that a step may take (`prefill_chunk`).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    BenchmarkError,
    Goal,
    Report,
    emit,
    interleave,
    machine_facts,
    median_and_range,
    ratios,
    usable_cores,
)
from pomona.errors import PomonaError
from pomona.models.store import resolve
from pomona.runtime.engine import Engine, StepInput
from pomona.runtime.scheduler import Request, Scheduler, Ticket

SEQUENCES = 8
LONG_PROMPT = 4000
CHUNKS = (32, 64, 128, 256, 512)
OVERHEAD_GOAL = 1.03


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        emit(run(options), options.json)
    except (BenchmarkError, PomonaError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace) -> Report:
    machine = machine_facts()
    engine = Engine.load(resolve(options.model), threads=options.threads, kv_tokens=2 * LONG_PROMPT)
    if engine.config.max_position_embeddings <= LONG_PROMPT:
        raise BenchmarkError(f"{options.model}: its context is too short for {LONG_PROMPT:,} tokens")
    steps, rounds = (24, 3) if options.quick else (64, 9)
    hand_over = measure_hand_over(engine, steps, rounds)
    chunks = (128, 512) if options.quick else CHUNKS
    stalls = measure_long_prompt(engine, chunks, 1 if options.quick else 3)
    bare = hand_over["bare loop"]
    over = {name: ratios(times, bare) for name, times in hand_over.items() if name != "bare loop"}
    rows = [
        {
            "what": f"{SEQUENCES} sequences, {name}",
            "ms": statistics.median(times) * 1e3,
            "longest ms": max(times) * 1e3,
            "against the bare loop": median_and_range(over[name]) if name in over else "1",
        }
        for name, times in hand_over.items()
    ]
    for name, gaps in stalls.items():
        rows.append(
            {
                "what": f"gap between tokens, {name}",
                "ms": statistics.median(gaps["gaps"]) * 1e3,
                "longest ms": max(gaps["gaps"]) * 1e3,
                "against the bare loop": f"first token after {gaps['first']:.2f} s" if gaps["first"] else "",
            }
        )
    return Report(
        benchmark="scheduler",
        machine=machine,
        results={
            "model": options.model,
            "threads": engine.threads,
            "rows": rows,
            "notes": [
                f"{steps} steps a round, {rounds} rounds; medians of the time per step, and of the ratios",
                f"a prompt of {LONG_PROMPT:,} tokens comes in while another request decodes",
            ],
            "hand_over_seconds": hand_over,
            "long_prompt": stalls,
        },
        goals=[
            Goal(f"time per step, read {name}", statistics.median(values), OVERHEAD_GOAL, "<=")
            for name, values in over.items()
        ],
    )


# --- hand-over --------------------------------------------------------------------------------------------


def measure_hand_over(engine: Engine, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per step, by who reads."""
    contestants: dict[str, Callable[[], float]] = {
        "bare loop": lambda: _bare(engine, steps),
        "at the end": lambda: _scheduled(engine, steps, lambda tickets: None),
        "by threads": lambda: _scheduled(engine, steps, _read_by_threads),
        "by asyncio": lambda: _scheduled(engine, steps, lambda t: asyncio.run(_read_by_tasks(t))),
    }
    for contestant in contestants.values():
        contestant()
    return interleave(contestants, rounds)


def _prompts(engine: Engine) -> list[tuple[int, ...]]:
    return [_prompt(engine, 16, seed) for seed in range(SEQUENCES)]


def _prompt(engine: Engine, length: int, seed: int) -> tuple[int, ...]:
    numbers = np.random.default_rng(seed).integers(0, engine.config.vocab_size, length)
    return tuple(int(i) for i in numbers)


def _bare(engine: Engine, steps: int) -> float:
    sequences = [engine.new_sequence() for _ in range(SEQUENCES)]
    prompts = zip(sequences, _prompts(engine), strict=True)
    tokens = engine.step([StepInput(sequence, prompt) for sequence, prompt in prompts])
    started = time.perf_counter()
    for _ in range(steps):
        inputs = [StepInput(s, [token]) for s, token in zip(sequences, tokens, strict=True)]
        tokens = engine.step(inputs)
    seconds = time.perf_counter() - started
    for sequence in sequences:
        sequence.close()
    return seconds / steps


def _scheduled(engine: Engine, steps: int, read: Callable[[list[Ticket]], None]) -> float:
    with Scheduler(engine) as scheduler:
        tickets = [scheduler.submit(Request(prompt, max_new_tokens=steps + 1)) for prompt in _prompts(engine)]
        read(tickets)
        # The first of them may have had a step to itself; the last has only steps of all.
        return tickets[-1].result().decode_seconds / steps


def _read_by_threads(tickets: list[Ticket]) -> None:
    threads = [threading.Thread(target=partial(list, ticket)) for ticket in tickets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def _read_by_tasks(tickets: list[Ticket]) -> None:
    async def read(ticket: Ticket) -> None:
        async for _ in ticket:
            pass

    await asyncio.gather(*map(read, tickets))


# --- long prompt ------------------------------------------------------------------------------------------


def measure_long_prompt(engine: Engine, chunks: Sequence[int], rounds: int) -> dict[str, dict[str, Any]]:
    """Gaps between the tokens of a running request, in seconds; and when the long prompt had its first."""
    alone = _gaps(engine, 128, None)
    found: dict[str, dict[str, Any]] = {"alone": {"gaps": alone[0], "first": None}}
    for chunk in chunks:
        runs = [_gaps(engine, chunk, LONG_PROMPT) for _ in range(rounds)]
        found[f"prompt in chunks of {chunk}"] = {
            "gaps": [gap for gaps, _ in runs for gap in gaps],
            "first": statistics.median(first for _, first in runs),
        }
    return found


def _gaps(engine: Engine, chunk: int, prompt: int | None) -> tuple[list[float], float]:
    times: list[float] = []
    with Scheduler(engine, prefill_chunk=chunk) as scheduler:
        running = scheduler.submit(Request(_prompt(engine, 16, 0), max_new_tokens=2000))
        reader = iter(running)
        for _ in range(8):
            next(reader)
        if prompt is None:
            for _ in range(100):
                next(reader)
                times.append(time.perf_counter())
            running.cancel()
            return list(np.diff(times)), 0.0
        started = time.perf_counter()
        long = scheduler.submit(Request(_prompt(engine, prompt, 1), max_new_tokens=1))
        times.append(started)
        while not long.done:
            next(reader)
            times.append(time.perf_counter())
        running.cancel()
        done = long.result()
        return list(np.diff(times)), done.queue_seconds + done.prefill_seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scheduler", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="coarser, in under a minute")
    parser.add_argument("--model", default="smollm2-135m-4bit", help="name in the cache, or a directory")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path, help="also write the last line into this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
