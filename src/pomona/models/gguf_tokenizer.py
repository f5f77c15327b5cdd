"""GGUF tokenizer metadata -> tokenizer.json, tokenizer_config.json and chat_template.jinja.

A GGUF file carries a vocabulary, the kind of every token, and either merges (`gpt2`: byte-level BPE) or
scores (`llama`: SentencePiece BPE with byte fallback). How text is cut before merging is only *named* there
(`tokenizer.ggml.pre`); the rules below are those of the models' published tokenizer.json files, which
llama.cpp follows too. A name that is not in the table is refused: a wrong cut gives wrong token ids and a
silently worse model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.errors import PomonaError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT_4 = (  # Llama 3 takes up to three digits together, Qwen 2 one
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre -> the expressions that cut the text, one after the other; matches and what lies between
# them are the pieces. A single digit is cut off first in smollm; "default" is llama.cpp's rule for files of
# no known kind.
_CUTS: dict[str, tuple[str, ...]] = {
    "smollm": (r"\p{N}", _GPT_2),
    "llama-bpe": (_GPT_4.replace("DIGITS", "{1,3}"),),
    "qwen2": (_GPT_4.replace("DIGITS", ""),),
    "gpt-2": (_GPT_2,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT_2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
PRE_TOKENIZERS = tuple(_CUTS)
_PRE_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe"}

# Control tokens that end an answer, by their text: chat models often stop at another token than the one that
# the file calls end of sequence (Llama 3's <|eot_id|>, base-model leftovers such as <|endoftext|>).
_END_TEXTS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>")

_SPECIAL_IDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


@dataclass(frozen=True)
class GgufTokenizer:
    """What a GGUF file says about its tokenizer, as Hugging Face files. `tokenizer_json`, `tokenizer_config`
    and `chat_template` are file contents (the last is None for a base model); ids are None where the file
    names none."""

    tokenizer_json: str
    tokenizer_config: dict[str, Any]
    chat_template: str | None
    vocab_size: int  # token entries in the GGUF file, which is the number of rows of the embedding
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    def write(self, directory: Path) -> None:
        """Write the tokenizer files into an existing directory."""
        (directory / "tokenizer.json").write_text(self.tokenizer_json, encoding="utf-8")
        config = json.dumps(self.tokenizer_config, indent=2, ensure_ascii=False)
        (directory / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
        if self.chat_template is not None:
            (directory / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")


def convert_tokenizer(metadata: Mapping[str, Any], source: Path | str, *, max_length: int) -> GgufTokenizer:
    """Build the tokenizer of a GGUF file from its metadata.

    `source` is the file, for messages; `max_length` the model's context length in tokens. PomonaError if the
    tokenizer is absent, damaged, or of a kind that pomona does not know.
    """
    vocabulary = _read_vocabulary(metadata, source)
    model = metadata.get("tokenizer.ggml.model")
    build = {"gpt2": _byte_level, "llama": _sentence_piece}.get(model) if isinstance(model, str) else None
    if build is None:
        raise PomonaError(
            f"{source}: tokenizer {_shown(model)} is not supported (gpt2 and llama are);"
            " import the model from its Hugging Face directory instead"
        )
    try:
        tokenizer = build(vocabulary, metadata, source)
        _add_special_tokens(tokenizer, vocabulary, source)
        _add_post_processor(tokenizer, vocabulary, metadata, source)
    except PomonaError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise PomonaError(f"{source}: the tokenizer is damaged ({error}); convert the model again") from error
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise PomonaError(
            f"{source}: tokenizer.chat_template is not a string; download or convert the file again"
        )
    return GgufTokenizer(
        tokenizer_json=tokenizer.to_str(pretty=False),
        tokenizer_config=_tokenizer_config(vocabulary, max_length),
        chat_template=template,
        vocab_size=len(vocabulary.tokens),
        bos_token_id=vocabulary.special.get("bos_token"),
        eos_token_ids=_end_ids(vocabulary, metadata, source),
        pad_token_id=vocabulary.special.get("pad_token"),
    )


@dataclass(frozen=True)
class _Vocabulary:
    tokens: list[str]
    kinds: list[int]
    special: dict[str, int]  # "bos_token" ... -> id
    ids: dict[str, int] = field(repr=False)  # every token that text can become: no unused padding at the end


def _read_vocabulary(metadata: Mapping[str, Any], source: Path | str) -> _Vocabulary:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise PomonaError(
            f"{source}: no tokenizer in the file (tokenizer.ggml.tokens); use a file with a vocabulary,"
            " or import the model from its Hugging Face directory"
        )
    kinds = metadata.get("tokenizer.ggml.token_type")
    if kinds is None:
        kind_list = [_NORMAL] * len(tokens)
    elif isinstance(kinds, np.ndarray) and kinds.dtype.kind in "iu" and len(kinds) == len(tokens):
        kind_list = [int(kind) for kind in kinds]
    else:
        raise PomonaError(
            f"{source}: tokenizer.ggml.token_type does not fit the tokens; convert the model again"
        )
    used = len(tokens)  # vocabularies are padded to a round size with unused entries: they are no tokens
    while used > 1 and kind_list[used - 1] == _UNUSED:
        used -= 1
    ids = {token: index for index, token in enumerate(tokens[:used])}
    if len(ids) != used or "" in ids:
        raise PomonaError(
            f"{source}: the vocabulary holds an empty or repeated token; convert the model again"
        )
    special = {}
    for name, key in _SPECIAL_IDS.items():
        if (index := _token_id(metadata, key, used, source)) is not None:
            special[name] = index
    return _Vocabulary(tokens, kind_list, special, ids)


def _token_id(metadata: Mapping[str, Any], key: str, limit: int, source: Path | str) -> int | None:
    index = metadata.get(key)
    if index is None or (type(index) is int and index in (-1, 0xFFFFFFFF)):  # converters write "none" as -1
        return None
    if type(index) is not int or not 0 <= index < limit:
        raise PomonaError(
            f"{source}: {key} is {_shown(index)}, not a token of the vocabulary; convert the model again"
        )
    return index


def _flag(metadata: Mapping[str, Any], key: str, default: bool, source: Path | str) -> bool:
    value = metadata.get(key, default)
    if not isinstance(value, bool):
        raise PomonaError(f"{source}: {key} is not a boolean; convert the model again")
    return value


def _byte_level(vocabulary: _Vocabulary, metadata: Mapping[str, Any], source: Path | str) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = metadata.get("tokenizer.ggml.pre")
    name = _PRE_ALIASES.get(pre, pre) if isinstance(pre, str) else pre
    if name not in PRE_TOKENIZERS:
        raise PomonaError(
            f"{source}: pre-tokenizer {_shown(pre)} is not supported ({', '.join(PRE_TOKENIZERS)} are);"
            " import the model from its Hugging Face directory instead"
        )
    merges = _read_merges(vocabulary, metadata, source)
    tokenizer = Tokenizer(models.BPE(vocabulary.ids, merges, ignore_merges=name == "llama-bpe"))
    steps: list[pre_tokenizers.PreTokenizer] = []
    for cut in _CUTS[name]:
        if cut == r"\p{N}":  # these two have equal, and faster, forms in the library
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif cut == _GPT_2 and cut == _CUTS[name][-1]:
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
        else:
            steps.append(pre_tokenizers.Split(Regex(cut), "isolated"))
    if _CUTS[name][-1] != _GPT_2:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    if name == "qwen2":  # Qwen's own tokenizer composes characters first; llama.cpp leaves that out
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _read_merges(
    vocabulary: _Vocabulary, metadata: Mapping[str, Any], source: Path | str
) -> list[tuple[str, str]]:
    lines = metadata.get("tokenizer.ggml.merges")
    if not isinstance(lines, list) or any(not isinstance(line, str) for line in lines):
        raise PomonaError(
            f"{source}: no tokenizer.ggml.merges for the gpt2 tokenizer; convert the model again"
        )
    merges = []
    for line in lines:
        cut = line.find(" ", 1)
        left, right = line[:cut], line[cut + 1 :]
        if (
            cut < 0
            or left not in vocabulary.ids
            or right not in vocabulary.ids
            or left + right not in vocabulary.ids
        ):
            raise PomonaError(
                f"{source}: merge {line[:60]!r} does not fit the vocabulary; convert the model again"
            )
        merges.append((left, right))
    return merges


def _sentence_piece(vocabulary: _Vocabulary, metadata: Mapping[str, Any], source: Path | str) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get("tokenizer.ggml.scores")
    if (
        not isinstance(scores, np.ndarray)
        or scores.dtype.kind != "f"
        or len(scores) != len(vocabulary.tokens)
    ):
        raise PomonaError(
            f"{source}: no tokenizer.ggml.scores for the llama tokenizer; convert the model again"
        )
    unknown = vocabulary.special.get("unk_token")
    unknown_token = None if unknown is None else vocabulary.tokens[unknown]
    has_bytes = all(f"<0x{byte:02X}>" in vocabulary.ids for byte in range(256))
    if not has_bytes and unknown_token is None:
        raise PomonaError(
            f"{source}: the llama tokenizer has neither byte tokens nor an unknown token; convert it again"
        )
    model = models.BPE(
        vocabulary.ids,
        _merges_from_scores(vocabulary, scores.tolist()),
        unk_token=unknown_token,
        fuse_unk=True,
        byte_fallback=has_bytes,
    )
    tokenizer = Tokenizer(model)
    prefix = _flag(metadata, "tokenizer.ggml.add_space_prefix", True, source)
    spaces = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if prefix else spaces)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _merges_from_scores(vocabulary: _Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the two neighbours whose union has the best score; as merges, that is every cut of
    every piece into two pieces, best score first. Only ordinary pieces are made by joining."""
    ids, kinds = vocabulary.ids, vocabulary.kinds
    joinable = {token for token, index in ids.items() if kinds[index] in (_NORMAL, _USER_DEFINED, _UNUSED)}
    found: list[tuple[float, int, str, str]] = []
    for token, index in ids.items():
        if kinds[index] != _NORMAL:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in joinable and right in joinable:
                found.append((-scores[index], index, left, right))
    found.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in found]


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: _Vocabulary, source: Path | str) -> None:
    from tokenizers import AddedToken

    named = set(vocabulary.special.values())
    added = []
    for token, index in vocabulary.ids.items():
        kind = vocabulary.kinds[index]
        special = kind in (_CONTROL, _UNKNOWN) or (index in named and kind != _BYTE)
        if special or kind == _USER_DEFINED:
            added.append(AddedToken(token, special=special, normalized=False))
    # In one call each, or every token would rebuild the search automaton.
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    if tokenizer.get_vocab_size(with_added_tokens=True) != len(vocabulary.ids):
        raise PomonaError(f"{source}: the special tokens do not fit the vocabulary; convert the model again")


def _add_post_processor(
    tokenizer: Tokenizer, vocabulary: _Vocabulary, metadata: Mapping[str, Any], source: Path | str
) -> None:
    """Beginning and end tokens around a text, where the model wants them (with add_special_tokens=True
    only)."""
    from tokenizers import processors

    is_llama = metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") in (
        "llama-bpe",
        *_PRE_ALIASES,
    )
    wanted = (
        ("bos_token", _flag(metadata, "tokenizer.ggml.add_bos_token", is_llama, source)),
        ("eos_token", _flag(metadata, "tokenizer.ggml.add_eos_token", False, source)),
    )
    around = {
        name: vocabulary.tokens[vocabulary.special[name]]
        for name, on in wanted
        if on and name in vocabulary.special
    }
    if not around:
        return
    first = [around["bos_token"]] if "bos_token" in around else []
    last = [around["eos_token"]] if "eos_token" in around else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[
            *first,
            "$A",
            *last,
            *(f"{token}:1" for token in first),
            "$B:1",
            *(f"{token}:1" for token in last),
        ],
        special_tokens=[(token, vocabulary.ids[token]) for token in around.values()],
    )


def _end_ids(vocabulary: _Vocabulary, metadata: Mapping[str, Any], source: Path | str) -> tuple[int, ...]:
    """Tokens that end an answer: the named one first, then end-of-turn ids and control tokens known by their
    text."""
    limit = len(vocabulary.ids)
    named = [vocabulary.special.get("eos_token")]
    named += [
        _token_id(metadata, f"tokenizer.ggml.{name}_token_id", limit, source) for name in ("eot", "eom")
    ]
    known = [vocabulary.ids.get(text) for text in _END_TEXTS]
    controls = [index for index in known if index is not None and vocabulary.kinds[index] == _CONTROL]
    return tuple(dict.fromkeys(index for index in (*named, *controls) if index is not None))


def _tokenizer_config(vocabulary: _Vocabulary, max_length: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        # The class that takes tokenizer.json as it is; a model-specific class would rebuild parts of it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    config.update({name: vocabulary.tokens[index] for name, index in sorted(vocabulary.special.items())})
    named = set(vocabulary.special.values())
    extra = [t for t, i in vocabulary.ids.items() if vocabulary.kinds[i] == _CONTROL and i not in named]
    if extra:
        config["extra_special_tokens"] = extra
    return config


def _shown(value: object) -> str:
    """A metadata value for a message."""
    if value is None:
        return "(not named)"
    return repr(value)[:60] if isinstance(value, str | int | float) else "of the wrong type"
