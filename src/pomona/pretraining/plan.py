"""What a run will need: memory per device, time, checkpoints; from formulas, before anything is started.

    plan(preset("afm-on-device"), devices("64xH100"))

The formulas count what training/ really keeps: float32 weights, gradients and two optimizer states, sharded
over all devices; one gathered layer and the next one, and the gathered embedding, in bfloat16; the tensors
that a backward pass needs; the logits. Tests compare them with measured small runs. What they leave out is
told: the allocator's slack and the communication library's buffers, for which `RESERVE` is set aside.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.pretraining.flops import DEVICE_BYTES, PEAK_FLOPS, flop_per_token

UTILISATION = 0.4  # ours; the report's server run sustained about 0.52 (section 3.8)
RESERVE = 4e9  # bytes of a device
_STATE_BYTES = 16  # float32: weight, gradient, square, momentum
_CHECKPOINT_BYTES = 12  # the same without the gradient
_LOGIT_BYTES = 12  # of one token and one vocabulary entry: bf16 and float32 values and their gradients
_STEP_BYTES = 12  # of temporaries of the optimizer, per local value of the largest tensor


@dataclass(frozen=True)
class Devices:
    """count devices of one kind. flops: peak per second of each; memory: bytes of each."""

    count: int
    kind: str
    flops: float
    memory: float


@dataclass(frozen=True)
class PlannedStage:
    """tokens_per_step: of the whole job. save_every: steps between checkpoints. micro_batch: sequences per
    device and pass. intermediate_size: the FFN's width in this stage, where pruning changes it."""

    name: str
    tokens: int
    sequence_length: int
    tokens_per_step: int = 2048 * 4096  # AXLearn's honeycrisp-3B
    save_every: int = 5000
    micro_batch: int = 1
    intermediate_size: int | None = None

    @property
    def steps(self) -> int:
        return -(-self.tokens // self.tokens_per_step)

    @property
    def checkpoints(self) -> int:
        return -(-self.steps // self.save_every)


@dataclass(frozen=True)
class StageTime:
    """flop_per_token: forward and backward, without recomputation."""

    name: str
    tokens: int
    sequence_length: int
    steps: int
    checkpoints: int
    flop_per_token: float
    tokens_per_second: float
    days: float


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. activations: what the backward pass keeps; fits: with the reserve."""

    states: float
    gathered: float
    activations: float
    logits: float
    temporaries: float
    reserve: float
    device: float

    @property
    def total(self) -> float:
        return self.states + self.gathered + self.activations + self.logits + self.temporaries + self.reserve

    @property
    def fits(self) -> bool:
        return self.total <= self.device


@dataclass(frozen=True)
class Plan:
    """parameters: all, the embedding once. checkpoint_bytes: of one; model_bytes: of the 16-bit result."""

    parameters: int
    devices: Devices
    utilisation: float
    recompute: bool
    pass_tokens: int  # of one device, at the most
    memory: Memory  # with that many
    stages: tuple[StageTime, ...]
    checkpoint_bytes: float
    model_bytes: float

    @property
    def days(self) -> float:
        return sum(stage.days for stage in self.stages)


# AFM report, section 3.1.
REPORT_STAGES = (
    PlannedStage("core", 6_300_000_000_000, 4096),
    PlannedStage("continued", 1_000_000_000_000, 8192),
    PlannedStage("lengthening", 100_000_000_000, 32_768),
)


def devices(text: str) -> Devices:
    """ "64xH100" -> 64 devices of that kind. PomonaError for another spelling or an unknown kind."""
    match = re.fullmatch(r"(?:(\d{1,7})\s*[xX*])?\s*([A-Za-z][A-Za-z0-9 -]*)", text.strip())
    kind = "" if match is None else match[2].upper().replace(" ", "").replace("-", "")
    if match is None or kind not in PEAK_FLOPS or int(match[1] or 1) < 1:
        raise PomonaError(f"--devices {text}: write it as 64xH100; known are {', '.join(PEAK_FLOPS)}")
    return Devices(int(match[1] or 1), kind, PEAK_FLOPS[kind], DEVICE_BYTES[kind])


def plan(
    config: ModelConfig,
    on: Devices,
    stages: Sequence[PlannedStage] = REPORT_STAGES,
    *,
    utilisation: float = UTILISATION,
    recompute: bool = True,
) -> Plan:
    """The plan. recompute: activation checkpointing.

    utilisation: model FLOP per second over the peak, recomputation not counted. PomonaError if it is not in
    (0, 1].
    """
    if not 0 < utilisation <= 1:
        raise PomonaError(f"--utilisation {utilisation:g}: must lie above 0 and not above 1")
    times = []
    for stage in stages:
        width = stage.intermediate_size or config.intermediate_size
        per_token = flop_per_token(replace(config, intermediate_size=width), stage.sequence_length)
        speed = on.count * on.flops * utilisation / per_token
        days = stage.tokens / speed / 86_400
        times.append(
            StageTime(
                stage.name,
                stage.tokens,
                stage.sequence_length,
                stage.steps,
                stage.checkpoints,
                per_token,
                speed,
                days,
            )
        )
    tokens = max(stage.micro_batch * stage.sequence_length for stage in stages)
    parameters = config.embedding_parameters + config.non_embedding_parameters
    return Plan(
        parameters,
        on,
        utilisation,
        recompute,
        tokens,
        memory(config, on, tokens, recompute=recompute),
        tuple(times),
        float(_CHECKPOINT_BYTES * parameters),
        2.0 * parameters,
    )


def memory(config: ModelConfig, on: Devices, tokens: int, *, recompute: bool) -> Memory:
    """Bytes on one device for passes of that many tokens."""
    parameters = config.embedding_parameters + config.non_embedding_parameters
    layer = layer_parameters(config)
    # On one device nothing is gathered, but autocast keeps bfloat16 copies of all matrices.
    units = parameters if on.count == 1 else config.embedding_parameters + 2 * layer
    gradients = 0 if on.count == 1 else 2 * config.embedding_parameters + 6 * layer
    largest = max(math.prod(shape) for shape in config.tensor_shapes().values())
    return Memory(
        states=_STATE_BYTES * parameters / on.count,
        gathered=2.0 * units + gradients,
        activations=activation_bytes(config, tokens, recompute=recompute),
        logits=float(_LOGIT_BYTES * config.vocab_size * tokens),
        temporaries=_STEP_BYTES * largest / on.count,
        reserve=RESERVE,
        device=on.memory,
    )


def layer_parameters(config: ModelConfig) -> int:
    """Parameters of one block."""
    shapes = config.tensor_shapes()
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("model.layers.0."))


def activation_bytes(config: ModelConfig, tokens: int, *, recompute: bool) -> float:
    """What the blocks keep for the backward pass, in bfloat16 training, in bytes.

    One block keeps, per token, 16 bytes a channel of the width, 8 of the FFN, 10 of the queries and 10 of the
    keys (counted on transformers' Qwen3 block: inputs and outputs of the norms and products, the softmax not,
    for attention is fused). With recomputation each block keeps its input, and one block all of it at a time.
    """
    width, ffn = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    block = 16.0 * width + 8.0 * ffn + 10.0 * queries + 10.0 * keys
    layers = config.num_hidden_layers
    return tokens * (2.0 * width * layers + block if recompute else block * layers)
