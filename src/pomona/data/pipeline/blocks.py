"""What the blocks share: names for the funnel, writers of what was removed, and reading between stages."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.jsonl import JsonlWriter

from pomona.data.documents import Record, Skip, read_documents
from pomona.errors import PomonaError

Documents = Iterator[Document]
Verdict = bool | tuple[bool, str]

IS_PAGE = "is_page"  # metadata of a text that is HTML still
_STAGE_LINE = 1 << 28  # what we wrote ourselves may be read again, however long


def labelled(step: PipelineStep, label: str) -> PipelineStep:
    """`step`, whose counts are found under `label` afterwards."""
    step.stats.name = label
    return step


def removed_writer(folder: Path, label: str) -> JsonlWriter:
    """Where a step writes the documents that it removes, each with its reason, a file per task."""
    return JsonlWriter(str(folder / "removed" / label), output_filename="${rank}.jsonl.gz")


def stage_writer(folder: Path) -> JsonlWriter:
    """Writes the documents between two stages, a file per task."""
    return JsonlWriter(str(folder), output_filename="${rank}.jsonl", compression=None)


class StageReader(PipelineStep):  # type: ignore[misc]
    """Gives task `rank` what task `rank` of the stage before has written, in order; perhaps nothing."""

    name = "documents of the stage before"
    type = "read"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Documents:
        path = self.folder / f"{rank:05d}.jsonl"
        if not path.is_file():
            return
        for found in read_documents(path, max_bytes=_STAGE_LINE):
            if isinstance(found, Skip):
                raise PomonaError(f"{found}; the file was changed after it was written, use --restart")
            yield document(found)


def document(record: Record) -> Document:
    return Document(text=record.text, id=record.id, metadata=dict(record.metadata))


class Filter(BaseFilter):  # type: ignore[misc]
    """A filter of ours: keeps a document (True) or removes it for a reason (False, reason)."""

    type = "filter"

    def __init__(self, writer: JsonlWriter | None = None, batch_size: int = 1) -> None:
        super().__init__(writer, batch_size)

    @abstractmethod
    def filter(self, doc: Document) -> Verdict:
        """Whether the document stays, and if not the reason."""
