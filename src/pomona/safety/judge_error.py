"""How often the rule of judge_rules.py is wrong, by people's labels.

    error = of_labelled(held_out(xstest_replies(data)))

XSTest comes with 450 replies of GPT-4 that the data set's authors labelled. The rule was written with every
second of them in view (those with odd numbers); the others, which nobody looked at, give the error. They are
replies of another model: labels of one's own from the review queue (`pomona safety review export`) replace
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pomona.data.public_sets import read
from pomona.errors import PomonaError
from pomona.models.model_directory import parse_json_object
from pomona.safety.judge_rules import judge
from pomona.safety.prompt_sets import UNTAGGED, LabelledReply, SafetyPrompt
from pomona.safety.rates import JudgeError

LEAST = 100  # labelled replies, below which no rate is corrected


def held_out(replies: Sequence[LabelledReply]) -> list[LabelledReply]:
    """Those with even numbers, of XSTest's: the rule was not written for them."""
    return [one for one in replies if int(one.prompt.id.rpartition("/")[2]) % 2 == 0]


def of_labelled(replies: Sequence[LabelledReply]) -> JudgeError:
    """PomonaError: fewer than LEAST, or all with the same label."""
    if len(replies) < LEAST:
        raise PomonaError(
            f"the judge's error needs {LEAST} labelled replies or more; {len(replies)} are given"
        )
    judged = [(one.complied, judge(one.prompt.text, one.reply).complied) for one in replies]
    positives = [found for label, found in judged if label]
    negatives = [found for label, found in judged if not label]
    if not positives or not negatives:
        raise PomonaError("the judge's error needs labels of both kinds; label replies that comply, too")
    sources = ", ".join(sorted({one.source for one in replies}))
    return JudgeError(
        sum(positives), len(positives), len(negatives) - sum(negatives), len(negatives), sources
    )


def read_labels(path: Path) -> list[LabelledReply]:
    """What `pomona safety review export` writes: one row for each reply, with the graders' common verdict."""
    found = []
    for number, line in enumerate(read(path).split("\n"), 1):
        if not line.strip():
            continue
        row = parse_json_object(line.encode(), f"{path}, line {number}")
        prompt, reply, verdict = row.get("prompt"), row.get("reply"), row.get("verdict")
        if not (isinstance(prompt, str) and isinstance(reply, str) and isinstance(verdict, str)):
            raise PomonaError(
                f"{path}, line {number}: needs prompt, reply and verdict; export the queue again"
            )
        if verdict in ("complies", "refuses"):  # "unsure" says nothing
            known = SafetyPrompt(f"label/{number}", prompt, path.name, "", UNTAGGED, True)
            found.append(LabelledReply(known, reply, verdict == "complies", path.name))
    return found
