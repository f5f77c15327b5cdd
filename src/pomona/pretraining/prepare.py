"""What a run needs before its first step: text, tokenizer, packed tokens; made once, in the run's folder OUT.

Text and tokenizer are for small runs; large ones bring both, packed by `pomona data`.

    OUT/text/       NAME.train.jsonl, NAME.held-out.jsonl
    OUT/tokenizer/  trained on the text to train on, or copied
    OUT/data/       NAME.train/, NAME.held-out/: packed tokens
    OUT/prepared.json
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pomona.data.mixture import PackedMixture, Source
from pomona.data.pack import pack, tokenizer_sha256
from pomona.data.packed_tokens import packed_sha256
from pomona.data.train_tokenizer import TokenizerOptions, train_tokenizer
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.model_directory import (
    TOKENIZER_FILES,
    ModelDirectoryWriter,
    Progress,
    copy_files,
    read_json_object,
    write_json,
)
from pomona.models.tokenizer import Tokenizer
from pomona.pretraining.corpus import available, gather
from pomona.pretraining.recipe import Recipe, StageSettings

PREPARED = "prepared.json"
_TOKENIZER_MB = 64
_MULTIPLE = 64  # a vocabulary is rounded up to this, so that its matrix has whole blocks


@dataclass(frozen=True)
class Prepared:
    """train, validation: source -> packed folder. left_out: optional sources whose text is not there."""

    tokenizer: Path
    train: dict[str, Path]
    validation: dict[str, Path]
    left_out: tuple[str, ...]
    identity: dict[str, Any]  # tokenizer and packed tokens, by their sums

    def windows(self, stage: StageSettings, seed: int) -> PackedMixture:
        """The stage's sequences to train on. PomonaError if none of its sources is there."""
        weights = {name: weight for name, weight in stage.mixture.items() if name in self.train}
        if not weights:
            raise PomonaError(
                f"stage {stage.name}: none of its sources is there; set POMONA_DATA or give text"
            )
        sources = [Source(self.train[name], weight, name) for name, weight in weights.items()]
        return PackedMixture(
            sources, sequence_length=stage.sequence_length, seed=seed, length=stage.steps * stage.batch
        )

    def held_out(self, stage: StageSettings, seed: int, count: int) -> PackedMixture:
        """The first `count` held-out sequences of the stage's mixture, the same in every run."""
        weights = {name: weight for name, weight in stage.mixture.items() if name in self.validation}
        if not weights:
            raise PomonaError(f"stage {stage.name}: no source of it has held-out text; add data.validation")
        sources = [Source(self.validation[name], weight, name) for name, weight in weights.items()]
        whole = PackedMixture(sources, sequence_length=stage.sequence_length, seed=seed)
        return PackedMixture(
            sources, sequence_length=stage.sequence_length, seed=seed, length=min(count, len(whole))
        )

    def config(self, config: ModelConfig) -> ModelConfig:
        """`config` with the tokenizer's vocabulary and special tokens."""
        tokenizer = Tokenizer.from_directory(self.tokenizer)
        ids = {name: tokenizer.token_to_id(token) for name, token in self._special().items()}
        size = -(-tokenizer.vocab_size // _MULTIPLE) * _MULTIPLE
        return replace(
            config,
            vocab_size=size,
            eos_token_ids=tokenizer.eos_token_ids,
            bos_token_id=ids.get("bos_token"),
            pad_token_id=ids.get("pad_token"),
        )

    def _special(self) -> dict[str, str]:
        raw = read_json_object(self.tokenizer / "tokenizer_config.json")
        return {name: raw[name] for name in ("bos_token", "pad_token") if isinstance(raw.get(name), str)}


def prepare(recipe: Recipe, out: Path, *, progress: Progress = lambda label, done, total: None) -> Prepared:
    """Make what is not there yet; an interrupted preparation begins again where it stopped.

    PomonaError: text that is not there, or no usable tokenizer.
    """
    record = out / PREPARED
    if record.is_file():
        return read_prepared(out)
    usable = {name: one for name, one in recipe.sources().items() if not one.optional or available(one)}
    left_out = tuple(sorted(set(recipe.data.sources) - set(usable)))
    texts = {}
    for done, (name, source) in enumerate(usable.items()):
        progress("gather text", done, len(usable))
        if source.packed is None:
            texts[name] = gather(name, source, out / "text", validation_share=recipe.data.validation_share)
    tokenizer = _tokenizer(recipe, out, [one.train for one in texts.values()], progress)
    train: dict[str, Path] = {name: one.packed for name, one in usable.items() if one.packed is not None}
    validation = {name: recipe.place(path) for name, path in recipe.data.validation.items()}
    for name, one in texts.items():
        train[name] = _packed(one.train, out / "data" / f"{name}.train", tokenizer, progress)
        validation[name] = _packed(one.held_out, out / "data" / f"{name}.held-out", tokenizer, progress)
    made = Prepared(tokenizer, train, validation, left_out, _identity(tokenizer, train))
    write_json(
        record,
        {
            "tokenizer": _inside(tokenizer, out),
            "train": {name: _inside(folder, out) for name, folder in train.items()},
            "validation": {name: _inside(folder, out) for name, folder in validation.items()},
            "left_out": list(left_out),
            "identity": made.identity,
        },
    )
    return made


def read_prepared(out: Path) -> Prepared:
    """What `prepare` made in the folder. PomonaError if it is not there, or damaged."""
    raw = read_json_object(out / PREPARED)
    try:
        return Prepared(
            out / raw["tokenizer"],
            {name: out / folder for name, folder in raw["train"].items()},
            {name: out / folder for name, folder in raw["validation"].items()},
            tuple(raw["left_out"]),
            raw["identity"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise PomonaError(f"{out / PREPARED}: is not what was written; give --restart") from error


def _tokenizer(recipe: Recipe, out: Path, texts: list[Path], progress: Progress) -> Path:
    target = out / "tokenizer"
    if recipe.tokenizer.path is not None:
        given = recipe.place(recipe.tokenizer.path)
        if not (given / "tokenizer.json").is_file():
            raise PomonaError(f"{given}: has no tokenizer.json; give the directory of a model that has one")
        with ModelDirectoryWriter(target, overwrite=True, mark="tokenizer.json") as writer:
            copy_files(given, writer.path, TOKENIZER_FILES)
        return target
    if not texts:
        raise PomonaError("tokenizer: packed sources have one already; give its path instead of vocab_size")
    assert recipe.tokenizer.vocab_size is not None
    options = TokenizerOptions(vocab_size=recipe.tokenizer.vocab_size, max_bytes=_TOKENIZER_MB << 20)
    train_tokenizer(texts, target, options, overwrite=True, progress=progress)
    return target


def _packed(text: Path, target: Path, tokenizer: Path, progress: Progress) -> Path:
    pack([text], target, tokenizer, overwrite=True, progress=progress)
    return target


def _identity(tokenizer: Path, train: dict[str, Path]) -> dict[str, Any]:
    packed = {name: packed_sha256(folder) for name, folder in train.items()}
    return {"tokenizer": tokenizer_sha256(tokenizer), "packed": packed}


def _inside(path: Path, out: Path) -> str:
    """Relative, where it lies in the run's folder, so that the folder may be moved."""
    return str(path.relative_to(out) if path.is_relative_to(out) else path)
