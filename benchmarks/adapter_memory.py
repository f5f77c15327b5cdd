"""How much memory a hundred adapters take under a budget, seen from outside: a part of benchmarks.adapters.

    python -m benchmarks.adapter_memory MODEL FOLDER BUDGET_BYTES THREADS

Runs in a process of its own. Every directory in FOLDER is an adapter; each serves one short request, one
after the other, twice around. Printed is one JSON object. The growth is that of the resident set over what
the process held after the same request without an adapter.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROUNDS = 2
PROMPT_TOKENS, NEW_TOKENS = 16, 4


def resident_bytes() -> int:
    """The resident set of this process."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/self/smaps_rollup has no line Rss")


def start_peak() -> None:
    """Forgets the highest resident set so far."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """The highest resident set since `start_peak`."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/self/status has no line VmHWM")


def measure(model: Path, folder: Path, budget: int, threads: int) -> dict[str, Any]:
    """Sizes in bytes: the resident set before and its growth after each request, and what the cache says."""
    from benchmarks.peer import series
    from pomona.runtime.adapters import AdapterCache, LoadedAdapter
    from pomona.runtime.engine import Engine, StepInput

    engine = Engine.load(model, threads=threads)
    cache = AdapterCache(engine, budget)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    for name in names:
        cache.register(name, folder / name)
    prompt = series(PROMPT_TOKENS, engine.config.vocab_size)

    def request(adapter: LoadedAdapter | None) -> None:
        with engine.new_sequence(adapter) as sequence:
            token = engine.step([StepInput(sequence, prompt)])[0]
            for _ in range(NEW_TOKENS - 1):
                token = engine.step([StepInput(sequence, [token])])[0]

    request(None)
    base = resident_bytes()
    start_peak()
    growth, alive = [], []
    for _ in range(ROUNDS):
        for name in names:
            request(cache.acquire(name))
            growth.append(resident_bytes() - base)
            alive.append(cache.alive_bytes)
    loads = sum(status.loads for status in cache.status())
    return {
        "adapters": len(names),
        "adapter_bytes": max(status.bytes for status in cache.status()),
        "requests": len(growth),
        "loads": loads,
        "budget_bytes": budget,
        "base_resident_bytes": base,
        "largest_growth_bytes": max(growth),
        "peak_growth_bytes": peak_bytes() - base,
        "largest_alive_bytes": max(alive),
    }


def main(argv: Sequence[str] | None = None) -> int:
    model, folder, budget, threads = list(sys.argv[1:] if argv is None else argv)
    print(json.dumps(measure(Path(model), Path(folder), int(budget), int(threads))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
