"""Readers of public data sets that lie outside the project, in the folder that POMONA_DATA names.

Each set has a folder there (`wiki_demo/wiki_demo.txt`, ...); what is wrong with a file is said in one line.
What is read is bounded and checked: these files are other people's.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pomona.errors import PomonaError
from pomona.models.model_directory import parse_json_object

MAX_BYTES = 64 << 20
LICENSES = {
    "wiki_demo": "CC-BY-SA-3.0",
    "gutenberg_pride": "public domain",
    "gutenberg_moby": "public domain",
    "c4_demo": "ODC-BY",
    "bfcl": "Apache-2.0",
    "glaive_toolcall": "Apache-2.0",
    "html_extruct": "BSD-3-Clause",
    "qmsum": "MIT",
    "email_zapier": "MIT",
}
CORPORA = {
    "wiki_demo": "wiki_demo.txt",
    "gutenberg_pride": "pride_1342.txt",
    "gutenberg_moby": "",
    "c4_demo": "c4_demo.jsonl",
}


def data_folder(given: Path | None = None) -> Path:
    """`given`, or what POMONA_DATA names. PomonaError if there is none."""
    folder = given or (Path(os.environ["POMONA_DATA"]) if os.environ.get("POMONA_DATA") else None)
    if folder is None:
        raise PomonaError("POMONA_DATA is not set: set it to the folder of public data sets, or give --data")
    if not folder.is_dir():
        raise PomonaError(f"{folder}: is no folder; give the folder of public data sets")
    return folder


def corpus(folder: Path, name: str) -> list[str]:
    """The documents of a corpus: of a `.jsonl` the texts of its lines, else paragraphs."""
    if name not in CORPORA:
        raise PomonaError(f"{name}: no corpus of that name; choose of {', '.join(CORPORA)}")
    file = CORPORA[name]
    path = folder / name / file if file else _only(folder / name, "*.txt")
    text = read(path)
    if path.suffix == ".jsonl":
        return [_text(row, "text", path) for row in json_lines(path, text)]
    text = re.sub(r"\r\n?", "\n", text)
    start = re.search(r"\*\*\* ?START OF .*\n", text)
    end = re.search(r"\*\*\* ?END OF ", text)
    text = text[start.end() if start else 0 : end.start() if end else len(text)]
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n|\n(?=[A-Z])", text) if part.strip()]


def sentences(documents: list[str], *, shortest: int = 30, longest: int = 240) -> list[list[str]]:
    """Of each document the runs of sentences that look clean: plain ASCII prose from capital to full stop."""
    runs: list[list[str]] = []
    for document in documents:
        run: list[str] = []
        for sentence in re.split(r"(?<=[a-z)\"][.!?])\s*(?=[A-Z][a-z])|\n+", document):
            if shortest <= len(sentence) <= longest and _CLEAN.fullmatch(sentence):
                run.append(sentence)
            elif run:
                runs.append(run)
                run = []
        if run:
            runs.append(run)
    return runs


_CLEAN = re.compile(
    # No glued words ("HistoryModern"), no end after a title, no double marks, addresses, headings.
    r"(?!.*(?:[a-z][A-Z]|\b(?:Mr|Mrs|Dr|St)\.$|  |\.\.|https?:|www\.|Chapter|CHAPTER))"
    r"[A-Z][A-Za-z0-9 ,.;:'\"\-]*[a-z0-9\"][.!?]"
)


@dataclass(frozen=True)
class FunctionCase:
    """A question, the functions that may be called, and the calls that count as right.

    answers: [{name: {parameter: accepted values}}]; a value "" among the accepted ones: may be left out.
    """

    id: str
    question: str
    functions: tuple[dict[str, Any], ...]
    answers: tuple[dict[str, dict[str, list[Any]]], ...]


def bfcl(folder: Path, kind: str = "simple_python") -> list[FunctionCase]:
    """Single-turn cases of the Berkeley function-calling leaderboard, version 4."""
    path = folder / "bfcl" / f"BFCL_v4_{kind}.json"
    answers_path = folder / "bfcl" / "possible_answer" / path.name
    answers = {str(row.get("id")): row for row in json_lines(answers_path, read(answers_path))}
    cases = []
    for row in json_lines(path, read(path)):
        try:
            [turn] = row["question"]
            question = [message["content"] for message in turn if message["role"] == "user"][-1]
            right, functions = answers[str(row["id"])]["ground_truth"], row["function"]
            if not isinstance(question, str) or not all(isinstance(one["name"], str) for one in functions):
                raise ValueError("question")
            if not all(len(one) == 1 and isinstance(next(iter(one.values())), dict) for one in right):
                raise ValueError("ground_truth")
            cases.append(FunctionCase(str(row["id"]), question, tuple(functions), tuple(right)))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise PomonaError(f"{path}: a case has another form ({error!r}); get the file again") from error
    return cases


@dataclass(frozen=True)
class ToolDialogue:
    """functions: {"name", "description", "parameters"}; turns: (who, text), who is one of human, gpt,
    function_call, observation."""

    functions: tuple[dict[str, Any], ...]
    turns: tuple[tuple[str, str], ...]


def glaive(folder: Path) -> list[ToolDialogue]:
    """Dialogues of the function-calling set of glaiveai, those without functions among them."""
    path = folder / "glaive_toolcall" / "glaive_toolcall_en_demo.json"
    try:
        found = []
        for row in json.loads(read(path)):
            functions = json.loads(row["tools"]) if row["tools"] else []
            if not all(isinstance(function, dict) for function in functions):
                raise ValueError("tools")
            turns = tuple((str(turn["from"]), str(turn["value"])) for turn in row["conversations"])
            found.append(ToolDialogue(tuple(functions), turns))
        return found
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise PomonaError(f"{path}: is no list of dialogues ({error!r}); get the file again") from error


@dataclass(frozen=True)
class Page:
    """A page's HTML, and the items of schema.org that an extractor should find in it."""

    name: str
    html: str
    items: tuple[dict[str, Any], ...]


def extruct_pages(folder: Path) -> list[Page]:
    """Pages with schema.org items, in the order of their names."""
    pages = []
    for path in sorted((folder / "html_extruct" / "schema.org").glob("*.html")):
        truth = path.with_suffix(".json")
        if not truth.is_file():
            continue
        try:
            items = json.loads(read(truth))
        except (ValueError, RecursionError) as error:
            raise PomonaError(f"{truth}: is no JSON ({error}); get the file again") from error
        items = [item for item in (items if isinstance(items, list) else [items]) if isinstance(item, dict)]
        pages.append(Page(path.stem, read(path), tuple(items)))
    if not pages:
        raise PomonaError(f"{folder / 'html_extruct'}: holds no pages; get the data set html_extruct")
    return pages


@dataclass(frozen=True)
class Meeting:
    """A stretch of a meeting ("Speaker: words" lines), a question about it and its answer."""

    text: str
    query: str
    answer: str


def qmsum(folder: Path, split: str = "test", *, longest: int = 4000) -> list[Meeting]:
    """Queries about a stretch of a meeting whose words have at most `longest` characters."""
    path = folder / "qmsum" / f"{split}.jsonl"
    found = []
    for row in json_lines(path, read(path)):
        try:
            lines = [f"{turn['speaker']}: {turn['content']}" for turn in row["meeting_transcripts"]]
            for query in row["specific_query_list"]:
                spans = [(int(first), int(last)) for first, last in query["relevant_text_span"]]
                text = "\n".join(line for first, last in spans for line in lines[first : last + 1])
                if 0 < len(text) <= longest:
                    found.append(Meeting(text, str(query["query"]), str(query["answer"])))
        except (KeyError, TypeError, ValueError) as error:
            raise PomonaError(f"{path}: a meeting has another form ({error!r}); get it again") from error
    return found


def mails(folder: Path) -> list[str]:
    """Real mails: bodies as text, quotations included."""
    found = [read(path).strip() for path in sorted((folder / "email_zapier").glob("*.txt"))]
    if not found:
        raise PomonaError(f"{folder / 'email_zapier'}: holds no mails; get the data set email_zapier")
    return found


def read(path: Path) -> str:
    """The text of a file of at most 64 MiB; bytes that are no UTF-8 are replaced."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PomonaError(
            f"{path}: cannot be read ({error.strerror}); set POMONA_DATA to the folder of the data sets"
        ) from error
    if len(raw) > MAX_BYTES:
        raise PomonaError(f"{path}: is larger than 64 MiB, which no such file is; get it again")
    return raw.decode("utf-8", errors="replace")


def json_lines(path: Path, text: str) -> Iterator[dict[str, Any]]:
    """The objects of `text`, one a line; `path` is for messages. Lines end at line feeds alone: JSON strings
    may hold the other separators that str.splitlines knows. PomonaError: a line that is no object."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield parse_json_object(line.encode(), f"{path}, line {number}")


def _text(row: dict[str, Any], key: str, path: Path) -> str:
    if not isinstance(row.get(key), str):
        raise PomonaError(f'{path}: a line has no text "{key}"; get the file again')
    return str(row[key])


def _only(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise PomonaError(f"{folder}: should hold one {pattern}; get the data set again")
    return files[0]
