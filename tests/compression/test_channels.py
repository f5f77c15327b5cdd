"""Sorted channels: the same model in another order, largest first, and an order that can be undone.

Shape letters: H residual channels, F feed-forward channels, K columns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pomona.compression.calibrate import calibrate, uniform
from pomona.compression.channels import ChannelOrder, channel_order
from pomona.models.config import ModelConfig
from pomona.models.safetensors_file import Checkpoint
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.engine import Engine

Importance = dict[str, NDArray[np.float32]]
IDS = [(37 * i * i + 11 * i) % 700 for i in range(80)]


def random_importance(config: ModelConfig, seed: int = 0) -> Importance:
    """Of mean 1, different in every module."""
    rng = np.random.default_rng(seed)
    importance = {}
    for module, columns in uniform(config).items():
        values = np.exp(2 * rng.standard_normal(len(columns)))
        importance[module] = (values / values.mean()).astype(np.float32)
    return importance


def inverse(order: ChannelOrder) -> ChannelOrder:
    return ChannelOrder(np.argsort(order.residual), tuple(np.argsort(layer) for layer in order.feed_forward))


def difference(one: Path, other: Path) -> float:
    """Root mean square of the difference of the logits, over that of the logits."""
    a, b = (Engine.load(path, threads=1).logits(IDS).astype(np.float64) for path in (one, other))
    return float(np.sqrt(((a - b) ** 2).mean() / (a**2).mean()))


# --- the same model


def test_the_sorted_model_computes_what_the_model_computes(
    small_dir: Path, tmp_path: Path, changed: Callable[..., Path]
) -> None:
    """Biases of q, k and v, norms of q and k, an untied head: every family in turn."""
    config = ModelConfig.from_directory(small_dir)
    order = channel_order(config, random_importance(config))
    assert (order.residual != np.arange(config.hidden_size)).mean() > 0.9
    changes = {name: _reordered(order, name) for name in config.tensor_shapes()}
    ordered = changed(small_dir, tmp_path / "sorted", changes)
    # Sums in another order, and keys and values that may round to the next bf16.
    assert difference(small_dir, ordered) < 2e-3


def test_a_tensor_that_kept_its_order_would_be_seen(
    small_dir: Path, tmp_path: Path, changed: Callable[..., Path]
) -> None:
    config = ModelConfig.from_directory(small_dir)
    order = channel_order(config, random_importance(config))
    for number, (name, shape) in enumerate(config.tensor_shapes().items()):
        tensor = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape).astype(np.uint16)
        if np.array_equal(order.apply(name, tensor), tensor) or ".layers.1." in name or ".layers.2." in name:
            continue
        changes = {other: _reordered(order, other) for other in config.tensor_shapes() if other != name}
        wrong = changed(small_dir, tmp_path / str(number), changes)
        assert difference(small_dir, wrong) > 0.02, name


def _reordered(order: ChannelOrder, name: str) -> Callable[[NDArray[np.uint16]], NDArray[np.uint16]]:
    return lambda array: order.apply(name, array)


def test_only_what_has_channels_is_reordered(small_dir: Path) -> None:
    """Heads are left alone: biases and norms of q, k and v."""
    config = ModelConfig.from_directory(small_dir)
    order = channel_order(config, random_importance(config))
    with Checkpoint(small_dir) as checkpoint:
        kept = {
            name
            for name in config.tensor_shapes()
            if np.array_equal(order.apply(name, checkpoint.array(name)), checkpoint.array(name))
        }
    assert kept == {
        name for name in config.tensor_shapes() if name.endswith((".bias", "q_norm.weight", "k_norm.weight"))
    }


# --- the order


def test_channels_descend_by_the_root_of_what_all_readers_see(small_dir: Path) -> None:
    config = ModelConfig.from_directory(small_dir)
    importance = random_importance(config)
    order = channel_order(config, importance)
    readers = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
    size = sum(
        np.sqrt(values.astype(np.float64)) for name, values in importance.items() if name.endswith(readers)
    )
    assert (np.diff(size[order.residual]) <= 0).all()
    assert len(order.feed_forward) == config.num_hidden_layers
    for layer, channels in enumerate(order.feed_forward):
        sizes = importance[f"model.layers.{layer}.mlp.down_proj"][channels]
        assert (np.diff(sizes) <= 0).all()


def test_every_channel_has_one_place(small_dir: Path) -> None:
    config = ModelConfig.from_directory(small_dir)
    order = channel_order(config, random_importance(config))
    np.testing.assert_array_equal(np.sort(order.residual), np.arange(config.hidden_size))
    for channels in order.feed_forward:
        np.testing.assert_array_equal(np.sort(channels), np.arange(config.intermediate_size))


def test_channels_of_equal_size_keep_their_order(small_dir: Path) -> None:
    config = ModelConfig.from_directory(small_dir)
    order = channel_order(config, uniform(config))
    np.testing.assert_array_equal(order.residual, np.arange(config.hidden_size))
    for channels in order.feed_forward:
        np.testing.assert_array_equal(channels, np.arange(config.intermediate_size))


def test_importance_goes_with_its_columns(small_dir: Path) -> None:
    config = ModelConfig.from_directory(small_dir)
    importance = random_importance(config)
    order = channel_order(config, importance)
    for module, (_, columns) in config.linear_shapes().items():
        weight = np.arange(columns, dtype=np.uint16)[None].repeat(config.hidden_size, axis=0)
        if module.endswith(("gate_proj", "up_proj")):
            weight = np.arange(columns, dtype=np.uint16)[None].repeat(config.intermediate_size, axis=0)
        old_columns = order.apply(f"{module}.weight", weight)[0]
        np.testing.assert_array_equal(
            order.importance(module, importance[module]), importance[module][old_columns], err_msg=module
        )


def test_the_inverse_order_undoes_it(small_dir: Path) -> None:
    config = ModelConfig.from_directory(small_dir)
    order = channel_order(config, random_importance(config, seed=1))
    back = inverse(order)
    with Checkpoint(small_dir) as checkpoint:
        for name in config.tensor_shapes():
            stored = checkpoint.array(name)
            there = order.apply(name, stored)
            assert there.flags.c_contiguous
            assert (there.shape, there.dtype) == (stored.shape, stored.dtype)
            np.testing.assert_array_equal(back.apply(name, there), stored, err_msg=name)


def test_calibration_of_the_sorted_model_descends(
    tiny_dir: Path, tmp_path: Path, text_file: Path, byte_tokenizer_dir: Path, changed: Callable[..., Path]
) -> None:
    """Measured on the sorted model itself: sizes fall along the channels, up to rounding."""
    config, tokenizer = ModelConfig.from_directory(tiny_dir), Tokenizer.from_directory(byte_tokenizer_dir)
    order = channel_order(config, calibrate(Engine.load(tiny_dir, threads=1), tokenizer, text_file))
    changes = {name: _reordered(order, name) for name in config.tensor_shapes()}
    ordered = changed(tiny_dir, tmp_path / "sorted", changes)
    again = calibrate(Engine.load(ordered, threads=1), tokenizer, text_file)
    for layer in range(config.num_hidden_layers):
        sizes = again[f"model.layers.{layer}.mlp.down_proj"].astype(np.float64)
        assert (sizes[1:] <= sizes[:-1] * 1.01 + 1e-6).all()
