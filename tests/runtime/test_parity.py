"""The engine against transformers in float32 on the same weights: real prompts, random models of every
family.

Two references. The plain one is transformers as it comes. The sharp one rounds keys and values to bf16, as
the engine's cache does; what remains then is the order of float32 sums and, with packed weights, activations
of 8 and 15 bits. `pytest -s` prints what was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_directories import Tensors, multiply, rewritten, swap
from engine_prompts import CONVERSATIONS
from engine_reference import Agreement, round_keys_and_values, transformers_logits, transformers_model

from pomona.compression.compress import compress
from pomona.models.config import ModelConfig, RopeScaling
from pomona.models.palettized import is_packed
from pomona.models.presets import PRESETS
from pomona.models.random_init import random_model
from pomona.models.safetensors_file import Checkpoint
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.engine import BATCH_TOKENS, Engine

MEAN_KL = 1e-4  # of a bf16 model
MEAN_KL_PACKED = 1e-3
TOP_RATE = 0.99
TOP_RATE_PACKED = 0.98  # of SmolLM2-135M at 4 bits 0.986 is measured
FAULT = 100 * MEAN_KL  # a fault in the arithmetic must be as large as this at the least


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(smollm2_dir)


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    template = tokenizer.chat_template
    assert template is not None
    return [tokenizer.encode(template.render(c, add_generation_prompt=True)) for c in CONVERSATIONS]


def measured(
    label: str, model: Any, engine: Engine, prompts: list[list[int]], record: Callable[[str, object], None]
) -> Agreement:
    """Over every position of the prompts; one that several share (the default system message) counts once."""
    agreement, seen = Agreement(), set[tuple[int, ...]]()
    for ids in prompts:
        prefixes = [tuple(ids[: end + 1]) for end in range(len(ids))]
        new = [position for position, prefix in enumerate(prefixes) if prefix not in seen]
        agreement.add(transformers_logits(model, ids)[new], engine.logits(ids)[new])
        seen.update(prefixes)
    print(f"\n{label}: {agreement}")
    for name in ("positions", "mean_kl", "max_kl", "top_rate"):
        record(f"{label} {name}", getattr(agreement, name))
    return agreement


# --- the real model -----------------------------------------------------------------------------------------


def test_the_prompts_are_real_and_long_enough(prompts: list[list[int]]) -> None:
    assert len(prompts) == 20
    assert sum(map(len, prompts)) > 1500
    assert max(map(len, prompts)) > BATCH_TOKENS  # one goes through in two steps


def test_the_chat_template_renders_and_encodes_as_in_transformers(
    smollm2_dir: Path, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(smollm2_dir)
    template = tokenizer.chat_template
    assert template is not None
    for conversation, ids in zip(CONVERSATIONS, prompts, strict=True):
        text = template.render(conversation, add_generation_prompt=True)
        assert text == other.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        assert ids == other(text, add_special_tokens=False)["input_ids"]


def test_the_real_model_agrees_with_transformers(
    smollm2_dir: Path, prompts: list[list[int]], record_property: Callable[[str, object], None]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()
    found = measured("bf16", model, Engine.load(smollm2_dir), prompts, record_property)
    assert found.mean_kl < MEAN_KL
    assert found.top_rate >= TOP_RATE


def test_the_compressed_model_agrees_with_its_own_weights_in_transformers(
    smollm2_4bit_dir: Path, prompts: list[list[int]], record_property: Callable[[str, object], None]
) -> None:
    with Checkpoint(smollm2_4bit_dir) as checkpoint:
        assert "model.embed_tokens.weight_int8" in checkpoint.tensors
        assert "model.layers.0.self_attn.q_proj.weight_indices" in checkpoint.tensors
    model = transformers_model(smollm2_4bit_dir)
    found = measured("4-bit", model, Engine.load(smollm2_4bit_dir), prompts, record_property)
    assert found.mean_kl < MEAN_KL_PACKED
    assert found.top_rate >= TOP_RATE_PACKED


# --- random models ------------------------------------------------------------------------------------------

# Sizes that leave tails everywhere: a vocabulary that is no multiple of 16, heads of 48, columns that only
# some matrices can be packed with.
RANDOM = {
    "afm": PRESETS["afm-nano"],
    "qwen2": ModelConfig(
        model_type="qwen2",
        vocab_size=1003,
        hidden_size=208,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=48,
        max_position_embeddings=2048,
        rope_theta=1_000_000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    ),
    "llama3": ModelConfig(
        model_type="llama",
        vocab_size=1024,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rope_theta=500_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        # 256 positions "of pre-training", so that all three ranges of wavelengths occur among 16 frequencies.
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 256),
    ),
}
TOKENS = 600  # across a native step of 512 and two chunks of attention


@dataclass(frozen=True)
class RandomCase:
    name: str
    config: ModelConfig
    directory: Path
    model: Any  # transformers, with keys and values as the engine keeps them
    ids: list[int]


@pytest.fixture(scope="module", params=sorted(RANDOM))
def random_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RandomCase:
    """A random model whose logits are as decided as a trained model's.

    As initialised, entropy is nearly the logarithm of the vocabulary, and any two models agree. The last norm
    three times as large gives 3.5 to 4.5 nats.
    """
    config = RANDOM[request.param]
    folder = tmp_path_factory.mktemp("parity")
    flat = random_model(config, folder / "flat", seed=5, perturb_norms=True)
    directory = rewritten(flat, folder / "model", tensors=lambda t: multiply(t, "model.norm.weight", 3.0))
    ids = np.random.default_rng(11).integers(0, config.vocab_size, TOKENS).tolist()
    return RandomCase(request.param, config, directory, transformers_model(directory), ids)


def test_a_random_model_agrees_with_transformers(
    random_case: RandomCase, record_property: Callable[[str, object], None]
) -> None:
    case = random_case
    found = measured(
        case.name, case.model, Engine.load(case.directory, threads=2), [case.ids], record_property
    )
    assert found.mean_kl < MEAN_KL
    assert found.top_rate >= TOP_RATE
    assert found.mean_entropy < 5  # there is something to tell apart


def test_what_is_left_is_the_rounding_of_the_cache(
    random_case: RandomCase, record_property: Callable[[str, object], None]
) -> None:
    case = random_case
    engine = Engine.load(case.directory, threads=2)
    with round_keys_and_values(case.model):
        found = measured(f"{case.name}, bf16 cache", case.model, engine, [case.ids], record_property)
    assert found.mean_kl < MEAN_KL / 50
    assert found.top_rate >= 0.998


@pytest.mark.parametrize("bits", [4, 3, 2, 3.5])
def test_a_compressed_random_model_agrees_with_its_own_weights_in_transformers(
    random_case: RandomCase, bits: float, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    case = random_case
    compress(case.directory, tmp_path / "packed", bits=bits, calibration="none", table_columns=64)
    with Checkpoint(tmp_path / "packed") as checkpoint:
        packed = {module: is_packed(checkpoint, module) for module in case.config.linear_shapes()}
    assert any(packed.values())
    assert all(packed.values()) == (
        case.name != "qwen2"
    )  # one model mixes packed and bf16 matrices in a layer
    model = transformers_model(tmp_path / "packed")
    engine = Engine.load(tmp_path / "packed", threads=2)
    found = measured(f"{case.name}, {bits}-bit", model, engine, [case.ids], record_property)
    assert found.mean_kl < MEAN_KL_PACKED
    assert found.top_rate >= TOP_RATE_PACKED


# --- would the tests see a fault? ---------------------------------------------------------------------------


def _no_qk_norm(raw: dict[str, Any]) -> None:
    raw["model_type"], raw["architectures"] = "llama", ["LlamaForCausalLM"]


def _without_norms(tensors: Tensors) -> None:
    for name in [name for name in tensors if "q_norm" in name or "k_norm" in name]:
        del tensors[name]


def _half_the_rope_base(raw: dict[str, Any]) -> None:
    raw["rope_theta"] = raw["rope_theta"] / 2


def _no_rope_scaling(raw: dict[str, Any]) -> None:
    assert raw.pop("rope_scaling")


def _more_rope_scaling(raw: dict[str, Any]) -> None:
    raw["rope_scaling"] = {**raw["rope_scaling"], "high_freq_factor": 2.0}


def _large_epsilon(raw: dict[str, Any]) -> None:
    raw["rms_norm_eps"] = 0.09


Fault = tuple[Callable[[dict[str, Any]], None] | None, Callable[[Tensors], None] | None]
FAULTS: dict[str, dict[str, Fault]] = {
    "afm": {
        "no QK-norm": (_no_qk_norm, _without_norms),
        "scales of q and k exchanged": (None, lambda t: swap(t, "q_norm.weight", "k_norm.weight")),
        "half the rope base": (_half_the_rope_base, None),
        "epsilon": (_large_epsilon, None),
    },
    "qwen2": {
        "no bias of q": (None, lambda t: multiply(t, "q_proj.bias", 0.0)),
        "no bias of k": (None, lambda t: multiply(t, "k_proj.bias", 0.0)),
        "no bias of v": (None, lambda t: multiply(t, "v_proj.bias", 0.0)),
        "half the rope base": (_half_the_rope_base, None),
    },
    "llama3": {
        "no rope scaling": (_no_rope_scaling, None),
        "other rope scaling": (_more_rope_scaling, None),
        "half the rope base": (_half_the_rope_base, None),
        "gate and up exchanged": (None, lambda t: swap(t, "gate_proj.weight", "up_proj.weight")),
    },
}


def test_every_fault_is_seen(random_case: RandomCase, tmp_path: Path) -> None:
    case = random_case
    reference = transformers_logits(case.model, case.ids)
    for number, (name, (config, tensors)) in enumerate(FAULTS[case.name].items()):
        faulty = rewritten(case.directory, tmp_path / str(number), config=config, tensors=tensors)
        found = Agreement()
        found.add(reference, Engine.load(faulty, threads=1).logits(case.ids))
        print(f"\n{case.name}, {name}: {found}")
        assert found.mean_kl > FAULT, name


def test_the_measure_is_zero_for_equals_and_known_for_others() -> None:
    same = Agreement()
    logits = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]], np.float32)
    same.add(logits, logits + np.array([[7.0], [-3.0]], np.float32))  # a shift changes no probability
    assert same.mean_kl == pytest.approx(0.0, abs=1e-15) and same.top_rate == 1.0
    other = Agreement()
    other.add(np.log(np.array([[0.5, 0.5]], np.float32)), np.log(np.array([[0.25, 0.75]], np.float32)))
    assert other.mean_kl == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), rel=1e-6)
    assert other.mean_entropy == pytest.approx(np.log(2), rel=1e-6)
    assert other.top_rate == 0.0
