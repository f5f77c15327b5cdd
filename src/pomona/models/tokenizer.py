"""Text <-> token ids, for the tokenizer.json of a model directory.

The work is done by the `tokenizers` library. Ours are: the special tokens and chat template around it, errors
that name the file, and decoding as a stream, where every piece is whole text although tokens end in the
middle of characters."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pomona.errors import PomonaError
from pomona.models.chat_template import ChatTemplate
from pomona.models.model_directory import read_json_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_MAX_TOKENIZER_BYTES = 1 << 28
_MAX_TEMPLATE_BYTES = 1 << 22
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """The tokenizer of a model directory. Methods may be called from several threads."""

    def __init__(
        self,
        backend: Backend,
        *,
        bos_token_id: int | None = None,
        eos_token_ids: Iterable[int] = (),
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self.backend = backend
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(eos_token_ids)
        self.chat_template = chat_template

    @classmethod
    def from_directory(cls, path: Path | str) -> Tokenizer:
        """Read tokenizer.json and, where they exist, tokenizer_config.json, chat_template.jinja,
        generation_config.json and config.json. PomonaError, naming the file, if tokenizer.json is missing or
        any of them is damaged."""
        directory = Path(path)
        backend = _load_backend(directory / "tokenizer.json")
        config = _optional_json(directory / "tokenizer_config.json")
        tokens = _special_tokens({**_optional_json(directory / "special_tokens_map.json"), **config})
        generation = _optional_json(directory / "generation_config.json")
        model = _optional_json(directory / "config.json")
        ends = generation.get("eos_token_id", model.get("eos_token_id"))
        end_ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
        if any(type(end) is not int or end < 0 for end in end_ids):
            raise PomonaError(
                f"{directory}: eos_token_id is not a list of token ids; correct generation_config.json"
            )
        # A chat model's tokenizer may end turns with a token that the older generation config does not know.
        if "eos_token" in tokens:
            end_ids = [*end_ids, _known_id(backend, tokens["eos_token"], directory)]
        bos = _known_id(backend, tokens["bos_token"], directory) if "bos_token" in tokens else None
        template = _read_template(directory, config, tokens)
        return cls(backend, bos_token_id=bos, eos_token_ids=dict.fromkeys(end_ids), chat_template=template)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. The model's vocabulary may be larger (padded)."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of `text`.

        `add_special_tokens` adds what the model wants around a text (usually bos). With
        `parse_special=False`, text that spells a control token is ordinary text: use it for text that you do
        not trust."""
        backend = self.backend if parse_special else self._plain_backend
        try:
            return backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError):
            if isinstance(text, str):  # the library takes every text but those that are no Unicode
                raise PomonaError(
                    "text: holds half of a surrogate pair, which is no character; remove it"
                ) from None
            raise

    def encode_batch(self, texts: Sequence[str], *, parse_special: bool = True) -> list[list[int]]:
        """`encode` of each text, without added tokens; on several cores where the library may use them."""
        backend = self.backend if parse_special else self._plain_backend
        try:
            found = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            return [self.encode(text, parse_special=parse_special) for text in texts]  # says what is wrong
        return [one.ids for one in found]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`. Ids outside the vocabulary give nothing; bytes that are no UTF-8 give U+FFFD."""
        try:
            return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except OverflowError:
            raise PomonaError(
                "token ids: one is negative or too large; give ids that a tokenizer made"
            ) from None

    def token_to_id(self, token: str) -> int | None:
        """Id of a token by its text as it stands in the vocabulary, or None."""
        return self.backend.token_to_id(token)

    def id_to_token(self, index: int) -> str | None:
        """Text of a token as it stands in the vocabulary, or None for an id that has no token."""
        return self.backend.id_to_token(index) if 0 <= index < 1 << 32 else None

    def token_bytes(self, index: int) -> bytes:
        """What a token stands for in a text, perhaps a part of a character. Empty for an unknown id."""
        if (token := self.id_to_token(index)) is None:
            return b""
        if (piece_bytes := self._piece_bytes) is None:
            return self.decode([index], skip_special_tokens=False).encode("utf-8", "replace")
        return piece_bytes(token)

    def stream(self, *, skip_special_tokens: bool = True) -> StreamDecoder:
        """A decoder for one answer that arrives token by token."""
        hidden = self._special_ids if skip_special_tokens else frozenset()
        if (piece_bytes := self._piece_bytes) is None:
            return _ForeignStream(self, skip_special_tokens)
        return _ByteStream(self, hidden, piece_bytes, self._strip_left)

    @cached_property
    def special_pattern(self) -> re.Pattern[str] | None:
        """Finds the text of every control token; None when there are none."""
        tokens = self.backend.get_added_tokens_decoder().values()
        texts = sorted((token.content for token in tokens if token.special), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    @cached_property
    def _plain_backend(self) -> Backend:
        copy = _backend_from_text(self.backend.to_str())
        copy.encode_special_tokens = True
        return copy

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(
            index for index, token in self.backend.get_added_tokens_decoder().items() if token.special
        )

    @cached_property
    def _decoder(self) -> dict[str, Any]:
        # The library shows a decoder as JSON only through its pickle state.
        decoder = self.backend.decoder
        state: dict[str, Any] = {} if decoder is None else json.loads(decoder.__getstate__())
        return state

    @cached_property
    def _piece_bytes(self) -> Callable[[str], bytes] | None:
        """How one token becomes bytes, for the two decoders of the models that we run; None for others."""
        if self._decoder.get("type") == "ByteLevel":
            return _byte_level_bytes
        steps = [step["type"] for step in self._decoder.get("decoders", ())]
        if steps[:3] == ["Replace", "ByteFallback", "Fuse"] and steps[3:] in ([], ["Strip"]):
            replace, strip = self._decoder["decoders"][0], self._decoder["decoders"][3:]
            plain = replace["pattern"] == {"String": "▁"} and replace["content"] == " "
            if plain and all(step["content"] == " " and step["stop"] == 0 for step in strip):
                return _byte_fallback_bytes
        return None

    @property
    def _strip_left(self) -> int:
        steps = self._decoder.get("decoders", ())
        return int(steps[3]["start"]) if len(steps) > 3 else 0


class StreamDecoder:
    """Turns tokens into text as they come. All pieces together are `decode` of all tokens (where their bytes
    are valid UTF-8; with byte-level BPE always)."""

    def push(self, token_id: int) -> str:
        """The text that is complete with this token, perhaps empty: never half a character."""
        raise NotImplementedError

    def flush(self) -> str:
        """What is left at the end: an unfinished character as U+FFFD. The decoder is then as new."""
        raise NotImplementedError


class _ByteStream(StreamDecoder):
    """For byte-level BPE and for SentencePiece with byte fallback: tokens are bytes, and bytes become text as
    soon as they are characters."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        hidden: frozenset[int],
        piece_bytes: Callable[[str], bytes],
        strip_left: int,
    ) -> None:
        self._tokenizer, self._hidden, self._piece_bytes = tokenizer, hidden, piece_bytes
        self._strip_left = self._to_strip = strip_left
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        if token_id in self._hidden or (token := self._tokenizer.id_to_token(token_id)) is None:
            return ""
        return self._stripped(self._utf8.decode(self._piece_bytes(token)))

    def flush(self) -> str:
        rest = self._stripped(self._utf8.decode(b"", final=True))
        self._utf8.reset()
        self._to_strip = self._strip_left
        return rest

    def _stripped(self, text: str) -> str:
        """Without the space that SentencePiece puts before a text."""
        while self._to_strip and text:
            if text[0] != " ":
                self._to_strip = 0
                break
            text = text[1:]
            self._to_strip -= 1
        return text


class _ForeignStream(StreamDecoder):
    """For any other decoder: the library's own stream, which decodes a window again and again."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._start()

    def _start(self) -> None:
        from tokenizers.decoders import DecodeStream

        self._stream = DecodeStream(skip_special_tokens=self._skip)
        self._ids: list[int] = []
        self._sent = 0

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        piece = self._stream.step(self._tokenizer.backend, token_id) or ""
        self._sent += len(piece)
        return piece

    def flush(self) -> str:
        rest = self._tokenizer.decode(self._ids, self._skip)[self._sent :]
        self._start()
        return rest


@cache
def _byte_of_letter() -> dict[str, int]:
    """GPT-2's alphabet: every byte as a printable character; those that are none sit at U+0100 and up, in
    order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _byte_level_bytes(token: str) -> bytes:
    table = _byte_of_letter()
    try:
        return bytes([table[letter] for letter in token])
    except KeyError:  # an added token with spaces or the like stands for itself
        return token.encode("utf-8", "replace")


def _byte_fallback_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace("▁", " ").encode("utf-8", "replace")


def _load_backend(path: Path) -> Backend:
    try:
        if path.stat().st_size > _MAX_TOKENIZER_BYTES:
            raise PomonaError(f"{path}: larger than any tokenizer; get the file again")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PomonaError(
            f"{path}: cannot be read ({error.strerror or error});"
            " give the path of a model directory with a tokenizer"
        ) from None
    except UnicodeDecodeError:
        raise PomonaError(f"{path}: is not UTF-8; the file is damaged, get it again") from None
    try:
        return _backend_from_text(text)
    except Exception as error:
        raise PomonaError(f"{path}: not a tokenizer ({str(error)[:200]}); get the file again") from None


def _backend_from_text(text: str) -> Backend:
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_str(text)
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # Rust's panic, which is no Exception in Python
            raise ValueError(str(error)) from None
        raise


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The named special tokens; a value is the token, or an object with its "content"."""
    found = {}
    for name in _SPECIAL_NAMES:
        value = config.get(name)
        if isinstance(value, Mapping):
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def _known_id(backend: Backend, token: str, directory: Path) -> int:
    index = backend.token_to_id(token)
    if index is None:
        raise PomonaError(
            f"{directory}: special token {token!r} is not in tokenizer.json; get both files again"
        )
    return index


def _read_template(directory: Path, config: Mapping[str, Any], tokens: dict[str, str]) -> ChatTemplate | None:
    path = directory / "chat_template.jinja"
    if path.exists():
        try:
            if path.stat().st_size > _MAX_TEMPLATE_BYTES:
                raise PomonaError(f"{path}: larger than any chat template; get the file again")
            return ChatTemplate(path.read_text(encoding="utf-8"), special_tokens=tokens, source=path)
        except (OSError, UnicodeDecodeError) as error:
            raise PomonaError(f"{path}: cannot be read ({error}); get the file again") from None
    path = directory / "tokenizer_config.json"
    template = config.get("chat_template")
    if template is None:
        return None
    if isinstance(template, list):  # several: [{"name": ..., "template": ...}]
        entries = [
            (entry.get("name"), entry.get("template")) for entry in template if isinstance(entry, dict)
        ]
        texts = {name: text for name, text in entries if isinstance(name, str) and isinstance(text, str)}
        if len(texts) == len(template):
            return ChatTemplate(texts, special_tokens=tokens, source=path)
    elif isinstance(template, str):
        return ChatTemplate(template, special_tokens=tokens, source=path)
    raise PomonaError(
        f"{path}: chat_template is neither a text nor a list of named texts; get the file again"
    )
