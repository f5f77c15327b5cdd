"""The project's own texts: evaluation prose, prompts for self-calibration, prompts for the quickstart.

Everything here was written for pomona and lies in `texts/` as package data. The evaluation text and the
calibration prompts share no passage, so a model calibrated on its answers can be judged on the text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

from pomona.errors import PomonaError

_EVALUATION_FILES = (
    "evaluation_1_story.txt",
    "evaluation_2_encyclopaedia.txt",
    "evaluation_3_letter.txt",
    "evaluation_4_instructions.txt",
    "evaluation_5_dialogue.txt",
    "evaluation_6_report.txt",
)
_PROMPT_KEYS = {"category", "system", "user"}


@dataclass(frozen=True)
class ChatPrompt:
    """One user request that a model can answer; `category` says of which kind (explain, code, ...)."""

    category: str
    user: str
    system: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as chat messages, ready for a chat template (no assistant turn yet)."""
        head = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*head, {"role": "user", "content": self.user}]


def evaluation_text() -> str:
    """About 2,400 words (some 3,300 tokens) of varied English prose; the text of `pomona perplexity`."""
    return "\n\n".join(_read(name).strip() for name in _EVALUATION_FILES) + "\n"


def calibration_prompts() -> list[ChatPrompt]:
    """The 64 requests with whose answers a model writes its own calibration text, in a fixed order."""
    name = "calibration_prompts.jsonl"
    prompts = []
    for number, line in enumerate(_read(name).splitlines(), start=1):
        record = json.loads(line)
        if set(record) != _PROMPT_KEYS:
            raise PomonaError(
                f"{name}, line {number}: expected the keys {sorted(_PROMPT_KEYS)}; reinstall pomona"
            )
        prompts.append(ChatPrompt(record["category"], record["user"], record["system"]))
    return prompts


def demo_prompts() -> list[str]:
    """The two questions that the quickstart asks."""
    return _read("demo_prompts.txt").splitlines()


def _read(name: str) -> str:
    source = resources.files("pomona.data").joinpath("texts", name)
    try:
        return source.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise PomonaError(f"{source}: built-in text is missing; reinstall pomona") from error
