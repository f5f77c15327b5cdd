"""Text for small runs: files, public corpora, and the documentation that lies on this machine anyway.

A source of a recipe becomes one JSONL file of documents to train on and one of documents held out (which ones
is decided by a hash of the text, so that equal documents are never on both sides). Larger text goes through
`pomona data`; this here is what makes the laptop recipe work from nothing.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pomona.data.documents import JSONL, TEXT, Skip, find_files, read_documents
from pomona.errors import PomonaError
from pomona.pretraining.recipe import SourceSettings

# Corpora that may be trained on (the evaluation sets in the same folder may not) -> the kind of their file.
PUBLIC = {
    "c4_demo": "c4_demo.jsonl",
    "wiki_demo": "wiki_demo.txt",
    "gutenberg_alice": "alice_11.txt",
    "gutenberg_moby": "moby_2701.txt",
    "gutenberg_pride": "pride_1342.txt",
    "tinyshakespeare": "input.txt",
    "tinystories": "tinystories_head_200k.txt",
    "debian_jargon": "jargon.txt",
}
DOCUMENT_CHARACTERS = 4000  # a long text without documents of its own is cut at paragraphs, about so long
_LEAST_CHARACTERS = 200
_LEAST_PROSE = 0.6  # share of letters and spaces
_MOST_BYTES = 8 << 20  # of one file of documentation


@dataclass(frozen=True)
class Gathered:
    """What a source gave: the two files, documents and bytes of UTF-8 in each."""

    train: Path
    held_out: Path
    train_documents: int
    held_out_documents: int
    train_bytes: int
    held_out_bytes: int


def available(source: SourceSettings) -> bool:
    """Whether the text is there; a packed folder must be."""
    if source.public is not None:
        folder = os.environ.get("POMONA_DATA", "")
        return bool(folder) and all((Path(folder) / name).is_dir() for name in source.public)
    if source.files is not None:
        return all(path.exists() for path in source.files)
    return source.packed is None or source.packed.is_dir()


def gather(name: str, source: SourceSettings, folder: Path, *, validation_share: float) -> Gathered:
    """Write the documents of a source that is not packed to `folder`, each text once.

    PomonaError: text that is not there, an unknown corpus, or too little to hold anything out.
    """
    train, held_out = folder / f"{name}.train.jsonl", folder / f"{name}.held-out.jsonl"
    counts, sizes, seen = [0, 0], [0, 0], set()
    folder.mkdir(parents=True, exist_ok=True)
    with train.open("w", encoding="utf-8") as first, held_out.open("w", encoding="utf-8") as second:
        for text in documents(source):
            digest = hashlib.sha256(text.encode()).digest()
            if digest in seen:
                continue
            seen.add(digest)
            side = int(int.from_bytes(digest[:8], "little") / 2**64 < validation_share)
            (first, second)[side].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            counts[side] += 1
            sizes[side] += len(text.encode())
            if sum(sizes) >= source.max_mb * 1e6:
                break
    if not all(counts):
        raise PomonaError(
            f"source {name}: has {sum(counts)} documents, too few to train on some and hold out "
            "others; give more"
        )
    return Gathered(train, held_out, counts[0], counts[1], sizes[0], sizes[1])


def documents(source: SourceSettings) -> Iterator[str]:
    """The documents of a source of files, public corpora or packages, in a fixed order."""
    if source.files is not None:
        for path in find_files(source.files, JSONL + TEXT):
            yield from _read(path)
    elif source.public is not None:
        yield from _public(source.public)
    for kind in source.packages or ():
        yield from _prose(_PACKAGES[kind]())


def _public(names: Iterable[str]) -> Iterator[str]:
    folder = Path(os.environ.get("POMONA_DATA", ""))
    if not os.environ.get("POMONA_DATA"):
        raise PomonaError(
            "POMONA_DATA is not set: set it to the folder of public data sets, or use other text"
        )
    for name in names:
        if name not in PUBLIC:
            raise PomonaError(f"{name}: is no corpus to train on; choose of {', '.join(PUBLIC)}")
        yield from _read(folder / name / PUBLIC[name])


def _read(path: Path) -> Iterator[str]:
    for found in read_documents(path):
        if isinstance(found, Skip):
            continue
        text = re.sub(r"\r\n?", "\n", found.text)
        start = re.search(r"\*\*\* ?START OF .*\n", text)
        end = re.search(r"\*\*\* ?END OF ", text)
        text = text[start.end() if start else 0 : end.start() if end else len(text)]
        yield from _cut(_unwrapped(text)) if not path.name.endswith(JSONL) else [text.strip()]


def _unwrapped(text: str) -> str:
    """Lines that were broken at a column joined again, where most lines are about equally long."""
    lines = [line for line in text.split("\n") if line.strip()]
    middle = sorted(map(len, lines))[len(lines) // 2] if lines else 0
    if not 50 <= middle <= 90:
        return text
    return re.sub(r"(?<=\S)[ \t]*\n[ \t]*(?=\S)", " ", text)


def _cut(text: str) -> Iterator[str]:
    piece: list[str] = []
    size = 0
    for paragraph in re.split(r"\n\s*\n", text):
        if not paragraph.strip():
            continue
        piece.append(paragraph.strip("\n"))
        size += len(paragraph)
        if size >= DOCUMENT_CHARACTERS:
            yield "\n\n".join(piece)
            piece, size = [], 0
    if piece:
        yield "\n\n".join(piece)


def _prose(texts: Iterable[str]) -> Iterator[str]:
    """Those that are mostly letters and not tiny, cut where they are long."""
    for text in texts:
        plain = sum(character.isalpha() or character == " " for character in text)
        if len(text) >= _LEAST_CHARACTERS and plain >= _LEAST_PROSE * len(text):
            yield from _cut(text)


def _python() -> Iterator[str]:
    """Descriptions of installed distributions, and docstrings of the standard library by module."""
    from importlib.metadata import distributions

    found = {}
    for one in distributions():
        _, _, body = (one.read_text("METADATA") or "").partition("\n\n")
        found[str(one.metadata["Name"])] = body
    yield from (found[name].strip() for name in sorted(found))
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if parts[0] in ("site-packages", "test", "lib2to3", "idlelib") or "tests" in parts:
            continue
        yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            return
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    if path.name == "topics.py" and path.parent.name == "pydoc_data":  # the language reference
        texts += [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]  # type: ignore[misc]
    text = "\n\n".join(one.strip() for one in texts if isinstance(one, str) and len(one) > 60)
    if text:
        yield text


def _debian() -> Iterator[str]:
    """Plain documentation under /usr/share/doc; changelogs and copyrights are no prose."""
    folder = Path("/usr/share/doc")
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        name = path.name.lower().removesuffix(".gz")
        wanted = name.endswith((".txt", ".md", ".rst")) or name.startswith(("readme", "news", "faq"))
        if not wanted or name.startswith(("changelog", "copyright")) or path.is_symlink():
            continue
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                yield file.read(_MOST_BYTES).decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError):
            continue


_PACKAGES: dict[str, Callable[[], Iterator[str]]] = {"python": _python, "debian": _debian}
