"""Training a guardrail: `pomona safety guardrail train`, from the public sets to an adapter with its head.

    report = train_guardrail(base, data_folder(), target, work=Path("work"))

A text is a row of a task adapter (adapters/training): its prompt, and one token to learn, the verdict. What
is learnt is so little that a small rank is enough. Afterwards the adapter that was written judges the rows
that were held out, in the runtime, and the quantiles of the harmless ones become its thresholds.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.adapters.metadata import AdapterRecord
from pomona.adapters.options import PASS_TOKENS, AdaptPoint
from pomona.adapters.packing import Example, Split, split
from pomona.compression.training.options import LoopOptions
from pomona.errors import PomonaError
from pomona.models.locking import locked_folder
from pomona.models.model_directory import Progress
from pomona.models.palettized import describe
from pomona.models.tokenizer import Tokenizer
from pomona.posttraining.work import need_training, set_threads
from pomona.runtime.adapter_writer import write_adapter
from pomona.runtime.model import Model
from pomona.safety.guardrail import Guardrail
from pomona.safety.guardrail_data import HELD_OUT, GuardedText, training_rows
from pomona.safety.guardrail_evaluate import judged
from pomona.safety.guardrail_head import LEVELS, SIDES, TASK, GuardrailHead, Prompts, Side
from pomona.safety.taxonomy import taxonomy

if TYPE_CHECKING:
    from pomona.compression.training.loop import OnStep

INPUT_TOKENS = 64  # longer requests are left out: a cut one would be told from the others by its cut
ANSWER_TOKENS = (12, 48)  # an answer is cut somewhere between, as a stream is when it is judged
HARMLESS_ANSWERS = 260
WATCHED_ROWS = 100  # of the validation rows, for the loss on the way; all of them give the thresholds
LICENSES = {
    "pomona": "Apache-2.0",
    "advbench": "MIT",
    "do_not_answer": "Apache-2.0",
    "dolly": "CC-BY-SA-3.0",
    "self_instruct": "Apache-2.0",
    "dpo_pairs": "Apache-2.0",
    "glaive_toolcall": "Apache-2.0",
}


@dataclass(frozen=True)
class GuardrailOptions:
    """held_out: categories that nothing is learnt from, to measure on. minutes: a time budget. validation:
    the share of rows that is not learnt and gives the thresholds. The defaults are our own choice."""

    rank: int = 4
    lr: float = 1e-3
    epochs: int = 2
    batch: int = 16
    minutes: float | None = None
    validation: float = 0.12
    held_out: tuple[str, ...] = HELD_OUT
    seed: int = 0

    def __post_init__(self) -> None:
        known = [category.id for category in taxonomy().categories]
        for name in self.held_out:
            if name not in known:
                raise PomonaError(f"--hold-out {name}: is no category; choose of {', '.join(known)}")
        if not 0 < self.validation <= 0.5:
            raise PomonaError(f"validation {self.validation}: must lie above 0 and not above 0.5")
        self.loop(1)  # refuses the rest

    def loop(self, rows: int) -> LoopOptions:
        return LoopOptions(
            rank=self.rank,
            lr=self.lr,
            batch=min(self.batch, max(rows, 1)),
            accumulate=1,
            passes=self.epochs,
            minutes=self.minutes,
            seed=self.seed,
        )


@dataclass(frozen=True)
class GuardrailReport:
    """Losses in nats per verdict of the rows that were held out. rows: by side and category."""

    directory: Path
    rows: dict[str, int]
    validation_rows: int
    start_loss: float
    loss: float
    accuracy: float
    tokens: int
    seconds: float
    stopped: str
    thresholds: dict[Side, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        return {"version": 1, **vars(self), "directory": str(self.directory)}


def train_guardrail(
    base: Path | str,
    data: Path,
    target: Path | str,
    *,
    work: Path | str,
    options: GuardrailOptions | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    on_point: Callable[[AdaptPoint, float | None], None] | None = None,
    on_step: OnStep | None = None,
) -> GuardrailReport:
    """Trains on the sets in the folder `data` and writes the guardrail to `target`. work: a folder of its
    own. Raises PomonaError: no torch, a set that is missing, a target that is there, a run that made nothing
    better.
    """
    need_training("guardrail")
    base, target, options = Path(base), Path(target), options or GuardrailOptions()
    if target.exists() and not overwrite:
        raise PomonaError(f"{target}: is there already; ask to overwrite it, or choose another place")
    head = GuardrailHead.new()
    tokenizer = Tokenizer.from_directory(base)
    rows = usable_rows(training_rows(data, held_out=options.held_out, seed=options.seed), tokenizer, options)
    examples = encoded(rows, tokenizer, head)
    parts = split(examples, options.validation, seed=options.seed)
    mark = describe(base).fingerprint
    set_threads(threads)
    from pomona.adapters.training.task_trainer import Answers, TaskTrainer
    from pomona.compression.training.network import Network

    folder = Path(work)
    with locked_folder(folder):
        shutil.rmtree(folder / "run", ignore_errors=True)
        (folder / "run").mkdir()
        network = Network.load(base)
        watched = Split(parts.train, parts.held_out[:WATCHED_ROWS])
        objective = Answers(network, watched, pass_tokens=PASS_TOKENS, data=_digest(rows))
        trainer = TaskTrainer(network, objective, options.loop(len(parts.train)), folder / "run")
        outcome = trainer.run(progress=progress, on_point=on_point, on_step=on_step)
        if not outcome.improved:
            raise PomonaError(
                f"guardrail: the validation loss did not fall below {outcome.start.validation_loss:.3f}; "
                "lower --lr, or give more epochs"
            )
        record = _record(mark, rows, options, head, outcome.best, trainer.seconds)
        draft = write_adapter(
            folder / "draft", trainer.pairs(), scale=trainer.options.scale, record=record, overwrite=True
        )
        validation = [rows[example.line] for example in parts.held_out]
        head = head.model_copy(update={"thresholds": thresholds(base, draft, validation)})
        record["prompt"] = head.model_dump()
        write_adapter(
            target, trainer.pairs(), scale=trainer.options.scale, record=record, overwrite=overwrite
        )
        shutil.rmtree(draft)
        shutil.rmtree(folder / "run")
    best = outcome.best
    return GuardrailReport(
        target,
        {f"{side}, {name}": count for (side, name), count in _counts(rows).items()},
        len(validation),
        outcome.start.validation_loss,
        best.validation_loss,
        best.accuracy,
        best.tokens,
        round(trainer.seconds, 1),
        outcome.stopped,
        head.thresholds,  # type: ignore[arg-type]
    )


def usable_rows(
    rows: Sequence[GuardedText], tokenizer: Tokenizer, options: GuardrailOptions
) -> list[GuardedText]:
    """Requests that are short enough; answers as cut as they are met; of the harmless ones not too many."""
    draw = random.Random(options.seed)
    found: list[GuardedText] = []
    answers: list[GuardedText] = []
    for row in rows:
        if len(tokenizer.encode(row.request or row.text, parse_special=False)) > INPUT_TOKENS:
            continue
        if row.side == "output":
            ids = tokenizer.encode(row.text, parse_special=False)[: draw.randint(*ANSWER_TOKENS)]
            row = GuardedText(row.side, tokenizer.decode(ids), row.category, row.source, row.request)
        benign_answer = row.side == "output" and not row.harmful and row.source != "pomona"
        (answers if benign_answer else found).append(row)
    return found + draw.sample(answers, min(len(answers), HARMLESS_ANSWERS))


def encoded(rows: Sequence[GuardedText], tokenizer: Tokenizer, head: GuardrailHead) -> list[Example]:
    """An example's `line` is its row's number; equal texts have equal keys, and are held out together."""
    prompts, tokens = Prompts(tokenizer, head.window), head.tokens(tokenizer)
    found = []
    for number, row in enumerate(rows):
        made = prompts.of_input(row.text) if row.side == "input" else prompts.of_output(row.request, row.text)
        ids = np.array([*made[0], tokens[row.category]], np.int32)
        learnt = np.zeros(len(ids), np.bool_)
        learnt[-1] = True
        found.append(Example(number, (row.request or row.text).encode(), ids, learnt))
    return found


def thresholds(base: Path, guardrail: Path, rows: Sequence[GuardedText]) -> dict[Side, dict[str, float]]:
    """Side -> share -> the harm that this share of the harmless rows reaches."""
    found: dict[Side, dict[str, float]] = {}
    with Model.load(str(base)) as model:
        judge = Guardrail.of(model, str(guardrail))
        for side in SIDES:
            harmless = [row for row in rows if row.side == side and not row.harmful]
            if not harmless:
                continue
            harms = [verdict.harm for verdict in judged(judge, harmless)]
            found[side] = {level: float(np.quantile(harms, 1 - float(level))) for level in LEVELS}  # type: ignore[index]
    return found


def _record(
    mark: str,
    rows: Sequence[GuardedText],
    options: GuardrailOptions,
    head: GuardrailHead,
    best: AdaptPoint,
    seconds: float,
) -> dict[str, Any]:
    sources = Counter(row.source for row in rows)
    record = AdapterRecord.model_validate(
        {
            "task": TASK,
            "base_fingerprint": mark,
            "license_note": "of the training rows, set by set, under `data`; the base has its own",
            "prompt": head.model_dump(),
            "data": [
                {"source": name, "rows": count, "license": LICENSES[name]} for name, count in sources.items()
            ],
            "recipe": {"loss": "cross-entropy of the verdict", "start": "zero", **asdict(options)},
            "metrics": {
                "validation_loss": best.validation_loss,
                "accuracy": best.accuracy,
                "tokens": best.tokens,
                "seconds": round(seconds, 1),
            },
        }
    )
    return record.to_json()


def _counts(rows: Sequence[GuardedText]) -> Counter[tuple[str, str]]:
    return Counter((row.side, row.category) for row in rows)


def _digest(rows: Sequence[GuardedText]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()
