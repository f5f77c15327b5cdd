"""Quality rules: what each removes and why; the fast form of Gopher's repetition rules is datatrove's."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("datatrove")

from pipeline_samples import filtered, prose, public_data, sentence

from pomona.data.pipeline import heuristics
from pomona.data.pipeline.recipe import C4, FineWeb, GopherQuality, GopherRepetition, Length
from pomona.data.pipeline.repetition import DropRepetitive
from pomona.data.pipeline.words import PlainWords, plain_words


def test_words_are_without_the_punctuation_around_them() -> None:
    words = PlainWords().word_tokenize('"Well-known," she said: don\'t pay $3.50 -- ever ... (e.g. now)!')
    assert words == ["Well-known", "she", "said", "don't", "pay", "3.50", "--", "ever", "...", "e.g", "now"]


def test_sentences_end_with_their_mark_or_their_line() -> None:
    text = 'One is 3.5 long. "Two?" Three!\nA heading\n\n  Last one...  '
    tokenizer = PlainWords()
    assert tokenizer.sent_tokenize(text) == [
        "One is 3.5 long.",
        '"Two?"',
        "Three!",
        "A heading",
        "Last one...",
    ]
    assert [text[a:b] for a, b in tokenizer.span_tokenize(text)] == tokenizer.sent_tokenize(text)
    assert tokenizer.span_tokenize(" \n ") == []


def test_a_row_of_signs_takes_no_time() -> None:
    for hostile in ("." * 200_000, '."' * 100_000, "a." * 100_000, "\n" * 200_000):
        assert len(plain_words().sent_tokenize(hostile)) <= 1
        plain_words().word_tokenize(hostile)


def test_gopher_quality() -> None:
    rng = random.Random(1)
    good = prose(rng, 20)
    bullets = "\n".join(f"- {sentence(rng)}" for _ in range(20))
    assert filtered(
        heuristics.gopher_quality(GopherQuality()), [good, "Too short.", "# " * 60 + good, bullets]
    ) == [
        (True, None),
        (False, "gopher_short_doc"),
        (False, "gopher_too_many_hashes"),
        (False, "gopher_too_many_bullets"),
    ]
    assert filtered(
        heuristics.gopher_quality(GopherQuality()), ["zzz qqq vvv " * 40, "12 34 56 the of " * 40]
    ) == [
        (False, "gopher_enough_stop_words"),
        (False, "gopher_below_avg_threshold"),
    ]
    assert filtered(heuristics.gopher_quality(GopherQuality(min_words=1)), ["The engines of the winter."])[0][
        0
    ]


def test_c4_cuts_lines_out() -> None:
    from datatrove.data import Document

    rng = random.Random(2)
    lines = [sentence(rng) for _ in range(6)]
    doc = Document(
        text="\n".join([*lines, "Please enable Javascript now.", "Menu", "This site uses cookies."]), id="d"
    )
    block = heuristics.c4(C4())
    assert block.filter(doc) is True and doc.text.split("\n") == lines
    assert filtered(block, ["Only one sentence. And two.", "x = {1}. " * 9]) == [
        (False, "too_few_sentences"),
        (False, "curly_bracket"),
    ]


def test_fineweb() -> None:
    rng = random.Random(3)
    article = sentence(rng, 400).rstrip(".")
    lists = "\n".join("short line" + str(i) for i in range(40))
    assert filtered(heuristics.fineweb(FineWeb()), [prose(rng), lists, article]) == [
        (True, None),
        (False, "line_punct_ratio"),
        (False, "line_punct_ratio"),
    ]
    assert filtered(heuristics.fineweb(FineWeb(allow_unpunctuated=True)), [article]) == [(True, None)]


def test_length() -> None:
    block = heuristics.KeepLength(Length(min_characters=3, max_characters=5))
    assert filtered(block, ["ab", "abc", "abcdef"]) == [
        (False, "too_short"),
        (True, None),
        (False, "too_long"),
    ]


def test_repetition_gives_datatroves_verdicts() -> None:
    from datatrove.pipeline.filters import GopherRepetitionFilter

    rng = random.Random(4)
    texts = ["", "one", "\n\n", "same line\n" * 30, "a b " * 50]
    for _ in range(250):
        words = prose(rng, rng.randint(1, 20)).split(" ")
        start, length = rng.randrange(len(words)), rng.randint(1, 25)
        texts.append(" ".join(words + words[start : start + length] * rng.randint(0, 4)))
        size = rng.choice((2, 4, 12, 60))
        texts.append(" ".join(f"word{rng.randrange(size)}x" for _ in range(rng.randint(0, 120))))
    ours = filtered(DropRepetitive(GopherRepetition()), texts)
    theirs = filtered(GopherRepetitionFilter(language=plain_words()), texts)
    assert ours == theirs
    assert {"top_2_gram", "duplicated_5_n_grams", "dup_line_frac"} <= {reason for _, reason in ours if reason}
    assert sum(kept for kept, _ in ours) > 50


def test_repetition_may_be_loosened_for_documentation() -> None:
    text = prose(random.Random(6), 10) + " as was said before in this place" * 12
    assert filtered(DropRepetitive(GopherRepetition()), [text])[0][0] is False
    assert filtered(DropRepetitive(GopherRepetition(ngrams=4)), [text]) == [(True, None)]


@pytest.mark.data
def test_repetition_gives_datatroves_verdicts_on_real_text() -> None:
    from datatrove.pipeline.filters import GopherRepetitionFilter

    from pomona.data.public_sets import corpus

    texts = corpus(public_data(), "c4_demo")
    ours = filtered(DropRepetitive(GopherRepetition()), texts)
    theirs = filtered(GopherRepetitionFilter(language=plain_words()), texts)
    # One page spells Morse code in dots, which run together differently (repetition.py says so).
    assert len(ours) == 300 and sum(a != b for a, b in zip(ours, theirs, strict=True)) <= 1
