"""Training rows out of JSONL or Parquet, and everything about them that can be checked before any training.

A row is `{"messages": [{"role": ..., "content": ...}, ...]}`, or `{"prompt": ..., "completion": ...}` where
each is a text or a list of messages; `license` and `source` may stand beside. Rows are foreign data: lines
are bounded, and what is wrong with one is told with its number and leaves the others alone.

Problems are of two sorts. A *bad* row cannot be trained on. A *remark* (a row that stands there twice,
another script) leaves the row where it is.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from pomona.errors import PomonaError, one_line
from pomona.models.model_directory import parse_json_object

MAX_LINE_BYTES = 1 << 20
MAX_FILE_BYTES = 2 << 30
MAX_ROWS = 1_000_000
MAX_MESSAGES = 256
SHOWN_LINES = 10  # of one kind of problem, in the report
SCRIPT_LETTERS = 2000  # of a row, of which its scripts are counted
MIXED_SHARE = 0.2  # of its letters that make a second script worth a remark

BAD = {
    "not UTF-8": "a line that is no UTF-8 text",
    "not JSON": "a line that is no JSON object",
    "line too long": f"a line above {MAX_LINE_BYTES >> 20} MiB",
    "wrong schema": "neither messages nor a prompt with a completion, or something in them that is not text",
    "empty": "no message, or one without text",
    "last message": "the last message is not the assistant's, so there is no answer to learn",
    "too long": "more tokens than the window",
    "template": "the chat template refused the row, or rewrites earlier turns",
}
REMARKS = {
    "duplicate": "the same messages as an earlier row",
    "other script": "the letters are mostly of another script than the file's",
    "mixed scripts": f"two scripts with {MIXED_SHARE:.0%} of the letters each, or more",
    "unread column": "a key beside messages, prompt, completion, license and source",
}
KINDS = {**BAD, **REMARKS}

_KEYS = {"messages", "prompt", "completion", "license", "source"}
_REFUSED_KEYS = {"tools", "images", "audio", "chosen", "rejected"}  # they would change what is learnt
_ROLES = ("system", "user", "assistant")
# Scripts that are written together, and characters whose names do not begin with their script's.
_SCRIPTS = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "IDEOGRAPHIC": "CJK"}
_NO_SCRIPTS = {"MODIFIER", "FULLWIDTH", "HALFWIDTH", "MATHEMATICAL", "DOUBLE-STRUCK", "SCRIPT", "FEMININE"}
_NO_SCRIPTS |= {"MASCULINE", "MICRO", "SUPERSCRIPT", "SUBSCRIPT", "BLACK-LETTER", "ROMAN"}

Message = Mapping[str, str]  # role, content


@dataclass(frozen=True)
class Row:
    """One sound row. line: from 1, of the file (of Parquet: the row)."""

    line: int
    messages: tuple[Message, ...]
    license: str | None = None
    source: str | None = None

    @property
    def key(self) -> bytes:
        """Equal for rows that differ in capitals and white space alone."""
        digest = hashlib.sha256()
        for message in self.messages:
            text = " ".join(message["content"].casefold().split())
            digest.update(f"{message['role']}\0{text}\0".encode())
        return digest.digest()


@dataclass(frozen=True)
class Problem:
    kind: str  # one of KINDS
    line: int
    what: str


@dataclass
class DataReport:
    """What is known about a file. `problems` grow until training begins."""

    KINDS: ClassVar[Mapping[str, str]] = KINDS
    BAD: ClassVar[Mapping[str, str]] = BAD

    file: str
    sha256: str
    read: int = 0
    problems: list[Problem] = field(default_factory=list)
    licenses: dict[str, int] = field(default_factory=dict)  # of the sound rows; "" where a row names none
    sources: dict[str, int] = field(default_factory=dict)
    scripts: dict[str, int] = field(default_factory=dict)  # main script -> sound rows

    @property
    def bad(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.kind in self.BAD]

    @property
    def good(self) -> int:
        """Rows that can be trained on."""
        return self.read - len(self.bad)

    def counts(self) -> dict[str, int]:
        """Kind -> problems, in the order of `KINDS`, where there are any."""
        found = Counter(problem.kind for problem in self.problems)
        return {kind: found[kind] for kind in self.KINDS if found[kind]}

    def table(self) -> list[tuple[str, str, str]]:
        """(what, how many, where): rows of the table that a person reads."""
        rows = [("rows read", f"{self.read:,}", ""), ("rows that can be used", f"{self.good:,}", "")]
        for kind, count in self.counts().items():
            mark = "bad: " if kind in self.BAD else ""
            rows.append((f"{mark}{kind}", f"{count:,}", _lines(self._lines_of(kind), count)))
        return rows

    def first_bad(self) -> str:
        """For the message that refuses the file."""
        problem = min(self.bad, key=lambda problem: problem.line)
        return f"line {problem.line}: {problem.what}"

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "sha256": self.sha256,
            "rows": self.read,
            "good": self.good,
            "bad": len(self.bad),
            "problems": [
                {
                    "kind": kind,
                    "means": self.KINDS[kind],
                    "bad": kind in self.BAD,
                    "count": count,
                    "lines": self._lines_of(kind),
                    "first": next(p.what for p in self.problems if p.kind == kind),
                }
                for kind, count in self.counts().items()
            ],
            "licenses": self.licenses,
            "sources": self.sources,
            "scripts": self.scripts,
        }

    def _lines_of(self, kind: str) -> list[int]:
        return [problem.line for problem in self.problems if problem.kind == kind][:SHOWN_LINES]


def read_rows(path: Path | str) -> tuple[list[Row], DataReport]:
    """The sound rows of a .jsonl or .parquet file in its order, and what was wrong with the others.

    PomonaError: the file cannot be read, is too large, or is neither; Parquet without pyarrow.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise PomonaError(f"{path}: is neither .jsonl nor .parquet; give training rows in one of them")
    report = DataReport(path.name, file_sha256(path))
    rows: list[Row] = []
    seen: dict[bytes, int] = {}
    for line, raw in _parquet(path) if path.suffix == ".parquet" else read_lines(path):
        report.read += 1
        if report.read > MAX_ROWS:
            raise PomonaError(f"{path}: holds more than {MAX_ROWS:,} rows; split the file")
        try:
            given = raw if isinstance(raw, dict) else parse_line(raw)
            row = _row(line, given)
        except BadRowError as error:
            report.problems.append(Problem(error.kind, line, one_line(error.what)[:200]))
            continue
        if unread := sorted(set(given) - _KEYS):
            report.problems.append(Problem("unread column", line, one_line(", ".join(unread))[:200]))
        first = seen.setdefault(row.key, line)
        if first != line:
            report.problems.append(Problem("duplicate", line, f"the same as line {first}"))
        rows.append(row)
    if not report.read:
        raise PomonaError(f"{path}: holds no row; give at least two")
    _look_at_scripts(rows, report)
    report.licenses = _counted(row.license for row in rows)
    report.sources = _counted(row.source for row in rows)
    return rows, report


def shared_instructions(rows: Iterable[Row]) -> str | None:
    """The system message that all rows begin with, if it is one and the same."""
    found = {row.messages[0]["content"] if row.messages[0]["role"] == "system" else None for row in rows}
    return found.pop() if len(found) == 1 else None


# --- one row


class BadRowError(Exception):
    """A row that cannot be used: `kind` is one of the report's, `what` is told with the line's number."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind, self.what = kind, what


def parse_line(raw: bytes | None) -> dict[str, Any]:
    """The JSON object of a line of `read_lines`. BadRowError: it is none."""
    if raw is None:
        raise BadRowError("line too long", f"more than {MAX_LINE_BYTES:,} bytes")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRowError("not UTF-8", f"byte {error.start} is no UTF-8") from None
    try:
        return parse_json_object(raw, "row")
    except PomonaError as error:
        raise BadRowError("not JSON", str(error).removeprefix("row: ").partition("; ")[0]) from None


def _row(line: int, raw: Mapping[str, Any]) -> Row:
    # Parquet gives every column for every row, and some programs write null where others leave a key out.
    given = {key: value for key, value in raw.items() if value is not None}
    refused = sorted(_REFUSED_KEYS & set(given))
    if refused:
        raise BadRowError("wrong schema", f"{refused[0]!r} is not supported; leave it out")
    if "messages" in given:
        if "prompt" in given or "completion" in given:
            raise BadRowError("wrong schema", "has messages and a prompt or completion; give one of them")
        messages = parse_messages(given["messages"], "user")
    elif "prompt" in given and "completion" in given:
        messages = parse_messages(given["prompt"], "user") + parse_messages(given["completion"], "assistant")
    else:
        raise BadRowError("wrong schema", "has neither messages nor a prompt with a completion")
    if not messages:
        raise BadRowError("empty", "has no message")
    for number, message in enumerate(messages, start=1):
        if message["role"] == "system" and number > 1:
            raise BadRowError("wrong schema", f"message {number} is a system message; only the first may be")
        if not message["content"].strip():
            raise BadRowError("empty", f"message {number} ({message['role']}) has no text")
    if messages[-1]["role"] != "assistant":
        raise BadRowError("last message", f"the last message is the {messages[-1]['role']}'s")
    if len(messages) == 1:
        raise BadRowError("wrong schema", "has an answer and nothing that it answers")
    return Row(line, tuple(messages), parse_label(given, "license"), parse_label(given, "source"))


def parse_messages(value: Any, role: str) -> list[Message]:
    """Of a list of messages, or of a text, which is one of `role`."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise BadRowError("wrong schema", f"a {type(value).__name__} stands where messages belong")
    if len(value) > MAX_MESSAGES:
        raise BadRowError("wrong schema", f"has more than {MAX_MESSAGES} messages")
    found: list[Message] = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict):
            raise BadRowError("wrong schema", f"message {number} is no object with role and content")
        given = {key: item for key, item in message.items() if item is not None}
        unknown = sorted(set(given) - {"role", "content"})
        if unknown:
            raise BadRowError("wrong schema", f"message {number} has {unknown[0]!r}, which is not supported")
        if given.get("role") not in _ROLES:
            raise BadRowError("wrong schema", f"message {number} has a role that is none of {_ROLES}")
        content = given.get("content", "")
        if not isinstance(content, str):
            raise BadRowError("wrong schema", f"the content of message {number} is no text")
        if len(content) > MAX_LINE_BYTES:
            raise BadRowError("line too long", f"message {number} has {len(content):,} characters")
        found.append({"role": given["role"], "content": content})
    return found


def parse_label(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > 200:
        raise BadRowError("wrong schema", f"{name} is no short text")
    return one_line(value)


# --- files


def file_sha256(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise PomonaError(f"{path}: larger than {MAX_FILE_BYTES >> 30} GiB; split the file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PomonaError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """(number, bytes) of every line that is not blank; None for one that is too long."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):  # the rest of it, in pieces
                    line = file.readline(MAX_LINE_BYTES)
                yield number, None
            elif line.strip():
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise PomonaError(f"{path}: Parquet needs pyarrow; run: pip install 'pomona[train]'") from None
    try:
        with ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
            if size > MAX_FILE_BYTES or file.metadata.num_rows > MAX_ROWS:
                raise PomonaError(f"{path}: unpacks to more than can be read at once; split the file")
            columns = [name for name in file.schema_arrow.names if name in _KEYS | _REFUSED_KEYS]
            number = 0
            for batch in file.iter_batches(batch_size=64, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise PomonaError(f"{path}: no sound Parquet file ({error}); write it again") from error


# --- scripts


def scripts(text: str) -> dict[str, float]:
    """Script -> its share of the first letters of `text`. A letter's script is the first word of its Unicode
    name (LATIN, CYRILLIC, ARABIC, ...); Chinese and both kana count as one. A rule of thumb: it tells writing
    apart, not languages that share a script."""
    found: Counter[str] = Counter()
    for character in text:
        if character.isalpha() and (script := _script(character)) is not None:
            found[script] += 1
            if found.total() >= SCRIPT_LETTERS:
                break
    return {script: count / found.total() for script, count in found.most_common()}


@cache
def _script(character: str) -> str | None:
    word = unicodedata.name(character, "").partition(" ")[0]
    return None if not word or word in _NO_SCRIPTS else _SCRIPTS.get(word, word)


def _look_at_scripts(rows: Iterable[Row], report: DataReport) -> None:
    mains: list[tuple[int, str]] = []
    for row in rows:
        shares = scripts(" ".join(message["content"] for message in row.messages))
        if not shares:
            continue
        mains.append((row.line, next(iter(shares))))
        many = [f"{script} {share:.0%}" for script, share in shares.items() if share >= MIXED_SHARE]
        if len(many) > 1:
            report.problems.append(Problem("mixed scripts", row.line, ", ".join(many)))
    counts = Counter(main for _, main in mains)
    report.scripts = dict(counts.most_common())
    usual = next(iter(report.scripts), None)
    for line, main in mains:
        if main != usual:
            report.problems.append(Problem("other script", line, f"{main}, the file's is {usual}"))


def _counted(values: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(value or "" for value in values).most_common())


def _lines(shown: list[int], count: int) -> str:
    more = f" and {count - len(shown):,} more" if count > len(shown) else ""
    return f"line{'s' if count > 1 else ''} {', '.join(map(str, shown))}{more}"
