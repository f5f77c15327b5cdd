"""Words for the error model (error_model.py): closed lists, written by hand, of mistakes that are always
mistakes or nearly so.

They lie in texts/: homophones, misspelt (right|wrong|...), agreement (pairs of verb forms), irregular
(base|past|participle), prepositions (word before|right|wrong|...), joined (apart|together), keyboard (key|its
neighbours), errors (a list's name|words).
"""

from __future__ import annotations

from functools import cache

from pomona.adapters.recipes.tables import table


@cache
def listed(name: str) -> frozenset[str]:
    """contractions, droppable, doubled or compounds."""
    return {row[0]: frozenset(row[1:]) for row in table("errors")}[name]


@cache
def pairs(name: str) -> dict[str, str]:
    """Each word of a pair for the other one."""
    return {a: b for first, second in table(name) for a, b in ((first, second), (second, first))}


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """word -> the words that it is mixed up with, itself among them."""
    return {word: group for group in table("homophones") for word in group}


@cache
def misspelt() -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in table("misspelt")}


@cache
def neighbours() -> dict[str, str]:
    return {row[0]: row[1] for row in table("keyboard")}
