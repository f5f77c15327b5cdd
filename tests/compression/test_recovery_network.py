"""The written-out network against transformers with PEFT, and its gradients against autograd."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pomona.compression.compress import compress
from pomona.compression.training.attention import attend, attend_backward
from pomona.compression.training.loss import Head, agreement, kl_gradient
from pomona.compression.training.network import LowRank, Network
from pomona.compression.training.tables import TrainedTables, read_palettes
from pomona.models.config import ModelConfig, RopeScaling
from pomona.models.random_init import random_model

torch.set_num_threads(1)

BASE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
CONFIGS = {
    "llama": ModelConfig(model_type="llama", **BASE),
    "llama3": ModelConfig(model_type="llama", **BASE, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 64)),
    "qwen2": replace(ModelConfig(model_type="qwen2", **BASE), tie_word_embeddings=False),
    "qwen3": replace(ModelConfig(model_type="qwen3", **BASE), num_key_value_heads=4),
}
RANK = 4


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("network") / request.param
    return random_model(CONFIGS[request.param], target, seed=2, perturb_norms=True)


def low_ranks(network: Network, seed: int = 0) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.05).bfloat16().float()

    return {
        name: LowRank(draw(RANK, k), draw(n, RANK), torch.zeros(RANK, k), torch.zeros(n, RANK), 2.0)
        for name, (n, k) in network.config.linear_shapes().items()
    }


def peft_model(directory: Path, adapters: dict[str, LowRank]) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    targets = sorted({name.rpartition(".")[2] for name in adapters})
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets))
    state = model.state_dict()
    for name, low in adapters.items():
        state[f"base_model.model.{name}.lora_A.default.weight"].copy_(low.a_RK)
        state[f"base_model.model.{name}.lora_B.default.weight"].copy_(low.b_NR)
    return model


def ids(vocabulary: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(4).integers(0, vocabulary, (2, 48)))


def close(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The relative distance of two tensors."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def adapted(directory: Path) -> tuple[Network, dict[str, LowRank]]:
    network = Network.load(directory)
    adapters = low_ranks(network)
    for group in network.projections():
        group.adapt(adapters)
    return network, adapters


def test_states_and_logits_are_those_of_transformers_with_peft(model_dir: Path) -> None:
    network, adapters = adapted(model_dir)
    tokens = ids(network.config.vocab_size)
    states, _ = network.forward(tokens)
    with torch.no_grad():
        expected = peft_model(model_dir, adapters)(tokens).logits
        plain = peft_model(model_dir, low_ranks(network, 1))(tokens).logits
    found = states.float() @ network.head_VD.float().t()
    assert close(found, expected.view(found.shape)) < 0.03  # bfloat16
    assert close(plain.view(found.shape), expected.view(found.shape)) > 0.2  # the adapter matters


def test_the_adapters_gradients_are_those_of_autograd(model_dir: Path) -> None:
    """Of the distillation loss; transformers in float32 with autograd is the reference."""
    network, adapters = adapted(model_dir)
    tokens = ids(network.config.vocab_size)
    teacher = Network.load(model_dir)
    wanted, _ = teacher.forward(tokens)
    states, kept = network.forward(tokens, keep=True)
    total, grad = kl_gradient(states, wanted, Head(network.head_VD, teacher.head_VD))
    network.backward(grad, kept)

    model = peft_model(model_dir, adapters)
    log_t = (wanted.float() @ teacher.head_VD.float().t()).log_softmax(-1)
    log_s = model(tokens).logits.view(log_t.shape).log_softmax(-1)
    loss = (log_t.exp() * (log_t - log_s)).sum()
    loss.backward()
    assert total == pytest.approx(loss.item(), rel=0.03)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(expected) == 2 * len(adapters)
    for name, low in adapters.items():
        prefix = f"base_model.model.{name}"
        assert close(low.a_grad, expected[f"{prefix}.lora_A.default.weight"]) < 0.08, name
        assert close(low.b_grad, expected[f"{prefix}.lora_B.default.weight"]) < 0.08, name


@pytest.mark.parametrize("before", [0, 9])
@pytest.mark.parametrize(("length", "block"), [(40, 256), (40, 16), (37, 16), (1, 16)])
def test_attention_and_its_gradients_are_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, length: int, block: int, before: int
) -> None:
    """before: keys that lie before all queries."""
    monkeypatch.setattr("pomona.compression.training.attention.BLOCK", block)
    generator = torch.Generator().manual_seed(length)
    q, k, v = (
        torch.randn(2, heads, length + more, 16, generator=generator).bfloat16()
        for heads, more in ((6, 0), (2, before), (2, before))
    )
    grad = torch.randn(2, length, 6, 16, generator=generator).bfloat16()
    out, kept = attend(q, k, v)
    found = attend_backward(grad, kept)
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    wide = [exact[0], *(x.repeat_interleave(3, 1) for x in exact[1:])]
    seen = torch.ones(length, before + length, dtype=torch.bool).tril(before)
    expected = torch.nn.functional.scaled_dot_product_attention(*wide, attn_mask=seen).transpose(1, 2)
    assert close(out, expected.reshape(out.shape)) < 0.01
    gradients = torch.autograd.grad(expected, exact, grad.double())
    if length + before > 1:  # one key alone leaves q and k nothing to say
        assert close(found[0], gradients[0]) < 0.02 and close(found[1], gradients[1]) < 0.02
    assert close(found[2], gradients[2]) < 0.02


def test_the_loss_is_the_definition_of_kl_and_zero_for_equal_states() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(70, 64, generator=generator).bfloat16() for _ in range(2))
    heads = [torch.randn(300, 64, generator=generator).mul_(0.1).bfloat16() for _ in range(2)]
    log_s, log_t = (
        (x.double() @ h.double().t()).log_softmax(-1) for x, h in zip((student, teacher), heads, strict=True)
    )
    exact = (log_t.exp() * (log_t - log_s)).sum()
    head = Head(heads[0], heads[1])
    total, grad = kl_gradient(student, teacher, head)
    assert total == pytest.approx(float(exact), rel=0.01)
    assert close(grad, (log_s.exp() - log_t.exp()).float() @ heads[0].float()) < 0.02
    assert agreement(student, teacher, head).kl == pytest.approx(float(exact), rel=0.01)
    same = agreement(teacher, teacher, Head(heads[1], heads[1]))
    assert same.mean_kl == pytest.approx(0, abs=1e-6) and same.same_top_rate == 1


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_gradients_of_tables_and_row_scales_are_those_of_autograd(tmp_path: Path, bits: int) -> None:
    plain = random_model(CONFIGS["qwen3"], tmp_path / "plain", seed=2, perturb_norms=True)
    compress(plain, tmp_path / "packed", bits=bits, calibration="none", table_columns=64)
    network, teacher = Network.load(tmp_path / "packed"), Network.load(plain)
    palettes = read_palettes(tmp_path / "packed")
    assert set(palettes) == set(network.config.linear_shapes())
    adapters = low_ranks(network)
    tables = {}
    for name, palette in palettes.items():
        parts = [torch.zeros_like(palette.tables_GTE), torch.zeros_like(palette.row_scales_N)]
        tables[name] = TrainedTables(palette, (parts[0], parts[1]), (parts[0].clone(), parts[1].clone()))
    for group in network.projections():
        group.adapt(adapters, tables)
    tokens = ids(network.config.vocab_size)
    wanted, _ = teacher.forward(tokens)
    states, kept = network.forward(tokens, keep=True)
    _, grad = kl_gradient(states, wanted, Head(network.head_VD, teacher.head_VD))
    grads: dict[str, torch.Tensor] = {}
    for layer in network.layers:
        for group in layer.groups:
            _watch(group, grads)
    network.backward(grad, kept)
    for name, palette in palettes.items():
        change = torch.zeros_like(palette.tables_GTE, requires_grad=True)
        stretch = torch.zeros_like(palette.row_scales_N, requires_grad=True)
        weight = TrainedTables(palette, (change, stretch), (change, stretch))
        normal = weight._spread(palette.tables_GTE + change)
        full = normal * (palette.row_scales_N * (1 + stretch))[:, None]
        full.backward(grads[name])
        assert close(tables[name]._change_grad, change.grad) < 1e-4
        assert close(tables[name]._stretch_grad, stretch.grad) < 1e-4


def _watch(group: Any, grads: dict[str, torch.Tensor]) -> None:
    """Notes the gradient of every weight that passes by."""
    inner = group._add_full_gradients

    def outer(x: torch.Tensor, grad: torch.Tensor) -> None:
        full = torch.mm(grad.t(), x).float()
        if group.fold_K is not None:
            full = full * group.fold_K
        grads.update({name: full[group.rows[name]] for name in group.names})
        inner(x, grad)

    group._add_full_gradients = outer


def test_untouched_tables_are_the_stored_ones(tmp_path: Path) -> None:
    plain = random_model(CONFIGS["llama"], tmp_path / "plain", seed=2)
    compress(plain, tmp_path / "packed", bits=3, calibration="none", table_columns=64)
    from pomona.models.palettized import dequantize_tensor
    from pomona.models.safetensors_file import Checkpoint

    with Checkpoint(tmp_path / "packed") as checkpoint:
        for name, palette in read_palettes(tmp_path / "packed").items():
            zeros = (torch.zeros_like(palette.tables_GTE), torch.zeros_like(palette.row_scales_N))
            weight = TrainedTables(palette, zeros, zeros).weight()
            assert close(weight, torch.from_numpy(dequantize_tensor(checkpoint, name))) < 2e-3
