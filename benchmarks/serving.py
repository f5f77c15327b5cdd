"""`pomona serve` against llama.cpp's server: many clients, eight adapters, prompts of mixed length.

    python -m benchmarks.serving --quick
    python -m benchmarks.serving --clients 32 --rounds 5 --json serving.json

Every client streams completions over HTTP in a closed loop: it asks again when it has its answer. The
requests of a round are the same for all servers: prompts of some ten to some four hundred tokens that begin
differently, answers of 32 to 96 tokens, one of eight rank-16 adapters each, in turn. Answers are greedy and
of a fixed length, and the servers take turns while the others rest. The generator runs on the same cores; the
notes say what it takes from them. docs/benchmarks.md says how each figure is taken.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.adapter_parts import PLAIN_SERVER, SERVERS, progress
from benchmarks.adapter_peer import LlamaServer
from benchmarks.common import (
    BenchmarkError,
    Goal,
    Report,
    Row,
    interleave,
    machine_facts,
    median_and_range,
    ratios,
    run_command,
    usable_cores,
)
from benchmarks.load import LoadError, Reply, closed_loop, percentile
from benchmarks.peer import ROOT
from benchmarks.servers import PomonaServer, cpu_seconds, linked_model

CLIENTS = (1, 8, 32, 64)
QUICK_CLIENTS = (1, 32)
GOAL_CLIENTS = 32
ADAPTERS = 8
PROMPT_WORDS = (12, 40, 90, 160, 280)
NEW_TOKENS = (32, 64, 96)
QUICK_PROMPT_WORDS, QUICK_NEW_TOKENS = (12, 40, 90), (16, 32)
SLOT_TOKENS = 640  # the longest prompt and answer, with room for words of several tokens
OURS = "pomona"
PERCENTILES = (0.50, 0.95, 0.99)


@dataclass(frozen=True)
class Work:
    """One request, the same for every server."""

    prompt: str
    tokens: int
    adapter: int


@dataclass
class Measured:
    """A server in one round."""

    replies: list[Reply]
    seconds: float
    server_cpu: float
    generator_cpu: float

    @property
    def tokens(self) -> int:
        return sum(reply.new_tokens for reply in self.replies)

    def first_token(self, share: float) -> float:
        return percentile([reply.first_token_seconds for reply in self.replies], share)


@dataclass(frozen=True)
class Contestant:
    """A server that is asked with adapters or without."""

    name: str
    port: int
    pid: int
    body: Callable[[Work], dict[str, Any]]
    adapted: bool


def work(round_number: int, clients: int, quick: bool) -> list[Work]:
    """The requests of a round. Prompts begin with a number of their own, so that no server can use an earlier
    prompt's cache, and repeat in no other round."""
    from pomona.data.builtin_text import evaluation_text

    words = evaluation_text().split()
    dice = random.Random(f"{round_number} {clients}")
    lengths, answers = (QUICK_PROMPT_WORDS, QUICK_NEW_TOKENS) if quick else (PROMPT_WORDS, NEW_TOKENS)
    # At least two for each client, and all adapters, lengths of prompts and of answers in equal parts.
    count = max(8, clients if quick else 2 * clients)
    requests = []
    for index in range(count):
        length = lengths[index % len(lengths)]
        start = dice.randrange(len(words) - length)
        prompt = f"{dice.randrange(10**6)} {' '.join(words[start : start + length])}"
        tokens = answers[(index // len(lengths)) % len(answers)]
        requests.append(Work(prompt, tokens, index % ADAPTERS))
    dice.shuffle(requests)
    return requests


def our_body(model: str, ends: Sequence[int], adapted: bool, request: Work) -> dict[str, Any]:
    """`ends`: the tokens that end an answer, which are forbidden, as they are by `ignore_eos` over there."""
    name = str(request.adapter) if adapted else "base"
    return {
        "model": f"{model}:{name}",
        "prompt": request.prompt,
        "max_tokens": request.tokens,
        "temperature": 0,
        "logit_bias": {str(token): -100 for token in ends},
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def their_body(adapted: bool, request: Work) -> dict[str, Any]:
    # An adapter that a request does not name is off for it, as the server starts with none applied.
    lora = [
        {"id": number, "scale": float(adapted and number == request.adapter)} for number in range(ADAPTERS)
    ]
    return {
        "prompt": request.prompt,
        "max_tokens": request.tokens,
        "temperature": 0.0,
        "samplers": ["temperature"],  # nothing is computed that a greedy answer does not need
        "ignore_eos": True,
        "cache_prompt": False,  # no prompt comes twice
        "lora": lora,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def measure(contestant: Contestant, requests: Sequence[Work], clients: int) -> Measured:
    """One round of one server. BenchmarkError if an answer is not whole or not of its length."""
    bodies = [contestant.body(request) for request in requests]
    server, generator = cpu_seconds(contestant.pid), time.process_time()
    try:
        replies, seconds = asyncio.run(closed_loop(contestant.port, "/v1/completions", bodies, clients))
    except* (LoadError, OSError, TimeoutError) as errors:
        raise BenchmarkError(f"{contestant.name}, {clients} clients: {errors.exceptions[0]}") from errors
    for request, reply in zip(requests, replies, strict=True):
        if reply.new_tokens != request.tokens:
            raise BenchmarkError(
                f"{contestant.name}: gave {reply.new_tokens} of {request.tokens} tokens; that would be no "
                "fair comparison"
            )
    cpu = cpu_seconds(contestant.pid) - server
    return Measured(replies, seconds, cpu, time.process_time() - generator)


class Bench:
    """Levels of clients one after the other; what they found goes into `rows`, `goals` and `results`."""

    def __init__(self, options: argparse.Namespace, contestants: Sequence[Contestant]) -> None:
        self.options, self.contestants = options, contestants
        self.rows: list[Row] = []
        self.results: dict[str, Any] = {}
        self.measured: dict[tuple[int, str], list[Measured]] = {}

    def warm_up(self) -> None:
        """Every adapter once on every server."""
        for contestant in self.contestants:
            requests = [Work(f"Warm-up {number}.", 4, number) for number in range(ADAPTERS)]
            measure(contestant, requests, 2)

    def level(self, clients: int, rounds: int) -> None:
        """`rounds` rounds with so many clients, servers in turn."""
        quick: bool = self.options.quick
        taken: dict[str, list[Measured]] = {contestant.name: [] for contestant in self.contestants}

        def run_once(contestant: Contestant) -> float:
            rounds_before = taken[contestant.name]
            found = measure(contestant, work(len(rounds_before), clients, quick), clients)
            rounds_before.append(found)
            return found.tokens / found.seconds

        turns = {contestant.name: partial(run_once, contestant) for contestant in self.contestants}
        interleave(turns, rounds, on_round=partial(progress, f"{clients} client{'s' * (clients > 1)}"))
        for contestant in self.contestants:
            found = taken[contestant.name]
            self.measured[clients, contestant.name] = found
            self.rows.append(row(clients, contestant.name, found))
        self.results[str(clients)] = {name: figures(found) for name, found in taken.items()}

    def adapted(self) -> list[str]:
        """The names of the peers that are asked with adapters."""
        return [c.name for c in self.contestants if c.adapted and not c.name.startswith(OURS)]

    def goals(self) -> list[Goal]:
        """Ours with adapters against the fastest peer with the same adapters, ratios round by round."""
        clients = GOAL_CLIENTS
        throughput = first = None
        peers = [name for name in self.adapted() if (clients, name) in self.measured]
        if peers and (clients, OURS) in self.measured:
            ours = self.measured[clients, OURS]
            speeds = {name: [m.tokens / m.seconds for m in self.measured[clients, name]] for name in peers}
            fastest = max(peers, key=lambda name: statistics.median(speeds[name]))
            over = ratios([m.tokens / m.seconds for m in ours], speeds[fastest])
            waits = ratios(
                [m.first_token(0.95) for m in ours],
                [m.first_token(0.95) for m in self.measured[clients, fastest]],
            )
            throughput, first = statistics.median(over), statistics.median(waits)
            self.results["against"] = {"server": fastest, "throughput": over, "p95_first_token": waits}
        label = f"{clients} clients, {ADAPTERS} adapters"
        return [
            Goal(f"{label}: throughput, times llama.cpp's server", throughput, 2.0),
            Goal(f"{label}: p95 time to first token, times llama.cpp's server", first, 1.0, "<="),
        ]

    def notes(self) -> list[str]:
        """What a reader must know."""
        of = self.measured
        shares = [m.generator_cpu / m.seconds for found in of.values() for m in found]
        rounds = len(next(iter(of.values())))
        lines = [
            "A closed loop over HTTP with streaming; greedy answers of fixed length; medians of "
            f"{rounds} round(s) in which the servers take turns; latencies are those of all requests of all "
            "rounds. The first requests of a round come all at once.",
            "tokens/s counts generated tokens, prompts included in the time. Seconds per token are those of "
            "an answer after its first token, on average over the answer.",
            f"Adapters: rank 16 on all projections, random, the same for all; {ADAPTERS} of them in turn. "
            "llama.cpp's server puts only requests with equal adapters into one batch.",
            f"The generator took {statistics.median(shares):.0%} of one core ({max(shares):.0%} at most), on "
            "the cores of the servers.",
        ]
        lines += prompt_note(of)
        return lines


def prompt_note(measured: Mapping[tuple[int, str], list[Measured]]) -> list[str]:
    """Whether the servers saw prompts of the same number of tokens."""
    counts = {
        name: sum(int((reply.usage or {}).get("prompt_tokens", 0)) for m in found for reply in m.replies)
        for (clients, name), found in measured.items()
        if clients == max(level for level, _ in measured)
    }
    low, high = min(counts.values()), max(counts.values())
    if high == 0:
        return []
    if high - low <= 0.01 * high:
        return ["All servers count the same prompt tokens, to one per cent."]
    return ["Prompt tokens as the servers count them: " + ", ".join(f"{n} {c:,}" for n, c in counts.items())]


def row(clients: int, name: str, found: Sequence[Measured]) -> Row:
    """A line of the table."""
    first, each = latencies(found)
    return {
        "clients": str(clients),
        "server": name,
        "tokens/s": median_and_range([m.tokens / m.seconds for m in found])
        if len(found) > 1
        else found[0].tokens / found[0].seconds,
        "requests/s": statistics.median(len(m.replies) / m.seconds for m in found),
        "first token p50 / p95 / p99, s": in_seconds(first),
        "per token p50 / p95 / p99, ms": in_milliseconds(each),
    }


def latencies(found: Sequence[Measured]) -> tuple[list[float], list[float]]:
    """Seconds to the first token, and per token after it, of all requests."""
    replies = [reply for m in found for reply in m.replies]
    each = [seconds for reply in replies if (seconds := reply.token_seconds) is not None]
    return [reply.first_token_seconds for reply in replies], each


def in_seconds(values: Sequence[float]) -> str:
    return " / ".join(f"{percentile(values, share):.2f}" for share in PERCENTILES)


def in_milliseconds(values: Sequence[float]) -> str:
    return " / ".join(f"{1e3 * percentile(values, share):.1f}" for share in PERCENTILES)


def figures(found: Sequence[Measured]) -> dict[str, Any]:
    """All figures of a server at one level, for programs. Seconds, and tokens or requests per second."""
    first, each = latencies(found)
    gaps = [b - a for m in found for r in m.replies for a, b in zip(r.times, r.times[1:], strict=False)]

    def shares(values: Sequence[float]) -> dict[str, float]:
        return {f"p{100 * share:.0f}": round(percentile(values, share), 5) for share in PERCENTILES}

    return {
        "tokens_per_second": [m.tokens / m.seconds for m in found],
        "requests_per_second": [len(m.replies) / m.seconds for m in found],
        "requests": sum(len(m.replies) for m in found),
        "first_token": shares(first),
        "per_token": shares(each),
        "between_events": shares(gaps),
        "p95_first_token_by_round": [m.first_token(0.95) for m in found],
        "server_cores": [m.server_cpu / m.seconds for m in found],
        "generator_cores": [m.generator_cpu / m.seconds for m in found],
    }


def start_servers(options: argparse.Namespace, folder: Path, stack: ExitStack) -> list[Contestant]:
    """Starts everybody, each with the same adapters, and gives them in the order of their turns."""
    from benchmarks.adapters import write_adapters
    from pomona.models.config import ModelConfig
    from pomona.models.store import resolve
    from pomona.models.tokenizer import Tokenizer

    source = resolve(options.model)
    peers = [] if options.skip_peer else peer_files(options)
    model = linked_model(source, folder / source.resolve().name)
    config = ModelConfig.from_directory(model)
    adapters = model / "adapters"
    write_adapters(config, adapters, gguf=bool(peers), count=ADAPTERS)
    slots = max(options.clients)
    settings = {"max_running": slots, "kv_tokens": slots * SLOT_TOKENS, "log_level": "warning"}
    ours = stack.enter_context(PomonaServer(model, folder, threads=options.threads, settings=settings))
    ends = sorted(Tokenizer.from_directory(model).eos_token_ids)
    body = partial(our_body, model.name, ends, True)
    contestants = [Contestant(OURS, ours.port, ours.pid, body, True)]
    if not options.quick:
        body = partial(our_body, model.name, ends, False)
        contestants.append(Contestant(f"{OURS}, no adapters", ours.port, ours.pid, body, False))
    files = [adapters / f"{number}.gguf" for number in range(ADAPTERS)]
    more = peer_options(options.server) if peers else []
    for name, file in peers:
        server = stack.enter_context(
            LlamaServer(
                options.server,
                file,
                files,
                slots=slots,
                threads=options.threads,
                slot_tokens=SLOT_TOKENS,
                options=more,
            )
        )
        contestants.append(Contestant(name, server.port, server.pid, partial(their_body, True), True))
        if name == PLAIN_SERVER and not options.quick:
            body = partial(their_body, False)
            contestants.append(Contestant(f"{name}, no adapters", server.port, server.pid, body, False))
    return contestants


def peer_options(program: Path) -> list[str]:
    """Newer versions copy the state of a slot that gets another prompt into a cache in memory, which would
    only cost them time here."""
    done = subprocess.run([str(program), "--help"], capture_output=True, text=True, timeout=60, check=False)
    return ["--cache-ram", "0"] if "--cache-ram" in done.stdout else []


def peer_files(options: argparse.Namespace) -> list[tuple[str, Path]]:
    """The peer's names and models. BenchmarkError, before anything takes time, if one is not there."""
    names = [PLAIN_SERVER] if options.quick else list(SERVERS)
    found = [(name, options.peer_models / SERVERS[name]) for name in names]
    for file in (options.server, *(file for _, file in found)):
        if not file.is_file():
            raise BenchmarkError(f"{file}: is not there; run `make bench-setup`, or give --skip-peer")
    return found


def run(options: argparse.Namespace) -> Report:
    """Measures everything that `options` asks for."""
    machine = machine_facts()
    options.clients = sorted(set(options.clients or (QUICK_CLIENTS if options.quick else CLIENTS)))
    if options.clients[0] < 1:
        raise BenchmarkError("--clients: at least 1")
    rounds = options.rounds or (1 if options.quick else 3)
    started = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pomona-serving-")))
        bench = Bench(options, start_servers(options, folder, stack))
        bench.warm_up()
        for clients in options.clients:
            bench.level(clients, rounds)
    notes = bench.notes()
    if options.skip_peer:
        notes.append("llama.cpp's server was left out of this run.")
    results = {
        "model": options.model,
        "threads": options.threads,
        "rows": bench.rows,
        "notes": notes,
        "seconds": round(time.monotonic() - started, 1),
        "levels": bench.results,
    }
    return Report("serving", results, bench.goals(), machine)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add(
        "--quick",
        action="store_true",
        help="coarser, in under a minute: 1 and 32 clients, one llama.cpp model",
    )
    add("--model", default="smollm2-135m-4bit", help="ours (default: %(default)s)")
    add("--threads", type=int, default=min(2, usable_cores()), help="of every server (default: %(default)s)")
    add("--clients", type=int, nargs="+", help="numbers of clients (default: 1 8 32 64)")
    add("--rounds", type=int, help="how often each server takes its turn (default: 3, or 1 with --quick)")
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    add("--skip-peer", action="store_true", help="measure pomona alone")
    add("--server", type=Path, default=ROOT / ".peer/bin/llama-server", help="llama.cpp's server")
    add("--peer-models", type=Path, default=ROOT / ".peer/models", help="folder of its GGUF files")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
