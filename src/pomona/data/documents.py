"""Documents out of foreign files: JSONL (also .gz, .zst), text, HTML. What cannot be read is told.

A line longer than the limit is passed over without being held in memory; so nothing in a file can make a
reader grow without bound, and one broken line costs no other.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pomona.errors import PomonaError, one_line

MAX_LINE_BYTES = 32 << 20
_CHUNK = 1 << 20
JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")
TEXT = (".txt", ".md", ".rst", ".txt.gz", ".md.gz", ".rst.gz")
HTML = (".html", ".htm", ".html.gz", ".htm.gz")


@dataclass(frozen=True)
class Skip:
    """Something that was passed over. number: of the line, from 1; 0 for a whole file."""

    path: str
    number: int
    reason: str

    def __str__(self) -> str:
        place = f", line {self.number}" if self.number else ""
        return f"{self.path}{place}: {self.reason}"


@dataclass(frozen=True)
class Record:
    """A document as it lies in a file. `raw` is only there for HTML, whose encoding its reader finds out."""

    text: str
    id: str
    metadata: dict[str, Any] = field(default_factory=dict)
    raw: bytes | None = None


def find_files(paths: Iterable[Path], suffixes: tuple[str, ...] = JSONL + TEXT) -> list[Path]:
    """The files that `paths` name: themselves, and those of these kinds in folders, sorted.

    PomonaError: a path that is not there, a file of another kind, or nothing at all.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(file for file in path.rglob("*") if file.is_file() and _ends(file, suffixes))
        elif not path.is_file():
            raise PomonaError(f"{path}: there is no such file or folder; check the path")
        elif not _ends(path, suffixes):
            raise PomonaError(f"{path}: is of no kind that can be read here ({', '.join(suffixes)})")
        else:
            found.append(path)
    if not found:
        names = ", ".join(map(str, paths)) or "no path given"
        raise PomonaError(f"{names}: holds no file with documents ({', '.join(suffixes)}); check the path")
    return found


def read_documents(
    path: Path,
    *,
    text_key: str = "text",
    id_key: str = "id",
    max_bytes: int = MAX_LINE_BYTES,
    name: str | None = None,
) -> Iterator[Record | Skip]:
    """The documents of one file, and what was passed over, in order. `name` stands for the path in ids."""
    name = str(path) if name is None else name
    try:
        with open_maybe_compressed(path) as file:
            if not _ends(path, JSONL):
                yield _whole(file, path, name, max_bytes)
                return
            for number, line in read_lines(file, max_bytes):
                if line is None:
                    yield Skip(name, number, f"longer than {max_bytes} bytes")
                elif line.strip():
                    yield _row(line, number, name, text_key, id_key)
    except (OSError, EOFError, ValueError) as error:  # also what gzip and zstandard say of damaged files
        yield Skip(name, 0, one_line(f"cannot be read to its end ({error})"))


def read_lines(file: IO[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line without its break); None stands for a line longer than `max_bytes`."""
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        if line.endswith(b"\n") or len(line) <= max_bytes:
            yield number, line.rstrip(b"\r\n")
            continue
        while (rest := file.readline(_CHUNK)) and not rest.endswith(b"\n"):
            pass
        yield number, None


def open_maybe_compressed(path: Path) -> IO[bytes]:
    """The bytes of a file; .gz and .zst are unpacked on the way."""
    if path.name.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.name.endswith(".zst"):
        import io

        try:
            import zstandard
        except ImportError:
            raise PomonaError(f"{path}: reading .zst needs `pip install zstandard`") from None
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True))
    return path.open("rb")


def _row(line: bytes, number: int, name: str, text_key: str, id_key: str) -> Record | Skip:
    try:
        row = json.loads(line.decode("utf-8"))
        if b"\\u" in line:  # half a surrogate pair is no text
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        return Skip(name, number, f"is not UTF-8 (byte {error.start})")
    except (ValueError, RecursionError) as error:
        return Skip(name, number, one_line(f"is no JSON ({error})")[:200])
    if not isinstance(row, dict) or not isinstance(row.get(text_key), str):
        return Skip(name, number, f'has no text under "{one_line(text_key)}"')
    text = row.pop(text_key)
    if not text.strip():
        return Skip(name, number, "is empty")
    given = row.pop(id_key, None)
    metadata = row.pop("metadata", None)
    extra = metadata if isinstance(metadata, dict) else {}
    return Record(text, str(given) if isinstance(given, str | int) else f"{name}/{number}", {**row, **extra})


def _whole(file: IO[bytes], path: Path, name: str, max_bytes: int) -> Record | Skip:
    raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        return Skip(name, 0, f"longer than {max_bytes} bytes")
    if not raw.strip():
        return Skip(name, 0, "is empty")
    if _ends(path, HTML):
        return Record("", name, {}, raw)
    try:
        return Record(raw.decode("utf-8").removeprefix("\ufeff"), name)
    except UnicodeDecodeError as error:
        return Skip(name, 0, f"is not UTF-8 (byte {error.start})")


def _ends(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)
