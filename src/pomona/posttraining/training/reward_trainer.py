"""Training the graded reward model: transformers' Trainer with our loss, on our tokens.

TRL's RewardTrainer would save the padding and the PEFT set-up alone; its loss, its columns and its collator
would all be replaced. What is own here is what it would be there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from pomona.posttraining.options import RewardOptions
from pomona.posttraining.preferences import GRADES, LEVELS, QUESTIONS, Level, Preference, Response
from pomona.posttraining.training.base import (
    Start,
    add_dropout,
    load_config,
    load_weights,
    with_adapter,
)
from pomona.posttraining.training.reward_loss import NO_GRADE, reward_loss
from pomona.posttraining.training.reward_network import GradedRewardNetwork
from pomona.posttraining.training.trainer import Guard, training_arguments

HEADS = ("score", "gradings")


@dataclass(frozen=True)
class RewardExample:
    """One row as tokens. level: its place in LEVELS, -1 for a grading alone, whose `rejected` is empty."""

    chosen: list[int]
    rejected: list[int]
    level: int
    grades: tuple[list[int], list[int]]  # of each response: place in GRADES per question, or NO_GRADE


def reward_example(
    row: Preference, encode: Callable[[Response], list[int]], unknown_level: Level
) -> RewardExample:
    """encode: tokens of the conversation with this response."""
    rejected = row.rejected
    return RewardExample(
        encode(row.chosen),
        [] if rejected is None else encode(rejected),
        -1 if rejected is None else LEVELS.index(row.level or unknown_level),
        (_grades(row.chosen), _grades(rejected or Response(""))),
    )


def _grades(response: Response) -> list[int]:
    given = response.gradings
    return [GRADES.index(given[q]) if q in given else NO_GRADE for q in QUESTIONS]


@dataclass(frozen=True)
class RewardCollator:
    """Examples -> one batch: all chosen responses, then all rejected ones, padded on the right."""

    padding: int

    def __call__(self, examples: Sequence[RewardExample]) -> dict[str, Tensor]:
        # A missing response is one token of padding that counts: its state is used nowhere.
        rows = [e.chosen for e in examples] + [e.rejected or [self.padding] for e in examples]
        ids, mask = padded(rows, self.padding)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "level": torch.tensor([e.level for e in examples]),
            "grades": torch.tensor([e.grades[0] for e in examples] + [e.grades[1] for e in examples]),
        }


def padded(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """ids, mask [B, S]."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), padding)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return ids, mask


class RewardTrainer(Guard, Trainer):  # type: ignore[misc]
    """transformers' Trainer with the loss of reward_loss.py."""

    options: RewardOptions

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        level, grades = inputs.pop("level"), inputs.pop("grades")
        out = model(**inputs)
        rewards, rest = out.logits.squeeze(-1), out.gradings
        loss = reward_loss(
            _halves(rewards),
            _halves(rest),
            level,
            _halves(grades),
            labels=self.options.labels,
            grading_weight=self.options.grading_weight,
        ).mean()
        return (loss, out) if return_outputs else loss


def _halves(both: Tensor) -> tuple[Tensor, Tensor]:
    first, second = both.chunk(2)
    return first, second


def new_network(base: Path, options: RewardOptions, start: Start | None) -> Any:
    """The network on `base`, ready to train: with an adapter, or all weights. The seed makes its heads."""
    torch.manual_seed(options.seed)
    network = GradedRewardNetwork(load_config(base))
    load_weights(network, base, head=False)
    add_dropout(network.model, options.dropout)
    if options.weights == "full":
        return network
    return with_adapter(network, options.rank, options.alpha, start, task=None, save=list(HEADS))


def new_trainer(
    network: Any, examples: Sequence[RewardExample], padding: int, options: RewardOptions, folder: Path
) -> RewardTrainer:
    trainer = RewardTrainer(
        model=network,
        args=training_arguments(options, folder),
        train_dataset=list(examples),
        data_collator=RewardCollator(padding),
    )
    trainer.options = options
    # The loss is a mean over a batch's rows, so that of an accumulated step is the mean of its passes.
    trainer.model_accepts_loss_kwargs = False
    return trainer


def head_state(network: Any) -> dict[str, Tensor]:
    """The heads' weights by their plain names, with an adapter around the network or without."""
    found = {}
    for name, tensor in network.state_dict().items():
        if ".original_module." in name:
            continue
        plain = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        if plain.startswith(HEADS):
            found[plain] = tensor.detach()
    return found


def run_network(
    network: Any, rows: Sequence[Sequence[int]], padding: int, *, pass_tokens: int, precision: str
) -> tuple[Tensor, Tensor]:
    """(rewards [n], grading logits [n, G, C]) in float64, in the order of `rows`.

    Rows of like length go together, at most `pass_tokens` with their padding (one row at the least). The same
    rows give the same bits.
    """
    network.eval()
    order = sorted(range(len(rows)), key=lambda number: (len(rows[number]), number))
    rewards = torch.empty(len(rows), dtype=torch.float64)
    gradings = torch.empty((len(rows), len(QUESTIONS), len(GRADES)), dtype=torch.float64)
    at = 0
    while at < len(order):
        end = at + 1
        while end < len(order) and (end + 1 - at) * len(rows[order[end]]) <= pass_tokens:
            end += 1
        group = order[at:end]
        ids, mask = padded([rows[number] for number in group], padding)
        device = next(network.parameters()).device
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
        with torch.no_grad(), autocast:
            out = network(input_ids=ids.to(device), attention_mask=mask.to(device))
        rewards[group] = out.logits.squeeze(-1).double().cpu()
        gradings[group] = out.gradings.double().cpu()
        at = end
    return rewards, gradings
