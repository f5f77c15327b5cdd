"""GSM8K with chains of thought (Cobbe et al., arXiv:2110.14168), asked by ourselves.

The suite `math` takes lm-eval's own task, which draws other worked examples for every question. Here they are
the first eight of the training set for all questions, so that their part of the prompt is computed once: for
tables over many models (AFM report, section 6.5, Table 10: GSM8K, 8-shot CoT). Prompt, extraction and
comparison follow lm-eval's task, version 3: *flexible* takes the last number of an answer, *strict* the one
after "####".
"""

from __future__ import annotations

import re

from pomona.evaluation.generation_task import GenerationTask, Question, Score, Setting, each, text_of

SHOTS = 8
NEW_TOKENS = 256
_HUB = "openai/gsm8k"
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_STRICT = re.compile(r"#### (-?[0-9.,]+)")


def _questions(setting: Setting) -> list[Question]:
    def rows(split: str) -> list[tuple[str, str]]:
        place = f"gsm8k/{split}.jsonl"
        found = setting.rows(place, (_HUB, "main", split))
        return [(text_of(row, "question", place), text_of(row, "answer", place)) for row in found]

    examples = "".join(
        f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in rows("train")[:SHOTS]
    )
    return [
        Question(
            str(number),
            setting.prompt(f"{examples}Question: {question}\nAnswer:"),
            NEW_TOKENS,
            stops=("Question:", "</s>", "<|im_end|>"),
            expected=answer,
        )
        for number, (question, answer) in enumerate(rows("test"))
    ]


def flexible(answer: str) -> str:
    """The last number of an answer, as lm-eval's filter `flexible-extract` finds it; "" without one."""
    found = [first or second for first, second in _FLEXIBLE.findall(answer)]
    return found[-1].strip() if found else ""


def strict(answer: str) -> str:
    """The first number after "####", as lm-eval's filter `strict-match`; "" without one."""
    found = _STRICT.search(answer)
    return found[1].strip() if found else ""


def plain(number: str) -> str:
    """As it is compared: without commas, dollars, what stands before "####", and a full stop at the end."""
    number = re.sub(r"(?s).*#### ", "", number.replace(",", "").replace("$", ""))
    return re.sub(r"\.$", "", number).lower()


def _score(question: Question, answer: str) -> dict[str, Score]:
    right = plain(question.expected)
    return {
        name: (float(plain(found) == right), 1.0)
        for name, found in (("flexible", flexible(answer)), ("strict", strict(answer)))
    }


GSM8K = GenerationTask("gsm8k_cot", "1", SHOTS, ("flexible", "strict"), _questions, each(_score))
