"""Adapters at run time: what they cost, alone and mixed in one batch, to swap and to keep.

    python -m benchmarks.adapters --quick
    python -m benchmarks.adapters --large
    python -m benchmarks.adapters --skip peft --json adapters.json

Four parts. *Decode*: one sequence with a rank-16 adapter on all projections against one without. *Batch*: 16
requests with 16 different adapters at once, against the same requests without adapters, against llama.cpp's
server with the same adapters, and against mixed batches of transformers and PEFT. *Swap*: changing to an
adapter in memory and reading one from the page cache, against PEFT. *Memory*: a hundred adapters under a
budget of 64 MB. Contestants take turns; the adapters are random and the same for all.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.adapter_ours import OurAdapters
from benchmarks.adapter_parts import (
    DECODE_TOKENS,
    LARGE_TOKENS,
    NEW_TOKENS,
    PARTS,
    PROMPT_TOKENS,
    REQUESTS,
    Bench,
    progress,
)
from benchmarks.common import BenchmarkError, Report, emit, machine_facts, usable_cores
from benchmarks.peer import ROOT

if TYPE_CHECKING:
    from pomona.models.config import ModelConfig


def run(options: argparse.Namespace) -> Report:
    """Measures everything that `options` asks for."""
    machine = machine_facts()
    parts = set(PARTS) - set(options.skip)
    rounds = options.rounds or (5 if options.quick else 9)
    with ExitStack() as stack:
        folder: Path = options.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="pomona-adapters-"))
        )
        ours = stack.enter_context(OurAdapters(options.model, options.threads, options.isa))
        bench = Bench(options, ours, folder)
        if "server" in parts:
            bench.check_there()
        write_adapters(ours.engine.config, folder, gguf="server" in parts)
        ours.read([folder / str(number) for number in range(REQUESTS)])
        if "decode" in parts:
            bench.decode(ours, DECODE_TOKENS, 2 * rounds, 0.85)
        if options.large:
            large = stack.enter_context(OurAdapters(options.large_model, options.threads, options.isa))
            write_adapters(large.engine.config, folder / "large", gguf=False, count=1)
            large.read([folder / "large" / "0"])
            bench.decode(large, LARGE_TOKENS, max(3, rounds // 2), 0.95)
        if "batch" in parts:
            bench.batch(rounds)
        if parts & {"server", "peft"}:
            bench.peers("server" in parts, "peft" in parts, 1 if options.quick else 3)
        if "swap" in parts:
            bench.swap("peft" in parts, 12 if options.quick else 40)
        if "memory" in parts:
            bench.memory()
        notes = [
            f"{ours.engine.directory.name} on {ours.engine.threads} thread(s), {ours.engine.isa} kernels; "
            "medians of rounds in which all take turns; ratios round by round: median (lowest-highest).",
            f"Batch: {REQUESTS} requests at once, {PROMPT_TOKENS} tokens of prompt and {NEW_TOKENS} tokens "
            "generated greedily for each; speeds are generated tokens per second, prompts included. "
            "Adapters: rank 16 on all seven projections, random.",
        ]
        if options.skip:
            notes.append(f"Left out of this run: {', '.join(options.skip)}.")
        results = {"model": options.model, "threads": ours.engine.threads, "isa": ours.engine.isa}
        table = {"rows": bench.rows, "notes": notes + bench.notes}
        return Report("adapters", {**results, **table, **bench.results}, bench.goals, machine)


def write_adapters(config: ModelConfig, folder: Path, *, gguf: bool, count: int = REQUESTS) -> None:
    """PEFT directories 0, 1, ... in `folder`, and the same adapters as GGUF files beside them."""
    from benchmarks.adapter_files import RandomAdapter

    for number in range(count):
        progress("writing adapters", number, count)
        if not (folder / str(number)).exists():
            RandomAdapter(config, number).write_peft(folder / str(number))
        if gguf and not (folder / f"{number}.gguf").exists():
            RandomAdapter(config, number).write_gguf(folder / f"{number}.gguf")
    progress("writing adapters", count, count)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapters", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="coarser, in about a minute: fewer rounds, one llama.cpp model")
    add("--model", default="smollm2-135m-4bit", help="ours (default: %(default)s)")
    add(
        "--peft-model",
        default="smollm2-135m",
        help="the same, not compressed, for PEFT (default: %(default)s)",
    )
    add("--threads", type=int, default=min(2, usable_cores()), help="of everyone (default: %(default)s)")
    add("--isa", default="auto", help="our kernels: auto, avx512, avx2 or scalar")
    add("--rounds", type=int, help="how often each of ours takes its turn (default: 9, or 5 with --quick)")
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    add("--skip", nargs="+", choices=PARTS, default=[], help="parts to leave out")
    add("--folder", type=Path, help="keep the random adapters here (1.3 GB) and use them again")
    add("--large", action="store_true", help="decode with the 2.7 B model too (see benchmarks.random_model)")
    add("--large-model", help="its directory (default: where benchmarks.random_model writes it)")
    add("--peer", default=str(ROOT / ".peer/bin/python"), help="llama.cpp's Python (default: that of .peer)")
    add("--peer-models", help="folder of its GGUF files (default: `models` in that environment)")
    add("--source", help="GGUF file with the weights of --peft-model (default: the built-in model's)")
    add("--server", help="llama.cpp's server (default: `llama-server` beside that Python)")
    return parser


def complete(options: argparse.Namespace) -> argparse.Namespace:
    """Fills in what follows from other options. Exits with a usage error for what cannot be."""
    if options.threads < 1 or (options.rounds is not None and options.rounds < 1):
        parser().error("--threads and --rounds are at least 1")
    if options.large and options.quick:
        parser().error("--large takes longer than --quick allows; give one of them")
    python = Path(options.peer).absolute()
    options.peer_models = options.peer_models or str(python.parent.parent / "models")
    options.server = options.server or str(python.with_name("llama-server"))
    if options.large and options.large_model is None:
        from benchmarks.random_model import default_folder, packed_directory

        options.large_model = str(packed_directory(default_folder()))
    return options


def main(argv: Sequence[str] | None = None) -> int:
    from pomona.errors import PomonaError

    options = complete(parser().parse_args(argv))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the peers must end with us
    started = time.monotonic()
    try:
        report = run(options)
    except (BenchmarkError, PomonaError) as error:
        print(f"benchmarks.adapters: error: {error}", file=sys.stderr)
        return 2
    report.results["seconds"] = round(time.monotonic() - started, 1)
    emit(report, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
