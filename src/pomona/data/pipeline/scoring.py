"""The `classifier` step: documents by their score under a trained text classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.writers.jsonl import JsonlWriter

from pomona.data.classifier import TextClassifier
from pomona.data.pipeline.blocks import Filter, Verdict
from pomona.data.pipeline.recipe import Classifier


class KeepByScore(Filter):
    """Writes the score into the metadata, under the model's folder name. Removed: score_low, score_high."""

    name = "classifier"

    def __init__(self, settings: Classifier, folder: Path, writer: JsonlWriter | None = None) -> None:
        super().__init__(writer, batch_size=64)
        self.settings, self.folder = settings, folder
        self._model: TextClassifier | None = None

    def filter(self, doc: Document) -> Verdict:
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[Verdict]:
        if self._model is None:
            self._model = TextClassifier.load(self.folder)
        verdicts: list[Verdict] = []
        for doc, score in zip(batch, self._model.score([doc.text for doc in batch]).tolist(), strict=True):
            doc.metadata[f"score_{self.folder.name}"] = round(score, 4)
            if score < self.settings.at_least:
                verdicts.append((False, "score_low"))
            else:
                verdicts.append(score <= self.settings.at_most or (False, "score_high"))
        return verdicts

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}
