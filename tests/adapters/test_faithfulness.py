"""A faithful text names nobody and counts nothing that its source does not."""

from __future__ import annotations

import pytest

from pomona.adapters.faithfulness import faithful, new_names, new_numbers

SOURCE = "Anna's mail: we meet on Monday, 3rd of May, at 14:30 in room 204. It costs $1,200 for two people."


@pytest.mark.parametrize(
    "text",
    [
        "Anna meets on Monday at 14:30.",
        "It costs $1200 for 2 people.",
        "The meeting is in room 204 on the 3rd.",
        "One of them pays.",
        "ANNA comes.",
        "I am there, ok?",
    ],
)
def test_what_the_source_says_is_faithful(text: str) -> None:
    assert faithful(text, SOURCE)


@pytest.mark.parametrize(
    ("text", "numbers", "names"),
    [
        ("Anna meets Boris on Monday.", [], ["Boris"]),
        ("Boris comes.", [], ["Boris"]),  # at the beginning, but a name that is known
        ("Requests come in.", [], []),  # at the beginning, and no name that is known
        ("It costs $1,300.", ["1,300"], []),
        ("Five people come.", ["five"], []),
        ("They meet at 14:45 in Oslo.", ["45"], ["Oslo"]),
    ],
)
def test_what_it_does_not_say_is_found(text: str, numbers: list[str], names: list[str]) -> None:
    assert new_numbers(text, SOURCE) == numbers
    assert new_names(text, SOURCE) == names
    assert faithful(text, SOURCE) == (not numbers and not names)


def test_spelled_and_written_numbers_are_the_same() -> None:
    assert faithful("They need 2 chairs.", "They need two chairs.")
    assert faithful("They need two chairs.", "They need 2 chairs.")
