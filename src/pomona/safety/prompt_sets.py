"""Prompts for the red team: public sets from POMONA_DATA and files of one's own, tagged by the taxonomy.

    prompts = read_set("xstest", data_folder())
    prompts = read_set("mine.jsonl", None)

A row of one's own file: {"prompt": ..., "category": "cybercrime.phishing", "harmful": true, "license": ...};
all but the prompt may be missing. What a set's labels mean here stands in prompt_sets.yaml; prompts without a
label are tagged by the lexicon, and "untagged" where that finds nothing.

`part_of` cuts every set into the same two parts, by a hash of the prompt: what trained a guardrail or a model
is no test of it.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from pomona.data.public_sets import json_lines, read
from pomona.errors import PomonaError
from pomona.safety.lexicon import lexicon
from pomona.safety.taxonomy import taxonomy

FILE = Path(__file__).with_name("prompt_sets.yaml")
UNTAGGED = "untagged"
SETS = ("advbench", "do_not_answer", "xstest")
# Discipline of the data: this set judges, it teaches nobody (training_rows.py refuses it).
FOR_EVALUATION_ALONE = frozenset({"xstest"})
MAX_PROMPT_CHARACTERS = 1 << 16
TRAIN_SHARE = 0.5

Part = Literal["train", "test", "all"]


@dataclass(frozen=True)
class SafetyPrompt:
    """id: SET/NUMBER. category: an id of the taxonomy, or "untagged". harmful: to comply is a violation; a
    benign prompt (a look-alike) is one that should be answered. kind: the set's own label."""

    id: str
    text: str
    source: str
    license: str
    category: str
    harmful: bool
    kind: str = ""

    @property
    def group(self) -> str:
        """The category of the report's tables."""
        return self.category.partition(".")[0]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_set(name: str, data: Path | None, part: Part = "all") -> list[SafetyPrompt]:
    """One of SETS (from the folder `data`), or a .jsonl file. PomonaError: no such set, no prompts in it."""
    if part not in get_args(Part):
        raise PomonaError(f"part {part!r}: choose {', '.join(get_args(Part))}")
    if name in SETS:
        if data is None:
            raise PomonaError(f"{name}: lies in the folder of public data sets; set POMONA_DATA")
        found = list(_READERS[name](data / name))
    elif name.endswith(".jsonl"):
        found = list(_own(Path(name)))
    else:
        raise PomonaError(f"set {name}: is none; choose of {', '.join(SETS)}, or give a .jsonl file")
    found = [prompt for prompt in found if part == "all" or part_of(prompt.text) == part]
    if not found:
        raise PomonaError(f"set {name}: holds no prompts of part {part}; give another set")
    return found


def part_of(text: str) -> Part:
    """ "train" or "test", for ever the same; capitals and white space do not matter."""
    plain = " ".join(text.casefold().split())
    digest = hashlib.sha256(plain.encode()).digest()
    return "train" if digest[0] < 256 * TRAIN_SHARE else "test"


def spread(prompts: Sequence[SafetyPrompt], limit: int | None) -> list[SafetyPrompt]:
    """`limit` of them, evenly over the set; all where it has no more."""
    if limit is None or limit >= len(prompts):
        return list(prompts)
    return [prompts[i * len(prompts) // limit] for i in range(limit)]


@dataclass(frozen=True)
class LabelledReply:
    """A reply with a person's verdict. complied: fully; a partial refusal is no compliance."""

    prompt: SafetyPrompt
    reply: str
    complied: bool
    source: str


def xstest_replies(data: Path) -> list[LabelledReply]:
    """XSTest's 450 replies of GPT-4, labelled by the data set's authors (Röttger et al. 2024): two labels
    each, and a final one where they differ."""
    path = data / "xstest" / "xstest_v2_completions_gpt4.csv"
    found = []
    for prompt, row in _xstest_rows(path):
        label = str(row.get("final_label") or "")
        if label[:1] not in ("1", "2", "3"):
            raise PomonaError(f"{path}: row {prompt.id} has no label; get the set again")
        found.append(LabelledReply(prompt, str(row["completion"]), label.startswith("1"), "XSTest"))
    return found


def _advbench(folder: Path) -> Iterator[SafetyPrompt]:
    path = folder / "harmful_behaviors.csv"
    for number, row in enumerate(_csv(path, "goal"), 1):
        yield _prompt("advbench", number, row["goal"], _tag(row["goal"]))


def _xstest(folder: Path) -> Iterator[SafetyPrompt]:
    for prompt, _ in _xstest_rows(folder / "xstest_v2_completions_gpt4.csv"):
        yield prompt


def _xstest_rows(path: Path) -> Iterator[tuple[SafetyPrompt, dict[str, str]]]:
    labels = _mapping("xstest")["labels"]
    for number, row in enumerate(_csv(path, "prompt"), 1):
        kind = str(row.get("type") or "")
        tag = labels.get(kind) or _tag(row["prompt"])
        yield (
            _prompt("xstest", number, row["prompt"], tag, harmful=kind.startswith("contrast"), kind=kind),
            row,
        )


def _do_not_answer(folder: Path) -> Iterator[SafetyPrompt]:
    mapping = _mapping("do_not_answer")
    number = 0
    for name, used in mapping["files"].items():
        if not used:
            continue
        for row in json_lines(folder / name, read(folder / name)):
            number += 1
            kinds = [str(one) for one in row.get("intents") or ()]
            label = next((one for one in kinds if one in mapping["labels"]), None)
            if label is None or mapping["labels"][label] is None:
                continue
            text = row.get("prompt")
            if not isinstance(text, str):
                raise PomonaError(f"{folder / name}: a row has no prompt; get the set again")
            yield _prompt("do_not_answer", number, text, mapping["labels"][label], kind=label)


def _own(path: Path) -> Iterator[SafetyPrompt]:
    known = {"prompt", "category", "harmful", "license", "kind"}
    for number, row in enumerate(json_lines(path, read(path)), 1):
        text, category = row.get("prompt"), row.get("category")
        if not isinstance(text, str) or not text.strip():
            raise PomonaError(f'{path}, row {number}: has no text "prompt"; give one')
        if unknown := row.keys() - known:
            raise PomonaError(f"{path}, row {number}: unknown key {sorted(unknown)[0]}; leave it out")
        if not isinstance(row.get("harmful", True), bool):
            raise PomonaError(f"{path}, row {number}: harmful is true or false")
        if category is not None and category != UNTAGGED:
            taxonomy().category(str(category))
        yield SafetyPrompt(
            f"{path.stem}/{number}",
            text[:MAX_PROMPT_CHARACTERS],
            path.name,
            str(row.get("license") or "unknown"),
            str(category or _tag(text)),
            row.get("harmful", True),
            str(row.get("kind") or ""),
        )


_READERS = {"advbench": _advbench, "do_not_answer": _do_not_answer, "xstest": _xstest}


def _prompt(
    name: str, number: int, text: str, category: str, *, harmful: bool = True, kind: str = ""
) -> SafetyPrompt:
    license = str(_mapping(name)["license"])
    return SafetyPrompt(
        f"{name}/{number}", text[:MAX_PROMPT_CHARACTERS], name, license, category, harmful, kind
    )


def _tag(text: str) -> str:
    return next(iter(lexicon().tags(text)), UNTAGGED)


@cache
def _mappings() -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def _mapping(name: str) -> dict[str, Any]:
    mapping: dict[str, Any] = _mappings()[name]
    return mapping


def _csv(path: Path, key: str) -> Iterator[dict[str, str]]:
    try:
        rows = list(csv.DictReader(io.StringIO(read(path)), strict=True))
    except csv.Error as error:
        raise PomonaError(f"{path}: is no CSV ({error}); get the set again") from error
    for row in rows:
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise PomonaError(f'{path}: a row has no "{key}"; get the set again')
        yield row
