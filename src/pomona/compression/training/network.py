"""A decoder (llama, qwen2, qwen3) for training adapters on a CPU: forward and backward pass written out.

The same mathematics as transformers' model with PEFT's LoRA (a test compares them), arranged for speed:

- A projection's weight W + (alpha / rank) B A is formed once per optimizer step and rounded to bfloat16, so
  that a pass is one product per group of projections that read the same input. The base gets no gradient;
  that of A and B takes four thin products.
- The scale of the norm before a group is folded into its weight; what is kept for the backward pass is the
  normalised input, once, in bfloat16.
- The residual stream and all sums over tokens stay in float32.

Shape letters: T tokens of all windows, B windows, S tokens of one, D hidden, F intermediate, H heads, N
outputs, K inputs, R rank, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding, linear, silu

from pomona.compression.training.attention import Attended, Rows, attend_rows, attend_rows_backward
from pomona.compression.training.tables import TrainedTables
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.palettized import dequantize_tensor
from pomona.models.safetensors_file import Checkpoint, float32_from_bf16

BF16 = torch.bfloat16
_TURN_STEP = 256  # positions for rows are kept in multiples of this


@dataclass
class LowRank:
    """The adapter of one projection and its gradients: float32 views of the trainer's flat vectors."""

    a_RK: Tensor
    b_NR: Tensor
    a_grad: Tensor
    b_grad: Tensor
    scale: float  # alpha / rank


class Projections:
    """The projections that read one input, as one matrix with their outputs one after the other."""

    def __init__(
        self, weights: Mapping[str, Tensor], bias_N: Tensor | None = None, fold_K: Tensor | None = None
    ) -> None:
        """weights: module -> [N, K] float32. fold_K: the norm's scale, which multiplies the columns."""
        self.names = tuple(weights)
        self.rows: dict[str, slice] = {}
        start = 0
        for name, weight in weights.items():
            self.rows[name] = slice(start, start + weight.shape[0])
            start += weight.shape[0]
        self.fold_K = fold_K
        self.bias_N = None if bias_N is None else bias_N.to(BF16)
        self.adapters: dict[str, LowRank] = {}
        self.tables: dict[str, TrainedTables] = {}
        self.observer: Callable[[Tensor], None] | None = None  # sees every input
        self.base_NK = self._rounded(torch.cat(list(weights.values())))
        self.weight_NK = self.base_NK

    def _rounded(self, weight_NK: Tensor) -> Tensor:
        return (weight_NK if self.fold_K is None else weight_NK * self.fold_K).to(BF16)

    def adapt(
        self, adapters: Mapping[str, LowRank], tables: Mapping[str, TrainedTables] | None = None
    ) -> None:
        """Gives every projection an adapter, and those in `tables` trained tables."""
        self.adapters = {name: adapters[name] for name in self.names}
        self.tables = {name: tables[name] for name in self.names if name in tables} if tables else {}
        self.weight_NK = self.base_NK.clone()
        self.refresh()

    def refresh(self) -> None:
        """Forms the weights anew from the present parameters, which are rounded as they will be stored."""
        thin = []
        for name, low in self.adapters.items():
            a_RK, b_NR = low.a_RK.to(BF16).float(), low.b_NR.to(BF16).float()
            rows = self.rows[name]
            if name in self.tables:
                weight_NK = self.tables[name].weight().addmm_(b_NR, a_RK, alpha=low.scale)
                self.weight_NK[rows].copy_(self._rounded(weight_NK))
            else:
                if self.fold_K is not None:
                    a_RK *= self.fold_K
                delta_NK = torch.mm(b_NR, a_RK).mul_(low.scale)
                self.weight_NK[rows].copy_(delta_NK.add_(self.base_NK[rows]))
                thin.append(a_RK)
        if thin and not self.tables:
            self.a_all_KR = torch.cat(thin).to(BF16).t().contiguous()
            self.b_all = [low.b_NR.to(BF16) for low in self.adapters.values()]

    def product(self, x_TK: Tensor) -> Tensor:
        if self.observer is not None:
            self.observer(x_TK)
        return linear(x_TK, self.weight_NK, self.bias_N)

    def input_gradient(self, grad_TN: Tensor) -> Tensor:
        return torch.mm(grad_TN, self.weight_NK)

    def add_gradients(self, x_TK: Tensor, grad_TN: Tensor) -> None:
        """Adds to the gradients of the parameters."""
        if self.tables:
            self._add_full_gradients(x_TK, grad_TN)
        elif self.adapters:
            self._add_thin_gradients(x_TK, grad_TN)

    def _add_thin_gradients(self, x_TK: Tensor, grad_TN: Tensor) -> None:
        """Of A and B, without the gradient of the weight."""
        down_TR = torch.mm(x_TK, self.a_all_KR)
        up = []
        start = 0
        for (name, low), b_NR in zip(self.adapters.items(), self.b_all, strict=True):
            grad = grad_TN[:, self.rows[name]]
            rank = low.a_RK.shape[0]
            low.b_grad.add_(torch.mm(grad.t(), down_TR[:, start : start + rank]), alpha=low.scale)
            up.append(torch.mm(grad, b_NR))
            start += rank
        a_grad = torch.mm(torch.cat(up, 1).t(), x_TK).float()
        if self.fold_K is not None:
            a_grad *= self.fold_K
        for low, part in zip(self.adapters.values(), a_grad.split(rank), strict=True):
            low.a_grad.add_(part, alpha=low.scale)

    def _add_full_gradients(self, x_TK: Tensor, grad_TN: Tensor) -> None:
        """Of tables, A and B, all from the gradient of the weight."""
        weight_grad = torch.mm(grad_TN.t(), x_TK).float()
        if self.fold_K is not None:
            weight_grad *= self.fold_K
        for name, low in self.adapters.items():
            grad_NK = weight_grad[self.rows[name]]
            low.b_grad.addmm_(grad_NK, low.a_RK.t(), alpha=low.scale)
            low.a_grad.addmm_(low.b_NR.t(), grad_NK, alpha=low.scale)
            if name in self.tables:
                self.tables[name].add_gradient(grad_NK)


@dataclass
class Saved:
    """What a layer keeps for its backward pass."""

    x1_TD: Tensor
    scale1_T1: Tensor
    norms: tuple[Tensor, Tensor] | None  # of q and k: normalised values, scales
    attended: list[Attended]
    a_TN: Tensor
    x2_TD: Tensor
    scale2_T1: Tensor
    gate_up_TF: Tensor
    m_TF: Tensor


class Layer:
    """One block: attention and SwiGLU, each behind an RMSNorm whose scale is folded into the weights."""

    def __init__(self, config: ModelConfig, index: int, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self.config = config
        prefix = f"model.layers.{index}."
        take = {name: torch.from_numpy(weights[prefix + name]) for name in _layer_tensors(config)}

        def group(names: Sequence[str], fold: str | None = None) -> Projections:
            biases = [take[f"{name}.bias"] for name in names if f"{name}.bias" in take]
            return Projections(
                {prefix + name: take[f"{name}.weight"] for name in names},
                torch.cat(biases) if biases else None,
                take[f"{fold}.weight"] if fold else None,
            )

        self.qkv = group(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "input_layernorm")
        self.o = group(["self_attn.o_proj"])
        self.gate_up = group(["mlp.gate_proj", "mlp.up_proj"], "post_attention_layernorm")
        self.down = group(["mlp.down_proj"])
        self.head_scale: Tensor | None = None  # [H + Hkv, head_dim] of qwen3's norms of q and k
        if config.qk_norm:
            q, k = take["self_attn.q_norm.weight"], take["self_attn.k_norm.weight"]
            heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
            self.head_scale = torch.cat([q.expand(heads, -1), k.expand(kv_heads, -1)])

    @property
    def groups(self) -> tuple[Projections, ...]:
        return (self.qkv, self.o, self.gate_up, self.down)

    def forward(self, h_TD: Tensor, shape: tuple[int, int], turn: Turn, keep: bool) -> Saved | None:
        """Adds the block's output to `h_TD` in place."""
        eps = self.config.rms_norm_eps
        x1, scale1 = _normed(h_TD, eps)
        heads, norms = self._heads(self.qkv.product(x1), shape, turn)
        out, attended = attend_rows(*heads, turn.rows)
        a = out.view(len(h_TD), -1)
        h_TD += self.o.product(a)
        x2, scale2 = _normed(h_TD, eps)
        gate_up = self.gate_up.product(x2)
        gate, up = gate_up.chunk(2, 1)
        m = silu(gate).mul_(up)
        h_TD += self.down.product(m)
        if not keep:
            return None
        return Saved(x1, scale1, norms, attended, a, x2, scale2, gate_up, m)

    def backward(
        self, grad_TD: Tensor, saved: Saved, shape: tuple[int, int], turn: Turn, first: bool
    ) -> None:
        """Turns the gradient of the block's output into that of its input, in place."""
        gate, up = saved.gate_up_TF.chunk(2, 1)
        grad = grad_TD.to(BF16)
        self.down.add_gradients(saved.m_TF, grad)
        grad_m = self.down.input_gradient(grad)
        grad_gate_up = torch.empty_like(saved.gate_up_TF)
        grad_gate, grad_up = grad_gate_up.chunk(2, 1)
        torch.mul(grad_m, silu(gate), out=grad_up)
        grad_gate.copy_(torch.ops.aten.silu_backward(grad_m.mul_(up), gate))
        self.gate_up.add_gradients(saved.x2_TD, grad_gate_up)
        _add_norm_gradient(grad_TD, self.gate_up.input_gradient(grad_gate_up), saved.x2_TD, saved.scale2_T1)

        grad = grad_TD.to(BF16)
        self.o.add_gradients(saved.a_TN, grad)
        grad_a = self.o.input_gradient(grad)
        grad_heads = grad_a.view(*shape, -1, self.config.head_dim)
        grads = attend_rows_backward(grad_heads, saved.attended, turn.rows)
        grad_qkv = self._heads_backward(grads, saved.norms, shape, turn)
        self.qkv.add_gradients(saved.x1_TD, grad_qkv)
        if not first:
            _add_norm_gradient(grad_TD, self.qkv.input_gradient(grad_qkv), saved.x1_TD, saved.scale1_T1)

    def _heads(
        self, qkv_TN: Tensor, shape: tuple[int, int], turn: Turn
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor] | None]:
        """q, k, v as [B, H, S, head_dim], q and k normalised (qwen3) and rotated."""
        c = self.config
        heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
        qkv = qkv_TN.view(*shape, heads + 2 * kv_heads, c.head_dim)
        qk, v = qkv[:, :, : heads + kv_heads].float(), qkv[:, :, heads + kv_heads :]
        norms = None
        if self.head_scale is not None:
            scale = torch.rsqrt(qk.square().mean(-1, keepdim=True) + c.rms_norm_eps)
            qk = qk * scale
            norms = (qk, scale)
            qk = qk * self.head_scale
        turned = turn.apply(qk, forwards=True)
        q, k = turned[:, :heads], turned[:, heads:]
        return (q, k, v.transpose(1, 2)), norms

    def _heads_backward(
        self,
        grads: tuple[Tensor, Tensor, Tensor],
        norms: tuple[Tensor, Tensor] | None,
        shape: tuple[int, int],
        turn: Turn,
    ) -> Tensor:
        grad_q, grad_k, grad_v = grads
        qk = torch.cat([grad_q, grad_k], 1).transpose(1, 2).float()
        qk = turn.apply(qk, forwards=False).transpose(1, 2)
        if norms is not None and self.head_scale is not None:
            normed, scale = norms
            qk = qk.float() * self.head_scale
            qk = scale * (qk - normed * (qk * normed).mean(-1, keepdim=True))
            qk = qk.to(BF16)
        return torch.cat([qk, grad_v.transpose(1, 2)], 2).reshape(shape[0] * shape[1], -1)


class Turn:
    """Rotary positions 0 .. S - 1, in the two-halves form; or of rows one after the other, each from 0 or
    behind the row that it continues."""

    def __init__(self, cos_S1H: Tensor, sin_S1H: Tensor, rows: Rows | None = None) -> None:
        self.cos, self.sin = cos_S1H, sin_S1H
        self.rows = rows

    @classmethod
    def upto(cls, config: ModelConfig, length: int) -> Turn:
        angle_SH = torch.outer(torch.arange(length, dtype=torch.float32), _inverse_frequencies(config))
        return cls(angle_SH.cos()[:, None], angle_SH.sin()[:, None])

    def of(self, rows: Rows) -> Turn:
        """For rows whose positions end before S."""
        cos, sin = (torch.cat([x[place] for place in rows.positions]) for x in (self.cos, self.sin))
        return Turn(cos, sin, rows)

    def apply(self, x_BSHd: Tensor, *, forwards: bool) -> Tensor:
        """[B, S, H, d] float32 -> [B, H, S, d] bfloat16, turned by the positions, or back."""
        out = x_BSHd.new_empty(x_BSHd.shape, dtype=BF16).transpose(1, 2).contiguous()
        first, second = x_BSHd.chunk(2, -1)
        out_first, out_second = out.transpose(1, 2).chunk(2, -1)
        sign = 1.0 if forwards else -1.0
        out_first.copy_((first * self.cos).addcmul_(second, self.sin, value=-sign))
        out_second.copy_((second * self.cos).addcmul_(first, self.sin, value=sign))
        return out


class Network:
    """All layers. `forward` gives the last normalised state; heads are the loss's business."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self.config = config
        self.embedding_VD = torch.from_numpy(weights["model.embed_tokens.weight"])
        self.layers = [Layer(config, index, weights) for index in range(config.num_hidden_layers)]
        head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
        norm = torch.from_numpy(weights["model.norm.weight"])
        self.head_VD = (torch.from_numpy(weights[f"{head}.weight"]) * norm).to(BF16)  # norm's scale folded in
        self._turns: dict[int, Turn] = {}

    @classmethod
    def load(cls, directory: Path | str) -> Network:
        """A model directory, packed or not. PomonaError for a value that is not finite."""
        return cls(ModelConfig.from_directory(directory), read_weights(directory))

    def projections(self) -> list[Projections]:
        return [group for layer in self.layers for group in layer.groups]

    def refresh(self) -> None:
        for group in self.projections():
            group.refresh()

    def forward(
        self,
        ids_BS: Tensor,
        *,
        keep: bool = False,
        lengths: Sequence[int] | None = None,
        after: Sequence[int] | None = None,
    ) -> tuple[Tensor, Any]:
        """[B, S] -> [T, D], the last state after the norm without its scale, in bfloat16; and what
        `backward` needs, with `keep`.

        With lengths, B is 1, and the S tokens are rows of these lengths one after the other: each has its own
        positions and sees itself alone, or itself and the row that it continues (`Rows.after`)."""
        shape = (ids_BS.shape[0], ids_BS.shape[1])
        if lengths is None:
            turn = self._turn(shape[1])
        else:
            if shape != (1, sum(lengths)):
                raise ValueError(f"rows of {list(lengths)} tokens do not fill {list(shape)}")
            rows = Rows.of(lengths, after)
            longest = max(place.stop for place in rows.positions)
            turn = self._turn(-(-longest // _TURN_STEP) * _TURN_STEP).of(rows)
        with torch.no_grad():
            h = embedding(ids_BS.reshape(-1), self.embedding_VD)
            saved = [layer.forward(h, shape, turn, keep) for layer in self.layers]
            x, scale = _normed(h, self.config.rms_norm_eps)
        return x, (saved, x, scale, shape, turn) if keep else None

    def backward(self, grad_TD: Tensor, kept: Any) -> None:
        """grad_TD: of the state that `forward` gave. Frees what was kept layer by layer."""
        saved, x, scale, shape, turn = kept
        with torch.no_grad():
            grad = torch.zeros(grad_TD.shape, dtype=torch.float32)
            _add_norm_gradient(grad, grad_TD, x, scale)
            for index in range(len(self.layers) - 1, -1, -1):
                self.layers[index].backward(grad, saved.pop(), shape, turn, index == 0)

    def _turn(self, length: int) -> Turn:
        if length not in self._turns:
            self._turns[length] = Turn.upto(self.config, length)
        return self._turns[length]


def read_weights(directory: Path | str, *, head: bool = True) -> dict[str, NDArray[np.float32]]:
    """Every weight of a directory by its plain name in float32. head: with that of the output, where it is
    one of its own. PomonaError for what is not finite."""
    config = ModelConfig.from_directory(directory)
    weights: dict[str, NDArray[np.float32]] = {}
    with Checkpoint(directory) as checkpoint:
        for name, shape in config.tensor_shapes().items():
            if name == "lm_head.weight" and not head:
                continue
            module = name.removesuffix(".weight")
            plain = len(shape) != 2
            weight = (
                float32_from_bf16(checkpoint.array(name)) if plain else dequantize_tensor(checkpoint, module)
            )
            if weight.shape != shape:
                raise PomonaError(f"{directory}: tensor {name!r} is not {list(shape)}; get the model again")
            if not np.isfinite(weight).all():
                raise PomonaError(
                    f"{directory}: tensor {name!r} holds a value that is not finite; get a sound model"
                )
            weights[name] = np.require(weight, requirements=["C", "W"])
    return weights


def _layer_tensors(config: ModelConfig) -> list[str]:
    prefix = "model.layers.0."
    return [name.removeprefix(prefix) for name in config.tensor_shapes() if name.startswith(prefix)]


def _inverse_frequencies(config: ModelConfig) -> Tensor:
    """[head_dim / 2]; with Llama 3's change for long contexts."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    rope = config.rope_scaling
    if rope is not None:
        turns = rope.original_max_position_embeddings * frequency / (2 * torch.pi)
        smooth = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
        frequency = (1 - smooth) * frequency / rope.factor + smooth * frequency
    return frequency.float()


def _normed(h_TD: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The rows of h divided by their root mean square, in bfloat16, and the factor [T, 1]."""
    norm = torch.linalg.vector_norm(h_TD, dim=-1, keepdim=True)
    scale = norm.square_().div_(h_TD.shape[1]).add_(eps).rsqrt_()
    return torch.mul(h_TD, scale, out=torch.empty(h_TD.shape, dtype=BF16)), scale


def _add_norm_gradient(grad_h: Tensor, grad_x: Tensor, x_TD: Tensor, scale_T1: Tensor) -> None:
    """grad_h += d (h * scale) / dh applied to grad_x, where x = h * scale."""
    share = (grad_x * x_TD).sum(-1, keepdim=True, dtype=torch.float32).div_(-x_TD.shape[1])
    change = torch.addcmul(grad_x.float(), x_TD.float(), share)
    grad_h.addcmul_(change, scale_T1)
