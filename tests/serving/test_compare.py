"""/v1/compare: blind until the vote, shuffled by the server, intervals that are Wilson's, exports, a file."""

from __future__ import annotations

import json
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tiny_model import tiny_model

from pomona.errors import PomonaError
from pomona.runtime.model import Model
from pomona.serving.app import create_app
from pomona.serving.compare_store import Answer, CompareStore
from pomona.serving.settings import ServerSettings

WARM = {"temperature": 1.0, "max_tokens": 12, "seed": 7}
COLD = {"max_tokens": 12, "system": "Answer in one word."}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("compare")
    with Model.load(str(tiny_model(folder)), threads=1) as model:
        app = create_app(model, ServerSettings(compare_db=folder / "own" / "compare.db"))
        with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as opened:
            yield opened


def begin(client: TestClient, **changes: Any) -> dict[str, Any]:
    reply = client.post("/v1/compare/sessions", json={"name": "n", "a": WARM, "b": COLD, **changes})
    assert reply.status_code == 201
    return reply.json()  # type: ignore[no-any-return]


def new_pair(client: TestClient, session: str, prompt: str = "Hello") -> tuple[dict[str, Any], str]:
    """The pair, and the whole stream that it came with."""
    reply = client.post(f"/v1/compare/sessions/{session}/pairs", json={"prompt": prompt})
    assert reply.status_code == 200
    last = reply.text.strip().split("\n\n")[-1]
    assert last.startswith("event: pair\n")
    return json.loads(last.split("data: ", 1)[1]), reply.text


def vote(client: TestClient, pair: str, choice: str) -> dict[str, Any]:
    return client.post(f"/v1/compare/pairs/{pair}/vote", json={"vote": choice}).json()  # type: ignore[no-any-return]


def test_nothing_tells_the_sides_apart_before_the_vote(client: TestClient) -> None:
    session = begin(client)
    pair, stream = new_pair(client, session["id"])
    assert set(pair) == {"id", "session", "prompt", "left", "right"}
    assert set(pair["left"]) == set(pair["right"]) == {"text"}
    for line in stream.split("\n"):  # progress is of both together
        if line.startswith("data: ") and "pieces" in line:
            assert set(json.loads(line[6:])) == {"pieces", "most"}
    shown = client.get(f"/v1/compare/sessions/{session['id']}").json()
    assert shown["waiting"] == [pair] and shown["results"]["open"] == 1
    exported = client.get(f"/v1/compare/sessions/{session['id']}/export?rows=votes")
    assert exported.text == ""


def test_the_vote_reveals_and_counts_for_the_right_side(client: TestClient) -> None:
    session = begin(client)
    pair, _ = new_pair(client, session["id"])
    opened = vote(client, pair["id"], "right")
    assert {opened["left"]["side"], opened["right"]["side"]} == {"a", "b"}
    assert opened["verdict"] == opened["right"]["side"]
    assert (opened["left"]["text"], opened["right"]["text"]) == (pair["left"]["text"], pair["right"]["text"])
    warm = opened["left"] if opened["left"]["side"] == "a" else opened["right"]
    assert warm["seed"] == 7 and warm["tokens"] > 0 and warm["seconds"] > 0
    results = client.get(f"/v1/compare/sessions/{session['id']}").json()["results"]
    assert results["votes"] == 1 and results[f"{opened['verdict']}_wins"]["count"] == 1


def test_a_pair_is_voted_on_once(client: TestClient) -> None:
    session = begin(client)
    pair, _ = new_pair(client, session["id"])
    vote(client, pair["id"], "tie")
    again = client.post(f"/v1/compare/pairs/{pair['id']}/vote", json={"vote": "left"})
    assert again.status_code == 409 and again.json()["error"]["code"] == "voted"
    assert client.get(f"/v1/compare/sessions/{session['id']}").json()["results"]["ties"]["count"] == 1


def test_a_configuration_answers_as_it_is_set(client: TestClient) -> None:
    session = begin(client)["id"]
    answers = []
    for _ in range(2):
        opened = vote(client, new_pair(client, session)[0]["id"], "tie")
        answers.append({opened[place]["side"]: opened[place]["text"] for place in ("left", "right")})
    assert answers[0] == answers[1]  # a seed and greedy: both can be repeated
    assert answers[0]["a"] != answers[0]["b"]


def test_exports_are_preferences_and_votes(client: TestClient) -> None:
    same = "Be brief."
    session = begin(client, a={**WARM, "system": same}, b={**COLD, "system": same})["id"]
    won = vote(client, new_pair(client, session, "One?")[0]["id"], "left")
    vote(client, new_pair(client, session, "Two?")[0]["id"], "tie")
    new_pair(client, session, "Three?")
    reply = client.get(f"/v1/compare/sessions/{session}/export")
    assert (
        reply.headers["content-disposition"] == f'attachment; filename="compare-{session}-preferences.jsonl"'
    )
    [row] = [json.loads(line) for line in reply.text.splitlines()]
    assert row["prompt"] == [{"role": "system", "content": same}, {"role": "user", "content": "One?"}]
    assert row["chosen"] == [{"role": "assistant", "content": won["left"]["text"]}]
    assert row["rejected"] == [{"role": "assistant", "content": won["right"]["text"]}]
    votes = client.get(f"/v1/compare/sessions/{session}/export?rows=votes").text.splitlines()
    assert [json.loads(line)["verdict"] for line in votes] == [won["verdict"], "tie"]


def test_an_instruction_of_one_side_is_no_part_of_the_prompt(client: TestClient) -> None:
    session = begin(client)["id"]
    vote(client, new_pair(client, session)[0]["id"], "left")
    [row] = client.get(f"/v1/compare/sessions/{session}/export").text.splitlines()
    assert [message["role"] for message in json.loads(row)["prompt"]] == ["user"]


def test_a_deleted_comparison_is_gone_with_its_pairs(client: TestClient) -> None:
    session = begin(client)["id"]
    pair, _ = new_pair(client, session)
    assert client.delete(f"/v1/compare/sessions/{session}").json() == {"id": session, "deleted": True}
    assert client.get(f"/v1/compare/sessions/{session}").status_code == 404
    assert client.post(f"/v1/compare/pairs/{pair['id']}/vote", json={"vote": "left"}).status_code == 404
    assert session not in [one["id"] for one in client.get("/v1/compare/sessions").json()["data"]]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"a": WARM, "b": WARM}, "b"),
        ({"a": WARM}, "b"),
        ({"a": WARM, "b": {**COLD, "adapter": "nobody"}}, "b.adapter"),
        ({"a": {**WARM, "temperature": 3}, "b": COLD}, "a.temperature"),
        ({"a": {**WARM, "max_tokens": "many"}, "b": COLD}, "a.max_tokens"),
        ({"a": {**WARM, "top_q": 1}, "b": COLD}, "a.top_q"),
    ],
)
def test_what_is_no_comparison_is_refused(client: TestClient, body: dict[str, Any], param: str) -> None:
    reply = client.post("/v1/compare/sessions", json=body)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == param


def test_unknown_ids_and_votes_are_refused(client: TestClient) -> None:
    assert client.post("/v1/compare/sessions/none/pairs", json={"prompt": "x"}).status_code == 404
    assert client.post("/v1/compare/pairs/none/vote", json={"vote": "left"}).status_code == 404
    pair, _ = new_pair(client, begin(client)["id"])
    assert client.post(f"/v1/compare/pairs/{pair['id']}/vote", json={"vote": "a"}).status_code == 400
    empty = client.post(f"/v1/compare/sessions/{pair['session']}/pairs", json={"prompt": " "})
    assert empty.status_code == 400 and empty.json()["error"]["param"] == "prompt"


# --- the store


def answer(text: str) -> Answer:
    return Answer(text, "stop", 3, 0.5, 0)


def test_sides_are_shuffled_anew_for_every_pair(tmp_path: Path) -> None:
    store = CompareStore(tmp_path / "c.db")
    session = store.new_session("n", "m", {}, {})
    lefts = [store.add_pair(session.id, "p", answer("a"), answer("b")).left for _ in range(80)]
    assert 15 < lefts.count("a") < 65  # outside once in more than a million runs


def test_the_file_is_the_owners_and_outlives_the_store(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "c.db"
    store = CompareStore(path)
    session = store.new_session("größer", "m", {"temperature": 0.5}, {})
    pair = store.add_pair(session.id, "p\n名前", answer("a"), answer("b"))
    assert store.vote(pair.id, "left") is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = CompareStore(path)
    found = again.session(session.id)
    assert found is not None and (found.name, found.a, found.votes) == ("größer", {"temperature": 0.5}, 1)
    assert again.pairs(session.id)[0].prompt == "p\n名前"


def test_many_threads_begin_one_file(tmp_path: Path) -> None:
    store = CompareStore(tmp_path / "c.db")
    failed: list[BaseException] = []

    def work() -> None:
        try:
            session = store.new_session("n", "m", {}, {})
            store.vote(store.add_pair(session.id, "p", answer("a"), answer("b")).id, "tie")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and sum(session.votes for session in store.sessions()) == 8


def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    text, other, newer = (tmp_path / name for name in ("text.db", "other.db", "newer.db"))
    text.write_text("not a database, but long enough to be looked at " * 40)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (x)")
    CompareStore(newer).sessions()
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 2")
    for path in (text, other, newer):
        before = path.read_bytes()
        with pytest.raises(PomonaError, match="compare_db"):
            CompareStore(path).new_session("n", "m", {}, {})
        assert path.read_bytes() == before
