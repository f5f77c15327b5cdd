"""Stop texts in pieces: whatever the pieces are, the text ends before the first stop text."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.serving.stop_texts import StopTexts

letters = st.text("ab", max_size=30)


@given(letters, st.lists(st.text("ab", min_size=1, max_size=5), max_size=3), st.lists(st.integers(0, 30)))
@settings(max_examples=300, deadline=None)
def test_pieces_come_to_the_text_before_the_first_stop_text(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    places = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    stop = StopTexts(stops)
    shown = ""
    for start, end in pairwise(places):
        shown += stop.push(text[start:end])
        if stop.found:
            break
        assert not any(one in shown for one in stops)
    shown += "" if stop.found else stop.flush()
    # Where two overlap, the one that was complete first ends the text.
    found = [(text.find(one) + len(one), text.find(one)) for one in stops if one in text]
    assert stop.found == bool(found)
    assert shown == (text[: min(found)[1]] if found else text)


def test_what_cannot_begin_a_stop_text_is_shown_at_once() -> None:
    stop = StopTexts(["END"])
    assert [stop.push(piece) for piece in ("Hello", " E", "N", "x", "E", "ND", "more")] == [
        "Hello",
        " ",
        "",
        "ENx",
        "",
        "",
        "",
    ]
    assert stop.found
