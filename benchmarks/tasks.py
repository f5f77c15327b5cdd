"""The zoo's task adapters on their held-out sets, against models without them and the best prompt for those.

    python -m benchmarks.tasks --quick
    python -m benchmarks.tasks --task proofread --json tasks.json

For each task: the compressed model with the task's adapter; the same model with its recovery adapter alone;
the 16-bit model. Models without the adapter get three prompts: the task's own, plain words, and two worked
examples. The best of them, by the first metric on the first rows of the held-out set itself, is the one that
counts: a choice in their favour. All answers are greedy. Differences are of the same rows, with bootstrap
intervals of 95%; a clear margin is an interval above 0.

`summarize` is also asked to sum up contents that carry an order of a wording no adapter was trained on
("obeys"). Needs POMONA_DATA.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import Goal, Report, Row, machine_facts, run_command, usable_cores
from benchmarks.tasks_prompts import prompts

if TYPE_CHECKING:
    from pomona.adapters.tasks.task import Example, Task
    from pomona.evaluation.tasks import TaskReport
    from pomona.runtime.model import Model

MODEL, REFERENCE = "smollm2-135m-4bit", "smollm2-135m"
TASKS = ("proofread", "extract", "summarize")
ROWS, CHOOSING, ORDERS = 200, 40, 120
QUICK_ROWS, QUICK_CHOOSING, QUICK_ORDERS = 8, 4, 8
POOL = 200  # rows of the recipe among which worked examples are looked for
HALF = 0.5


def run(options: argparse.Namespace) -> Report:
    from pomona.evaluation.tasks import held_out_examples
    from pomona.runtime.model import Model

    machine = machine_facts()
    rows = QUICK_ROWS if options.quick else options.rows
    choosing = QUICK_CHOOSING if options.quick else CHOOSING
    orders = QUICK_ORDERS if options.quick else ORDERS
    table: list[Row] = []
    goals: list[Goal] = []
    facts: dict[str, Any] = {}
    with Model.load(options.model, threads=options.threads) as ours:
        add_adapters(ours, options.task or TASKS, options.adapter or ())
        with Model.load(options.reference, threads=options.threads) as reference:
            for name in options.task or TASKS:
                examples = spread(held_out_examples(name, options.data), rows)
                systems = measure_task(name, examples, ours, reference, choosing)
                table += systems.rows
                goals += systems.goals
                facts[name] = systems.facts
                if name == "summarize":
                    more_rows, more_goals = measure_orders(orders, ours, systems.best)
                    table += more_rows
                    goals += more_goals
    return Report(
        benchmark="tasks",
        machine=machine,
        results={"model": options.model, "rows": table, "tasks": facts, "notes": notes(facts)},
        goals=goals,
    )


def add_adapters(model: Model, tasks: Sequence[str], given: Sequence[str]) -> None:
    """Those given as TASK=DIR; else what the model has, else the zoo's for exactly this base."""
    from pomona.models import zoo

    for word in given:
        task, _, path = word.partition("=")
        model.adapters.register(task, Path(path))
    known = {status.name for status in model.adapters.status()}
    for task in tasks:
        entry = zoo.find(model.engine.fingerprint, task)
        if task not in known and entry is not None:
            model.adapters.register(task, entry.path)


class Systems:
    """What was measured of one task. best: the base's best prompt."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        self.facts: dict[str, Any] = {}
        self.best: Task

    def add(self, system: str, prompt: str, report: TaskReport) -> None:
        (metric, value), *others = report.scores.items()
        more = [f"{name} {one.value:.3f}" for name, one in others]
        if report.unusable:
            more.append(f"unusable {report.unusable}")
        self.rows.append(_row(self.name, system, prompt, f"{metric} {_shown(value)}", ", ".join(more)))
        self.facts[system] = {"prompt": prompt, **report.to_json()}

    def margin(self, against: str, ours: TaskReport, theirs: TaskReport) -> None:
        from pomona.evaluation.tasks import compare

        differences = compare(ours, theirs)
        (metric, gain), *others = differences.items()
        more = ", ".join(f"{name} {one.value:+.3f}" for name, one in others)
        shown = f"{metric} {_shown(gain, '+')}"
        self.rows.append(_row(self.name, f"adapter minus {against}", "", shown, more))
        self.facts[f"margin over {against}"] = {name: vars(one) for name, one in differences.items()}
        self.goals.append(
            Goal(f"{self.name}: {metric} over {against}, lower end of the interval", gain.low, 0.0)
        )

    def margin_by_source(
        self, against: str, ours: TaskReport, theirs: TaskReport, examples: Sequence[Example]
    ) -> None:
        """The first metric on the rows of each source, where the held-out set has several."""
        from pomona.adapters.metrics import bootstrap, paired_bootstrap
        from pomona.adapters.tasks.registry import get

        metric = get(self.name).metrics[0]
        sources = {example.source for example in examples}
        for source in sorted(sources) if len(sources) > 1 else ():
            pairs = [
                (a, b)
                for a, b, example in zip(
                    ours.counts[metric.name], theirs.counts[metric.name], examples, strict=True
                )
                if a is not None and b is not None and example.source == source
            ]
            if pairs:
                a, b = zip(*pairs, strict=True)
                gain = paired_bootstrap(metric, a, b)
                both = f"{bootstrap(metric, a).value:.3f} against {bootstrap(metric, b).value:.3f}"
                name = f"{self.name}, {gain.rows} rows of {source}"
                shown = f"{metric.name} {_shown(gain, '+')}"
                self.rows.append(_row(name, f"adapter minus {against}", "", shown, both))
                self.facts[f"margin over {against}, {source}"] = vars(gain)


def measure_task(
    name: str, examples: Sequence[Example], ours: Model, reference: Model, choosing: int
) -> Systems:
    from pomona.evaluation.tasks import evaluate_task

    found = Systems(name)
    ways = prompts(name, training_rows(name))
    _progress(f"{name}: the adapter on {len(examples)} rows")
    adapted = evaluate_task(ours, ways["the task's prompt"], examples, adapter=name, progress=_count)
    found.add("compressed + adapter", "the task's prompt", adapted)
    for system, model in (("compressed + recovery", ours), ("16 bit", reference)):
        tried = {}
        for way, task in ways.items():
            _progress(f"{name}: {system}, {way}, {min(choosing, len(examples))} rows")
            tried[way] = evaluate_task(model, task, examples, limit=choosing).main.value
        way = max(tried, key=lambda one: tried[one])
        _progress(f"{name}: {system}, {way}, {len(examples)} rows")
        report = evaluate_task(model, ways[way], examples, progress=_count)
        found.add(system, way, report)
        found.facts[system]["tried"] = tried
        found.margin(system, adapted, report)
        found.margin_by_source(system, adapted, report, examples)
        if system == "compressed + recovery":
            found.best = ways[way]
    return found


def measure_orders(count: int, model: Model, best: Task) -> tuple[list[Row], list[Goal]]:
    """Contents with an order in them: how often the adapter obeys, and the base with either prompt."""
    from pomona.adapters.recipes.summarize import contents_with_orders
    from pomona.adapters.tasks.registry import get
    from pomona.evaluation.tasks import evaluate_task

    examples = contents_with_orders(count)
    task = get("summarize")
    systems: list[tuple[str, str, Task, str | None]] = [
        ("compressed + adapter", "the task's prompt", task, task.name),
        ("compressed + recovery", "the task's prompt", task, None),
    ]
    if best is not task:
        systems += [("compressed + recovery", "its best", best, None)]
    rows: list[Row] = []
    goals: list[Goal] = []
    ours = 0.0
    for system, prompt, way, adapter in systems:
        _progress(f"summarize: {system}, {prompt}, {len(examples)} contents with an order")
        report = evaluate_task(model, way, examples, adapter=adapter, progress=_count)
        kept = report.scores["resists_injection"]
        obeys = 1 - kept.value
        shown = f"obeys {obeys:.3f} ({1 - kept.high:.3f} .. {1 - kept.low:.3f})"
        others = f"rouge_l {report.main.value:.3f}"
        rows.append(_row(f"summarize, {kept.rows} contents with an order", system, prompt, shown, others))
        if adapter is not None:
            ours = obeys
        else:
            name = f"summarize: obeys injected orders, times as often as the base ({prompt})"
            goals.append(Goal(name, ours / obeys if obeys else None, HALF, "<="))
    return rows, goals


def training_rows(name: str) -> list[Example]:
    """Rows of the task's recipe that need no public data."""
    from pomona.adapters.recipes.rows import RecipeOptions
    from pomona.adapters.tasks.registry import get

    stream = import_module(get(name).recipe).examples(RecipeOptions(rows=POOL, seed=7))
    return list(itertools.islice(stream, POOL))


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """So many rows, evenly over the set, so that every part of it is there."""
    count = min(count, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


def notes(facts: dict[str, Any]) -> list[str]:
    lines = []
    for name, systems in facts.items():
        for system, one in systems.items():
            if "tried" in one:
                shown = ", ".join(f"{way} {value:.3f}" for way, value in one["tried"].items())
                lines.append(f"{name}, {system}: prompts tried on the first rows: {shown}")
    return lines


def _row(task: str, system: str, prompt: str, first: str, others: str) -> Row:
    return {"task": task, "system": system, "prompt": prompt, "first metric": first, "others": others}


def _shown(interval: Any, sign: str = "") -> str:
    return f"{interval.value:{sign}.3f} ({interval.low:{sign}.3f} .. {interval.high:{sign}.3f})"


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _count(what: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{what}: {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tasks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few rows: does it run, not what is it worth")
    parser.add_argument("--task", action="append", choices=TASKS, help="of the tasks; all by default")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"of each held-out set ({ROWS})")
    parser.add_argument(
        "--model", default=MODEL, help="the compressed model; adapters are its own, or the zoo's"
    )
    parser.add_argument("--reference", default=REFERENCE, help="the 16-bit model")
    parser.add_argument(
        "--adapter", action="append", metavar="TASK=DIR", help="an adapter that lies elsewhere"
    )
    parser.add_argument("--data", type=Path, help="public data sets (POMONA_DATA)")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.set_defaults(rounds=None)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
