"""A task adapter out of a file of examples: `pomona adapt` from the rows to BASE/adapters/NAME.

    pomona adapt smollm2-135m-4bit notes.jsonl --name notes

The rows are checked (data.py) and encoded (packing.py), the run is planned (plan.py), trained (training/) and
written as a PEFT directory. This file joins them; torch is imported where it is needed and comes with
`pomona[train]`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.adapters.data import DataReport, Row, file_sha256, read_rows, shared_instructions
from pomona.adapters.options import PASS_TOKENS, AdaptOptions, AdaptPoint
from pomona.adapters.packing import Example, Split, encode_rows, split
from pomona.adapters.plan import Plan, make_plan
from pomona.compression.training.options import Outcome
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.locking import locked_folder
from pomona.models.model_directory import Progress
from pomona.models.palettized import describe
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.adapter_file import CONFIG_FILE as ADAPTER_CONFIG_FILE
from pomona.runtime.adapter_file import WEIGHTS_FILE, read_adapter
from pomona.runtime.adapter_pairs import pairs_of, with_rank
from pomona.runtime.adapter_writer import Pair, write_adapter
from pomona.runtime.model import ADAPTERS_FOLDER, BASE, RECOVERY

if TYPE_CHECKING:
    from pomona.adapters.training.task_trainer import TaskTrainer
    from pomona.compression.training.loop import OnStep

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class AdaptReport:
    """Losses in nats per learnt token of the held-out rows, before and after. `directory`: the adapter, None
    if nothing was better than the start and nothing was written; after a dry run all but the first four are
    None."""

    name: str
    task: str
    base_fingerprint: str
    data: DataReport
    plan: Plan
    directory: Path | None = None
    start_loss: float | None = None
    loss: float | None = None
    last_loss: float | None = None  # of the last evaluation; `loss` is the best one's, which was kept
    start_accuracy: float | None = None
    accuracy: float | None = None
    tokens: int = 0  # read in training, prompts and repetitions included
    seconds: float = 0.0
    stopped: str | None = None  # done, time or early
    curve: tuple[AdaptPoint, ...] = ()

    def to_json(self) -> dict[str, Any]:
        found = {key: value for key, value in vars(self).items() if key not in ("data", "plan", "curve")}
        return {
            "version": 1,
            **found,
            "directory": None if self.directory is None else str(self.directory),
            "data": self.data.to_json(),
            "plan": self.plan.to_json(),
            "curve": [asdict(point) for point in self.curve],
        }


@dataclass(frozen=True)
class Start:
    """Where the adapter begins: with another adapter's values, or with none."""

    kind: str  # recovery, zero, or an adapter and the hash of its weights
    note: str
    pairs: dict[str, Pair] | None = None
    alpha: float | None = None


def adapt(
    base: Path | str,
    data: Path | str,
    *,
    work: Path | str,
    name: str | None = None,
    task: str | None = None,
    options: AdaptOptions | None = None,
    target: Path | str | None = None,
    start_from: Path | str | None = None,
    skip_bad: bool = False,
    dry_run: bool = False,
    resume: bool = False,
    restart: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    on_data: Callable[[DataReport], None] | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    on_point: Callable[[AdaptPoint, float | None], None] | None = None,
    on_step: OnStep | None = None,
) -> AdaptReport:
    """Trains an adapter of `base`, palettised or 16 bit, on the rows of `data` and writes it to `target`, by
    default BASE/adapters/NAME. name: by default that of the file; task: by default the name. start_from: an
    adapter's directory whose values are the first ones, by default the recovery adapter's.

    work: a folder for checkpoints and event files. resume: go on with a run that was interrupted, restart:
    forget it; without either such a run is an error. skip_bad: leave out rows that cannot be trained on,
    which are an error otherwise. dry_run: end after the plan; with torch a pass is timed for it.
    on_data gets the checks before bad rows are refused, on_plan the plan before the first step.
    Raises PomonaError: no torch, no sound rows, an adapter that is there already, values that are not finite.
    """
    base, data = Path(base), Path(data)
    options = options or AdaptOptions()
    has_torch = importlib.util.find_spec("torch") is not None
    if not has_torch and not dry_run:
        raise PomonaError("adapt: needs torch, which is not installed; run: pip install 'pomona[train]'")
    name = checked_name(name or task or re.sub(r"[^A-Za-z0-9._-]+", "-", data.stem).strip("-._"))
    target = base / ADAPTERS_FOLDER / name if target is None else Path(target)
    if target.exists() and not overwrite and not dry_run:
        raise PomonaError(f"{target}: is there already; ask to overwrite it, or choose another --name")
    config = ModelConfig.from_directory(base)
    mark = describe(base).fingerprint
    start = _start(base, start_from, config, mark, options.rank, options.seed)
    window = options.window_for(config.max_position_embeddings)
    rows, report = read_rows(data)
    encoded = encode_rows(rows, Tokenizer.from_directory(base), window, progress=progress)
    report.problems += encoded.problems
    if on_data is not None:
        on_data(report)
    if report.bad and not skip_bad:
        raise PomonaError(
            f"{data}: {len(report.bad):,} of {report.read:,} rows cannot be trained on "
            f"({report.first_bad()}); mend them, or give --skip-bad to leave them out"
        )
    if any(example.ids.max() >= config.vocab_size for example in encoded.examples):
        raise PomonaError(f"{base}: its tokenizer knows more tokens than the model; get the model again")
    parts = split(encoded.examples, options.validation, seed=options.seed)
    loop = options.loop(len(parts.train), alpha=start.alpha)
    plan = make_plan(
        parts, config, loop, window=window, start=(start.kind, start.note), endless=encoded.endless
    )
    if not has_torch:
        if on_plan is not None:
            on_plan(plan)
        return AdaptReport(name, task or name, mark, report, plan)

    import torch

    from pomona.adapters.training.event_log import FOLDER as EVENTS
    from pomona.compression.training.loop import CHECKPOINT

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    folder = Path(work) / f"adapt-{mark[:12]}-{report.sha256[:12]}-{name}"
    with locked_folder(folder):
        unfinished = (folder / CHECKPOINT).exists()
        if unfinished and not (resume or restart or dry_run):
            raise PomonaError(f"{folder}: holds an unfinished run; give --resume to go on, or --restart")
        if resume and not unfinished:
            raise PomonaError(f"{folder}: holds no run to resume; start one without --resume")
        trainer = _trainer(base, parts, plan, start, folder)
        if resume:
            trainer.resume()
        elif not dry_run:
            shutil.rmtree(folder / EVENTS, ignore_errors=True)  # of an earlier run
        plan = plan.timed(trainer.seconds_per_token(), trainer.every)
        if on_plan is not None:
            on_plan(plan)
        if dry_run:
            return AdaptReport(name, task or name, mark, report, plan)
        outcome = _run(trainer, folder, progress, on_point, on_step)
        written = None
        if outcome.improved:
            record = _record(task or name, mark, rows, parts, report, plan, outcome)
            written = write_adapter(
                target, trainer.pairs(), scale=plan.loop.scale, record=record, overwrite=overwrite
            )
        (folder / CHECKPOINT).unlink(missing_ok=True)
    first, best, last = outcome.start, outcome.best, outcome.points[-1]
    return AdaptReport(
        name,
        task or name,
        mark,
        report,
        plan,
        written,
        first.validation_loss,
        best.validation_loss,
        last.validation_loss,
        first.accuracy,
        best.accuracy,
        trainer.tokens,
        trainer.seconds,
        outcome.stopped,
        outcome.points,
    )


def checked_name(name: str) -> str:
    """An adapter's name, which is its folder's. PomonaError for one that is none, or that means another."""
    if not _NAME.fullmatch(name):
        raise PomonaError(f"--name {name}: is not a plain name; use letters, digits, '.', '_', '-'")
    if name in (RECOVERY, BASE):
        raise PomonaError(f"--name {name}: has a meaning of its own; choose another")
    return name


def _start(
    base: Path, given: Path | str | None, config: ModelConfig, mark: str, rank: int, seed: int
) -> Start:
    """The values of `given`, or the recovery adapter's where they fit; the reason where they do not."""
    directory = base / ADAPTERS_FOLDER / RECOVERY if given is None else Path(given)
    if given is None and not (directory / ADAPTER_CONFIG_FILE).is_file():
        return Start("zero", "the base has no recovery adapter")
    file = read_adapter(directory, config, mark)
    if set(file.scales) != set(config.linear_shapes()):
        if given is not None:
            raise PomonaError(f"{directory}: leaves projections out, so nothing can start from it")
        return Start(
            "zero", "the recovery adapter leaves projections out: the new one stands on the base alone"
        )
    rng = np.random.default_rng(seed)
    pairs = {module: with_rank(pair, rank, rng) for module, pair in pairs_of(file).items()}
    alpha = next(iter(file.scales.values())) * rank
    note = "starts as the base's recovery adapter"
    kind = RECOVERY
    if given is not None:
        note = f"starts as the adapter {directory.name}"
        kind = f"{directory.name}#{file_sha256(directory / WEIGHTS_FILE)[:16]}"
    if file.rank > rank:
        note += f", of whose rank {file.rank} the best {rank} are kept"
    return Start(kind, note, pairs, alpha)


def _trainer(base: Path, parts: Split, plan: Plan, start: Start, folder: Path) -> TaskTrainer:
    from pomona.adapters.training.task_trainer import Answers, TaskTrainer
    from pomona.compression.training.network import Network

    network = Network.load(base)
    objective = Answers(network, parts, pass_tokens=max(PASS_TOKENS, plan.longest), data=_digest(parts))
    return TaskTrainer(network, objective, plan.loop, folder, start.pairs)


def _digest(parts: Split) -> str:
    """Of all tokens in their order: a checkpoint belongs to them."""
    digest = hashlib.sha256()
    for example in (*parts.train, *parts.held_out):
        digest.update(len(example.ids).to_bytes(4, "little"))
        digest.update(example.ids.tobytes())
        digest.update(example.learnt.tobytes())
    return digest.hexdigest()


def _run(
    trainer: TaskTrainer,
    folder: Path,
    progress: Progress | None,
    on_point: Callable[[AdaptPoint, float | None], None] | None,
    on_step: OnStep | None,
) -> Outcome[AdaptPoint]:
    from pomona.adapters.training.event_log import EventLog
    from pomona.compression.training.loop import Step

    with EventLog(folder, step=trainer.step) as log:

        def step_made(step: Step) -> None:
            log.on_step(step)
            if on_step is not None:
                on_step(step)

        def point_made(point: AdaptPoint, left: float | None) -> None:
            log.on_point(point)
            if on_point is not None:
                on_point(point, left)

        return trainer.run(progress=progress, on_point=point_made, on_step=step_made)


def _record(
    task: str,
    mark: str,
    rows: Sequence[Row],
    parts: Split,
    report: DataReport,
    plan: Plan,
    outcome: Outcome[AdaptPoint],
) -> dict[str, Any]:
    """The adapter's pomona.json: for which base and task, of what rows, how, and what came of it."""
    used = _used(rows, (*parts.train, *parts.held_out))
    first, best = outcome.start, outcome.best
    named = {license for license in report.licenses if license}
    record: dict[str, Any] = {
        "version": 1,
        "task": task,
        "base_fingerprint": mark,
        "license": named.pop() if len(named) == 1 and "" not in report.licenses else None,
        "license_note": "of the training rows; the base has its own",
        "prompt": {"instructions": shared_instructions(used)},
        "data": [
            {
                "file": report.file,
                "sha256": report.sha256,
                "rows": plan.rows,
                "held_out_rows": plan.held_out_rows,
                "left_out_rows": len(report.bad),
                "licenses": report.licenses,
                "sources": report.sources,
            }
        ],
        "recipe": {
            "loss": "cross-entropy of the assistant's answers",
            "start": plan.start,
            "window": plan.window,
            **asdict(plan.loop),
            "alpha": plan.loop.scale * plan.loop.rank,
        },
        "metrics": {
            "validation_loss": {"before": first.validation_loss, "after": best.validation_loss},
            "accuracy": {"before": first.accuracy, "after": best.accuracy},
            "tokens": best.tokens,
            "seconds": round(outcome.points[-1].seconds, 1),
            "stopped": outcome.stopped,
            "curve": [[point.tokens, round(point.validation_loss, 5)] for point in outcome.points],
        },
    }
    if record["license"] is None:
        del record["license"]
    return record


def _used(rows: Sequence[Row], examples: Sequence[Example]) -> list[Row]:
    lines = {example.line for example in examples}
    return [row for row in rows if row.line in lines]
