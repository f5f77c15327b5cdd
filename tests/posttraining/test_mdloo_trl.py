"""The first inner step against an independent implementation: TRL's RLOO on a small Qwen3 model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mdloo_samples import tiny_model

from pomona.posttraining.advantage import leave_one_out, shaped_rewards
from pomona.posttraining.training.mdloo_loss import (
    Responses,
    log_probs,
    logits_gradient,
    mirror_descent_coefficients,
)

BETA, GAMMA, SAMPLES = 0.05, 0.7, 4


def reward_of(ids: list[int]) -> float:
    return float(sum(ids) % 7)


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One step of TRL's trainer: what it was given, what it sampled, and the gradient of its loss."""
    import os

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import RLOOConfig, RLOOTrainer

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trl")
    base: Path = tiny_model(folder / "tiny")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(base / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|im_start|>"
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    seen: dict[str, Any] = {}

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [reward_of(ids) for ids in completion_ids]

    class Captured(RLOOTrainer):
        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            loss = super()._compute_loss(model, inputs)
            seen.update({key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)})
            parameters = dict(model.named_parameters())
            found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
            seen["gradients"] = dict(zip(parameters, found, strict=True))
            return loss

    config = RLOOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=2 * SAMPLES,
        num_generations=SAMPLES,
        max_completion_length=8,
        max_steps=1,
        beta=BETA,
        learning_rate=0.0,
        report_to=[],
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        seed=0,
    )
    trainer = Captured(
        model=model,
        reward_funcs=reward,
        args=config,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": ["Say 1", "Say 22"]}),
    )
    with torch.no_grad():  # the policy has left its reference, so that the KL in the reward is not zero
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    trainer.train()
    return {**seen, "model": model, "reference": trainer.ref_model}


def logits_of(model: Any, inputs: dict[str, Any]) -> Any:
    """Of the completions' places, [N, L, V]."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    count = inputs["completion_ids"].shape[1]
    return model(input_ids=ids, attention_mask=mask).logits[:, -count - 1 : -1]


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_the_first_step_has_the_gradient_of_rloo(captured: dict[str, Any], estimator: str) -> None:
    """With gamma, which must not matter yet; the advantages are ours too."""
    model, reference = captured["model"].eval(), captured["reference"].eval()
    keep = captured["completion_mask"].bool()
    owner, _ = keep.nonzero(as_tuple=True)
    responses = Responses(captured["completion_ids"][keep], owner, len(keep))
    logits = logits_of(model, captured)
    flat = logits[keep].detach().clone()
    log_p, log_z = log_probs(flat, responses)
    with torch.no_grad():
        log_ref, _ = log_probs(logits_of(reference, captured)[keep], responses)
    log_ratio = (responses.sums(log_p) - responses.sums(log_ref)).double().numpy()
    assert np.abs(log_ratio).max() > 0.05
    reward = np.array(
        [reward_of(ids[m].tolist()) for ids, m in zip(captured["completion_ids"], keep, strict=True)]
    )
    # TRL shuffles responses after it has scored them; those of a prompt are found by its tokens.
    prompts = [tuple(ids.tolist()) for ids in captured["prompt_ids"]]
    order = sorted(range(len(prompts)), key=lambda number: prompts[number])
    shaped = shaped_rewards(reward, log_ratio, BETA)[order].reshape(-1, SAMPLES)
    theirs = captured["advantages"].numpy()[order]
    assert np.abs(leave_one_out(shaped).reshape(-1) - theirs).max() < 1e-4 and np.abs(theirs).max() > 0.5

    old = flat.clone()
    kl, _ = logits_gradient(
        flat,
        responses,
        log_z,
        mirror_descent_coefficients(
            torch.zeros(len(keep)), captured["advantages"], gamma=GAMMA, estimator=estimator, total=len(keep)
        ),
        kl_weight=GAMMA / len(keep) if estimator == "exact" else 0.0,
        old_logits=(lambda block: old[block]) if estimator == "exact" else None,
    )
    assert float(kl.abs().max()) < 1e-5
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad(logits[keep], list(parameters.values()), flat)
    for name, mine in zip(parameters, ours, strict=True):
        wanted = captured["gradients"][name]
        assert torch.allclose(mine, wanted, rtol=1e-3, atol=2e-5 * float(wanted.abs().max())), name
