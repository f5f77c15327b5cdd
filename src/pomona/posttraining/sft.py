"""Supervised fine-tuning on dialogues (AFM report, section 4.3): rows to an adapter or to a model.

    sft(Path("smollm2-135m"), Path("chats.jsonl"), Path("adapters/sft"), work=Path("work"))

The rows are those of `pomona adapt`. That command has a loop of its own, made for tasks on a laptop; this one
is TRL's, with the report's constant rate and dropout, and may train all weights on any number of devices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pomona.adapters.data import DataReport, Row, read_rows
from pomona.adapters.metadata import AdapterRecord
from pomona.adapters.packing import Example, Split, encode_rows
from pomona.adapters.packing import split as split_examples
from pomona.errors import PomonaError
from pomona.models.palettized import describe
from pomona.models.tokenizer import Tokenizer
from pomona.posttraining.conversations import padding_token
from pomona.posttraining.options import SftOptions
from pomona.posttraining.work import need_training, run_folder, set_threads

if TYPE_CHECKING:
    from pomona.posttraining.training.trainer import OnStep, RunReport

TASK = "sft"


@dataclass(frozen=True)
class SftResult:
    """directory: an adapter, or a model. Losses of held-out rows, in nats per token of the answers, stand in
    the run's `first` and `last`; empty where none were held out."""

    directory: Path
    rows: int
    held_out_rows: int
    run: RunReport

    def to_json(self) -> dict[str, Any]:
        return {
            "version": 1,
            "directory": str(self.directory),
            "rows": self.rows,
            "held_out_rows": self.held_out_rows,
            "run": vars(self.run),
        }


def sft(
    base: Path | str,
    data: Path | str,
    target: Path | str,
    *,
    work: Path | str,
    options: SftOptions | None = None,
    start: Path | None = None,
    skip_bad: bool = False,
    resume: bool = False,
    restart: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    on_data: Callable[[DataReport], None] | None = None,
    on_step: OnStep | None = None,
) -> SftResult:
    """Trains on the rows of a .jsonl or .parquet file and writes an adapter, or a model, to `target`.

    start: an adapter to begin with, by default the base's recovery adapter. skip_bad: leave out rows that
    cannot be trained on, which are an error otherwise. Raises PomonaError: no torch, no sound rows, a target
    that is there, a loss that is no number ten steps in a row.
    """
    options = options or SftOptions()
    rows, report = read_rows(data)
    return sft_rows(
        base,
        rows,
        report,
        target,
        work=work,
        options=options,
        start=start,
        skip_bad=skip_bad,
        resume=resume,
        restart=restart,
        overwrite=overwrite,
        threads=threads,
        on_data=on_data,
        on_step=on_step,
    )


def sft_rows(
    base: Path | str,
    rows: Sequence[Row],
    report: DataReport,
    target: Path | str,
    *,
    work: Path | str,
    options: SftOptions,
    start: Path | None = None,
    skip_bad: bool = False,
    resume: bool = False,
    restart: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    on_data: Callable[[DataReport], None] | None = None,
    on_step: OnStep | None = None,
) -> SftResult:
    """The same with rows that have been read already, and what is known about them."""
    need_training("sft")
    base, target = Path(base), Path(target)
    if target.exists() and not overwrite:
        raise PomonaError(f"{target}: is there already; ask to overwrite it, or choose another place")
    tokenizer = Tokenizer.from_directory(base)
    encoded = encode_rows(rows, tokenizer, options.window)
    report.problems += encoded.problems
    if on_data is not None:
        on_data(report)
    if report.bad and not skip_bad:
        raise PomonaError(
            f"{report.file}: {len(report.bad):,} of {report.read:,} rows cannot be trained on "
            f"({report.first_bad()}); mend them, or give --skip-bad to leave them out"
        )
    parts = held_out(encoded.examples, options)
    mark = describe(base).fingerprint
    set_threads(threads)
    from pomona.posttraining.training.base import adapter_start, quiet_libraries, save_adapter, save_model
    from pomona.posttraining.training.sft_trainer import answer_loss, new_policy, new_trainer
    from pomona.posttraining.training.trainer import run_trainer

    quiet_libraries()
    name = f"sft-{mark[:12]}-{_digest(parts.train)}-{options.digest()}"
    with run_folder(Path(work), name, resume=resume, restart=restart) as folder:
        begin = None
        if options.weights == "adapter":
            begin = adapter_start(base, start, options.rank, options.seed)
        model = new_policy(base, options, begin)
        trainer = new_trainer(model, parts.train, tokenizer, options, folder)

        def evaluate() -> dict[str, float]:
            if not parts.held_out:
                return {}
            loss = answer_loss(
                trainer.model,
                parts.held_out,
                padding_token(tokenizer),
                pass_rows=options.pass_rows,
                precision=options.precision,
            )
            return {"loss": loss}

        run = run_trainer(trainer, folder, options, resume=resume, evaluate=evaluate, on_step=on_step)
        record = AdapterRecord(
            task=TASK,
            base_fingerprint=mark if options.weights == "adapter" else None,
            data=[
                {
                    "file": report.file,
                    "sha256": report.sha256,
                    "rows": len(parts.train),
                    "held_out_rows": len(parts.held_out),
                    "licenses": report.licenses,
                    "sources": report.sources,
                }
            ],
            recipe={
                "technique": TASK,
                "start": None if begin is None else begin.name,
                **options.model_dump(),
            },
            metrics={
                "held_out_loss": {"before": run.first.get("loss"), "after": run.last.get("loss")},
                "steps": run.steps,
                "seconds": round(run.seconds, 1),
                "broken_steps": run.broken_steps,
            },
        ).to_json()
        if options.weights == "adapter":
            written = save_adapter(target, trainer.model, record, overwrite=overwrite)
        else:
            written = save_model(target, trainer.model, base, record, overwrite=overwrite)
    return SftResult(written, len(parts.train), len(parts.held_out), run)


def held_out(examples: Sequence[Example], options: SftOptions) -> Split:
    """Rows to learn and to judge by; none of the latter where the options say so."""
    if options.validation > 0:
        return split_examples(examples, options.validation, seed=options.seed)
    if not examples:
        raise PomonaError("no row can be used; give some")
    return Split(list(examples), [])


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.ids.tobytes() + example.learnt.tobytes())
    return digest.hexdigest()[:12]
