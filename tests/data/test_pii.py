"""Personal data: every kind is found in running text and replaced; numbers that are none stay."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("datatrove")

from datatrove.data import Document
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.data.pipeline.pii import RemovePii, redact
from pomona.data.pipeline.recipe import Pii

PLANTED = {
    "EMAIL": [
        "ann.lee+news@mail.example.com",
        "x@y.io",
        "o'neil_9@uni-ulm.de",
        "bob [at] firm [dot] org",
        "carol (at) firm.museum",
    ],
    "PHONE": [
        "(555) 123-4567",
        "555-123-4567",
        "+1 555 123 4567",
        "+44 20 7946 0958",
        "+49-30-1234-5678",
        "020 7946 0958",
        "1-800-555-0199",
    ],
    "IP": ["8.8.4.4", "93.184.216.34", "2a02:26f0:6c00::1"],
    "CARD": ["4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005"],
    "IBAN": ["DE89370400440532013000", "GB82 WEST 1234 5698 7654 32", "FR14 2004 1010 0505 0001 3M02 606"],
    "SSN": ["123-45-6789"],
    "SECRET": [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a1B2" * 9,
        "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----",
    ],
}
HARMLESS = [
    "2024-05-12",
    "12:34:56",
    "1,234,567.89",
    "v1.12.3",
    "192.168.0.1",
    "127.0.0.1",
    "978-0-306-40615-7",
    "4111111111111112",  # a digit off
    "DE89370400440532013001",  # its check fails
    "000-12-3456",
    "std::vector",
    "a @ b",
    "@decorator",
    "555-1234",
    "2019-2020-2021",
    "1234567890123",
    "user@localhost",
]


@pytest.mark.parametrize(
    ("kind", "item"), [(kind, item) for kind, items in PLANTED.items() for item in items]
)
@pytest.mark.parametrize("around", ["Call or write: {} (any time).", "{}", "see {}, or not", '<a href="{}">'])
def test_planted_data_is_replaced_by_its_kind(kind: str, item: str, around: str) -> None:
    text, counts = redact(around.format(item))
    assert text == around.format(f"[{kind}]") and dict(counts) == {kind.lower(): 1}


@pytest.mark.parametrize("item", HARMLESS)
def test_other_numbers_and_names_stay(item: str) -> None:
    text = f"The value {item} is in the text."
    assert redact(text) == (text, {})


@pytest.mark.parametrize("kind", ["CARD", "SSN", "IBAN", "IP"])
def test_numbers_on_both_sides_hide_nothing(kind: str) -> None:
    for item in PLANTED[kind]:
        assert redact(f"In 1990 {item} 12 or so")[0] == f"In 1990 [{kind}] 12 or so"


def test_only_the_kinds_that_are_asked_for_go() -> None:
    text = "ann@mail.com or 8.8.8.8"
    assert redact(text, ["ip"])[0] == "ann@mail.com or [IP]"


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet="0123456789 -.()+@abAB:[]", max_size=80))
def test_what_was_redacted_once_is_redacted_for_good(text: str) -> None:
    once, _ = redact(text)
    again, counts = redact(once)
    assert again == once and not counts


@pytest.mark.parametrize(
    "piece", ["a.", "1 ", "1-", "+1 ", "a@", "AB12 ", "ab:", "::", "(at)", "eyJ", "1.1."]
)
def test_no_text_makes_the_patterns_slow(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    started = time.process_time()
    redact(text)
    assert time.process_time() - started < 10


def test_a_page_full_of_it_goes_and_the_counts_are_kept() -> None:
    block = RemovePii(Pii(max_items=2))
    few = Document(text="a@b.com and c@d.com", id="1")
    many = Document(text="a@b.com c@d.com e@f.com 8.8.8.8", id="2")
    assert block.filter(few) is True and few.text == "[EMAIL] and [EMAIL]"
    assert few.metadata["pii"] == {"email": 2}
    assert block.filter(many) == (False, "pii") and "@" not in many.text
    assert block.stats.stats["changed_email"].total == 5 and block.stats.stats["changed_ip"].total == 1
