"""Types of the native core (native/bindings.cpp)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, tuple[str, NDArray[Any]]]

class Sampling:
    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        answer_start: int = 0,
        bias: Sequence[tuple[int, float]] = (),
    ) -> None: ...

class Logprobs:
    def __init__(self, top: int) -> None: ...
    def entries(self) -> list[tuple[float, list[tuple[int, float]]]]: ...

class LateMask:
    def __init__(self, words: int) -> None: ...
    def array(self) -> NDArray[np.uint32]: ...
    def begin(self) -> None: ...
    def done(self) -> None: ...
    def wait(self) -> None: ...

class StepInput:
    def __init__(
        self,
        sequence: int,
        tokens: Sequence[int],
        sampling: Sampling,
        mask: NDArray[np.int32] | None = None,
        drafts: Sequence[int] = (),
        late_mask: LateMask | None = None,
        logprobs: Logprobs | None = None,
    ) -> None: ...

class Adapter:
    def __init__(
        self, shape: Mapping[str, Any], tensors: Tensors, scales: Mapping[str, float], precision: str
    ) -> None: ...
    def product(
        self, isa: str, layer: int, projection: int, x: NDArray[np.float32], units: int
    ) -> NDArray[np.float32]: ...
    @property
    def bytes(self) -> int: ...

class Engine:
    def __init__(
        self,
        shape: Mapping[str, Any],
        tensors: Tensors,
        threads: int,
        isa: str,
        kv_tokens: int,
        batch_tokens: int,
        huge_pages: bool,
        prefix_cache: bool,
        partial_pages: bool = False,
        kv_cache: str = "bf16",
    ) -> None: ...
    def new_sequence(self, adapter: Adapter | None = None) -> int: ...
    def free_sequence(self, sequence: int) -> None: ...
    def length(self, sequence: int) -> int: ...
    def truncate(self, sequence: int, length: int) -> None: ...
    def reused_tokens(self, sequence: int) -> int: ...
    def step(self, inputs: Sequence[StepInput]) -> list[list[int]]: ...
    def logits(self, sequence: int, tokens: NDArray[np.int32], out: NDArray[np.float32]) -> None: ...
    def score(
        self, sequence: int, tokens: NDArray[np.int32], targets: NDArray[np.int32]
    ) -> NDArray[np.float32]: ...
    def score_places(
        self, inputs: Sequence[StepInput], targets: Sequence[Sequence[tuple[int, int]]]
    ) -> list[list[tuple[float, bool]]]: ...
    def reuse(self, sequence: int, tokens: NDArray[np.int32]) -> int: ...
    def collect_moments(self, modules: Sequence[str], products: bool) -> None: ...
    def run_layers(
        self, tokens: NDArray[np.int32], first: int, last: int, residual: NDArray[np.float32]
    ) -> None: ...
    def distributions(
        self, tokens: NDArray[np.int32], first: int, residual: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint16]: ...
    def divergences(
        self,
        tokens: NDArray[np.int32],
        reference: NDArray[np.uint16],
        first: int,
        residual: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float64]: ...
    def take_moments(self) -> dict[str, tuple[int, NDArray[np.float64], NDArray[np.float32] | None]]: ...
    def profile(self, on: bool) -> None: ...
    def take_profile(self) -> dict[str, float]: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def kv_tokens(self) -> int: ...
    @property
    def free_tokens(self) -> int: ...
    @property
    def bytes_per_token(self) -> int: ...
    @property
    def kv_bytes_per_token(self) -> int: ...

def available_isas() -> str: ...
def rounding_isas() -> str: ...
def measure_bandwidth(bytes: int, threads: int) -> float: ...
def palettize(
    weights: NDArray[np.float32],
    importance: NDArray[np.float32],
    bits: int,
    table_columns: int,
    threads: int,
    better_scales: bool = False,
) -> dict[str, Any]: ...
def multiply_packed(
    isa: str, rows: int, tensors: Tensors, x: NDArray[np.float32], threads: int
) -> NDArray[np.float32]: ...
def sample(
    logits: NDArray[np.float32], sampling: Sampling, history: NDArray[np.int32], position: int
) -> int: ...
def damped_cholesky(
    moment: NDArray[np.float32],
    keep: float,
    added: NDArray[np.float32],
    order: NDArray[np.int32],
    threads: int,
) -> NDArray[np.float32]: ...
def compensate(
    weights: NDArray[np.float32],
    importance: NDArray[np.float32],
    moment: NDArray[np.float32],
    keep: float,
    added: NDArray[np.float32],
    factor: NDArray[np.float32],
    order: NDArray[np.int32],
    bits: int,
    table_columns: int,
    rounds: int,
    sweeps: int,
    scales: bool,
    threads: int,
) -> dict[str, Any]: ...
