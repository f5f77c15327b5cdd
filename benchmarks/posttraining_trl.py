"""The first inner step of MDLOO beside TRL's RLOO: the same advantages, the same gradient.

TRL samples and rewards; its policy has left its reference, so that the KL in the reward counts. Our part gets
TRL's responses and the logits of the same model. gamma is set, and must not matter at this step.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

BETA, GAMMA, SAMPLES = 0.05, 0.7, 4


def reward_of(ids: list[int]) -> float:
    return float(sum(ids) % 7)


def first_step(base: Path, folder: Path) -> dict[str, Any]:
    """One step of TRL's trainer on the model `base`: what it sampled, its advantages (tensors by TRL's
    names), the gradients of its loss by parameter, policy and reference."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import RLOOConfig, RLOOTrainer

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(base / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|im_start|>"
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    seen: dict[str, Any] = {}

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [reward_of(ids) for ids in completion_ids]

    class Captured(RLOOTrainer):  # type: ignore[misc,unused-ignore]
        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            loss = super()._compute_loss(model, inputs)
            seen.update({key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)})
            parameters = dict(model.named_parameters())
            found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
            seen["gradients"] = dict(zip(parameters, found, strict=True))
            return loss

    config = RLOOConfig(
        output_dir=str(folder),
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
        disable_tqdm=True,
        seed=0,
    )
    trainer = Captured(
        model=model,
        reward_funcs=reward,
        args=config,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": ["Say 1", "Say 22"]}),
    )
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    trainer.train()
    return {**seen, "model": model.eval(), "reference": trainer.ref_model.eval()}


def gaps(captured: dict[str, Any], estimator: Any) -> dict[str, float]:
    """advantages: largest difference; gradient: norm of the difference over the norm, all parameters as one
    vector; log_ratio: the largest distance from the reference, which must not be zero for this to mean
    something."""
    import torch

    from pomona.posttraining.advantage import leave_one_out, shaped_rewards
    from pomona.posttraining.training.mdloo_loss import (
        Responses,
        log_probs,
        logits_gradient,
        mirror_descent_coefficients,
    )

    model = captured["model"]
    keep = captured["completion_mask"].bool()
    owner, _ = keep.nonzero(as_tuple=True)
    responses = Responses(captured["completion_ids"][keep], owner, len(keep))
    logits = _logits(model, captured)
    flat = logits[keep].detach().clone()
    log_p, log_z = log_probs(flat, responses)
    with torch.no_grad():
        log_ref, _ = log_probs(_logits(captured["reference"], captured)[keep], responses)
    log_ratio = (responses.sums(log_p) - responses.sums(log_ref)).double().numpy()
    reward = np.array(
        [reward_of(ids[mask].tolist()) for ids, mask in zip(captured["completion_ids"], keep, strict=True)]
    )
    # TRL shuffles responses after it has scored them; those of a prompt are found by its tokens.
    prompts = [tuple(ids.tolist()) for ids in captured["prompt_ids"]]
    order = sorted(range(len(prompts)), key=lambda number: prompts[number])
    shaped = shaped_rewards(reward, log_ratio, BETA)[order].reshape(-1, SAMPLES)
    theirs = captured["advantages"].numpy()[order]
    old = flat.clone()
    coefficients = mirror_descent_coefficients(
        torch.zeros(len(keep)), captured["advantages"], gamma=GAMMA, estimator=estimator, total=len(keep)
    )
    exact = estimator == "exact"
    logits_gradient(
        flat,
        responses,
        log_z,
        coefficients,
        kl_weight=GAMMA / len(keep) if exact else 0.0,
        old_logits=(lambda block: old[block]) if exact else None,
    )
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad(logits[keep], list(parameters.values()), flat)
    mine = torch.cat([part.reshape(-1) for part in ours])
    wanted = torch.cat([captured["gradients"][name].reshape(-1) for name in parameters])
    return {
        "advantages": float(np.abs(leave_one_out(shaped).reshape(-1) - theirs).max()),
        "gradient": float(torch.linalg.vector_norm(mine - wanted) / torch.linalg.vector_norm(wanted)),
        "log_ratio": float(np.abs(log_ratio).max()),
        "gradient_norm": float(torch.linalg.vector_norm(wanted)),
    }


def _logits(model: Any, inputs: dict[str, Any]) -> Any:
    """Of the completions' places, [N, L, V]."""
    import torch

    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    count = inputs["completion_ids"].shape[1]
    return model(input_ids=ids, attention_mask=mask).logits[:, -count - 1 : -1]
