"""The distillation loss: 0.9 of the teacher's likeliest token and 0.1 of the true one (AFM report, 3.4).

    q_t = w onehot(argmax_v p_teacher(v | x_<t)) + (1 - w) onehot(x_t),      w = 0.9
    L = - sum_v q_t(v) ln p_student(v | x_<t) = w CE(teacher's token) + (1 - w) CE(true token)

A mean over positions. The z-loss is added as in any stage. So a teacher is one integer per position, looked
up by the window's number (teacher_ids.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from pomona.pretraining.training.loss import Batch, Loss

TeacherOf = Callable[[int], NDArray[np.int64]]  # number of a window -> the teacher's tokens [S]


class DistillationLoss:
    """The mixture above, plus `z_weight` times the mean square of log Z. The curve shows CE(true token)."""

    def __init__(self, teacher: TeacherOf, *, weight: float = 0.9, z_weight: float = 1e-6) -> None:
        self.teacher, self.weight, self.z_weight = teacher, weight, z_weight

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Loss:
        logits_BSV = model(input_ids=batch.ids_BS, use_cache=False).logits
        rows = np.stack([self.teacher(int(number)) for number in batch.index_B])
        taught_BS = torch.as_tensor(rows, device=batch.labels_BS.device)
        logits_NV = logits_BSV.float().flatten(0, -2)
        log_z_N = torch.logsumexp(logits_NV, dim=-1)
        taught, truth = (
            (log_z_N - logits_NV.gather(-1, labels_BS.reshape(-1, 1)).squeeze(-1)).mean()
            for labels_BS in (taught_BS, batch.labels_BS)
        )
        z = log_z_N.square().mean()
        total = self.weight * taught + (1 - self.weight) * truth + self.z_weight * z
        return Loss(total, truth, {"z": z, "taught": taught})
