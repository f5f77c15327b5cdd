"""Quality rules of Gopher, C4 and FineWeb: datatrove's filters, with our words and a recipe's thresholds.

Gopher's rules about repetition are in repetition.py."""

from __future__ import annotations

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.writers.jsonl import JsonlWriter

from pomona.data.pipeline.blocks import Filter, Verdict
from pomona.data.pipeline.recipe import C4, FineWeb, GopherQuality, Length
from pomona.data.pipeline.words import plain_words


def gopher_quality(settings: GopherQuality, writer: JsonlWriter | None = None) -> BaseFilter:
    return GopherQualityFilter(
        min_doc_words=settings.min_words,
        max_doc_words=settings.max_words,
        min_avg_word_length=settings.min_word_length,
        max_avg_word_length=settings.max_word_length,
        max_symbol_word_ratio=settings.max_symbol_ratio,
        max_bullet_lines_ratio=settings.max_bullet_lines,
        max_ellipsis_lines_ratio=settings.max_ellipsis_lines,
        max_non_alpha_words_ratio=settings.min_alphabetic_words,  # a minimum, for all its name
        min_stop_words=settings.min_stop_words,
        exclusion_writer=writer,
        language=plain_words(),
    )


def c4(settings: C4, writer: JsonlWriter | None = None) -> BaseFilter:
    return C4QualityFilter(
        filter_no_terminal_punct=settings.terminal_punctuation,
        min_num_sentences=settings.min_sentences,
        min_words_per_line=settings.min_line_words,
        filter_curly_bracket=settings.curly_bracket,
        filter_javascript=settings.javascript,
        filter_lorem_ipsum=settings.lorem_ipsum,
        filter_policy=settings.policy,
        exclusion_writer=writer,
        language=plain_words(),
    )


def fineweb(settings: FineWeb, writer: JsonlWriter | None = None) -> BaseFilter:
    return FineWebQualityFilter(
        line_punct_thr=settings.min_punctuated_lines,
        line_punct_exclude_zero=settings.allow_unpunctuated,
        short_line_thr=settings.max_short_lines,
        short_line_length=settings.short_line,
        char_duplicates_ratio=settings.max_duplicate_characters,
        new_line_ratio=settings.max_new_lines,
        exclusion_writer=writer,
        language=plain_words(),
    )


class KeepLength(Filter):
    """Removed: too_short, too_long."""

    name = "length"

    def __init__(self, settings: Length, writer: JsonlWriter | None = None) -> None:
        super().__init__(writer)
        self.settings = settings

    def filter(self, doc: Document) -> Verdict:
        if len(doc.text) < self.settings.min_characters:
            return False, "too_short"
        return len(doc.text) <= self.settings.max_characters or (False, "too_long")
