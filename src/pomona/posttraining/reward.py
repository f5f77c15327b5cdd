"""Training a reward model: from a file of preferences to a directory (AFM report, section 4.4).

    report = train_reward(Path("smollm2-135m"), rows, Path("reward-model"), work=Path("work"))

preferences.py reads the rows, training/reward_trainer.py trains, reward_report.py says what came of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pomona.adapters.metadata import AdapterRecord
from pomona.errors import PomonaError
from pomona.models.palettized import describe
from pomona.models.tokenizer import Tokenizer
from pomona.posttraining.conversations import encode, padding_token
from pomona.posttraining.options import RewardOptions
from pomona.posttraining.preferences import Preference, PreferenceReport, fitting, rows_digest, split
from pomona.posttraining.reward_model import TASK, RewardModel, save_reward_model
from pomona.posttraining.reward_report import RewardReport, calibration_plot, evaluate
from pomona.posttraining.work import need_training, run_folder, set_threads

if TYPE_CHECKING:
    from pomona.posttraining.training.trainer import OnStep, RunReport

REPORT_FILE, PLOT_FILE = "reward_report.json", "calibration.svg"


@dataclass(frozen=True)
class RewardResult:
    """directory: the reward model. held_out: of rows that were not learnt, None where none were held out."""

    directory: Path
    rows: int
    held_out_rows: int
    run: RunReport
    held_out: RewardReport | None

    def to_json(self) -> dict[str, Any]:
        return {
            "version": 1,
            "directory": str(self.directory),
            "rows": self.rows,
            "held_out_rows": self.held_out_rows,
            "run": vars(self.run),
            "held_out": None if self.held_out is None else self.held_out.to_json(),
        }


def train_reward(
    base: Path | str,
    rows: Sequence[Preference],
    target: Path | str,
    *,
    work: Path | str,
    data: PreferenceReport,
    options: RewardOptions | None = None,
    start: Path | None = None,
    resume: bool = False,
    restart: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    on_data: Callable[[PreferenceReport], None] | None = None,
    on_step: OnStep | None = None,
) -> RewardResult:
    """Trains on `rows` and writes the reward model to `target` with its report and calibration plot.

    data: what is known about the file; rows that are too long are added to it and left out. start: an
    adapter to begin with, by default the base's recovery adapter. Raises PomonaError: no torch, fewer than
    two rows, a target that is there, a loss that is no number ten steps in a row.
    """
    need_training("reward")
    base, target, options = Path(base), Path(target), options or RewardOptions()
    if target.exists() and not overwrite:
        raise PomonaError(f"{target}: is there already; ask to overwrite it, or choose another place")
    tokenizer = Tokenizer.from_directory(base)
    usable = fitting(rows, tokenizer, options.window, data)
    if on_data is not None:
        on_data(data)
    if len(usable) < 2:
        raise PomonaError(f"{data.file}: {len(usable)} rows can be used; two are needed at least")
    learn, held_out = split(usable, options.validation, seed=options.seed)
    mark = describe(base).fingerprint
    set_threads(threads)
    from pomona.posttraining.training.base import adapter_start, quiet_libraries
    from pomona.posttraining.training.reward_trainer import new_network, new_trainer, reward_example
    from pomona.posttraining.training.trainer import run_trainer

    quiet_libraries()
    name = f"reward-{mark[:12]}-{rows_digest(learn)}-{options.digest()}"
    with run_folder(Path(work), name, resume=resume, restart=restart) as folder:
        begin = None
        if options.weights == "adapter":
            begin = adapter_start(base, start, options.rank, options.seed)
        network = new_network(base, options, begin)
        padding = padding_token(tokenizer)
        examples = [
            reward_example(
                row,
                lambda response, row=row: encode(row.conversation(response), tokenizer).ids,  # type: ignore[misc]
                options.unknown_level,
            )
            for row in learn
        ]
        trainer = new_trainer(network, examples, padding, options, folder)
        run = run_trainer(trainer, folder, options, resume=resume, on_step=on_step)
        network = trainer.model
        record = AdapterRecord(
            task=TASK,
            base_fingerprint=mark,
            data=[
                {
                    "file": data.file,
                    "sha256": data.sha256,
                    "rows": len(learn),
                    "levels": data.levels,
                    "licenses": data.licenses,
                    "sources": data.sources,
                }
            ],
            recipe={
                "technique": TASK,
                "start": None if begin is None else begin.name,
                **options.model_dump(),
            },
            metrics={"steps": run.steps, "seconds": round(run.seconds, 1), "broken_steps": run.broken_steps},
        )
        written = save_reward_model(target, network, base, record, overwrite=overwrite)
        report = None
        if held_out:
            # What was written is judged, so that rounding counts.
            model = RewardModel.load(written, base, precision=options.precision)
            report = evaluate(model, held_out)
            (written / REPORT_FILE).write_text(json.dumps(report.to_json(), indent=2), encoding="utf-8")
            if report.calibration:
                plot = calibration_plot(report, f"Calibration on {report.pairs} held-out pairs")
                (written / PLOT_FILE).write_text(plot, encoding="utf-8")
    return RewardResult(written, len(learn), len(held_out), run, report)
