"""`pomona serve` under abuse: is every reply right and none lost, do memory and file handles stay put?

    python -m benchmarks.soak --quick
    python -m benchmarks.soak --minutes 30 --clients 32 --json soak.json

Clients ask for chat completions of a few prompts with a few adapters, while adapters are loaded, replaced and
removed at random. Some clients vanish in mid-stream, some read slowly, some send bodies that are too large,
malformed or nonsense. The answers to every prompt under every adapter directory are computed beforehand by
the engine alone, without a server and a prefix cache; each reply is compared with the answers of those
directories that its adapter's name stood for between the request and its first token. At the end the server
must be as quiet as it was in the beginning, and end by itself on SIGTERM. docs/benchmarks.md says more.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.common import BenchmarkError, Goal, Report, Row, emit, machine_facts, usable_cores
from benchmarks.servers import PomonaServer, linked_model
from benchmarks.soak_clients import Answers, Tally, soak
from benchmarks.soak_watch import Watch

DIRECTORIES = 8
QUICK_MINUTES = 0.5
MEMORY_BOUND = 1.02  # the last third against the second
MEMORY_MINUTES = 10.0
SETTLE_SECONDS = 20.0  # until a server that is left alone has closed what it does not need


def make_model(source: Path, folder: Path) -> tuple[Path, list[Path]]:
    """A model of links with directories of random adapters beside it, and these directories."""
    from benchmarks.adapter_files import RandomAdapter
    from pomona.models.config import ModelConfig

    model = linked_model(source, folder / source.resolve().name)
    config = ModelConfig.from_directory(model)
    directories = []
    for number in range(DIRECTORIES):
        adapter = RandomAdapter(config, number, rank=4 + 2 * (number % 4))
        directories.append(adapter.write_peft(model / "adapters" / f"version-{number}"))
    return model, directories


def run(options: argparse.Namespace) -> Report:
    """The whole soak. BenchmarkError only for what is not the server's fault; its faults are missed goals."""
    from pomona.models.store import resolve

    machine = machine_facts()
    minutes = options.minutes or (QUICK_MINUTES if options.quick else 30.0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pomona-soak-")))
        model, directories = make_model(resolve(options.model), folder)
        print("computing the right answers ...", file=sys.stderr, flush=True)
        answers = Answers.compute(model, directories, threads=options.threads)
        largest = max((path / "adapter_model.safetensors").stat().st_size for path in directories)
        # So little of everything that requests wait and are refused, adapters give way to each other, and all
        # memory has been touched after a short while.
        settings = {
            "max_running": max(2, options.clients // 2),
            "max_waiting": max(2, options.clients // 2 - 2),
            "kv_tokens": max(2048, 128 * options.clients),
            "adapter_budget_bytes": 5 * largest,
            "log_level": "warning",
        }
        server = stack.enter_context(
            PomonaServer(model, folder, threads=options.threads, settings=settings, log=options.log)
        )
        tally = Tally()
        with Watch(server.pid, 60 * minutes) as watch:
            asyncio.run(
                soak(
                    server,
                    answers,
                    directories,
                    tally,
                    clients=options.clients,
                    seconds=60 * minutes,
                    seed=options.seed,
                    pace=options.pace,
                )
            )
        left_open = watch.left_open(SETTLE_SECONDS) if server.running else None
        code = server.stop() if server.running else server.returncode
    found = results(options, minutes, tally, watch, code)
    return Report("soak", found, goals(minutes, tally, watch, left_open, code), machine)


def goals(minutes: float, tally: Tally, watch: Watch, left_open: int | None, code: int | None) -> list[Goal]:
    """Memory is judged when the caches have had the time to fill; else a rise would mean nothing."""
    found = [
        Goal("wrong replies", float(len(tally.wrong)), 0.0, "<="),
        Goal("lost replies", float(len(tally.lost)), 0.0, "<="),
        Goal("bad requests that were not refused as they should be", float(len(tally.taken)), 0.0, "<="),
        Goal("file handles left over when all clients are gone", left_open, 0.0, "<="),
        Goal(
            "exit status after SIGTERM", None if code is None else abs(code), 0.0, "<="
        ),  # below 0: a signal
    ]
    if minutes >= MEMORY_MINUTES:
        name = "resident memory, last third over second third"
        found.append(Goal(name, watch.growth(), MEMORY_BOUND, "<="))
    return found


def results(
    options: argparse.Namespace, minutes: float, tally: Tally, watch: Watch, code: int | None
) -> dict[str, object]:
    rows: list[Row] = [{"what": name, "count": f"{count:,}"} for name, count in tally.counts().items()]
    rows += [
        {"what": f"resident memory, {name}, MB", "count": f"{size / 1e6:.1f}"}
        for name, size in watch.thirds()
    ]
    notes = [
        f"{options.model}, {options.threads} thread(s), {minutes:g} minutes, {options.clients} clients.",
        f"File handles: {watch.files_before} before the first client, at most {watch.most_files} at work.",
    ]
    if minutes < MEMORY_MINUTES:
        notes.append(f"Memory is judged in runs of {MEMORY_MINUTES:g} minutes and more.")
    for kind, found in (("Wrong", tally.wrong), ("Lost", tally.lost), ("Not refused", tally.taken)):
        notes += [f"{kind}: {line}" for line in found[:10]]
    return {
        "model": options.model,
        "rows": rows,
        "notes": notes,
        "minutes": minutes,
        "counts": tally.counts(),
        "wrong": tally.wrong[:100],
        "lost": tally.lost[:100],
        "not_refused": tally.taken[:100],
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "resident_bytes": watch.resident_by_minute(),
        "exit_status": code,
    }


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="half a minute")
    add("--minutes", type=float, help="how long (default: 30, or 0.5 with --quick)")
    add("--clients", type=int, default=32, help="at the same time (default: %(default)s)")
    add("--model", default="smollm2-135m-4bit", help="a model with a chat template (default: %(default)s)")
    add("--threads", type=int, default=min(2, usable_cores()), help="of the server (default: %(default)s)")
    add("--pace", type=float, default=0.5, help="seconds between changes of adapters (default: %(default)s)")
    add("--seed", type=int, default=0, help="of what happens when (default: %(default)s)")
    add("--log", type=Path, metavar="FILE", help="keep the server's output in this file")
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    from pomona.errors import PomonaError

    options = parser().parse_args(argv)
    if min(options.threads, options.clients, options.pace, options.minutes or 1) <= 0:
        parser().error("--threads, --clients, --pace and --minutes are above 0")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server must end with us
    started = time.monotonic()
    try:
        report = run(options)
    except (BenchmarkError, PomonaError) as error:
        print(f"benchmarks.soak: error: {error}", file=sys.stderr)
        return 2
    report.results["seconds"] = round(time.monotonic() - started, 1)
    emit(report, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
