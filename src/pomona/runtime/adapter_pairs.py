"""An adapter's A and B as float32, and in another rank: where training begins.

Shape letters: N outputs, K inputs, R rank.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.models.safetensors_file import float32_from_bf16
from pomona.runtime.adapter_file import AdapterFile
from pomona.runtime.adapter_writer import Pair


def pairs_of(file: AdapterFile) -> dict[str, Pair]:
    """Module -> (A [R, K], B [N, R]), copies of what the file holds."""
    return {
        module: (
            _float32(*file.tensors[f"{module}.lora_A.weight"]),
            _float32(*file.tensors[f"{module}.lora_B.weight"]),
        )
        for module in file.scales
    }


def with_rank(pair: Pair, rank: int, rng: np.random.Generator) -> Pair:
    """The same product B A in `rank`, or where that is lower the nearest product of it (singular values).

    What is added beyond the rank that was there does nothing yet: A as PEFT begins it, B zero.
    """
    a_RK, b_NR = pair
    if len(a_RK) > rank:
        left, left_RR = np.linalg.qr(b_NR.astype(np.float64))
        right, right_RR = np.linalg.qr(a_RK.T.astype(np.float64))
        u, s, v = np.linalg.svd(left_RR @ right_RR.T)
        root = np.sqrt(s[:rank])
        b = (left @ u[:, :rank]) * root
        a = (root[:, None] * v[:rank]) @ right.T
        return np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    more = rank - len(a_RK)
    bound = 1 / math.sqrt(a_RK.shape[1])
    a = np.concatenate([a_RK, rng.uniform(-bound, bound, (more, a_RK.shape[1])).astype(np.float32)])
    return a, np.concatenate([b_NR, np.zeros((len(b_NR), more), np.float32)], axis=1)


def _float32(dtype: str, array: NDArray[Any]) -> NDArray[np.float32]:
    return np.array(float32_from_bf16(array) if dtype == "BF16" else array, np.float32)
