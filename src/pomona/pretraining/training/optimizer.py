"""The report's optimizer: RMSProp with momentum, clipped per block, decayed by the schedule (section 3.5).

One step for a tensor w with gradient g, peak rate eta, schedule s in [0, 1], muParam factor c, decay d:

    v <- b2 v + (1 - b2) (g^2 + eps)
    u <- g / sqrt(v / (1 - b2^t))          # bias-corrected; eps stands under the root, there is no other
    u <- u / max(1, RMS(u) / clip)         # per tensor
    m <- b1 m + (1 - b1) u                 # no bias correction
    w <- w - s (eta c m + d w)             # the decay follows the schedule, not eta

Clipping by the global norm and dropping steps is the trainer's (trainer.py). The rule is that of AXLearn's
`adastar_optimizer` as its `adastar_learner_config` sets it (apple/axlearn, common/optimizers.py and
experiments/text/gpt/common.py); words and code here are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

Params = Iterable[torch.Tensor] | Iterable[dict[str, Any]]


class RMSPropMomentum(torch.optim.Optimizer):  # type: ignore[misc]
    """State per parameter: `square` (v), `momentum` (m), of the parameter's shape and type, and `step`.

    Works on plain tensors and on DTensors: every operation is elementwise but one norm per tensor, which
    DTensor reduces over all shards, so that sharded and whole training take the same step.

    A parameter group may have its own `lr`, `weight_decay` and `factor` (muParam's c). A scheduler changes
    `lr`; the share `lr / peak_lr` is s. Parameters without a gradient stay as they are, decay included.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 0.01,
        *,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-30,
        clip: float = 1.0,
        weight_decay: float = 3.16e-4,
        factor: float = 1.0,
    ) -> None:
        """Raises ValueError for a value that makes no sense.

        lr: eta, the peak of the schedule. clip: the largest root mean square of a tensor's update.
        """
        if not (lr > 0 and eps > 0 and clip > 0 and weight_decay >= 0 and factor > 0):
            raise ValueError("lr, eps, clip and factor must be above 0, weight_decay not below")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas = {betas} must lie in [0, 1)")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "clip": clip,
            "weight_decay": weight_decay,
            "factor": factor,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            group.setdefault("peak_lr", group["lr"])

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step; gives what `closure` gave, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, w: torch.Tensor, g: torch.Tensor, group: dict[str, Any]) -> None:
        (b1, b2), state = group["betas"], self.state[w]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["square"] = torch.zeros_like(w)
            state["momentum"] = torch.zeros_like(w)
        state["step"] += 1
        v, m = state["square"], state["momentum"]
        v.mul_(b2).addcmul_(g, g, value=1 - b2).add_((1 - b2) * group["eps"])
        u = g / (v / (1 - b2 ** float(state["step"]))).sqrt_()
        rms = torch.linalg.vector_norm(u) / w.numel() ** 0.5
        u = u / (rms / group["clip"]).clamp(min=1.0)
        m.mul_(b1).add_(u, alpha=1 - b1)
        schedule = group["lr"] / group["peak_lr"]
        # Added and not multiplied: 1 - s d rounded to float32 would be wrong in the same way at every step.
        w.add_(w, alpha=-schedule * group["weight_decay"]).add_(m, alpha=-group["lr"] * group["factor"])
