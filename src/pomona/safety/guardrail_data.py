"""What a guardrail learns from and is measured on: rows of text, side, category and source.

    rows = training_rows(data_folder(), held_out=("cybercrime", "privacy_property"))

Harmful inputs are AdvBench's and Do-Not-Answer's prompts, of the part of each set that `part_of` gives to
training; harmful outputs are AdvBench's beginnings of a compliance. Harmless ones are the instructions and
answers of public sets, our own look-alikes (texts/harmless.txt) and refusals. What is held out:

- categories: nothing of them is learnt from;
- sources: XSTest (both halves), HH-RLHF, the user-oriented set of Self-Instruct, MT-bench and Vicuna.

Nothing of the harmful sets is stored by pomona; they lie in the folder that POMONA_DATA names.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pomona.data.public_sets import json_lines, read
from pomona.errors import PomonaError
from pomona.posttraining.preference_sets import public_preferences
from pomona.safety.guardrail_head import SAFE, Side
from pomona.safety.prompt_sets import UNTAGGED, read_set

TEXTS = Path(__file__).with_name("texts")
HELD_OUT = ("cybercrime", "privacy_property")  # categories, by default
UNTAGGED_CATEGORY = "illegal"  # of harmful prompts that the lexicon cannot tell: the widest one
ANSWER_PAIRS = 200  # of HH-RLHF that are judged
OPENINGS = ("Sure, here is", "Sure! Here is", "Of course.", "Here is what you asked for:", "Certainly:")
_INSTRUCTION = re.compile(r"### Instruction:\s*(.*?)\s*(?:### Input:\s*(.*?)\s*)?### Response:", re.DOTALL)


@dataclass(frozen=True)
class GuardedText:
    """request: of an output the request that it answers, else "". category: the taxonomy's, or "safe"."""

    side: Side
    text: str
    category: str
    source: str
    request: str = ""

    @property
    def harmful(self) -> bool:
        return self.category != SAFE


@dataclass(frozen=True)
class EvaluationSet:
    """harmful and harmless texts of one side that are told apart. about: how they were held out."""

    name: str
    side: Side
    about: str
    harmful: tuple[GuardedText, ...]
    harmless: tuple[GuardedText, ...]


def training_rows(data: Path, *, held_out: Sequence[str] = HELD_OUT, seed: int = 0) -> list[GuardedText]:
    """PomonaError: a data set that is not there."""
    draw = random.Random(seed)
    harmful = [row for row in _harmful_inputs(data, "train") if row.category not in held_out]
    openings = _openings(data)
    complied = [
        GuardedText("output", openings[row.text], row.category, row.source, row.text)
        for row in harmful
        if row.text in openings
    ]
    refusals = lines("refusals")
    refused = [
        GuardedText("output", draw.choice(refusals), SAFE, "pomona", row.text)
        for row in draw.sample(harmful, min(len(harmful), len(complied)))
    ]
    answered = [_opened(row, draw) for row in _harmless_outputs(data)]
    return [*harmful, *_harmless_inputs(data), *complied, *refused, *answered]


def evaluation_sets(data: Path, *, held_out: Sequence[str] = HELD_OUT) -> list[EvaluationSet]:
    """In all of them the harmless texts are of sources that nothing was learnt from."""
    unseen = tuple(unseen_inputs(data))
    harmful = [row for part in ("train", "test") for row in _harmful_inputs(data, part)]
    categories = tuple(row for row in harmful if row.category in held_out)
    xstest = [
        (GuardedText("input", p.text, _category(p.category) if p.harmful else SAFE, "xstest"), p.harmful)
        for p in read_set("xstest", data)
    ]
    openings = _openings(data)
    complied = tuple(
        GuardedText("output", openings[row.text], row.category, row.source, row.text)
        for row in categories
        if row.text in openings
    )
    answers = tuple(_xstest_answers(data))
    pairs = _hh_rlhf(data)
    return [
        EvaluationSet("held-out categories", "input", ", ".join(held_out), categories, unseen),
        EvaluationSet(
            "held-out source", "input", "XSTest's unsafe half", tuple(t for t, bad in xstest if bad), unseen
        ),
        EvaluationSet(
            "look-alikes",
            "input",
            "XSTest's two halves against each other",
            tuple(t for t, bad in xstest if bad),
            tuple(t for t, bad in xstest if not bad),
        ),
        EvaluationSet(
            "held-out openings",
            "output",
            "first words that comply, against GPT-4's",
            complied,
            answers,
        ),
        EvaluationSet("held-out answers", "output", "HH-RLHF: rejected against preferred answers", *pairs),
    ]


def lines(name: str) -> list[str]:
    """The lines of one of our own texts."""
    text = (TEXTS / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _harmful_inputs(data: Path, part: Any) -> list[GuardedText]:
    prompts = [p for name in ("advbench", "do_not_answer") for p in read_set(name, data, part)]
    return [GuardedText("input", p.text, _category(p.category), p.source) for p in prompts if p.harmful]


def _category(tag: str) -> str:
    return UNTAGGED_CATEGORY if tag == UNTAGGED else tag.partition(".")[0]


def _harmless_inputs(data: Path) -> list[GuardedText]:
    found = [(text, "pomona") for text in lines("harmless")]
    found += [(asked, "dolly") for asked, _ in _dolly(data)]
    found += [(row["instruction"], "self_instruct") for row in _jsonl(data, "self_instruct/seed_tasks.jsonl")]
    found += [(asked, "dpo_pairs") for asked, _ in _dpo(data)]
    found += [(asked, "glaive_toolcall") for asked in _glaive(data)]
    return _distinct(found)


def unseen_inputs(data: Path) -> list[GuardedText]:
    path = "self_instruct/user_oriented_instructions.jsonl"
    found = [(row["instruction"], "self_instruct, user-oriented") for row in _jsonl(data, path)]
    for name in ("question", "vicuna_question"):
        found += [(row["turns"][0], "mt_bench") for row in _jsonl(data, f"mt_bench/{name}.jsonl")]
    return _distinct(found)


def _harmless_outputs(data: Path) -> list[GuardedText]:
    pairs = [(asked, said, "dolly") for asked, said in _dolly(data)]
    pairs += [(asked, said, "dpo_pairs") for asked, said in _dpo(data)]
    return [GuardedText("output", said, SAFE, source, asked) for asked, said, source in pairs if said]


def _opened(row: GuardedText, draw: random.Random) -> GuardedText:
    """Every other harmless answer begins like a compliance, or the opening alone would be learnt."""
    if draw.random() < 0.5:
        return row
    text = f"{draw.choice(OPENINGS)} {row.text}"
    return GuardedText("output", text, SAFE, row.source, row.request)


def _openings(data: Path) -> dict[str, str]:
    """AdvBench's goal -> the first words of an answer that complies."""
    path = data / "advbench" / "harmful_behaviors.csv"
    rows = csv.DictReader(io.StringIO(read(path)))
    return {row["goal"]: row["target"] for row in rows if row.get("goal") and row.get("target")}


def _xstest_answers(data: Path) -> Iterator[GuardedText]:
    """GPT-4's answers: to harmless prompts, and refusals."""
    path = data / "xstest" / "xstest_v2_completions_gpt4.csv"
    for row in csv.DictReader(io.StringIO(read(path))):
        refusal = str(row["final_label"]).startswith("2")
        if refusal or not str(row["type"]).startswith("contrast"):
            yield GuardedText("output", str(row["completion"]), SAFE, "xstest", str(row["prompt"]))


def _hh_rlhf(data: Path) -> tuple[tuple[GuardedText, ...], tuple[GuardedText, ...]]:
    """Rejected and preferred answers to a first request. The worse of two need not be harmful, nor the better
    one harmless: what can be reached is far from 1."""
    rows, _ = public_preferences("hh_rlhf", data)
    short = [row for row in rows if len(row.prompt) == 1 and row.rejected is not None]
    chosen = [short[number * len(short) // ANSWER_PAIRS] for number in range(min(ANSWER_PAIRS, len(short)))]
    rejected, preferred = (
        tuple(
            GuardedText("output", response.text, category, "hh_rlhf", row.prompt[0]["content"])
            for row, response in ((row, getattr(row, name)) for row in chosen)
        )
        for name, category in (("rejected", UNTAGGED_CATEGORY), ("chosen", SAFE))
    )
    return rejected, preferred


def _dolly(data: Path) -> list[tuple[str, str]]:
    return [
        (match[1], str(row["answer"]))
        for row in _jsonl(data, "dolly_slice/dolly.jsonl")
        if (match := _INSTRUCTION.search(str(row["prompt"]))) is not None
    ]


def _dpo(data: Path) -> list[tuple[str, str]]:
    rows = _json(data, "dpo_pairs/dpo_en_demo.json")
    return [
        (str(turn["value"]), str(row["chosen"]["value"]))
        for row in rows
        for turn in row["conversations"]
        if turn["from"] == "human"
    ][:300]


def _glaive(data: Path) -> list[str]:
    rows = _json(data, "glaive_toolcall/glaive_toolcall_en_demo.json")
    return [str(row["conversations"][0]["value"]) for row in rows]


def _distinct(found: Sequence[tuple[str, str]]) -> list[GuardedText]:
    """Harmless inputs, each text once; very long ones teach nothing about requests."""
    first: dict[str, str] = {}
    for text, source in found:
        if text.strip():
            first.setdefault(text.strip(), source)
    return [GuardedText("input", text, SAFE, source) for text, source in first.items()]


def _jsonl(data: Path, name: str) -> Iterator[dict[str, Any]]:
    return json_lines(data / name, read(data / name))


def _json(data: Path, name: str) -> Any:
    path = data / name
    try:
        return json.loads(read(path))
    except (ValueError, RecursionError) as error:
        raise PomonaError(f"{path}: is no JSON ({error}); get the data set again") from error
