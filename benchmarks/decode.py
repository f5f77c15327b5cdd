"""Speed of decoding and prefill, against llama.cpp with the same model on the same threads.

    python -m benchmarks.decode --quick
    python -m benchmarks.decode --model smollm2-135m-4bit --model another --threads 1 --json decode.json
    python -m benchmarks.decode --large          # the 2.7 B shape too; `make bench-large` writes its files

The contestants (each of our models; llama.cpp with Q4_K_M; llama.cpp with pure Q4_0, its fastest) take turns
in one run, A B C A B C ..., each warm and alone while it is measured. The measures are llama-bench's and
llama-batched-bench's: tg128 writes 128 tokens from an empty context, 8 x tg64 writes 64 tokens of each of 8
sequences together, pp512 reads 512. Ours goes through the public API and includes the greedy choice of each
token; llama.cpp's runs choose none, and the Python around its calls costs it under 0.02 ms a token.

Of the large model there is one copy at a time of each side in memory: it meets the two peers one after the
other. Other instruction sets of ours are measured last and alone; they are columns, not contestants.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.common import BenchmarkError, Report, emit, interleave, machine_facts, usable_cores
from benchmarks.decode_report import (
    DECODE,
    LARGE_DECODE,
    LARGE_MEASURES,
    MEASURES,
    PEERS,
    PREFILL,
    QUICK,
    Found,
    goals,
    notes,
    rows,
)
from benchmarks.ours import Ours
from benchmarks.peer import ROOT, Measure, Peer, Setting
from benchmarks.random_model import BITS, LARGE, default_folder, missing_files, packed_directory

ROUNDS, QUICK_ROUNDS, LARGE_ROUNDS = 7, 3, 3

# Tokens to (decode, read) with the instruction sets that are no contestants; scalar kernels are a hundred
# times slower than the best ones.
SLOW_TOKENS = {"scalar": (8, 32)}
OTHER_TOKENS = (64, 256)
LARGE_SLOW_TOKENS = {"scalar": (2, 16)}
LARGE_OTHER_TOKENS = (8, 128)


def run(options: argparse.Namespace) -> Report:
    """Measures everything that `options` asks for."""
    machine = machine_facts()
    large = _large_folder(options)
    names = options.model or ["smollm2-135m-4bit"]
    found = small_models(options, names)
    rounds = dict.fromkeys((one.model for one in found), options.rounds or _rounds(options))
    if large is not None:
        found.append(large_model(options, large))
        rounds[found[-1].model] = options.rounds or LARGE_ROUNDS
    return Report(
        benchmark="decode",
        machine=machine,
        results={
            "threads": options.threads,
            "rounds": rounds,
            "rows": rows(found),
            "notes": notes(found, rounds),
            "models": [one.to_json() for one in found],
        },
        goals=goals(found),
    )


def small_models(options: argparse.Namespace, names: Sequence[str]) -> list[Found]:
    """All of our models in turns with both peers, then the other instruction sets of the first."""
    measures = QUICK if options.quick else MEASURES
    python = Path(options.peer)
    models = Path(options.peer_models) if options.peer_models else python.absolute().parent.parent / "models"
    with ExitStack() as stack:
        ours = [stack.enter_context(Ours(name, options.threads, options.isa)) for name in names]
        if len({one.name for one in ours}) < len(ours):
            raise BenchmarkError(
                "two models of one name; give each --model once, in a folder of its own name"
            )
        peers = {
            name: stack.enter_context(Peer(python, models / file, options.threads))
            for name, file in PEERS.items()
        }
        found = [_empty(one) for one in ours]
        repeats = 1 if options.quick else 3
        compare(found, ours, peers, measures, options.rounds or _rounds(options), repeats)
    if not options.quick:
        other_instruction_sets(found[0], names[0], DECODE, OTHER_TOKENS, SLOW_TOKENS)
    return found


def large_model(options: argparse.Namespace, folder: Path) -> Found:
    """The large model against one peer at a time, then its other instruction sets."""
    model = packed_directory(folder, LARGE, options.large_bits)
    rounds = options.rounds or LARGE_ROUNDS
    with Ours(model, options.threads, options.isa) as ours:
        found = replace(_empty(ours), large=True)
        for name, file in PEERS.items():
            with Peer(Path(options.peer), folder / file, options.threads) as peer:
                compare([found], [ours], {name: peer}, LARGE_MEASURES, rounds, repeats=1)
    other_instruction_sets(found, model, LARGE_DECODE, LARGE_OTHER_TOKENS, LARGE_SLOW_TOKENS)
    return found


def compare(
    found: Sequence[Found],
    ours: Sequence[Ours],
    peers: Mapping[str, Peer],
    measures: Sequence[Measure],
    rounds: int,
    repeats: int,
) -> None:
    """Everyone in turns, measure by measure, after a warm-up; the figures go into `found`, one per model."""
    attention = warm_up(ours, peers, measures, repeats)
    for one in found:
        for name, peer in peers.items():
            chosen = {measure: str(setting) for measure, setting in attention[name].items()}
            one.peer_facts[name] = {**peer.facts, "attention": chosen}
    for measure in measures:
        contestants: dict[str, Callable[[], float]] = {}
        for model in ours:
            contestants[f"bandwidth {model.name}"] = model.bandwidth
        for model in ours:
            contestants[f"pomona {model.name}"] = partial(tokens_per_second, model, measure)
        for name, peer in peers.items():
            contestants[name] = partial(tokens_per_second, peer, measure)
        label = f"{ours[0].name}: {measure.name}"
        figures = interleave(contestants, rounds, on_round=partial(_progress, label))
        for model, one in zip(ours, found, strict=True):
            one.add(
                measure,
                model.bytes_read(measure),
                figures[f"pomona {model.name}"],
                figures[f"bandwidth {model.name}"],
                {name: figures[name] for name in peers},
            )


def tokens_per_second(contestant: Ours | Peer, measure: Measure) -> float:
    return measure.total / contestant.seconds(measure)


def warm_up(
    ours: Sequence[Ours], peers: Mapping[str, Peer], measures: Sequence[Measure], repeats: int
) -> dict[str, dict[str, Setting]]:
    """Runs everything once untimed. Says for every peer and measure which kind of attention it will use."""
    chosen: dict[str, dict[str, Setting]] = {name: {} for name in peers}
    for done, measure in enumerate(measures):
        _progress("warming up", done, len(measures))
        for one in ours:
            one.seconds(measure)
        for name, peer in peers.items():
            chosen[name][measure.name] = peer.choose(measure, repeats=repeats)
    _progress("warming up", len(measures), len(measures))
    return chosen


def other_instruction_sets(
    found: Found,
    model: str | Path,
    decode: Measure,
    tokens: tuple[int, int],
    slow_tokens: Mapping[str, tuple[int, int]],
) -> None:
    """Decode and prefill with the kernels below those of the contest, one set in memory at a time."""
    from pomona import _native

    names = _native.available_isas().split()
    below = names[names.index(found.isa) + 1 :]
    if not below:
        return
    for done, isa in enumerate(below):
        _progress(f"{found.model}: {', '.join(below)}", done, len(below))
        with Ours(model, found.threads, isa) as ours:
            ours.seconds(replace(decode, tokens=1))
            for measure, count in zip((decode, PREFILL), slow_tokens.get(isa, tokens), strict=True):
                shorter = replace(measure, tokens=min(count, measure.tokens))
                rounds = 1 if isa in slow_tokens else 3
                speeds = [tokens_per_second(ours, shorter) for _ in range(rounds)]
                found.isas.setdefault(measure.name, {})[isa] = speeds
    _progress(f"{found.model}: {', '.join(below)}", len(below), len(below))


def _empty(ours: Ours) -> Found:
    engine = ours.engine
    return Found(ours.name, ours.bits, engine.isa, engine.threads, engine.bytes_per_token)


def _large_folder(options: argparse.Namespace) -> Path | None:
    """Where the large model's files lie, None if it is not wanted. BenchmarkError if some are missing."""
    if not options.large:
        return None
    folder: Path = options.large_folder or default_folder()
    if missing := missing_files(folder, LARGE, options.large_bits):
        raise BenchmarkError(f"{folder}: {', '.join(missing)} not there; run `make bench-large`")
    return folder


def _rounds(options: argparse.Namespace) -> int:
    return QUICK_ROUNDS if options.quick else ROUNDS


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
    add("--quick", action="store_true", help="coarser, in under a minute: 3 rounds, the main measures only")
    add(
        "--model",
        action="append",
        help="one of ours, by name or directory; may be given several times, and the goals are for the first "
        "(default: smollm2-135m-4bit)",
    )
    add("--threads", type=int, default=min(2, usable_cores()), help="of everyone (default: %(default)s)")
    add("--isa", default="auto", help="our kernels: auto, avx512, avx2 or scalar")
    add("--rounds", type=int, help=f"of turns (default: {ROUNDS}; {QUICK_ROUNDS} with --quick or large)")
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    add("--peer", default=str(ROOT / ".peer/bin/python"), help="llama.cpp's Python (default: that of .peer)")
    add("--peer-models", help="folder of its GGUF files (default: `models` in that environment)")
    add("--large", action="store_true", help="the 2.7 B shape too, which takes some minutes")
    add("--large-bits", type=float, default=BITS, help="which of its files is ours (default: %(default)g)")
    add("--large-folder", type=Path, help="where benchmarks.random_model wrote it (default: as there)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    from pomona.errors import PomonaError

    options = parser().parse_args(argv)
    if options.threads < 1 or (options.rounds is not None and options.rounds < 1):
        parser().error("--threads and --rounds are at least 1")
    if options.quick and options.large:
        parser().error("--large is not quick; leave one of the two out")
    try:
        emit(run(options), options.json)
    except (BenchmarkError, PomonaError) as error:
        print(f"benchmarks.decode: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
