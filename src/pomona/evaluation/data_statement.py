"""DATA.md of an exported model: the texts that it, its compression and its adapters rest on, by its files.

    write_text(Path("model/DATA.md"), statement(cards))

The form follows Bender and Friedman, "Data Statements for Natural Language Processing" (TACL 2018), as far as
records of a machine can. Every figure comes out of a record; what none tells is said not to be known, above
all the texts that the base model was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pomona.evaluation.model_card import CARD, NOT_KNOWN, AdapterFacts, Cards, numbers, text

MOST = 40  # lines of one record
DEEPEST = 4


def statement(about: Cards) -> str:
    parts = [
        f"# Data of {text(about.name)}\n\nWhat stands here was read from the records in the model's "
        f"directory; the model itself is described in [{CARD}]({CARD}).",
        "## Base model\n\n" + _base(about),
        "## Compression\n\n" + _compression(about),
        *(_adapter(one) for one in about.adapters),
        "## Evaluation\n\n" + _evaluation(about),
        "## Not known\n\n" + _UNKNOWN,
    ]
    return "\n\n".join(parts) + "\n"


_UNKNOWN = """- Who wrote the texts of the base model, in what languages and when, and who agreed to that use.
- Whether test sets were among them; a figure on a public set can be too good for that reason.
- Whether personal data were among them. Nothing that a user types is collected by pomona."""


def _base(about: Cards) -> str:
    source = about.provenance.get("source")
    lines = [f"The base model is {text(source)}." if source else f"The base model is {NOT_KNOWN}."]
    lines.append("The texts that it was trained on are not part of this directory and not described in it;")
    lines.append("see whoever published it.")
    if note := about.provenance.get("license_note"):
        lines.append(f"\n{text(note)}")
    return "\n".join(lines)


def _compression(about: Cards) -> str:
    if not about.report:
        return "The model was never compressed, so no text was used for it."
    calibration = about.report.get("calibration")
    if not isinstance(calibration, Mapping) or not calibration:
        return f"The calibration text is {NOT_KNOWN}."
    words = "Tables and bits were fitted on this text"
    if calibration.get("source") == "self":
        words += ", which the model wrote itself from the prompts that ship with pomona"
    return f"{words}:\n\n" + "\n".join(_lines(calibration))


def _adapter(one: AdapterFacts) -> str:
    head = f"## Adapter `{one.name}`\n\n"
    if one.record is None:
        return head + f"Its data are {NOT_KNOWN}."
    raw = one.record.to_json()
    parts = []
    if origin := raw.get("origin"):
        parts.append("Where it came from:\n\n" + "\n".join(_lines(origin)))
    for key, words in (("data", "Its training rows:"), ("text", "Its training text:")):
        if value := raw.get(key):
            parts.append(f"{words}\n\n" + "\n".join(_lines(value)))
    if not raw.get("data") and not raw.get("text"):
        parts.append(f"Its training data are {NOT_KNOWN}.")
    used = numbers(raw.get("result") or {}) + numbers(raw.get("metrics") or {})
    tokens = [f"- {text(name)}: {value}" for name, value in used if "token" in name]
    if tokens:
        parts.append("How much of it was used:\n\n" + "\n".join(tokens))
    if note := raw.get("license_note"):
        parts.append(text(note))
    return head + "\n\n".join(parts)


def _evaluation(about: Cards) -> str:
    if not about.results:
        return "No results were given."
    names = sorted({task.task for result in about.results for task in result.tasks})
    lines = [f"- {text(name)}" for name in names]
    return "These sets were used for measuring alone, as far as the results say:\n\n" + "\n".join(lines)


def _lines(value: Any, depth: int = 0) -> list[str]:
    """A record as a nested list, bounded: records are other people's."""
    mark = "  " * depth + "- "
    if depth >= DEEPEST:
        return [f"{mark}…"]
    found: list[str] = []
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, Mapping | list) and item:
                found += [f"{mark}{text(key)}:", *_lines(item, depth + 1)]
            elif item not in (None, [], {}):
                found.append(f"{mark}{text(key)}: {text(item)}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            found += _entry(item, depth)
    else:
        found.append(f"{mark}{text(value)}")
    return found if len(found) <= MOST else [*found[:MOST], f"{mark}and more, see the record"]


def _entry(item: Any, depth: int) -> list[str]:
    """One element of a list: an object of plain values in one line."""
    if isinstance(item, Mapping) and not any(isinstance(one, Mapping | list) for one in item.values()):
        pairs = [f"{text(key)} {text(one)}" for key, one in item.items() if one is not None]
        return ["  " * depth + "- " + ", ".join(pairs)]
    return _lines(item, depth)
