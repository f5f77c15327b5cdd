"""The first block of a pipeline: documents out of the recipe's inputs, each file to one task.

The list of files is made once, when a run begins, and stays; so a task that is done again reads the same.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.jsonl import JsonlWriter

from pomona.data.documents import HTML, JSONL, TEXT, Record, Skip, read_documents
from pomona.data.pipeline.blocks import IS_PAGE, Documents, document
from pomona.data.pipeline.python_text import docstrings, licenses_of_packages, package_description
from pomona.data.pipeline.recipe import Input, Kind, Recipe, resolve
from pomona.errors import PomonaError

SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "html": HTML,
    "jsonl": JSONL,
    "text": TEXT,
    "python": (".py",),
    "docstrings": (".py",),
    "metadata": ("METADATA",),
}


@dataclass(frozen=True)
class InputFile:
    """A file to read, and how. `name` is what ids begin with: the input and the path inside it."""

    path: str
    name: str
    source: str
    kind: Kind
    html: bool
    lines: bool
    bytes: int
    license: str | None
    text_key: str
    max_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def list_inputs(recipe: Recipe, base: Path) -> list[InputFile]:
    """All files of the recipe, in order. PomonaError for an input that is not there or holds nothing."""
    found = [file for one in recipe.inputs for file in _list_input(one, base)]
    if not found:
        raise PomonaError(f"recipe {recipe.name}: none of its inputs is here; set their paths")
    return found


def _list_input(source: Input, base: Path) -> list[InputFile]:
    root = resolve(source.path, base)
    if not root.exists():
        if source.optional:
            return []
        raise PomonaError(f"{root}: there is no such file or folder; correct input {source.name}")
    # A file that is named itself is taken whatever it is called; in folders the ending decides.
    suffixes = SUFFIXES[source.kind]
    found = []
    for path in [root] if root.is_file() else sorted(root.rglob("*")):
        inside = path.name if path == root else path.relative_to(root).as_posix()
        if path != root:
            wanted = any(fnmatch.fnmatch(inside, one) for one in source.glob) or not source.glob
            unwanted = any(fnmatch.fnmatch(inside, one) for one in source.exclude)
            named = path.name.lower().endswith(suffixes) or path.name.endswith(suffixes) or source.glob
            if not wanted or unwanted or not named or not path.is_file():
                continue
        size = path.stat().st_size
        if size >= source.min_bytes:
            found.append((path, inside, size))
    if not found and not source.optional:
        raise PomonaError(f"{root}: holds no file for input {source.name} ({source.kind}); correct its path")
    if source.max_files is not None and len(found) > source.max_files:
        found = [found[i * len(found) // source.max_files] for i in range(source.max_files)]
    licenses = licenses_of_packages() if source.license is None and source.kind in _OF_PACKAGES else {}
    return [
        InputFile(
            path=str(path.absolute()),
            name=f"{source.name}/{inside}",
            source=source.name,
            kind=source.kind,
            html=source.kind == "html" if source.html is None else source.html,
            lines=source.lines,
            bytes=size,
            license=source.license or licenses.get(inside.split("/")[0]),
            text_key=source.text_key,
            max_bytes=source.max_document_bytes,
        )
        for path, inside, size in found
    ]


_RESERVED = frozenset(
    ("rank", "id", "source", IS_PAGE, "filter_reason", "detail", "pii", "math_tags", "duplicate_cluster")
)
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?([A-Za-z0-9_.:-]{2,40})", re.IGNORECASE)
_OF_PACKAGES = ("python", "docstrings", "metadata")


class DocumentReader(PipelineStep):  # type: ignore[misc]
    """Task `rank` of N reads every N-th file; what cannot be read is written down with its reason."""

    name = "read"
    type = "read"

    def __init__(self, files: Sequence[InputFile], writer: JsonlWriter) -> None:
        super().__init__()
        self.files, self.exclusion_writer = list(files), writer

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Documents:
        with self.exclusion_writer as writer:
            for file in self.files[rank::world_size]:
                self.stat_update("files")
                self.stat_update("bytes", value=file.bytes, unit="file")
                for found in self._timed(file):
                    self.stat_update("total")
                    if isinstance(found, Skip):
                        reason = _short(found.reason)
                        self.stat_update("dropped", f"dropped_{reason}")
                        facts = {"filter_reason": reason, "detail": str(found), "source": file.source}
                        writer.write(
                            Document(text="", id=f"{file.name}/{found.number}", metadata=facts), rank
                        )
                        continue
                    self.stat_update("forwarded")
                    made = document(found)
                    self.update_doc_stats(made)
                    yield made

    def _timed(self, file: InputFile) -> Iterator[Record | Skip]:
        found = _read(file)
        while True:
            with self.track_time():
                one = next(found, None)
            if one is None:
                return
            yield one


def _read(file: InputFile) -> Iterator[Record | Skip]:
    for number, found in enumerate(_records(file), start=1):
        if isinstance(found, Record) and not _can_be_written(found.metadata):
            yield Skip(found.id, number, "has metadata that cannot be written again")
        else:
            yield found


def _records(file: InputFile) -> Iterator[Record | Skip]:
    facts: dict[str, Any] = {"source": file.source}
    if file.license is not None:
        facts["license"] = file.license
    if file.html:
        facts[IS_PAGE] = True
    path = Path(file.path)
    if not path.is_file():
        yield Skip(file.name, 0, "is gone since the run began")
        return
    for found in read_documents(path, text_key=file.text_key, max_bytes=file.max_bytes, name=file.name):
        if isinstance(found, Skip):
            yield found
            continue
        text, theirs = found.text, _renamed(found.metadata)
        if file.kind == "html":
            text = _decode(found.raw if found.raw is not None else text.encode())
        elif file.kind == "docstrings":
            text = docstrings(text)
        elif file.kind == "metadata":
            text = package_description(text)
        elif file.kind == "python":
            facts = {**facts, "programming_language": "Python"}
        if not text.strip():
            yield Skip(file.name, 0, "is empty")
        elif file.lines:
            for number, line in enumerate(text.splitlines(), start=1):
                if line.strip():
                    yield Record(line, f"{found.id}/{number}", {**theirs, **facts})
        else:
            yield Record(text, found.id, {**theirs, **facts})


def _renamed(metadata: dict[str, Any]) -> dict[str, Any]:
    """Foreign metadata, with other names for what has a meaning here: datatrove's writers put metadata into
    the names of files, so a foreign `rank` could choose where it is written."""
    return {f"original_{key}" if key in _RESERVED else key: value for key, value in metadata.items()}


def _can_be_written(metadata: dict[str, Any]) -> bool:
    """orjson, which datatrove writes with, refuses numbers above 64 bits and deep nesting."""
    import orjson

    try:
        orjson.dumps(metadata)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _decode(raw: bytes) -> str:
    """The text of a page: UTF-8 if it is that, else in the encoding that it declares, else in one guessed."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        pass
    declared = _CHARSET.search(raw[:4096])
    if declared is not None:
        name = declared[1].decode("ascii")
        if name.lower() in ("iso-8859-1", "latin1", "latin-1", "us-ascii"):
            name = "cp1252"  # as every browser does
        try:
            return raw.decode(name, "replace")
        except (LookupError, UnicodeDecodeError):
            pass
    from trafilatura.utils import decode_file

    text = decode_file(raw)
    return text if isinstance(text, str) else raw.decode("utf-8", "replace")


def _short(reason: str) -> str:
    for key in ("longer than", "not UTF-8", "no JSON", "no text", "empty", "gone", "metadata"):
        if key in reason:
            return key.replace(" ", "_")
    return "unreadable"
