"""DPO and IPO by TRL's DPOTrainer, on our tokens. The reference is the adapter that training began with.

TRL divides IPO's log-ratios by the length of the response, so tau is per token (a choice that it
confirmed with the authors of IPO).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer

from pomona.models.tokenizer import Tokenizer
from pomona.posttraining.options import PreferenceOptions
from pomona.posttraining.training.sft_trainer import plain_tokenizer
from pomona.posttraining.training.trainer import Guard, training_arguments

LOSSES = {"dpo": "sigmoid", "ipo": "ipo"}


@dataclass(frozen=True)
class PreferenceExample:
    """A pair as tokens; each response has the token that ends its turn."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class GuardedDpoTrainer(Guard, DPOTrainer):  # type: ignore[misc]
    """TRL's trainer with rows that are tokens already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def new_trainer(
    model: Any,
    examples: Sequence[PreferenceExample],
    tokenizer: Tokenizer,
    options: PreferenceOptions,
    folder: Path,
) -> GuardedDpoTrainer:
    """model: with an adapter, of which TRL keeps a frozen copy as the reference."""
    from datasets import Dataset

    rows = [{"prompt_ids": e.prompt, "chosen_ids": e.chosen, "rejected_ids": e.rejected} for e in examples]
    arguments = training_arguments(
        options, folder, DPOConfig, loss_type=[LOSSES[options.loss]], beta=options.beta, max_length=None
    )
    return GuardedDpoTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=plain_tokenizer(tokenizer),
    )


def implicit_rewards(trainer: GuardedDpoTrainer, examples: Sequence[PreferenceExample]) -> dict[str, float]:
    """Of held-out pairs: accuracy, the share whose chosen response gained more against the reference than the
    rejected one; margin, the mean of the difference times beta; loss."""
    model = trainer.model
    model.eval()
    rows = [{"prompt_ids": e.prompt, "chosen_ids": e.chosen, "rejected_ids": e.rejected} for e in examples]
    size = trainer.args.per_device_eval_batch_size
    loss, right, margin = 0.0, 0.0, 0.0
    trainer._metrics["eval"].clear()
    for at in range(0, len(rows), size):
        batch = trainer.data_collator(rows[at : at + size])
        count = len(rows[at : at + size])
        with torch.no_grad(), trainer.compute_loss_context_manager():
            loss += count * float(trainer.compute_loss(model, trainer._prepare_inputs(batch)))
        right += count * trainer._metrics["eval"]["rewards/accuracies"][-1]
        margin += count * trainer._metrics["eval"]["rewards/margins"][-1]
    trainer._metrics["eval"].clear()
    return {"loss": loss / len(rows), "accuracy": right / len(rows), "margin": margin / len(rows)}
