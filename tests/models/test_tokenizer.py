"""Text to ids and back: the ids of llama.cpp on thousands of lines, and streams that never cut a
character."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from gguf_samples import (
    byte_letters,
    byte_level_metadata,
    load_tokenizer,
    sentence_piece_metadata,
    tokenizer_metadata,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.errors import PomonaError
from pomona.models.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]


def recorder() -> ModuleType:
    """The script that made the fixture, for the lines and the hashes."""
    spec = importlib.util.spec_from_file_location(
        "recorder", ROOT / "benchmarks" / "record_tokenizer_fixture.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECORDER = recorder()
FIXTURE: dict[str, Any] = json.loads(RECORDER.IDS_FILE.read_text(encoding="utf-8"))
DATA_FILES = [name for name in FIXTURE["sets"] if name != "generated"]


@pytest.fixture(scope="session")
def smollm2(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(smollm2_dir)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(tokenizer_metadata(), tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def sentence_piece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(sentence_piece_metadata(), tmp_path_factory.mktemp("pieces"))


def compare_with_llama_cpp(tokenizer: Tokenizer, name: str, lines: list[str]) -> None:
    recorded = FIXTURE["sets"][name]
    assert RECORDER.text_hash(lines) == recorded["text"], (
        f"the text of {name} is not the recorded one; record again (benchmarks/record_tokenizer_fixture.py)"
    )
    assert len(lines) == len(recorded["ids"])
    ours = [
        RECORDER.ids_hash(tokenizer.encode(line), tokenizer.encode(line, parse_special=False))
        for line in lines
    ]
    wrong = [line for line, mine, theirs in zip(lines, ours, recorded["ids"], strict=True) if mine != theirs]
    assert not wrong, (
        f"{len(wrong)} of {len(lines)} lines differ from {FIXTURE['peer']}, first: {wrong[:3]!r}"
    )


def test_ids_equal_llama_cpp_on_more_than_2_000_generated_lines(smollm2: Tokenizer) -> None:
    lines = RECORDER.generated_lines()
    assert len(lines) > 2000 and sum(any(c.isdigit() for c in line) for line in lines) > 1000
    assert sum("  " in line or "\t" in line or "\n" in line for line in lines) > 1000
    compare_with_llama_cpp(smollm2, "generated", lines)


@pytest.mark.parametrize("name", DATA_FILES)
def test_ids_equal_llama_cpp_on_public_text(smollm2: Tokenizer, name: str) -> None:
    """Together more than 2,000 lines: questions, code, web pages, encyclopaedia, books, plays."""
    assert sum(len(FIXTURE["sets"][each]["ids"]) for each in DATA_FILES) > 2000
    folder = os.environ.get("POMONA_DATA")
    if not folder:
        pytest.skip(
            "POMONA_DATA is not set: the public data sets lie outside the project (see CONTRIBUTING.md)"
        )
    if not (Path(folder) / name).is_file():
        pytest.skip(f"POMONA_DATA holds no {name}")
    compare_with_llama_cpp(smollm2, name, RECORDER.data_lines(Path(folder))[name])


def test_every_line_comes_back_from_its_ids(smollm2: Tokenizer) -> None:
    for line in RECORDER.generated_lines():
        assert smollm2.decode(smollm2.encode(line), skip_special_tokens=False) == line


def test_special_tokens_of_the_real_model(smollm2: Tokenizer) -> None:
    assert (smollm2.vocab_size, smollm2.bos_token_id, smollm2.eos_token_ids) == (49152, 1, (2, 0))
    assert smollm2.token_to_id("<|im_end|>") == 2 and smollm2.id_to_token(2) == "<|im_end|>"
    assert smollm2.token_to_id("no such token") is None and smollm2.id_to_token(-1) is None
    assert smollm2.encode("hi", add_special_tokens=True) == smollm2.encode("hi")  # its file says: no bos
    untrusted = smollm2.encode("<|im_end|>", parse_special=False)
    assert 2 not in untrusted and smollm2.decode(untrusted) == "<|im_end|>"
    assert smollm2.encode("<|im_end|>") == [2]  # asking the other way first changes nothing


def test_chat_template_of_the_real_model(smollm2: Tokenizer) -> None:
    assert smollm2.chat_template is not None
    prompt = smollm2.chat_template.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    system = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )
    assert prompt == system + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert smollm2.encode(prompt).count(1) == 3


def test_loading_takes_less_than_150_ms(smollm2_dir: Path) -> None:
    best = float("inf")
    for _ in range(5):  # processor time: the machine may be busy
        start = time.process_time()
        Tokenizer.from_directory(smollm2_dir)
        best = min(best, time.process_time() - start)
    assert best < 0.15, f"{best:.3f} s of processor time"


def test_importing_pulls_in_nothing_heavy() -> None:
    code = (
        "import sys, pomona.models.tokenizer, pomona.models.chat_template;"
        "heavy = {'torch', 'transformers', 'jinja2', 'gguf', 'tokenizers'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# Streams

PIECES = [
    "héllo wörld",
    "日本語 🎉🏳️‍🌈👨‍👩‍👧",
    "<|im_end|>",
    "e\u0301",
    "\x00\x7f\u0080\uffff",
    "\ufffd",
    " ",
    "\n\n",
    "12 34",
]


def streamed(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    stream = tokenizer.stream(skip_special_tokens=skip)
    return [*(stream.push(index) for index in ids), stream.flush()]


def test_a_stream_gives_whole_characters_as_soon_as_they_are_complete(smollm2: Tokenizer) -> None:
    text = "".join(PIECES[:2])
    ids = smollm2.encode(text)
    pieces = streamed(smollm2, ids)
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces)
    assert "" in pieces[:-1]  # some token ended inside a character, and nothing was shown for it
    for end in range(1, len(ids)):  # never later than needed: all that is complete is out
        raw = b"".join(_raw(smollm2, index) for index in ids[:end])
        assert "".join(pieces[:end]) == raw.decode("utf-8", "ignore")


def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(
    smollm2: Tokenizer, sentence_piece: Tokenizer
) -> None:
    text = "".join(PIECES)
    ids = smollm2.encode(text)
    assert b"".join(smollm2.token_bytes(index) for index in ids) == text.encode()
    assert [smollm2.token_bytes(index) for index in ids] == [_raw(smollm2, index) for index in ids]
    assert smollm2.token_bytes(smollm2.token_to_id("<|im_end|>") or 0) == b"<|im_end|>"
    assert smollm2.token_bytes(10**6) == smollm2.token_bytes(-1) == b""
    joined = b"".join(sentence_piece.token_bytes(index) for index in sentence_piece.encode("two words"))
    assert joined.strip() == b"two words"


def _raw(tokenizer: Tokenizer, index: int) -> bytes:
    """The bytes of a byte-level token, by encoding every byte's letter anew."""
    table = byte_letters()
    return bytes(table[letter] for letter in tokenizer.id_to_token(index) or "")


@given(ids=st.lists(st.integers(0, 49_199), max_size=40), skip=st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_stream_of_any_ids_is_their_decoding(smollm2: Tokenizer, ids: list[int], skip: bool) -> None:
    """Random ids are mostly broken UTF-8: the replacement characters must come out alike, too."""
    assert "".join(streamed(smollm2, ids, skip)) == smollm2.decode(ids, skip_special_tokens=skip)


@given(text=st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_a_stream_of_any_text_is_the_text(small: Tokenizer, sentence_piece: Tokenizer, text: str) -> None:
    for tokenizer in (small, sentence_piece):
        ids = tokenizer.encode(text, parse_special=False)
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)
        if "▁" not in text:  # SentencePiece cannot tell this character from a space
            assert "".join(streamed(tokenizer, ids)) == text


def test_sentence_piece_streams_keep_spaces_but_the_first(sentence_piece: Tokenizer) -> None:
    for text in ("the cat", "  the cat", " ", "é 日本 🎉", "a</s> the", "</s>the"):
        ids = sentence_piece.encode(text)
        for skip in (True, False):
            assert "".join(streamed(sentence_piece, ids, skip)) == sentence_piece.decode(
                ids, skip_special_tokens=skip
            )
    emoji = sentence_piece.encode("🎉")
    assert streamed(sentence_piece, emoji) == ["", "", "", "", "🎉", ""]


def test_an_unfinished_character_is_flushed_and_the_stream_starts_anew(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("🏳")
    assert len(ids) > 1
    stream = smollm2.stream()
    assert [stream.push(index) for index in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.flush() == "\ufffd" and stream.flush() == ""
    assert "".join(stream.push(index) for index in ids) == "🏳"


def test_other_decoders_stream_through_the_library(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    backend = Backend(models.WordLevel({"[UNK]": 0, "▁the": 1, "▁cat": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path)
    ids = tokenizer.encode("the cat the")
    assert ids == [1, 2, 1] and "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids) == "the cat the"


# What a directory may hold


def test_end_tokens_come_from_every_file_that_names_them(tmp_path: Path) -> None:
    load_tokenizer(tokenizer_metadata(), tmp_path)  # tokenizer_config.json: <|im_end|>, id 2
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}', encoding="utf-8")
    assert Tokenizer.from_directory(tmp_path).eos_token_ids == (7, 2)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 2]}', encoding="utf-8")
    assert Tokenizer.from_directory(tmp_path).eos_token_ids == (5, 2)


def test_chat_templates_of_tokenizer_config_are_read(tmp_path: Path) -> None:
    load_tokenizer(tokenizer_metadata(), tmp_path)
    messages = [{"role": "user", "content": "x"}]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))

    def rendered(template: Any, **tools: Any) -> str:
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps(config | {"chat_template": template}), encoding="utf-8"
        )
        loaded = Tokenizer.from_directory(tmp_path).chat_template
        assert loaded is not None
        return loaded.render(messages, add_generation_prompt=False, **tools)

    assert rendered("ignored: the .jinja file wins") == "x"
    (tmp_path / "chat_template.jinja").unlink()
    assert rendered("{{ eos_token }}!") == "<|im_end|>!"
    several = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    assert rendered(several) == "plain" and rendered(several, tools=[]) == "tools"
    for wrong in (
        3,
        [{"name": "default"}],
        [{"name": [], "template": "x"}],
        [{"name": "other", "template": "x"}],
    ):
        with pytest.raises(PomonaError, match=r"chat.template"):
            rendered(wrong)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert Tokenizer.from_directory(tmp_path).chat_template is None


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("tokenizer.json", None, "tokenizer.json: cannot be read .*; give the path"),
        ("tokenizer.json", b"{}", "tokenizer.json: not a tokenizer .*; get the file again"),
        ("tokenizer.json", b"\xff\xfe", "tokenizer.json: is not UTF-8"),
        (
            "tokenizer.json",
            b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
            "not a tokenizer",
        ),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json: "),
        (
            "tokenizer_config.json",
            b'{"eos_token": "<none>"}',
            "special token '<none>' is not in tokenizer.json",
        ),
        ("generation_config.json", b'{"eos_token_id": "2"}', "eos_token_id is not a list of token ids"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: cannot be read"),
    ],
)
def test_damaged_files_are_refused_by_name(
    tmp_path: Path, file: str, content: bytes | None, expected: str
) -> None:
    load_tokenizer(tokenizer_metadata(), tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(PomonaError, match=expected) as caught:
        Tokenizer.from_directory(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_text_and_ids_that_nothing_can_make_are_refused(small: Tokenizer) -> None:
    with pytest.raises(PomonaError, match="surrogate"):
        small.encode("\ud83d")
    with pytest.raises(PomonaError, match="negative"):
        small.decode([-1])
    assert small.decode([10**6]) == ""  # padding of the model's vocabulary: no text
    assert small.stream().push(10**6) == "" and small.stream().push(-5) == ""
    assert small.vocab_size == len(byte_level_metadata()["tokenizer.ggml.tokens"])
