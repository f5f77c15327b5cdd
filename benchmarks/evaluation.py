"""lm-evaluation-harness on our runtime against its own `hf` model: the same items right, and how much sooner.

    python -m benchmarks.evaluation --quick
    python -m benchmarks.evaluation --limit 80

Tasks of the suite `quick` (five worked examples where it says so) on the same 16-bit model. Two opponents:
`hf` in float32 says which items are right, for in bfloat16 it rounds its logits before it compares their
sums; `hf` in bfloat16 is the faster one and is what our speed is held against. Task by task in turns, in one
process, with the same threads; lm-eval's own work (prompts, metrics) counts on every side. Where the
processor has products of bfloat16, our 16-bit model runs with them too (docs/kernels.md), as `hf` does, and
both goals are held against that. The compressed model with its recovery adapter stands beside them. Needs
POMONA_DATA.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Goal, Report, Row, machine_facts, median_and_range, run_command, usable_cores

MODEL, REFERENCE = "smollm2-135m-4bit", "smollm2-135m"
LIMIT, QUICK_LIMIT = 80, 6
SAME, FASTER = 0.99, 4.0
BATCH = 8  # of the `hf` model; larger ones pad more
OURS, ROUNDED, COMPRESSED = "pomona, 16 bit", "pomona, 16 bit, rounded inputs", "pomona, compressed"
EXACT, FAST = "hf, float32", "hf, bfloat16"


def run(options: argparse.Namespace) -> Report:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from pomona.data.public_sets import data_folder
    from pomona.evaluation.suites import suite_of

    machine = machine_facts()
    limit = QUICK_LIMIT if options.quick else options.limit
    tasks = suite_of("quick").tasks[: 3 if options.quick else None]
    data = data_folder(options.data)
    contestants = load(options)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    items: dict[str, list[float]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory(prefix="pomona-evaluation-") as folder:
        for number, task in enumerate(tasks):
            for name, measure in contestants.items():
                print(f"{task.name}: {name} ({number + 1} of {len(tasks)})", file=sys.stderr, flush=True)
                took, scores = measure(task, data, Path(folder), limit)
                seconds[name].append(took)
                items[name] += scores
    ours = ROUNDED if ROUNDED in contestants else OURS
    same = statistics.fmean(a == b for a, b in zip(items[ours], items[EXACT], strict=True))
    rows: list[Row] = [
        {
            "model": name,
            "accuracy": statistics.fmean(items[name]),
            "items": len(items[name]),
            "as hf in float32": statistics.fmean(
                a == b for a, b in zip(items[name], items[EXACT], strict=True)
            ),
            "seconds": sum(seconds[name]),
            "times faster than hf in bfloat16": median_and_range(
                [theirs / mine for mine, theirs in zip(seconds[name], seconds[FAST], strict=True)]
            ),
        }
        for name in contestants
    ]
    return Report(
        benchmark="evaluation",
        machine=machine,
        results={
            "rows": rows,
            "tasks": [task.name for task in tasks],
            "limit": limit,
            "seconds": seconds,
            "notes": [
                f"{limit} items of each of {', '.join(task.name for task in tasks)}",
                f"goals: {ours}",
            ],
        },
        goals=[
            Goal("items judged as by lm-eval's hf model in float32", same, SAME),
            Goal(
                "speed over lm-eval's hf model in bfloat16, of all tasks",
                sum(seconds[FAST]) / sum(seconds[ours]),
                FASTER,
            ),
        ],
    )


Measure = Callable[[Any, Path, Path, int], tuple[float, list[float]]]


def load(options: argparse.Namespace) -> dict[str, Measure]:
    """Contestant -> what evaluates one task with it: seconds, and the score of every item."""
    import torch
    from lm_eval.models.huggingface import HFLM

    from pomona import _native
    from pomona.evaluation.lm_eval_model import lm_eval_model
    from pomona.models.store import resolve
    from pomona.runtime.model import Model

    torch.set_num_threads(options.threads)
    directory = str(resolve(options.reference))

    def ours(name: str, isa: str = "auto") -> Any:
        return lm_eval_model(Model.load(name, threads=options.threads, isa=isa))

    rounding = _native.rounding_isas().split()
    models: dict[str, Any] = {
        OURS: ours(options.reference),
        **({ROUNDED: ours(options.reference, rounding[0])} if rounding else {}),
        COMPRESSED: ours(options.model),
        FAST: HFLM(pretrained=directory, dtype="bfloat16", batch_size=BATCH, device="cpu"),
        EXACT: HFLM(pretrained=directory, dtype="float32", batch_size=BATCH, device="cpu"),
    }
    return {name: _measure(model) for name, model in models.items()}


def _measure(model: Any) -> Measure:
    def measure(task: Any, data: Path, folder: Path, limit: int) -> tuple[float, list[float]]:
        import lm_eval
        from lm_eval.tasks import TaskManager

        from pomona.evaluation.local_sets import local_tasks

        paths = local_tasks((task.name,), data, folder)
        started = time.perf_counter()
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=paths,
            task_manager=TaskManager(include_defaults=False),
            num_fewshot=task.shots,
            limit=limit,
            bootstrap_iters=0,
            verbosity="ERROR",
        )
        metric = task.metric.partition(",")[0]
        scores = {sample["doc_id"]: float(sample[metric]) for sample in results["samples"][task.name]}
        return time.perf_counter() - started, [scores[key] for key in sorted(scores)]

    return measure


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_LIMIT} items of three tasks")
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"items of each task ({LIMIT})")
    parser.add_argument("--model", default=MODEL, help="the compressed model")
    parser.add_argument("--reference", default=REFERENCE, help="the 16-bit model")
    parser.add_argument("--data", type=Path, help="public data sets (POMONA_DATA)")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(rounds=None)
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
