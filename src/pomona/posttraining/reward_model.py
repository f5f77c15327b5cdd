"""A trained reward model: loaded, asked for rewards and grades, written (AFM report, section 4.4).

    model = RewardModel.load("reward-model")
    rewards = model.score([[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]])

Two forms on disk, both in Hugging Face's formats, both with pomona.json and `reward_heads.safetensors` (the
reward head and the grading heads) beside:

- an adapter: a PEFT directory, on the base that its adapter_config.json names;
- all weights: a sequence classifier with one label, which AutoModelForSequenceClassification loads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pomona.adapters.data import Message
from pomona.adapters.metadata import AdapterRecord, read_small_json
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.model_directory import (
    CONFIG_FILE,
    LICENCE_FILES,
    PROVENANCE_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    ModelDirectoryWriter,
    copy_files,
    write_json,
)
from pomona.models.palettized import describe
from pomona.models.safetensors_file import (
    SafetensorsFile,
    SafetensorsWriter,
    TensorSpec,
    float32_from_bf16,
    write_bf16_file,
)
from pomona.models.tokenizer import Tokenizer
from pomona.posttraining.conversations import encode, padding_token
from pomona.posttraining.preferences import GRADES, QUESTIONS, Gradings
from pomona.runtime.adapter_file import CONFIG_FILE as ADAPTER_CONFIG_FILE
from pomona.runtime.adapter_file import read_adapter
from pomona.runtime.adapter_pairs import pairs_of
from pomona.runtime.adapter_writer import write_adapter_files

if TYPE_CHECKING:
    from torch import Tensor

HEADS_FILE = "reward_heads.safetensors"
TASK = "reward"
PASS_TOKENS = 4096
_CLASSIFIERS = {
    "llama": "LlamaForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
}


class RewardModel:
    """Scores conversations. Methods may not be called from several threads at once."""

    def __init__(
        self, network: Any, tokenizer: Tokenizer, context: int, *, precision: str = "float32"
    ) -> None:
        """network: a GradedRewardNetwork. precision: of the backbone's products; heads are in float32."""
        self.network, self.tokenizer, self.context = network, tokenizer, context
        self.padding = padding_token(tokenizer)
        self.precision = precision
        self.not_finite = 0  # rewards that were no number so far; they are handed on as nan

    @classmethod
    def load(
        cls, directory: Path | str, base: Path | str | None = None, *, precision: str = "float32"
    ) -> RewardModel:
        """base: of a model that is an adapter, where its own note of it no longer holds (a directory, or a
        name in the cache). PomonaError: no reward model, another base, a tensor that is missing."""
        from pomona.posttraining.training.base import load_config, load_weights, set_pairs, with_adapter
        from pomona.posttraining.training.reward_network import GradedRewardNetwork

        directory = Path(directory)
        if not (directory / HEADS_FILE).is_file():
            raise PomonaError(f"{directory}: is no reward model (it has no {HEADS_FILE}); train one first")
        adapter = (directory / ADAPTER_CONFIG_FILE).is_file()
        if adapter:
            root = _base_of(directory, base)
            network = GradedRewardNetwork(load_config(root))
            load_weights(network, root, head=False)
            file = read_adapter(directory, ModelConfig.from_directory(root), describe(root).fingerprint)
            scale = next(iter(file.scales.values()))
            adapted = with_adapter(network, file.rank, scale * file.rank, None, task=None)
            set_pairs(adapted, pairs_of(file))
            network = adapted.merge_and_unload()
        else:
            root = directory
            network = _load_classifier(root)
        _load_heads(network, directory / HEADS_FILE)
        context = int(network.config.max_position_embeddings)
        return cls(network.eval(), Tokenizer.from_directory(root), context, precision=precision)

    def score(self, conversations: Sequence[Sequence[Message]]) -> NDArray[np.float64]:
        """[n]: the reward of each conversation's last message, which is the assistant's and may be empty.

        The same conversations give the same bits; in other company a reward differs by rounding alone. What
        is no number is nan, and counted in `not_finite`. PomonaError: a conversation that does not end with
        an answer, or is longer than the model's context.
        """
        return self._run(conversations)[0]

    def grade(self, conversations: Sequence[Sequence[Message]]) -> list[Gradings]:
        """The likeliest grade of every question, for each conversation."""
        best = self._run(conversations)[1].argmax(-1)
        return [dict(zip(QUESTIONS, (GRADES[place] for place in row), strict=True)) for row in best]

    def _run(
        self, conversations: Sequence[Sequence[Message]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        from pomona.posttraining.training.reward_trainer import run_network

        rows = []
        for number, messages in enumerate(conversations):
            try:
                row = encode(messages, self.tokenizer).ids
            except PomonaError as error:
                raise PomonaError(f"conversation {number}: {error}") from error
            if len(row) > self.context:
                raise PomonaError(
                    f"conversation {number}: has {len(row):,} tokens, the model's context {self.context:,}; "
                    "shorten it"
                )
            rows.append(row)
        if not rows:
            return np.zeros(0), np.zeros((0, len(QUESTIONS), len(GRADES)))
        rewards, gradings = run_network(
            self.network, rows, self.padding, pass_tokens=PASS_TOKENS, precision=self.precision
        )
        found = rewards.numpy()
        broken = ~np.isfinite(found)
        self.not_finite += int(broken.sum())
        found[broken] = np.nan
        return found, gradings.numpy()


def save_reward_model(
    target: Path, network: Any, base: Path, record: AdapterRecord, *, overwrite: bool = False
) -> Path:
    """Writes a network as it was trained: its adapter, or all weights. PomonaError: `target` is there."""
    from pomona.posttraining.training.base import bf16_reader, get_pairs, scale_of
    from pomona.posttraining.training.reward_trainer import head_state

    heads = head_state(network)
    if hasattr(network, "peft_config"):
        with ModelDirectoryWriter(target, overwrite=overwrite, mark=ADAPTER_CONFIG_FILE) as writer:
            write_adapter_files(
                writer.path,
                get_pairs(network),
                scale=scale_of(network),
                record=record.to_json(),
                base=str(base),
            )
            _write_heads(writer.path / HEADS_FILE, heads)
        return writer.target
    config = ModelConfig.from_directory(base)
    shapes = {name: shape for name, shape in config.tensor_shapes().items() if name != "lm_head.weight"}
    shapes["score.weight"] = (1, config.hidden_size)
    with ModelDirectoryWriter(target, overwrite=overwrite) as writer:
        raw = config.to_hf()
        raw |= {
            "architectures": [_CLASSIFIERS[config.model_type]],
            "num_labels": 1,
            "pad_token_id": padding_token(Tokenizer.from_directory(base)),
        }
        write_json(writer.path / CONFIG_FILE, raw)
        copy_files(base, writer.path, (*TOKENIZER_FILES, *LICENCE_FILES))
        write_json(writer.path / PROVENANCE_FILE, record.to_json())
        state = network.state_dict()
        write_bf16_file(
            writer.path / WEIGHTS_FILE, shapes, bf16_reader(state), source="trained", label="weights"
        )
        _write_heads(writer.path / HEADS_FILE, heads)
    return writer.target


def _write_heads(path: Path, heads: Mapping[str, Tensor]) -> None:
    # Rounded like the other weights, so that both forms of a model hold the same head.
    arrays = {name: tensor.bfloat16().float().cpu().contiguous().numpy() for name, tensor in heads.items()}
    specs = [TensorSpec(name, "F32", array.shape) for name, array in arrays.items()]
    with SafetensorsWriter(path, specs, {"format": "pt"}) as file:
        for name, array in arrays.items():
            file.write(name, array)


def _load_heads(network: Any, path: Path) -> None:
    import torch

    file = SafetensorsFile(path)
    wanted = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("model.")}
    if set(file.tensors) != set(wanted):
        odd = min(set(file.tensors) ^ set(wanted))
        raise PomonaError(f"{path}: tensor {odd!r} is missing or not known; save the reward model again")
    found = {}
    for name, tensor in wanted.items():
        info = file.tensors[name]
        if info.dtype != "F32" or info.shape != tuple(tensor.shape):
            raise PomonaError(
                f"{path}: tensor {name!r} is {info.dtype} {list(info.shape)}, this base needs F32 "
                f"{list(tensor.shape)}; use a reward model of this base"
            )
        found[name] = torch.from_numpy(np.array(file.array(name)))
    network.load_state_dict(found, strict=False)


def _load_classifier(directory: Path) -> Any:
    """The network of a model of the second form, without its heads."""
    import torch
    from transformers import AutoConfig

    from pomona.posttraining.training.reward_network import GradedRewardNetwork

    network = GradedRewardNetwork(AutoConfig.from_pretrained(directory, local_files_only=True))
    file = SafetensorsFile(directory / WEIGHTS_FILE)
    found = {}
    for name, tensor in network.model.state_dict().items():
        info = file.tensors.get(f"model.{name}")
        if info is None or info.dtype != "BF16" or info.shape != tuple(tensor.shape):
            raise PomonaError(
                f"{file.path}: tensor model.{name} is missing or of another form; save it again"
            )
        found[name] = torch.from_numpy(float32_from_bf16(file.array(f"model.{name}")))
    network.model.load_state_dict(found)
    return network


def _base_of(directory: Path, given: Path | str | None) -> Path:
    from pomona.models import store

    if given is None:
        given = read_small_json(directory / ADAPTER_CONFIG_FILE).get("base_model_name_or_path")
        if not isinstance(given, str) or not (Path(given) / CONFIG_FILE).is_file():
            raise PomonaError(f"{directory}: its base is not where it says; name the base")
    return store.resolve(given)
