"""Training a tokenizer: SentencePiece BPE, written as a fast tokenizer.json that gives the same ids.

AFM_REPORT 2.8: byte-pair encoding after SentencePiece, every digit a token, bytes for what is not in the
vocabulary, no Unicode normalisation; 49k entries on the device, 100k on the server. The further settings are
those of Apple's published sibling vocabularies: pieces may hold white space, runs of it stay, 0.9995 of the
characters are covered, pad, end and unknown are 0, 1 and 2, no token for the beginning.

Ours: no space is put before a text, and a new line is its byte (Apple's siblings spell it "<n>", which a text
may hold); so decoding gives back every text.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pomona.data.documents import Skip, find_files, read_documents
from pomona.data.permutation import mix
from pomona.errors import PomonaError, one_line
from pomona.models.model_directory import ModelDirectoryWriter, Progress, write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

REPORT_VOCAB = 49_152  # 48 x 1024, whose embedding of width 3072 is the report's 0.15 B
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SPACE = "▁"
MODEL_FILE = "tokenizer.model"
MAX_LINE_BYTES = 32_768
_CHECKED_LINES = 2000

# Whatever a conversion could get wrong: both tokenizers must agree on these before anything is written.
AWKWARD = (
    "",
    " ",
    "   leading and trailing   ",
    "a\tb\n\nc\r\n  d",
    "▁ literal ▁▁ marks",
    "1234567890 3.14159 0x1F 1,000,000",
    "naïve café Ångström ﬁ ½ Ⅷ e\u0301",
    "日本語の文 中文 한국어 עברית العربية हिन्दी",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈\u200d\ufeff\u00a0\u3000",
    "<0x0A> <n> <unk> <pad> </s>",
    "\x00\x01\x7f\u0080\uffff\U0010ffff",
    "def f(x):\n    if x:\n\t\treturn x ** 2  # ok",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa         ........",
)


@dataclass(frozen=True)
class TokenizerOptions:
    """What may be chosen. max_bytes: text to train on, drawn evenly from all documents."""

    vocab_size: int = REPORT_VOCAB
    character_coverage: float = 0.9995
    control: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")
    max_bytes: int = 1 << 30
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class TokenizerReport:
    """What was trained. bytes_per_token: on a part of the text that was kept out of training."""

    folder: Path
    vocab_size: int
    documents: int
    bytes: int
    bytes_per_token: float | None
    skips: tuple[Skip, ...]


def train_tokenizer(
    inputs: Sequence[Path],
    target: Path,
    options: TokenizerOptions = TokenizerOptions(),
    *,
    text_key: str = "text",
    overwrite: bool = False,
    progress: Progress = lambda label, done, total: None,
) -> TokenizerReport:
    """Train on the documents of `inputs` and write the files of a tokenizer into `target`, whole or not.

    PomonaError: nothing to read, too little text for so many tokens, or an export that gives other ids.
    """
    files = find_files(inputs)
    sample = _Sample(files, options, text_key, progress)
    with ModelDirectoryWriter(target, overwrite=overwrite, mark="tokenizer.json") as directory:
        raw = train_sentencepiece(sample.lines(), options)
        progress("export", 0, 0)
        write_tokenizer(raw, directory.path, options)
        rate = _check_and_measure(raw, directory.path, sample.held_out)
        facts = {
            **asdict(options),
            "documents": sample.documents,
            "bytes": sample.bytes,
            "bytes_per_token": rate,
        }
        write_json(directory.path / "training.json", facts)
    return TokenizerReport(
        target, options.vocab_size, sample.documents, sample.bytes, rate, tuple(sample.skips)
    )


def train_sentencepiece(lines: Iterable[str], options: TokenizerOptions) -> bytes:
    """A SentencePiece model of `lines`, as the bytes of its file."""
    try:
        import sentencepiece
    except ImportError:
        raise PomonaError("training a tokenizer needs SentencePiece: pip install 'pomona[train]'") from None
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=options.vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            split_by_whitespace=False,
            allow_whitespace_only_pieces=True,
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            character_coverage=options.character_coverage,
            max_sentence_length=MAX_LINE_BYTES,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece=PAD,
            eos_piece=END,
            unk_piece=UNKNOWN,
            control_symbols=list(options.control),
            num_threads=options.threads,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise PomonaError(
            f"SentencePiece could not train {options.vocab_size} tokens ({one_line(str(error))[-200:]}); "
            "give more text or a smaller vocabulary"
        ) from error
    return model.getvalue()


def write_tokenizer(raw: bytes, folder: Path, options: TokenizerOptions) -> None:
    """The files of the tokenizer of a SentencePiece model: fast, SentencePiece's own, and names."""
    fast_tokenizer(raw).save(str(folder / "tokenizer.json"))
    (folder / MODEL_FILE).write_bytes(raw)
    names = {"eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "bos_token": None,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,
    }
    if options.control:
        config["additional_special_tokens"] = list(options.control)
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", dict(names))


def fast_tokenizer(raw: bytes) -> Backend:
    """The `tokenizers` form of a SentencePiece BPE model made by `train_sentencepiece`.

    SentencePiece joins, of all neighbours, the two whose joint piece has the best score, the leftmost first.
    That is a list of merges: for each piece in the order of scores, all ways to make it of two.
    """
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    model = sentencepiece.SentencePieceProcessor(model_proto=raw)
    pieces = [model.IdToPiece(i) for i in range(model.GetPieceSize())]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    ordinary = {
        piece: model.GetScore(index)
        for piece, index in vocab.items()
        if not (model.IsControl(index) or model.IsUnknown(index) or model.IsByte(index))
    }
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(ordinary, key=lambda piece: -ordinary[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in ordinary and piece[cut:] in ordinary
    ]
    backend = Tokenizer(BPE(vocab=vocab, merges=merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = [
        piece for index, piece in enumerate(pieces) if model.IsControl(index) or model.IsUnknown(index)
    ]
    backend.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    return backend


def _check_and_measure(raw: bytes, folder: Path, lines: Sequence[str]) -> float | None:
    """Bytes per token of `lines`. PomonaError if the two tokenizers differ anywhere in them."""
    import sentencepiece

    from pomona.models.tokenizer import Tokenizer

    slow = sentencepiece.SentencePieceProcessor(model_proto=raw)
    fast = Tokenizer.from_directory(folder)
    for text in (*AWKWARD, *lines):
        theirs = slow.EncodeAsIds(text)
        if fast.encode(text, parse_special=False) != theirs:
            raise PomonaError(
                f"the exported tokenizer differs from SentencePiece's on {json.dumps(text[:60])}; "
                "report it, with the text that it was trained on"
            )
    tokens = sum(len(slow.EncodeAsIds(line)) for line in lines)
    return sum(len(line.encode()) for line in lines) / tokens if tokens else None


class _Sample:
    """An even sample of documents as lines, one in fifty of which is held out."""

    def __init__(
        self, files: Sequence[Path], options: TokenizerOptions, text_key: str, progress: Progress
    ) -> None:
        self.files, self.options, self.text_key, self.progress = files, options, text_key, progress
        total = sum(path.stat().st_size * (4 if path.suffix in (".gz", ".zst") else 1) for path in files)
        self.share = min(1.0, options.max_bytes / max(1, total))
        self.documents = self.bytes = 0
        self.skips: list[Skip] = []
        self.held_out: list[str] = []

    def lines(self) -> Iterator[str]:
        number = 0
        for done, path in enumerate(self.files):
            self.progress("read", done, len(self.files))
            for found in read_documents(path, text_key=self.text_key):
                if isinstance(found, Skip):
                    self.skips.append(found)
                    continue
                number += 1
                if mix(self.options.seed, number) / 2**64 >= self.share:
                    continue
                self.documents += 1
                yield from self._lines_of(found.text)
        self.progress("train", 0, 0)

    def _lines_of(self, text: str) -> Iterator[str]:
        for line in text.split("\n"):
            if not line or "\x00" in line:  # SentencePiece reads neither
                continue
            if (
                mix(self.options.seed, len(line), self.bytes) % 50 == 0
                and len(self.held_out) < _CHECKED_LINES
            ):
                self.held_out.append(line)
                continue
            self.bytes += len(line.encode())
            yield line
