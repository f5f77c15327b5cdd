"""Weights to begin with from a model directory: where a recipe names one as `start`, and for teachers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.palettized import dequantize_tensor, fingerprint
from pomona.models.safetensors_file import Checkpoint

_SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "tie_word_embeddings",
)


class ModelWeights(Mapping[str, NDArray[np.float32]]):
    """The tensors of a model directory in float32, read as they are asked for. A context manager.

    PomonaError: no model directory, or a family that is not trained here.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = ModelConfig.from_directory(directory)
        if self.config.model_type != "qwen3":
            raise PomonaError(
                f"{directory}: is a {self.config.model_type} model; pre-training takes AFM's block, qwen3"
            )
        self._shapes = self.config.tensor_shapes()
        self._checkpoint = Checkpoint(directory)

    @property
    def fingerprint(self) -> str:
        """Hash of the weights, 32 hexadecimal digits. Reads all of them."""
        return fingerprint(self._checkpoint)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        values = dequantize_tensor(self._checkpoint, name.removesuffix(".weight"))
        if values.shape != self._shapes[name]:
            raise PomonaError(
                f"{self.directory}: {name} has another shape than its config says; get the model again"
            )
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def check_shape(self, config: ModelConfig) -> None:
        """PomonaError, naming the first difference, if the model is not of that shape."""
        for name in _SHAPE:
            mine, wanted = getattr(self.config, name), getattr(config, name)
            if mine != wanted:
                raise PomonaError(
                    f"{self.directory}: its {name} is {mine}, and the recipe's first stage begins with "
                    f"{wanted}; correct model or start"
                )

    def close(self) -> None:
        self._checkpoint.close()

    def __enter__(self) -> ModelWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
