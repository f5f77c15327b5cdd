"""One iteration of MDLOO, RLOO or rejection sampling on responses that were sampled and rewarded.

    1. log pi_ref and log pi_k of all responses, or of the informative ones (advantage.most_telling), pi_k
       being the policy that sampled them
    2. R = r - beta log(pi_k / pi_ref), and its leave-one-out advantage (advantage.py)
    3. `inner_steps` optimizer steps on the surrogate of mdloo_loss.py

Everything that an iteration depends on is in its number and its responses: one that was interrupted is done
again from its start and ends with the same bits on as many threads.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pomona.adapters.packing import Example
from pomona.errors import PomonaError
from pomona.models.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec
from pomona.posttraining.advantage import best_of, leave_one_out, most_telling, shaped_rewards
from pomona.posttraining.mdloo_options import MdlooOptions
from pomona.posttraining.training.mdloo_loss import mirror_descent_coefficients, sampled_kl
from pomona.posttraining.training.policy import Policy, Score

STATE = "state.safetensors"
_BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class IterationStats:
    """Means over the responses of an iteration that are read (all, or the informative ones). kl_reference:
    log pi_k - log pi_ref of the samples, nats per response; NaN without beta, when nobody asks the
    reference. kl_start: KL(pi || pi_k) when the last inner step looked, before it was made, nats per
    response; 0 with one step. ratio: largest and smallest rho then. entropy: nats per token of pi_k."""

    kl_reference: float
    kl_start: float
    advantage_spread: float  # standard deviation
    entropy: float
    ratio_high: float
    ratio_low: float
    gradient_norm: float  # before clipping, of the last step
    taught: int  # responses that had an advantage, or were picked


class MdlooTrainer:
    """Trains `policy` in place. iteration, steps: of the optimizer; that are done."""

    def __init__(self, policy: Policy, options: MdlooOptions) -> None:
        self.policy, self.options = policy, options
        self.optimizer = torch.optim.AdamW(
            [policy.flat.values], lr=options.lr, betas=_BETAS, weight_decay=0.0
        )
        self.iteration = self.steps = 0

    def iterate(self, rows: Sequence[Example], reward_PK: NDArray[np.float64]) -> IterationStats:
        """rows: the responses, K of a prompt one after the other. reward: NaN where none was had."""
        o = self.options
        groups, samples = reward_PK.shape
        if len(rows) != groups * samples:
            raise ValueError(f"{len(rows)} responses for {groups} prompts of {samples}")
        exact = o.method != "rs" and o.gamma > 0 and o.estimator == "exact" and o.inner_steps > 1
        read_PK = np.ones(reward_PK.shape, bool)
        if o.informative is not None:
            read_PK = most_telling(reward_PK, o.informative)
        read = [int(n) for n in np.flatnonzero(read_PK)]
        scores = self.policy.score([rows[n] for n in read], entropy=True, keep=exact)
        start = dict(zip(read, scores, strict=True))
        reference = scores
        if o.beta > 0:
            with self.policy.as_reference():
                reference = self.policy.score([rows[n] for n in read])
        log_ratio = np.full(reward_PK.size, math.nan)
        log_ratio[read] = [k.log_p - ref.log_p for k, ref in zip(scores, reference, strict=True)]
        shaped = shaped_rewards(reward_PK, log_ratio.reshape(reward_PK.shape), o.beta)
        if o.method == "rs":
            best = best_of(np.where(read_PK, reward_PK, math.nan))
            picks = [p * samples + number for p, number in enumerate(best) if number is not None]
            advantage = np.zeros(groups * samples)
            advantage[picks] = 1.0
        else:
            advantage = leave_one_out(shaped).reshape(-1)
        last = _Step()
        for step in range(o.inner_steps):
            # At the first step the policy is still pi_k: its KL and that one's gradient are zero.
            bounded = o.method != "rs" and o.gamma > 0 and step > 0
            chosen = self._part(step, read_PK)
            last = self._step(rows, chosen, advantage, start, bounded=bounded)
        self.iteration += 1
        tokens = sum(score.tokens for score in scores)
        return IterationStats(
            kl_reference=float(np.mean(log_ratio[read])) if o.beta > 0 and read else math.nan,
            kl_start=last.kl,
            advantage_spread=float(np.std(advantage)),
            entropy=sum(score.entropy for score in scores) / tokens if tokens else math.nan,
            ratio_high=last.high,
            ratio_low=last.low,
            gradient_norm=last.norm,
            taught=int(np.count_nonzero(advantage)),
        )

    def _part(self, step: int, read_PK: NDArray[np.bool_]) -> list[int]:
        """The responses of an inner step: whole prompts, all of them once in `mini_batches` steps."""
        groups, samples = read_PK.shape
        parts = self.options.mini_batches
        whole, at = divmod(step, parts)
        order = np.random.default_rng([self.options.seed, self.iteration, whole]).permutation(groups)
        order = order[read_PK[order].any(1)]
        prompts = order if parts == 1 else np.array_split(order, parts)[at]
        return [int(p) * samples + k for p in sorted(prompts) for k in range(samples) if read_PK[p, k]]

    def _step(
        self,
        rows: Sequence[Example],
        chosen: list[int],
        advantage: NDArray[np.float64],
        start: Mapping[int, Score],
        *,
        bounded: bool,
    ) -> _Step:
        """bounded: with the KL to the start."""
        o = self.options
        found = _Step()
        total = len(chosen)
        exact = bounded and o.estimator == "exact"
        if not bounded:  # what has no advantage need not be read, unless for its KL
            chosen = [n for n in chosen if advantage[n] != 0]
        if not chosen:
            return found
        learnt = sum(rows[n].answers for n in chosen)
        log_k = torch.tensor([start[n].log_p for n in chosen])
        weight = torch.tensor([advantage[n] for n in chosen], dtype=torch.float32)
        sampled = 0.0

        def coefficients(log_p: Tensor, numbers: list[int]) -> Tensor:
            nonlocal sampled
            if o.method == "rs":
                return -weight[numbers] / learnt
            log_ratio = log_p - log_k[numbers]
            found.high = max(found.high, float(log_ratio.max().exp()))
            found.low = min(found.low, float(log_ratio.min().exp()))
            sampled += float(sampled_kl(log_ratio).sum())
            return mirror_descent_coefficients(
                log_ratio,
                weight[numbers],
                gamma=o.gamma,
                estimator=o.estimator,
                total=total,
                max_ratio=o.max_ratio,
            )

        self.policy.flat.grads.zero_()
        kl = self.policy.gradient(
            [rows[n] for n in chosen],
            coefficients,
            kl_weight=o.gamma / total if exact else 0.0,
            old=[start[n] for n in chosen] if exact else None,
        )
        found.kl = (kl if exact else sampled) / total
        found.norm = self._update()
        return found

    def _update(self) -> float:
        flat = self.policy.flat
        norm = float(torch.linalg.vector_norm(flat.grads))
        if not math.isfinite(norm):
            raise PomonaError(
                f"iteration {self.iteration + 1}: the gradient is no number; lower the learning rate, or "
                "raise gamma"
            )
        if norm > self.options.clip:
            flat.grads.mul_(self.options.clip / norm)
        flat.values.grad = flat.grads
        self.steps += 1
        self.optimizer.param_groups[0]["lr"] = self.options.lr * min(
            self.steps / max(self.options.warm_up, 1), 1
        )
        self.optimizer.step()
        self.policy.network.refresh()
        return norm

    # --- between iterations -------------------------------------------------------------------------------

    def save(self, folder: Path, extra: dict[str, Any]) -> None:
        """Writes the state between two iterations; the old one stays until the new one is whole."""
        flat = self.policy.flat
        state = self.optimizer.state.get(flat.values, {})
        zeros = torch.zeros_like(flat.values)
        vectors = {
            "values": flat.values,
            "reference": self.policy.reference,
            "mean": state.get("exp_avg", zeros),
            "square": state.get("exp_avg_sq", zeros),
        }
        meta = {"iteration": self.iteration, "steps": self.steps, **extra}
        path = folder / STATE
        new = path.with_suffix(".new")
        specs = [TensorSpec(name, "F32", tuple(vector.shape)) for name, vector in vectors.items()]
        with SafetensorsWriter(new, specs, {"run": json.dumps(meta)}) as writer:
            for name, vector in vectors.items():
                writer.write(name, vector.detach().numpy())
        os.replace(new, path)

    def resume(self, folder: Path) -> dict[str, Any]:
        """Goes on from `folder`; gives what save() was told beside."""
        with SafetensorsFile(folder / STATE) as file:
            meta: dict[str, Any] = json.loads(file.metadata.get("run", "{}"))
            vectors = {name: torch.from_numpy(file.array(name).copy()) for name in file.tensors}
        flat = self.policy.flat
        if vectors["values"].shape != flat.values.shape:
            raise PomonaError(f"{folder / STATE}: belongs to another adapter; give the same, or --restart")
        self.iteration, self.steps = meta["iteration"], meta["steps"]
        self.policy.reference.copy_(vectors["reference"])
        flat.values.copy_(vectors["values"])
        if self.steps:
            self.optimizer.state[flat.values] = {
                "step": torch.tensor(float(self.steps)),
                "exp_avg": vectors["mean"],
                "exp_avg_sq": vectors["square"],
            }
        self.policy.network.refresh()
        return meta


@dataclass
class _Step:
    kl: float = 0.0
    high: float = 1.0
    low: float = 1.0
    norm: float = 0.0
