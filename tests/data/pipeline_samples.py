"""Documents, pages and small runs for the tests of the data pipeline."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

WORDS = [
    "river",
    "stone",
    "winter",
    "garden",
    "letter",
    "window",
    "doctor",
    "harbour",
    "season",
    "village",
    "market",
    "teacher",
    "mountain",
    "kitchen",
    "engine",
    "weather",
    "history",
    "science",
    "picture",
    "morning",
    "evening",
    "travel",
    "island",
    "forest",
    "bridge",
    "castle",
    "painter",
    "writer",
    "farmer",
    "sailor",
    "baker",
    "student",
    "council",
    "border",
    "signal",
    "number",
    "colour",
    "paper",
    "silver",
    "copper",
    "cotton",
]


def sentence(rng: random.Random, count: int = 12) -> str:
    """English in form, with the stop words that Gopher's rule looks for."""
    words = [rng.choice(WORDS) for _ in range(count)]
    words[::4] = [rng.choice(("the", "of", "and", "with", "to")) for _ in words[::4]]
    return " ".join(words).capitalize() + "."


def prose(rng: random.Random, sentences: int = 12) -> str:
    """Paragraphs of such sentences."""
    return "\n".join(
        " ".join(sentence(rng) for _ in range(min(3, sentences - start))) for start in range(0, sentences, 3)
    )


def filtered(block: Any, texts: Iterable[str | dict[str, Any]]) -> list[tuple[bool, str | None]]:
    """What a filter says of each text (or {"text", **metadata}): (kept, reason)."""
    from datatrove.data import Document

    found = []
    for text in texts:
        facts = dict(text) if isinstance(text, dict) else {"text": text}
        verdict = block.filter(Document(text=facts.pop("text"), id="d", metadata=facts))
        found.append((True, None) if verdict in (True, (True, None)) else (False, verdict[1]))
    return found


def write_rows(path: Path, rows: Sequence[str | dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [{"text": row} if isinstance(row, str) else row for row in rows]
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def recipe(inputs: Path | list[dict[str, Any]], steps: list[Any], **more: Any) -> Any:
    """A recipe of one JSONL input (or of `inputs`) and these steps."""
    from pomona.data.pipeline.recipe import Recipe

    if isinstance(inputs, Path):
        inputs = [{"name": "all", "path": str(inputs), "kind": "jsonl"}]
    return Recipe.model_validate({"name": "test", "inputs": inputs, "steps": steps, **more})


def rows_below(folder: Path) -> list[dict[str, Any]]:
    """All documents in the files of a folder of a run."""
    found = []
    for path in sorted(folder.rglob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            found += [json.loads(line) for line in lines]
    return found


def public_data() -> Path:
    """The folder of public data sets; skips the test where there is none."""
    given = os.environ.get("POMONA_DATA")
    if not given:
        pytest.skip(
            "POMONA_DATA is not set: the public data sets lie outside the project (see CONTRIBUTING.md)"
        )
    return Path(given)
