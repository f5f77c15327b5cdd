"""proofread: the corrected text. The list of edits is computed by aligning words (edits.py), not asked of the
model: a small one is far better at writing the text again than at counting its characters."""

from __future__ import annotations

from pathlib import Path

from pomona.adapters.metrics import F_HALF, GLEU, mean
from pomona.adapters.tasks.task import Example, Task


def _held_out(folder: Path) -> list[Example]:
    from pomona.adapters.recipes.proofread import held_out

    return held_out(folder)


def _clean_kept(prediction: object, example: Example) -> float | None:
    """Of texts without errors: whether they were left alone."""
    if example.answer != example.request.content:
        return None
    return float(prediction == example.answer)


TASK = Task(
    name="proofread",
    description="Corrects spelling, grammar and punctuation, and changes nothing else.",
    instructions=(
        "You proofread texts. You answer with the corrected text alone, in the same words where they "
        "are right."
    ),
    request="Correct the spelling, grammar and punctuation of this text.",
    metrics=(F_HALF, GLEU, mean("clean_kept", _clean_kept)),
    held_out=_held_out,
    held_out_note="C4 sentences with errors of the error model; no C4 text is in the training rows",
    tokens=lambda content: content + content // 3 + 24,
)
