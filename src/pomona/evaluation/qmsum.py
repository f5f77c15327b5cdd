"""QMSum: answers to queries about a stretch of a meeting (Zhong et al., arXiv:2104.05938), by ROUGE-L.

The generation set of the recovery table: an open answer whose quality moves by small steps, which no judge
model is needed for. Queries about stretches of at most 4,000 characters, of the test split.
"""

from __future__ import annotations

from pomona.adapters.metrics import rouge_l
from pomona.data.public_sets import qmsum
from pomona.errors import PomonaError
from pomona.evaluation.generation_task import GenerationTask, Question, Score, Setting, each

NEW_TOKENS = 128
_PROMPT = "Here is a part of a meeting.\n\n{text}\n\n{query}\nAnswer in two or three sentences."


def _questions(setting: Setting) -> list[Question]:
    if setting.data is None:
        raise PomonaError("qmsum: comes from local files alone; leave --hub away and set POMONA_DATA")
    return [
        Question(
            str(number),
            ({"role": "user", "content": _PROMPT.format(text=one.text, query=one.query)},),
            NEW_TOKENS,
            expected=one.answer,
        )
        for number, one in enumerate(qmsum(setting.data, "test"))
    ]


def _score(question: Question, answer: str) -> dict[str, Score]:
    return {"rouge_l": (rouge_l(answer, question.expected), 1.0)}


QMSUM = GenerationTask("qmsum", "1", 0, ("rouge_l",), _questions, each(_score))
