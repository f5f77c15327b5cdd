"""Adapters replaced and unloaded under load: every reply is that of the very version it names, none is lost.

64 client threads ask, while one adapter after the other is replaced or unloaded. The references are made
beforehand, each alone on an engine without a prefix cache. The quick run takes some seconds; the long one
(`-m slow -s`) ten minutes, or POMONA_HOT_REPLACE_SECONDS.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from scheduler_helpers import CONFIG, alone, prompt
from test_adapters import write_adapter

from pomona.models.random_init import random_model
from pomona.runtime.adapters import AdapterCache, load_adapter
from pomona.runtime.engine import Engine
from pomona.runtime.sampling import Sampling
from pomona.runtime.scheduler import Overloaded, Request, Scheduler

CLIENTS = 64
NAMES = ("red", "green", "blue", "black")
DIRECTORIES = 12
NEW_TOKENS = 24
KV_TOKENS = 1536  # less than the clients ask for together, so that some are preempted
WAIT = 120.0

# Several begin alike: a prefix cache that mixes versions up would show.
PROMPTS = [prompt(160)[:length] + prompt(3, seed=length) for length in (1, 20, 70, 130, 157)] + [
    prompt(length, seed=length) for length in (1, 33, 250)
]
SAMPLINGS = (Sampling(), Sampling(temperature=1.0, seed=7))


def directory_of(name: str, version: int) -> int:
    """Which of the adapter directories stands behind a version; neighbours in time differ."""
    return (NAMES.index(name) * (DIRECTORIES // len(NAMES)) + version * 5) % DIRECTORIES


Key = tuple[int | None, int, int]  # directory (None: no adapter), prompt, sampling


@dataclass
class Tally:
    lock: threading.Lock = field(default_factory=threading.Lock)
    sent: int = 0
    answered: int = 0
    cut_short: int = 0  # cancelled by the client
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    versions: Counter[tuple[str, int]] = field(default_factory=Counter)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(CONFIG, tmp_path_factory.mktemp("hot") / "small", seed=8, perturb_norms=True)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [
        write_adapter(folder / str(i), CONFIG, seed=100 + i, rank=2 + i % 5, size=1.0)
        for i in range(DIRECTORIES)
    ]


@pytest.fixture(scope="module")
def references(model: Path, paths: list[Path]) -> dict[Key, list[int]]:
    engine = Engine.load(model, threads=1)
    answers: dict[Key, list[int]] = {}
    for at, path in [(None, None), *enumerate(paths)]:
        adapter = None if path is None else load_adapter(engine, path)
        for i, ids in enumerate(PROMPTS):
            for j, sampling in enumerate(SAMPLINGS):
                request = Request(ids, sampling=sampling, max_new_tokens=NEW_TOKENS)
                answers[at, i, j] = alone(engine, request, adapter)
    for i in range(len(PROMPTS)):
        said = {tuple(answers[at, i, 0]) for at in (None, *range(DIRECTORIES))}
        assert len(said) == DIRECTORIES + 1, "two adapters say the same: a mix-up would not show"
    return answers


def run_for(
    seconds: float, period: float, model: Path, paths: list[Path], references: dict[Key, list[int]]
) -> tuple[Tally, str]:
    engine = Engine.load(model, threads=1, kv_tokens=KV_TOKENS, prefix_cache=True)
    largest = max(load_adapter(engine, path).bytes for path in paths)
    cache = AdapterCache(engine, budget_bytes=6 * largest)
    published = dict.fromkeys(NAMES, 1)
    for name in NAMES:
        cache.register(name, paths[directory_of(name, 1)])
    tally = Tally()
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        dice = random.Random(number)
        while time.monotonic() < end:
            name = dice.choice((*NAMES, *NAMES, None))
            i, j = dice.randrange(len(PROMPTS)), dice.randrange(len(SAMPLINGS))
            oldest = published[name] if name else 0
            request = Request(PROMPTS[i], sampling=SAMPLINGS[j], max_new_tokens=NEW_TOKENS, adapter=name)
            what = f"client {number}, {name}, prompt {i}, sampling {j}"
            try:
                ticket = scheduler.submit(request)
            except Overloaded as error:
                with tally.lock:
                    tally.refused += 1
                time.sleep(min(error.retry_seconds, 0.5))
                continue
            with tally.lock:
                tally.sent += 1
            try:
                cut = dice.random() < 0.05
                if cut:
                    next(iter(ticket), None)
                    ticket.cancel()
                streamed = list(ticket) if dice.random() < 0.5 else None
                done = ticket.result(WAIT)
            except Exception as error:
                with tally.lock:
                    tally.lost.append(f"{what}: {error!r}")
                continue
            version = done.adapter_version
            newest = published[name] + 1 if name else 0  # a replacement is current before it is published
            expected = references[directory_of(name, version) if name and version else None, i, j]
            said = list(done.token_ids)
            with tally.lock:
                tally.answered += 1
                if done.finish_reason == "cancelled" and cut:
                    tally.cut_short += 1
                    expected = expected[: len(said)]
                elif done.finish_reason != "length":
                    tally.lost.append(f"{what}: ended by {done.finish_reason}")
                if said != expected or (streamed is not None and streamed != said):
                    tally.wrong.append(f"{what}, version {version}: {said} instead of {expected}")
                if name is not None:
                    tally.versions[name, version or 0] += 1
                    if version is None or not oldest <= version <= newest:
                        tally.wrong.append(f"{what}: version {version}, not in {oldest} .. {newest}")

    with Scheduler(engine, adapters=cache, max_running=32, max_waiting=30) as scheduler:
        threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        turn = 0
        finished = threading.Event()
        while time.monotonic() < end - period:
            finished.wait(period)
            name = NAMES[turn % len(NAMES)]
            if turn % 3 == 2:
                cache.unload(name)
            else:
                version = cache.replace(name, paths[directory_of(name, published[name] + 1)])
                published[name] = version
            turn += 1
        for thread in threads:
            thread.join(WAIT)
            assert not thread.is_alive()
        stats = scheduler.stats()
    loads = sum(status.loads for status in cache.status())
    figures = (
        f"{seconds:.0f} s, {CLIENTS} clients: {tally.sent:,} requests, {tally.answered:,} answered "
        f"({tally.cut_short:,} cut short by the client), {tally.refused:,} refused and sent again, "
        f"{len(tally.versions):,} versions seen of {sum(published.values()):,}, {loads:,} loads, "
        f"{stats.preemptions:,} preemptions, {stats.steps:,} steps, "
        f"{len(tally.wrong)} wrong, {len(tally.lost)} lost"
    )
    assert engine.native.free_tokens == KV_TOKENS, figures
    assert cache.alive_bytes <= cache.budget_bytes, figures
    assert stats.finished["error"] == stats.failed_steps == 0, figures
    assert stats.submitted == tally.sent == tally.answered + len(tally.lost), figures
    return tally, figures


def test_replacing_adapters_under_load_drops_and_mixes_nothing(
    model: Path, paths: list[Path], references: dict[Key, list[int]]
) -> None:
    tally, figures = run_for(6.0, 0.1, model, paths, references)
    assert tally.wrong == [] and tally.lost == [], figures
    assert tally.answered > 100 and len(tally.versions) > 12, figures


@pytest.mark.slow
def test_ten_minutes_of_it(model: Path, paths: list[Path], references: dict[Key, list[int]]) -> None:
    seconds = float(os.environ.get("POMONA_HOT_REPLACE_SECONDS", "600"))
    tally, figures = run_for(seconds, 1.0, model, paths, references)
    print(f"\n{figures}")
    assert tally.wrong == [] and tally.lost == [], figures
    assert tally.answered > 10 * seconds, figures
