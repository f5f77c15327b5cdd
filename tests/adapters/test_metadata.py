"""pomona.json of an adapter: what is read, what is refused and how it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pomona.adapters.metadata import MAX_BYTES, AdapterRecord, Origin, parse_record, read_record
from pomona.errors import PomonaError

# As `pomona recover` writes it.
RECOVERY: dict[str, Any] = {
    "version": 1,
    "task": "recovery",
    "base_fingerprint": "249d0a765eecd7189d00604f5e5c3729",
    "teacher_fingerprint": "0ee57ca6f3cdd00ea34bd6cebe3934d4",
    "license": None,
    "recipe": {"loss": "full-vocabulary forward KL to the teacher", "rank": 16, "minutes": None, "lr": 0.001},
    "text": {"written_by": "smollm2-135m", "sources": [{"name": "free", "windows": 390, "sha256": None}]},
    "result": {"tokens": 1000, "held_out_kl": {"before": 0.1, "after": 0.05}, "curve": [[0, 0.1]]},
    "tables_of": "0ee57ca6f3cdd00ea34bd6cebe3934d4",
}


def test_the_record_of_a_recovery_adapter_is_read_and_written_again_unchanged() -> None:
    record = parse_record(RECOVERY, "pomona.json")
    assert record.task == "recovery" and record.license is None
    assert record.base_fingerprint == RECOVERY["base_fingerprint"]
    assert record.to_json() == RECOVERY
    assert parse_record(record.to_json(), "again") == record


def test_a_record_without_a_version_is_of_the_first() -> None:
    assert parse_record({"base_fingerprint": "ab"}, "x").to_json() == {"version": 1, "base_fingerprint": "ab"}


def test_a_task_has_its_prompt_and_its_data() -> None:
    prompt = {"instructions": "Summarise.", "template": "{request}\n{content}", "template_hash": "ab"}
    raw = {"version": 1, "task": "summarize", "prompt": prompt, "data": [{"file": "a.jsonl", "rows": 7}]}
    record = parse_record(raw, "x")
    assert record.prompt is not None and record.prompt.instructions == "Summarise."
    assert record.to_json() == raw


def test_changes_are_checked_and_the_rest_stays() -> None:
    record = parse_record(RECOVERY, "x").with_changes(
        base_fingerprint="cd", origin=Origin(kind="zoo", source="m/n")
    )
    assert record.to_json() == {
        **RECOVERY,
        "base_fingerprint": "cd",
        "origin": {"kind": "zoo", "source": "m/n"},
    }
    with pytest.raises(ValidationError):
        record.with_changes(base_fingerprint="../..")
    with pytest.raises(ValidationError):
        record.task = "another"  # type: ignore[misc]


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(
        PomonaError, match=r"here: unknown key 'licence'; the keys of version 1 are .*license"
    ):
        parse_record({**RECOVERY, "licence": "mit"}, "here")


def test_a_newer_version_is_told_from_a_bad_file() -> None:
    with pytest.raises(PomonaError, match=r"version 2, this pomona reads 1; use a newer pomona"):
        parse_record({"version": 2, "whatever": True}, "here")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"version": "1"}, "version '1'"),
        ({"version": 0}, "version 0"),
        ({"version": True}, "version True"),
        ({"base_fingerprint": 7}, "base_fingerprint"),
        ({"base_fingerprint": ""}, "base_fingerprint"),
        ({"base_fingerprint": "a\nb"}, "base_fingerprint"),
        ({"task": ["a"]}, "task"),
        ({"license": {"name": "mit"}}, "license"),
        ({"recipe": "none"}, "recipe"),
        ({"data": {"a": 1}}, "data"),
        ({"prompt": {"instructions": 3}}, r"prompt\.instructions"),
        ({"origin": {"kind": "web", "source": "x"}}, r"origin\.kind"),
        ({"origin": {"kind": "hub", "source": "x", "more": 1}}, r"origin\.more"),
        ({"sha256": {"adapter_config.json": "abc"}}, r"sha256\.adapter_config"),
    ],
)
def test_a_value_of_the_wrong_kind_is_one_line_with_its_place(change: dict[str, Any], place: str) -> None:
    with pytest.raises(PomonaError, match=f"^here: {place}.*; ") as caught:
        parse_record({**RECOVERY, **change}, "here")
    assert "\n" not in str(caught.value)


def test_a_directory_without_the_file_has_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "pomona.json").write_text(json.dumps({"task": "x" * MAX_BYTES}))
    with pytest.raises(PomonaError, match="larger than 1,048,576 bytes"):
        read_record(tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([*AdapterRecord.model_fields]) | st.text(max_size=6)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_anything_is_a_record_or_one_line(raw: dict[str, Any]) -> None:
    try:
        record = parse_record(raw, "here")
    except PomonaError as error:
        assert str(error).startswith("here: ")
    else:
        assert parse_record(record.to_json(), "again") == record
