"""Trials of a mixture: a short supervised fine-tuning by its weights, and the loss on benchmark rows.

A trial that was made is noted in the work folder, so that an interrupted tuning goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pomona.adapters.data import Row
from pomona.adapters.packing import Example, encode_rows
from pomona.errors import PomonaError
from pomona.models.locking import locked_folder
from pomona.models.palettized import describe
from pomona.models.tokenizer import Tokenizer
from pomona.posttraining.conversations import padding_token
from pomona.posttraining.mixture import MixtureOptions, Weights, draw
from pomona.posttraining.work import need_training, set_threads

TRIALS = "trials.jsonl"


class SftTrials:
    """score(weights): the mean over the benchmarks of the loss after a short training from the base."""

    def __init__(
        self,
        base: Path,
        components: Mapping[str, Sequence[Row]],
        benchmarks: Mapping[str, Sequence[Row]],
        options: MixtureOptions,
        work: Path,
        *,
        threads: int | None = None,
    ) -> None:
        """benchmarks: name -> rows whose answers the loss is taken of; they must not be among the components.
        PomonaError: no torch, no benchmark row that fits the window, or one that is learnt from."""
        need_training("mixture")
        set_threads(threads)
        self.base, self.components, self.options = base, components, options
        self.tokenizer = Tokenizer.from_directory(base)
        learnt = {row.key for rows in components.values() for row in rows}
        self.benchmarks: dict[str, list[Example]] = {}
        for name, rows in benchmarks.items():
            if any(row.key in learnt for row in rows):
                raise PomonaError(f"mixture: benchmark {name} has rows that are trained on; take them out")
            found = encode_rows(rows, self.tokenizer, options.sft.window).examples
            if not found:
                raise PomonaError(f"mixture: no row of benchmark {name} fits the window; give shorter ones")
            self.benchmarks[name] = found
        digest = hashlib.sha256()
        for group in (components, benchmarks):
            for name, rows in sorted(group.items()):
                digest.update(name.encode())
                for row in rows:
                    digest.update(row.key)
        mark = describe(base).fingerprint
        self.folder = work / f"mixture-{mark[:12]}-{digest.hexdigest()[:12]}-{options.digest()}"
        self.made = 0  # trainings of this process

    def score(self, weights: Weights) -> float:
        key = hashlib.sha256(json.dumps({k: round(v, 9) for k, v in weights.items()}).encode()).hexdigest()
        with locked_folder(self.folder):
            file = self.folder / TRIALS
            known = _read_trials(file)
            if key not in known:
                losses = self._train(weights)
                known[key] = sum(losses.values()) / len(losses)
                line = {"key": key, "weights": weights, "losses": losses, "score": known[key]}
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(line) + "\n")
            return known[key]

    def _train(self, weights: Weights) -> dict[str, float]:
        from pomona.posttraining.training.base import adapter_start, quiet_libraries
        from pomona.posttraining.training.sft_trainer import answer_loss, new_policy, new_trainer
        from pomona.posttraining.training.trainer import run_trainer

        quiet_libraries()
        sft = self.options.sft
        rows = draw(self.components, weights, self.options.rows, seed=sft.seed)
        examples = encode_rows(rows, self.tokenizer, sft.window).examples
        if not examples:
            raise PomonaError("mixture: no row fits the window; give shorter ones")
        start = None
        if sft.weights == "adapter":
            start = adapter_start(self.base, None, sft.rank, sft.seed)
        # A trial is short: it is made again rather than resumed.
        options = sft.with_changes(checkpoint_steps=1 << 29)
        trainer = new_trainer(
            new_policy(self.base, options, start), examples, self.tokenizer, options, self.folder
        )
        run_trainer(trainer, self.folder, options, resume=False)
        for path in self.folder.glob("checkpoint-*"):  # the trainer keeps one of its end
            shutil.rmtree(path, ignore_errors=True)
        self.made += 1
        padding = padding_token(self.tokenizer)
        return {
            name: answer_loss(
                trainer.model, found, padding, pass_rows=options.pass_rows, precision=options.precision
            )
            for name, found in self.benchmarks.items()
        }


def _read_trials(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    found: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row: dict[str, Any] = json.loads(line)
            found[row["key"]] = float(row["score"])
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a process that was killed
    return found
