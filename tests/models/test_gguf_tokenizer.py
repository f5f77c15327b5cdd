"""GGUF tokenizer metadata becomes a tokenizer that cuts and merges text as the model's own does."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_samples import (
    NORMAL,
    PIECES,
    SPECIAL,
    UNUSED,
    USER_DEFINED,
    byte_letters,
    byte_level_metadata,
    load_tokenizer,
    sentence_piece_metadata,
    tokenizer_metadata,
)

from pomona.errors import PomonaError
from pomona.models.gguf_tokenizer import PRE_TOKENIZERS, GgufTokenizer, convert_tokenizer
from pomona.models.tokenizer import Tokenizer


def convert(values: dict[str, Any]) -> GgufTokenizer:
    return convert_tokenizer(values, "sample.gguf", max_length=256)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """How the text is cut before merging."""
    assert tokenizer.backend.pre_tokenizer is not None
    ids = byte_letters()
    cut = tokenizer.backend.pre_tokenizer.pre_tokenize_str(text)
    return [bytes(ids[letter] for letter in piece).decode("utf-8") for piece, _ in cut]


TEXT = "I'LL  pay 12345 €!!\n\n  ok\t٣٤ <=>"
CUTS = {  # the pieces, with bars between them
    "smollm": "I|'|LL| | pay| |1|2|3|4|5| €!!|\n\n | ok|\t|٣|٤| <=>",
    "gpt-2": "I|'|LL| | pay| 12345| €!!|\n\n | ok|\t|٣٤| <=>",
    "llama-bpe": "I|'LL| | pay| |123|45| €!!\n\n| | ok|\t|٣٤| <=>",
    "qwen2": "I|'LL| | pay| |1|2|3|4|5| €!!\n\n| | ok|\t|٣|٤| <=>",
    "default": "I|'|LL| | pay| |123|45| €|!!|\n\n | ok|\t|٣٤| |<=>",
}


@pytest.mark.parametrize("pre", CUTS)
def test_each_pre_tokenizer_cuts_by_its_rule(tmp_path: Path, pre: str) -> None:
    """Expected pieces derived by hand from the rules; with the real vocabulary, ids were compared with
    llama.cpp's (benchmarks/record_tokenizer_fixture.py)."""
    assert pieces(load_tokenizer(tokenizer_metadata(pre), tmp_path), TEXT) == CUTS[pre].split("|")
    assert set(CUTS) == set(PRE_TOKENIZERS)


def test_llama_3_takes_whole_words_before_merging(tmp_path: Path) -> None:
    values = tokenizer_metadata("llama-bpe")
    values["tokenizer.ggml.tokens"] = [*values["tokenizer.ggml.tokens"], "zq"]  # no merge makes it
    values["tokenizer.ggml.token_type"] = np.append(values["tokenizer.ggml.token_type"], NORMAL)
    assert load_tokenizer(values, tmp_path).encode("zq") == [len(values["tokenizer.ggml.tokens"]) - 1]
    values["tokenizer.ggml.pre"] = "gpt-2"
    assert len(load_tokenizer(values, tmp_path).encode("zq")) == 2


def test_qwen_2_composes_characters_and_the_others_do_not(tmp_path: Path) -> None:
    for pre in PRE_TOKENIZERS:
        tokenizer = load_tokenizer(tokenizer_metadata(pre), tmp_path)
        assert (tokenizer.decode(tokenizer.encode("e\u0301")) == "\u00e9") == (pre == "qwen2")


def test_merges_and_special_tokens_give_the_expected_ids(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_metadata(), tmp_path)
    vocabulary = byte_level_metadata()["tokenizer.ggml.tokens"]
    spelled = [vocabulary[index] for index in tokenizer.encode("<|im_start|>and the 12<|im_end|>")]
    assert spelled == [
        "<|im_start|>",
        "and",
        "Ġthe",
        "Ġ",
        "1",
        "2",
        "<|im_end|>",
    ]  # smollm keeps digits apart
    assert tokenizer.vocab_size == len(vocabulary)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, (2,))
    assert tokenizer.decode([1, 2], skip_special_tokens=True) == ""
    assert tokenizer.chat_template is not None


def test_transformers_loads_the_files_unchanged(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the peer of this test")
    tokenizer = load_tokenizer(tokenizer_metadata(), tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in (TEXT, "<|im_start|>the<|im_end|>\n", "  x"):
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert theirs.decode(theirs("a , b .")["input_ids"]) == "a , b ."  # nothing is "cleaned up"


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, True), (True, True), (False, False)])
def test_bos_and_eos_are_added_on_request_where_the_file_says_so(
    tmp_path: Path, bos: bool, eos: bool
) -> None:
    tokenizer = load_tokenizer(tokenizer_metadata(add_bos_token=bos, add_eos_token=eos), tmp_path)
    assert tokenizer.encode("a", add_special_tokens=True) == [1] * bos + tokenizer.encode("a") + [2] * eos


def test_the_first_token_of_llama_models_is_bos_unless_told_otherwise(tmp_path: Path) -> None:
    for pre in PRE_TOKENIZERS:
        tokenizer = load_tokenizer(tokenizer_metadata(pre, add_bos_token=None), tmp_path)
        assert (tokenizer.encode("a", add_special_tokens=True)[0] == 1) == (pre == "llama-bpe")


def test_user_defined_tokens_match_as_text_and_are_not_special(tmp_path: Path) -> None:
    values = tokenizer_metadata()
    values["tokenizer.ggml.tokens"] = [*values["tokenizer.ggml.tokens"], "<tool call>"]
    values["tokenizer.ggml.token_type"] = np.append(values["tokenizer.ggml.token_type"], USER_DEFINED)
    tokenizer = load_tokenizer(values, tmp_path)
    index = len(values["tokenizer.ggml.tokens"]) - 1
    assert tokenizer.encode("a<tool call>b")[1] == index
    assert tokenizer.encode("a<tool call>b", parse_special=False)[1] == index
    assert tokenizer.decode([index], skip_special_tokens=True) == "<tool call>"
    assert tokenizer.encode("<|im_end|>", parse_special=False) != [2]


def test_padding_at_the_end_of_the_vocabulary_is_no_token(tmp_path: Path) -> None:
    values = tokenizer_metadata()
    tokens = len(values["tokenizer.ggml.tokens"])
    values["tokenizer.ggml.tokens"] = [*values["tokenizer.ggml.tokens"], "[PAD0]", "[PAD1]"]
    values["tokenizer.ggml.token_type"] = np.append(values["tokenizer.ggml.token_type"], [UNUSED, UNUSED])
    assert convert(values).vocab_size == tokens + 2
    tokenizer = load_tokenizer(values, tmp_path)
    assert tokenizer.vocab_size == tokens and tokenizer.decode([tokens]) == ""


def test_ends_of_a_turn_are_found_by_id_and_by_name() -> None:
    assert convert(tokenizer_metadata()).eos_token_ids == (2, 0)
    assert convert(tokenizer_metadata(eot_token_id=1)).eos_token_ids == (2, 1, 0)
    assert convert(tokenizer_metadata(eos_token_id=None)).eos_token_ids == (2, 0)  # <|im_end|>, <|endoftext|>
    plain = tokenizer_metadata(token_type=[NORMAL] * len(byte_level_metadata()["tokenizer.ggml.tokens"]))
    assert convert(plain).eos_token_ids == (2,)  # the same texts, and no control tokens


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no tokenizer": (tokenizer_metadata(tokens=None), "no tokenizer in the file"),
    "tokens of another type": (tokenizer_metadata(tokens=np.arange(9)), "no tokenizer in the file"),
    "no model": (tokenizer_metadata(model=None), r"tokenizer \(not named\) is not supported"),
    "wordpiece": (tokenizer_metadata(model="bert"), "tokenizer 'bert' is not supported"),
    "unigram": (tokenizer_metadata(model="t5"), "tokenizer 't5' is not supported"),
    "another pre-tokenizer": (
        tokenizer_metadata("deepseek-llm"),
        "pre-tokenizer 'deepseek-llm' is not supported",
    ),
    "no pre-tokenizer": (tokenizer_metadata(None), r"pre-tokenizer \(not named\) is not supported"),
    "no merges": (tokenizer_metadata(merges=None), "no tokenizer.ggml.merges"),
    "a merge of unknown tokens": (tokenizer_metadata(merges=["q z"]), "merge 'q z' does not fit"),
    "a merge without a space": (tokenizer_metadata(merges=["the"]), "merge 'the' does not fit"),
    "an eos outside the vocabulary": (tokenizer_metadata(eos_token_id=5000), "eos_token_id is 5000"),
    "an eos that is a text": (tokenizer_metadata(eos_token_id="x"), "eos_token_id is 'x'"),
    "add_bos that is a number": (tokenizer_metadata(add_bos_token=1), "add_bos_token is not a boolean"),
    "a repeated token": (tokenizer_metadata(tokens=["a", "a"], token_type=[1, 1]), "empty or repeated token"),
    "an empty token": (tokenizer_metadata(tokens=["a", ""], token_type=[1, 1]), "empty or repeated token"),
    "kinds of another length": (tokenizer_metadata(token_type=[1, 1]), "token_type does not fit"),
    "a template that is a number": (
        tokenizer_metadata() | {"tokenizer.chat_template": 3},
        "chat_template is not a string",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(case: str) -> None:
    values, expected = REFUSED[case]
    with pytest.raises(PomonaError, match=f"^sample.gguf: .*{expected}.*; ") as caught:
        convert(values)
    assert "\n" not in str(caught.value)


# SentencePiece ("llama")


def reference_encode(text: str) -> list[str]:
    """SentencePiece's BPE as its paper and code describe it: join the neighbours whose union has the best
    score, leftmost first; what is no piece in the end becomes bytes."""
    score = {word: -rank for rank, word in enumerate(PIECES)}
    parts: list[str | None] = list("▁" + text.replace(" ", "▁")) if text else []

    def pairs() -> list[tuple[int, int, int]]:
        alive = [index for index, part in enumerate(parts) if part is not None]
        unions = [(a, b, (parts[a] or "") + (parts[b] or "")) for a, b in itertools.pairwise(alive)]
        return [(-score[union], a, b) for a, b, union in unions if union in score]

    while found := pairs():
        _, left, right = min(found)
        parts[left] = (parts[left] or "") + (parts[right] or "")
        parts[right] = None
    spelled: list[str] = []
    for part in parts:
        if part in score:
            spelled.append(part)  # type: ignore[arg-type]
        elif part is not None:
            spelled += [f"<0x{byte:02X}>" for byte in part.encode()]
    return spelled


def test_sentence_piece_text_becomes_the_best_scored_pieces_and_bytes(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(sentence_piece_metadata(), tmp_path)
    random = np.random.default_rng(5)
    texts = ["the cat", "  the  cat at 12", "é ü 日本 🎉", "a\nb\tc", " ", "hehehethe", ""]
    letters = list("the cat  a1üé\n")
    texts += ["".join(random.choice(letters, size=random.integers(1, 30))) for _ in range(300)]
    for text in texts:
        ids = tokenizer.encode(text)
        assert [tokenizer.id_to_token(index) for index in ids] == reference_encode(text), text
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("the", add_special_tokens=True)[0] == 1


def test_sentence_piece_without_a_space_in_front(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(sentence_piece_metadata(add_space_prefix=False), tmp_path)
    spelled = [tokenizer.id_to_token(index) for index in tokenizer.encode("the cat")]
    assert spelled == ["th", "e", "▁cat"] and tokenizer.decode(tokenizer.encode(" the cat")) == " the cat"


def test_sentence_piece_special_and_user_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(sentence_piece_metadata(), tmp_path)
    user = tokenizer.token_to_id("<tool>")
    assert [index for index in tokenizer.encode("a<tool>b</s>") if index in (user, 2)] == [user, 2]
    assert tokenizer.decode(tokenizer.encode("a</s>")) == "a"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scores": None}, "no tokenizer.ggml.scores"),
        ({"scores": np.zeros(3, np.float32)}, "no tokenizer.ggml.scores"),
        (
            {
                "unknown_token_id": None,
                "tokens": ["a", "b"],
                "token_type": None,
                "scores": np.zeros(2, np.float32),
                "bos_token_id": None,
                "eos_token_id": None,
            },
            "neither byte tokens nor an unknown token",
        ),
    ],
)
def test_sentence_piece_that_cannot_work_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(PomonaError, match=expected):
        convert(sentence_piece_metadata(**changes))


def test_the_written_files_are_plain_json(tmp_path: Path) -> None:
    convert(tokenizer_metadata()).write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["model_max_length"] == 256 and config["eos_token"] == SPECIAL[2]
    assert json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["version"] == "1.0"
