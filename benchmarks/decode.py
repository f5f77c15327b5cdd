"""Speed of decoding and prefill, against llama.cpp with the same model on the same threads.

    python -m benchmarks.decode --quick
    python -m benchmarks.decode --threads 1 --json decode.json

The three contestants (pomona; llama.cpp with Q4_K_M; llama.cpp with pure Q4_0, its fastest) take turns in
one run, A B C A B C ..., each warm and alone while it is measured. The measures are llama-bench's: tg128
writes 128 tokens from an empty context, pp512 reads 512. Ours goes through the public API and includes the
greedy choice of each token; llama.cpp's runs choose none, and the Python around its calls costs it under
0.02 ms a token.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from benchmarks.peer import ROOT, Kind, Peer, series

if TYPE_CHECKING:
    from pomona.runtime.engine import Engine
    from pomona.runtime.engine import Sequence as EngineSequence

OURS = "pomona"
PEERS = {"Q4_K_M": "q4_k_m.gguf", "Q4_0 pure": "q4_0_pure.gguf"}


@dataclass(frozen=True)
class Measure:
    """Writing (or reading) `tokens` tokens after `depth` others."""

    name: str
    kind: Kind
    depth: int
    tokens: int


DECODE = Measure("decode tg128", "decode", 0, 128)
PREFILL = Measure("prefill pp512", "prefill", 0, 512)
DEEP = (
    Measure("decode tg64 after 512", "decode", 512, 64),
    Measure("decode tg64 after 2,048", "decode", 2048, 64),
)


class Ours:
    """pomona behind the same face as `Peer`: seconds of one run through Engine.step."""

    def __init__(self, model: str, threads: int, isa: str) -> None:
        """Raises PomonaError: no such model, an instruction set that this machine lacks."""
        from pomona.models.store import resolve
        from pomona.runtime.engine import Engine

        self.engine: Engine = Engine.load(resolve(model), threads=threads, isa=isa)
        self._filled: dict[int, EngineSequence] = {}

    def seconds(self, kind: Kind, depth: int, tokens: int) -> float:
        from pomona.runtime.engine import StepInput

        engine, vocabulary = self.engine, self.engine.config.vocab_size
        if depth not in self._filled:
            self._filled[depth] = engine.new_sequence()
            if depth:
                engine.step([StepInput(self._filled[depth], series(depth, vocabulary))])
        sequence = self._filled[depth]
        sequence.truncate(depth)
        ids = series(tokens, vocabulary, start=depth)
        started = time.perf_counter()
        if kind == "prefill":
            engine.step([StepInput(sequence, ids)])
        else:
            for token in ids:
                engine.step([StepInput(sequence, [token])])
        return time.perf_counter() - started

    def bandwidth(self) -> float:
        """GB/s at which this machine reads as many bytes as one decoded token does, on as many threads."""
        from pomona import _native

        threads = self.engine.threads
        return float(_native.measure_bandwidth(self.engine.bytes_per_token // threads, threads))

    def close(self) -> None:
        for sequence in self._filled.values():
            sequence.close()


def run(options: argparse.Namespace) -> Report:
    """Measures everything that `options` asks for."""
    machine = machine_facts()
    measures = [DECODE, PREFILL] if options.quick else [DECODE, *DEEP, PREFILL]
    rounds = options.rounds or (3 if options.quick else 7)
    python = Path(options.peer)
    models = Path(options.peer_models) if options.peer_models else python.absolute().parent.parent / "models"
    with ExitStack() as stack:
        ours = Ours(options.model, options.threads, options.isa)
        stack.callback(ours.close)
        peers = {
            name: stack.enter_context(Peer(python, models / file, options.threads))
            for name, file in PEERS.items()
        }
        attention = warm_up(ours, peers, measures, repeats=1 if options.quick else 3)
        speeds: dict[str, dict[str, list[float]]] = {}
        bandwidth: list[float] = []
        for measure in measures:
            everyone: dict[str, Ours | Peer] = {OURS: ours, **peers}
            contestants: dict[str, Callable[[], float]] = {
                name: partial(tokens_per_second, one, measure) for name, one in everyone.items()
            }
            if measure is DECODE:
                contestants["bandwidth"] = ours.bandwidth
            speeds[measure.name] = interleave(contestants, rounds, on_round=partial(_progress, measure.name))
            bandwidth += speeds[measure.name].pop("bandwidth", [])
        facts = {name: {**peer.facts, "flash_attention": attention[name]} for name, peer in peers.items()}
        return report(options, machine, ours.engine, facts, speeds, bandwidth, rounds)


def tokens_per_second(contestant: Ours | Peer, measure: Measure) -> float:
    return measure.tokens / contestant.seconds(measure.kind, measure.depth, measure.tokens)


def warm_up(
    ours: Ours, peers: dict[str, Peer], measures: Sequence[Measure], repeats: int
) -> dict[str, dict[str, bool]]:
    """Runs everything once untimed. Says for every peer and measure whether flash attention is its faster
    kind of attention, which it will use."""
    chosen: dict[str, dict[str, bool]] = {name: {} for name in peers}
    for done, measure in enumerate(measures):
        _progress("warming up", done, len(measures))
        ours.seconds(measure.kind, measure.depth, measure.tokens)
        for name, peer in peers.items():
            chosen[name][measure.name] = peer.choose_attention(
                measure.kind, measure.depth, measure.tokens, repeats=repeats
            )
    _progress("warming up", len(measures), len(measures))
    return chosen


def report(
    options: argparse.Namespace,
    machine: dict[str, Any],
    engine: Engine,
    peers: dict[str, dict[str, Any]],
    speeds: dict[str, dict[str, list[float]]],
    bandwidth: list[float],
    rounds: int,
) -> Report:
    """The table, what to know about it, and the goals."""
    compared = {
        measure: {peer: ratios(figures[OURS], figures[peer]) for peer in PEERS}
        for measure, figures in speeds.items()
    }
    rows = []
    for measure, figures in speeds.items():
        row: dict[str, str | float] = {"tokens/s": measure, OURS: statistics.median(figures[OURS])}
        for peer in PEERS:
            row[f"llama.cpp {peer}"] = statistics.median(figures[peer])
            row[f"x {peer}"] = median_and_range(compared[measure][peer])
        rows.append(row)

    times = {
        measure: {peer: statistics.median(values) for peer, values in by_peer.items()}
        for measure, by_peer in compared.items()
    }
    gb_per_second = engine.bytes_per_token * statistics.median(speeds[DECODE.name][OURS]) / 1e9
    machine_gb_per_second = statistics.median(bandwidth)
    decode, prefill = times[DECODE.name], times[PREFILL.name]
    threads = f"{engine.threads} thread{'s' if engine.threads > 1 else ''}"
    fastest = min(prefill.values())
    return Report(
        benchmark="decode",
        machine=machine,
        results={
            "model": options.model,
            "threads": engine.threads,
            "isa": engine.isa,
            "rounds": rounds,
            "rows": rows,
            "notes": notes(options, engine, peers, rounds, gb_per_second, machine_gb_per_second),
            "speeds": speeds,
            "median_ratios": times,
            "bytes_per_token": engine.bytes_per_token,
            "gb_per_second": gb_per_second,
            "machine_gb_per_second": machine_gb_per_second,
            "bandwidth_fraction": gb_per_second / machine_gb_per_second,
            "peers": peers,
        },
        goals=[
            Goal(f"decode, {threads}, times llama.cpp Q4_K_M", decode["Q4_K_M"], 2.0),
            Goal(f"decode, {threads}, times llama.cpp Q4_K_M (later goal)", decode["Q4_K_M"], 3.0),
            Goal(f"decode, {threads}, times llama.cpp pure Q4_0 (later goal)", decode["Q4_0 pure"], 1.6),
            Goal(f"prefill, {threads}, times llama.cpp's faster one (later goal)", fastest, 2.2),
        ],
    )


def notes(
    options: argparse.Namespace,
    engine: Engine,
    peers: dict[str, dict[str, Any]],
    rounds: int,
    gb_per_second: float,
    machine_gb_per_second: float,
) -> list[str]:
    """What a reader must know to judge the table."""
    sizes = ", ".join(
        f"{name} {peer['weight_bytes'] / 1e6:.0f} MB ({peer['bits_per_weight']:.2f} bits per weight)"
        for name, peer in peers.items()
    )
    flash = [
        f"{name} in {', '.join(measure for measure, on in peer['flash_attention'].items() if on) or 'none'}"
        for name, peer in peers.items()
    ]
    version = next(iter(peers.values()))["version"]
    return [
        f"{options.model} on {engine.threads} thread(s), {engine.isa} kernels; medians of {rounds} rounds in "
        "which the contestants take turns. Ratios are taken round by round: median (lowest-highest).",
        f"A decoded token reads {engine.bytes_per_token / 1e6:.1f} MB of our weights: {gb_per_second:.1f} "
        f"GB/s, {gb_per_second / machine_gb_per_second:.0%} of the {machine_gb_per_second:.1f} GB/s at which "
        "this machine reads a buffer of that size (2 MB pages, the same threads, the same run).",
        f"llama.cpp is that of llama-cpp-python {version}, compiled for this processor; weights: {sizes}.",
        "Flash attention was tried both ways for every measure, and llama.cpp uses the faster: on for "
        f"{'; '.join(flash)}.",
        "Our time includes choosing each token (greedily) and the Python loop; llama.cpp chooses none.",
    ]


def _progress(label: str, done: int, total: int) -> None:
    end = "\n" if done == total else ""
    if sys.stderr.isatty():
        print(f"\r{label}: {done}/{total}", end=end, file=sys.stderr, flush=True)
    elif done == 0:
        print(f"{label} ...", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="coarser, in under a minute: 3 rounds, short contexts only")
    add("--model", default="smollm2-135m-4bit", help="ours (default: %(default)s)")
    add("--threads", type=int, default=min(2, usable_cores()), help="of everyone (default: %(default)s)")
    add("--isa", default="auto", help="our kernels: auto, avx512, avx2 or scalar")
    add("--rounds", type=int, help="how often each takes its turn (default: 7, or 3 with --quick)")
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    add("--peer", default=str(ROOT / ".peer/bin/python"), help="llama.cpp's Python (default: that of .peer)")
    add("--peer-models", help="folder of its GGUF files (default: `models` in that environment)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    from pomona.errors import PomonaError

    options = parser().parse_args(argv)
    if options.threads < 1 or (options.rounds is not None and options.rounds < 1):
        parser().error("--threads and --rounds are at least 1")
    try:
        emit(run(options), options.json)
    except (BenchmarkError, PomonaError) as error:
        print(f"benchmarks.decode: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
