"""Taxonomy tags on documents of pre-training, with provenance and licence (report, sections 2.2 and 8.4).

    counts = tag_documents([Path("web.jsonl")], Path("tagged.jsonl"))

Every document keeps its text and gets `metadata.safety`: the tags that the lexicon finds, how many of its
words are hits, and the lexicon's version. A filter then takes out what exceeds a share; a classifier of
`pomona data classifier` may be trained on them. A tag is a hint: news, law and medicine have many.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pomona.data.documents import Record, Skip, find_files, read_documents
from pomona.data.ngrams import plain_words
from pomona.errors import PomonaError
from pomona.safety.lexicon import lexicon
from pomona.safety.taxonomy import taxonomy


@dataclass
class TagCounts:
    """tags: subcategory -> documents. dropped: above the share that was asked for. skipped: unreadable."""

    documents: int = 0
    tagged: int = 0
    dropped: int = 0
    skipped: list[str] = field(default_factory=list)
    tags: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "tags": dict(self.tags.most_common()), "skipped": self.skipped[:20]}


def tag_documents(
    paths: Sequence[Path],
    out: Path,
    *,
    license: str | None = None,
    drop_above: float | None = None,
    overwrite: bool = False,
) -> TagCounts:
    """license: of documents that name none themselves. drop_above: documents with a larger share of hit words
    are left out. PomonaError: no documents, a place that cannot be written."""
    if out.exists() and not overwrite:
        raise PomonaError(f"{out}: is there already; give --overwrite, or choose another name")
    counts = TagCounts()
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            for record in _records(paths, counts):
                found = tagged(record, license)
                safety = found["metadata"]["safety"]
                counts.documents += 1
                counts.tagged += bool(safety["tags"])
                counts.tags.update(safety["tags"])
                if drop_above is not None and safety["share"] > drop_above:
                    counts.dropped += 1
                    continue
                file.write(json.dumps(found, ensure_ascii=False) + "\n")
        if not counts.documents:
            raise PomonaError(f"{paths[0]}: holds no documents; give .jsonl rows with a text")
        beside.replace(out)
    except OSError as error:
        raise PomonaError(f"{out}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        beside.unlink(missing_ok=True)
    return counts


def tagged(record: Record, license: str | None = None) -> dict[str, Any]:
    """A document as a row of JSONL: text, id, and metadata with license, source and safety."""
    hits = lexicon().hits(record.text)
    words = max(len(plain_words(record.text)), 1)
    metadata = dict(record.metadata)
    metadata.setdefault("license", license or "unknown")
    metadata.setdefault("source", record.id.rpartition("/")[0] or record.id)
    metadata["safety"] = {
        "tags": list(lexicon().tags(record.text)),
        "share": sum(len(hit.words.split()) for hit in hits) / words,
        "by": f"lexicon of taxonomy {taxonomy().version}",
    }
    return {"text": record.text, "id": record.id, "metadata": metadata}


def _records(paths: Iterable[Path], counts: TagCounts) -> Iterator[Record]:
    for path in find_files(paths):
        for one in read_documents(path, name=path.name):
            if isinstance(one, Skip):
                counts.skipped.append(str(one))
            else:
                yield one
