"""Readers of public data sets: small copies of their forms, hostile bytes, and the sets where they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.data import public_sets as sets
from pomona.errors import PomonaError


def put(folder: Path, name: str, content: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def test_the_folder_comes_from_the_option_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POMONA_DATA", str(tmp_path))
    assert sets.data_folder() == tmp_path
    with pytest.raises(PomonaError, match="is no folder"):
        sets.data_folder(tmp_path / "none")
    monkeypatch.delenv("POMONA_DATA")
    with pytest.raises(PomonaError, match="POMONA_DATA is not set"):
        sets.data_folder()


def test_corpora_are_documents(tmp_path: Path) -> None:
    put(tmp_path, "c4_demo/c4_demo.jsonl", lines({"text": "One.\nTwo."}, {"text": "Three."}))
    put(tmp_path, "wiki_demo/wiki_demo.txt", "First one.\nSecond one.\n")
    book = "Title\n*** START OF IT ***\nA line\nthat goes on.\r\n\r\nNext part.\n*** END OF IT ***\nlicence\n"
    put(tmp_path, "gutenberg_moby/any.txt", book)
    assert sets.corpus(tmp_path, "c4_demo") == ["One.\nTwo.", "Three."]
    assert sets.corpus(tmp_path, "wiki_demo") == ["First one.", "Second one."]
    assert sets.corpus(tmp_path, "gutenberg_moby") == ["A line that goes on.", "Next part."]
    with pytest.raises(PomonaError, match="no corpus of that name"):
        sets.corpus(tmp_path, "mail")
    with pytest.raises(PomonaError, match="cannot be read"):
        sets.corpus(tmp_path, "gutenberg_pride")


def test_clean_sentences_are_found_in_runs() -> None:
    documents = [
        "This is a clean sentence of some length. And this is another one of that kind.With "
        "glued words after it.",
        "Too short. this one begins without a capital letter, which is wrong",
        "Visit https://example.com for more of these long texts. See the note about Mr.",
    ]
    clean = ["This is a clean sentence of some length.", "And this is another one of that kind."]
    assert sets.sentences(documents) == [clean]


def test_function_cases_have_their_answers(tmp_path: Path) -> None:
    case = {"id": "a", "question": [[{"role": "user", "content": "Do it."}]], "function": [{"name": "f"}]}
    put(tmp_path, "bfcl/BFCL_v4_simple_python.json", lines(case))
    put(
        tmp_path,
        "bfcl/possible_answer/BFCL_v4_simple_python.json",
        lines({"id": "a", "ground_truth": [{"f": {}}]}),
    )
    [found] = sets.bfcl(tmp_path)
    assert (found.question, found.functions, found.answers) == ("Do it.", ({"name": "f"},), ({"f": {}},))
    put(tmp_path, "bfcl/possible_answer/BFCL_v4_simple_python.json", lines({"id": "b", "ground_truth": []}))
    with pytest.raises(PomonaError, match="another form"):
        sets.bfcl(tmp_path)


def test_dialogues_pages_meetings_and_mails(tmp_path: Path) -> None:
    turn = {"from": "human", "value": "Hi"}
    put(
        tmp_path,
        "glaive_toolcall/glaive_toolcall_en_demo.json",
        json.dumps([{"conversations": [turn], "tools": ""}]),
    )
    assert sets.glaive(tmp_path) == [sets.ToolDialogue((), (("human", "Hi"),))]
    put(tmp_path, "html_extruct/schema.org/b.html", "<p>")
    put(tmp_path, "html_extruct/schema.org/b.json", '{"name": "x"}')
    put(tmp_path, "html_extruct/schema.org/a.html", "no truth")
    assert sets.extruct_pages(tmp_path) == [sets.Page("b", "<p>", ({"name": "x"},))]
    meeting = {
        "meeting_transcripts": [{"speaker": "A", "content": "one"}, {"speaker": "B", "content": "two"}],
        "specific_query_list": [
            {"query": "q", "answer": "a", "relevant_text_span": [["1", "1"]]},
            {"query": "long", "answer": "a", "relevant_text_span": [["0", "1"]]},
        ],
    }
    put(tmp_path, "qmsum/test.jsonl", lines(meeting))
    assert sets.qmsum(tmp_path, longest=8) == [sets.Meeting("B: two", "q", "a")]
    put(tmp_path, "email_zapier/a.txt", b"Hi \xff\n")
    assert sets.mails(tmp_path) == ["Hi �"]


def test_files_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "MAX_BYTES", 10)
    put(tmp_path, "a.txt", "x" * 11)
    with pytest.raises(PomonaError, match="larger"):
        sets.read(tmp_path / "a.txt")


READERS: list[tuple[str, Callable[[Path], object]]] = [
    ("bfcl/BFCL_v4_simple_python.json", sets.bfcl),
    ("bfcl/possible_answer/BFCL_v4_simple_python.json", sets.bfcl),
    ("glaive_toolcall/glaive_toolcall_en_demo.json", sets.glaive),
    ("html_extruct/schema.org/a.json", sets.extruct_pages),
    ("qmsum/test.jsonl", sets.qmsum),
    ("c4_demo/c4_demo.jsonl", lambda folder: sets.corpus(folder, "c4_demo")),
]
KEYS = (
    "id|question|function|ground_truth|conversations|tools|text|meeting_transcripts|specific_query_list|"
    "relevant_text_span|speaker|content|role|from|value"
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS.split("|")), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(("name", "reader"), READERS, ids=[name for name, _ in READERS])
@settings(deadline=None, max_examples=60)
@given(
    raw=st.binary(max_size=40)
    | st.lists(JSON, max_size=2).map(lambda v: lines(*v).encode())
    | JSON.map(lines)
)
def test_any_bytes_are_read_or_refused(
    name: str, reader: Callable[[Path], object], raw: bytes | str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sets")
    good = lines({"id": "a", "question": [[{"role": "user", "content": "x"}]], "function": []})
    put(folder, "bfcl/BFCL_v4_simple_python.json", good)
    put(folder, "bfcl/possible_answer/BFCL_v4_simple_python.json", lines({"id": "a", "ground_truth": []}))
    put(folder, "html_extruct/schema.org/a.html", "<p>")
    put(folder, name, raw)
    try:
        reader(folder)
    except PomonaError as error:
        assert "\n" not in str(error)


# --- the sets themselves


@pytest.fixture(scope="module")
def folder() -> Path:
    given = os.environ.get("POMONA_DATA")
    if not given:
        pytest.skip(
            "POMONA_DATA is not set: the public data sets lie outside the project (see CONTRIBUTING.md)"
        )
    return Path(given)


@pytest.mark.data
def test_the_sets_have_their_sizes(folder: Path) -> None:
    assert len(sets.bfcl(folder)) == 400 and len(sets.bfcl(folder, "live_simple")) == 258
    assert len(sets.glaive(folder)) == 300
    assert len(sets.extruct_pages(folder)) >= 10
    assert len(sets.qmsum(folder)) > 80 and len(sets.mails(folder)) > 20
    for name in sets.CORPORA:
        assert len(sets.sentences(sets.corpus(folder, name))) > 800, name


def test_lines_of_json_end_at_line_feeds_alone(tmp_path: Path) -> None:
    text = '{"a": "one\u2028line\x85"}\n\n{"a": "two"}\n'
    assert [row["a"] for row in sets.json_lines(tmp_path / "x", text)] == ["one\u2028line\x85", "two"]
    with pytest.raises(PomonaError, match="line 3"):
        list(sets.json_lines(tmp_path / "x", "{}\n\n[]"))
