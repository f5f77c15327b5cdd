"""Supervised fine-tuning by TRL's SFTTrainer, on our tokens: only the assistant's answers are learnt.

Shape letters: B rows, S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from pomona.adapters.packing import Example
from pomona.models.tokenizer import Tokenizer
from pomona.posttraining.conversations import padding_token
from pomona.posttraining.options import SftOptions
from pomona.posttraining.training.base import Start, load_causal, with_adapter
from pomona.posttraining.training.reward_trainer import padded
from pomona.posttraining.training.trainer import Guard, training_arguments

IGNORED = -100  # the label of a token that is not learnt


class GuardedSftTrainer(Guard, SFTTrainer):  # type: ignore[misc]
    """TRL's trainer; steps without a number are left out."""


def new_policy(base: Path, options: SftOptions, start: Start | None) -> Any:
    """A causal model to train: with an adapter on a frozen base, or all weights."""
    torch.manual_seed(options.seed)
    model = load_causal(base, options.dropout)
    if options.weights == "full":
        return model
    return with_adapter(model, options.rank, options.alpha, start)


def new_trainer(
    model: Any, examples: Sequence[Example], tokenizer: Tokenizer, options: SftOptions, folder: Path
) -> GuardedSftTrainer:
    from datasets import Dataset

    rows = [{"input_ids": example.ids.tolist(), "labels": labels(example)} for example in examples]
    arguments = training_arguments(
        options,
        folder,
        SFTConfig,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return GuardedSftTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=plain_tokenizer(tokenizer),
    )


def labels(example: Example) -> list[int]:
    """The ids of the learnt tokens, IGNORED elsewhere."""
    return [
        token if learnt else IGNORED
        for token, learnt in zip(example.ids.tolist(), example.learnt.tolist(), strict=True)
    ]


def plain_tokenizer(tokenizer: Tokenizer) -> Any:
    """What TRL wants of a tokenizer: which token pads and which ends. The tokens are ours already."""
    ends = tokenizer.eos_token_ids
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend,
        pad_token=tokenizer.id_to_token(padding_token(tokenizer)),
        eos_token=tokenizer.id_to_token(ends[0]) if ends else None,
    )


def answer_loss(
    model: Any, examples: Sequence[Example], padding: int, *, pass_rows: int, precision: str
) -> float:
    """Cross-entropy of the learnt tokens, in nats per token."""
    model.eval()
    total, count = 0.0, 0
    for at in range(0, len(examples), pass_rows):
        group = examples[at : at + pass_rows]
        ids_BS, mask_BS = padded([example.ids.tolist() for example in group], padding)
        wanted_BS = torch.full_like(ids_BS, IGNORED)
        for number, example in enumerate(group):
            wanted_BS[number, : len(example.ids)] = torch.tensor(labels(example))
        device = next(model.parameters()).device
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
        with torch.no_grad(), autocast:
            logits_BSV = model(input_ids=ids_BS.to(device), attention_mask=mask_BS.to(device)).logits
        loss = cross_entropy(
            logits_BSV[:, :-1].flatten(0, 1).float(),
            wanted_BS[:, 1:].flatten().to(device),
            ignore_index=IGNORED,
            reduction="sum",
        )
        total += float(loss)
        count += int((wanted_BS[:, 1:] != IGNORED).sum())
    return total / max(count, 1)
