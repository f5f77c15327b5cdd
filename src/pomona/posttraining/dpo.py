"""Preference optimisation without a reward model: DPO (Rafailov et al. 2023) and IPO (Azar et al. 2023), two
of the algorithms that iTeC trains its committee with (AFM report, section 4.5).

    preference_optimize(Path("smollm2-135m"), rows, Path("adapters/dpo"), work=Path("work"), data=report)

The policy is an adapter; the reference is that adapter as it began.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pomona.adapters.metadata import AdapterRecord
from pomona.errors import PomonaError
from pomona.models.palettized import describe
from pomona.models.tokenizer import Tokenizer
from pomona.posttraining.conversations import encode
from pomona.posttraining.options import PreferenceOptions, SftOptions
from pomona.posttraining.preferences import Preference, PreferenceReport, fitting, rows_digest, split
from pomona.posttraining.work import need_training, run_folder, set_threads

if TYPE_CHECKING:
    from pomona.posttraining.training.dpo_trainer import PreferenceExample
    from pomona.posttraining.training.trainer import OnStep, RunReport


@dataclass(frozen=True)
class PreferenceResult:
    """directory: the adapter. The run's `first` and `last`: of held-out pairs the loss, and accuracy and
    margin of the implicit reward."""

    directory: Path
    pairs: int
    held_out_pairs: int
    run: RunReport

    def to_json(self) -> dict[str, Any]:
        return {
            "version": 1,
            "directory": str(self.directory),
            "pairs": self.pairs,
            "held_out_pairs": self.held_out_pairs,
            "run": vars(self.run),
        }


def preference_optimize(
    base: Path | str,
    rows: Sequence[Preference],
    target: Path | str,
    *,
    work: Path | str,
    data: PreferenceReport,
    options: PreferenceOptions | None = None,
    start: Path | None = None,
    resume: bool = False,
    restart: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    on_data: Callable[[PreferenceReport], None] | None = None,
    on_step: OnStep | None = None,
) -> PreferenceResult:
    """Trains an adapter on pairs and writes it to `target`. Gradings and levels are not used.

    start: the adapter that training and reference begin with, usually that of supervised fine-tuning; by
    default the base's recovery adapter. Raises PomonaError: no torch, fewer than two pairs, a target that is
    there.
    """
    options = options or PreferenceOptions()
    need_training(options.loss)
    base, target = Path(base), Path(target)
    if target.exists() and not overwrite:
        raise PomonaError(f"{target}: is there already; ask to overwrite it, or choose another place")
    tokenizer = Tokenizer.from_directory(base)
    usable = fitting([row for row in rows if row.rejected is not None], tokenizer, options.window, data)
    if on_data is not None:
        on_data(data)
    if len(usable) < 2:
        raise PomonaError(f"{data.file}: {len(usable)} pairs can be used; two are needed at least")
    learn, held_out = split(usable, options.validation, seed=options.seed)
    mark = describe(base).fingerprint
    set_threads(threads)
    from pomona.posttraining.training.base import adapter_start, quiet_libraries, save_adapter
    from pomona.posttraining.training.dpo_trainer import implicit_rewards, new_trainer
    from pomona.posttraining.training.sft_trainer import new_policy
    from pomona.posttraining.training.trainer import run_trainer

    quiet_libraries()
    name = f"{options.loss}-{mark[:12]}-{rows_digest(learn)}-{options.digest()}"
    with run_folder(Path(work), name, resume=resume, restart=restart) as folder:
        begin = adapter_start(base, start, options.rank, options.seed)
        shared = SftOptions(
            rank=options.rank, alpha=options.alpha, dropout=options.dropout, seed=options.seed
        )
        model = new_policy(base, shared, begin)
        trainer = new_trainer(model, [_example(row, tokenizer) for row in learn], tokenizer, options, folder)
        judged = [_example(row, tokenizer) for row in held_out]

        def evaluate() -> dict[str, float]:
            return implicit_rewards(trainer, judged) if judged else {}

        run = run_trainer(trainer, folder, options, resume=resume, evaluate=evaluate, on_step=on_step)
        record = AdapterRecord(
            task=options.loss,
            base_fingerprint=mark,
            data=[
                {
                    "file": data.file,
                    "sha256": data.sha256,
                    "rows": len(learn),
                    "held_out_rows": len(held_out),
                    "licenses": data.licenses,
                    "sources": data.sources,
                }
            ],
            recipe={
                "technique": options.loss,
                "start": None if begin is None else begin.name,
                **options.model_dump(),
            },
            metrics={
                "held_out": {"before": run.first, "after": run.last},
                "steps": run.steps,
                "seconds": round(run.seconds, 1),
                "broken_steps": run.broken_steps,
            },
        )
        written = save_adapter(target, trainer.model, record.to_json(), overwrite=overwrite)
    return PreferenceResult(written, len(learn), len(held_out), run)


def _example(row: Preference, tokenizer: Tokenizer) -> PreferenceExample:
    from pomona.posttraining.training.dpo_trainer import PreferenceExample

    assert row.rejected is not None
    chosen = encode(row.conversation(row.chosen), tokenizer)
    return PreferenceExample(
        chosen.prompt, chosen.answer, encode(row.conversation(row.rejected), tokenizer).answer
    )
