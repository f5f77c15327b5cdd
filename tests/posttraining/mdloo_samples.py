"""The tiny chat model of the adapters' tests, and prompts with a rule that it can learn in a few steps."""

from __future__ import annotations

import sys
from pathlib import Path

from pomona.posttraining.mdloo_options import MdlooOptions
from pomona.posttraining.prompts import Prompt

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
from adapt_samples import tiny_model

__all__ = ["OPTIONS", "Letters", "adapter_bytes", "prompts", "tiny_model"]

OPTIONS = MdlooOptions(
    iterations=3,
    warm_up=0,
    prompts=2,
    samples=4,
    beta=0.01,
    gamma=0.1,
    inner_steps=2,
    lr=5e-3,
    rank=4,
    max_new_tokens=12,
)


def adapter_bytes(directory: Path | str) -> bytes:
    return (Path(directory) / "adapter_model.safetensors").read_bytes()


def prompts(count: int = 5) -> list[Prompt]:
    return [
        Prompt(({"role": "user", "content": f"Say {number}"},), ({"check": "no_comma"},))
        for number in range(count)
    ]


class Letters:
    """A reward that a random model can find: the share of bytes below 128 (plain ASCII)."""

    name = "letters"

    def score(self, pairs: list[tuple[Prompt, str]]) -> list:
        from pomona.posttraining.rewards import Verdict

        return [Verdict(sum(letter.isascii() for letter in text) / len(text)) for _, text in pairs]

    def close(self) -> None:
        pass
