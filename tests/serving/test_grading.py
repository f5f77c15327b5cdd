"""/v1/grading: blind for graders, each with their own queue, and what they said comes out as it went in."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tiny_model import tiny_model

from pomona.errors import PomonaError
from pomona.evaluation.graded_items import read_items
from pomona.posttraining.preferences import read_preferences
from pomona.runtime.model import Model
from pomona.serving import grading_store
from pomona.serving.app import create_app
from pomona.serving.grading_store import GradingStore
from pomona.serving.settings import ServerSettings

DIMENSIONS = ("composition", "comprehensiveness", "groundedness", "following_instructions", "harmfulness")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("grading")
    with Model.load(str(tiny_model(folder)), threads=1) as model:
        app = create_app(model, ServerSettings(grading_db=folder / "own" / "grading.db"))
        with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as opened:
            yield opened


def pairs(count: int) -> str:
    rows = ({"id": str(i), "prompt": f"p{i}", "a": f"a{i}", "b": f"b{i}"} for i in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows)


def begin(client: TestClient, count: int = 4, **settings: Any) -> str:
    body = {"name": "n", "a": "four bits", "b": "sixteen bits", **settings}
    reply = client.post("/v1/grading/projects", json=body)
    assert reply.status_code == 201, reply.text
    project = str(reply.json()["id"])
    if count:
        added = client.post(f"/v1/grading/projects/{project}/items", json={"jsonl": pairs(count)})
        assert added.status_code == 201 and added.json() == {"added": count}
    return project


def take(client: TestClient, project: str, grader: str) -> dict[str, Any]:
    reply = client.post(f"/v1/grading/projects/{project}/next", json={"grader": grader})
    assert reply.status_code == 200, reply.text
    return reply.json()  # type: ignore[no-any-return]


def grade(client: TestClient, item: str, grader: str, **said: Any) -> Any:
    return client.post(f"/v1/grading/items/{item}/gradings", json={"grader": grader, **said})


def side(text: str) -> str:
    return text[0]


def test_a_grader_is_told_two_texts_and_nothing_else(client: TestClient) -> None:
    project = begin(client)
    found = take(client, project, "Anna")
    assert set(found["item"]) == {"id", "kind", "prompt", "left", "right", "response"}
    assert "bits" not in json.dumps(found)
    number = found["item"]["left"][1:]
    assert {found["item"]["left"], found["item"]["right"]} == {f"a{number}", f"b{number}"}
    assert (found["done"], found["open"]) == (0, 4)
    assert take(client, project, "Anna") == found  # until it is graded
    assert grade(client, found["item"]["id"], "Anna", verdict="tie").json()["done"] == 1


def test_what_stands_left_for_one_may_stand_right_for_another(client: TestClient) -> None:
    project = begin(client, 20)
    seen: dict[str, dict[str, str]] = {}
    for grader in ("Anna", "Ben"):
        for _ in range(20):
            item = take(client, project, grader)["item"]
            seen.setdefault(grader, {})[item["id"]] = side(item["left"])
            grade(client, item["id"], grader, verdict="left", level="better")
    order = [list(seen[grader]) for grader in ("Anna", "Ben")]
    assert set(order[0]) == set(order[1]) and order[0] != order[1]
    assert seen["Anna"] != seen["Ben"]  # equal once in a million runs
    assert take(client, project, "Ben")["item"] is None
    results = client.get(f"/v1/grading/projects/{project}/results").json()
    wins = sum(sides[item] == "a" for sides in seen.values() for item in sides)
    assert results["report"]["win_rate"]["value"] == pytest.approx(wins / 40)
    assert results["report"]["graders"][0]["left_preferred"]["value"] == 1.0
    assert results["project"]["gradings"] == 40


def test_overlap_says_how_many_look_at_an_item(client: TestClient) -> None:
    project = begin(client, 6, overlap=2)
    counts: dict[str, int] = {}
    for grader in ("Anna", "Ben", "Cleo"):
        while (item := take(client, project, grader)["item"]) is not None:
            counts[item["id"]] = counts.get(item["id"], 0) + 1
            grade(client, item["id"], grader, verdict="tie")
            if grader == "Anna" and sum(counts.values()) == 4:
                break
    assert sorted(counts.values()) == [2] * 6
    # What others have graded comes first, so that agreement can soon be told.
    other = begin(client, 6, overlap=2)
    first = [take(client, other, "Anna")["item"]["id"]]
    grade(client, first[0], "Anna", verdict="tie")
    assert take(client, other, "Ben")["item"]["id"] == first[0]


def test_skipped_items_go_to_others_and_old_holds_are_given_on(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = begin(client, 1, overlap=1)
    item = take(client, project, "Anna")["item"]["id"]
    assert take(client, project, "Ben")["item"] is None  # Anna holds it
    assert grade(client, item, "Anna", skip=True).status_code == 200
    assert take(client, project, "Anna")["item"] is None
    assert take(client, project, "Ben")["item"]["id"] == item
    assert take(client, project, "Cleo")["item"] is None
    monkeypatch.setattr(grading_store, "HOLD_SECONDS", -1.0)
    assert take(client, project, "Cleo")["item"]["id"] == item


def test_a_grading_can_be_corrected_by_who_gave_it(client: TestClient) -> None:
    project = begin(client, 1)
    item = take(client, project, "Anna")["item"]
    for verdict in ("left", "right"):
        assert grade(client, item["id"], "Anna", verdict=verdict, level="slightly_better").status_code == 200
    report = client.get(f"/v1/grading/projects/{project}/results").json()["report"]
    won = "wins" if side(item["right"]) == "a" else "losses"
    assert report["gradings"] == 1 and report[won]["count"] == 1
    assert grade(client, item["id"], "Ben", verdict="tie").status_code == 404


def test_exports_are_the_reward_models_rows_and_every_grading(client: TestClient, tmp_path: Path) -> None:
    project = begin(client, 2)
    for _ in range(2):
        item = take(client, project, "Anna")["item"]
        good = "left" if side(item["left"]) == "a" else "right"
        gradings = {good: {"truthfulness": "good", "conciseness": "fair"}}
        grade(client, item["id"], "Anna", verdict=good, level="better", gradings=gradings)
    reply = client.get(f"/v1/grading/projects/{project}/export")
    assert reply.headers["content-disposition"].endswith(f'filename="grading-{project}-preferences.jsonl"')
    (tmp_path / "p.jsonl").write_text(reply.text)
    rows, report = read_preferences(tmp_path / "p.jsonl", contradictions="refuse")
    assert report.problems == [] and report.levels == {"better": 2}
    assert {row.chosen.text[0] for row in rows} == {"a"}
    assert rows[0].chosen.gradings == {"truthfulness": "good", "conciseness": "fair"}
    assert rows[0].source == "graded by people: n, four bits and sixteen bits"
    lines = client.get(f"/v1/grading/projects/{project}/export?rows=gradings").text.splitlines()
    first = json.loads(lines[0])
    assert (first["question_id"], first["winner"], first["model_a"]) == ("0", "a", "four bits")
    assert first["gradings"] == {"a": {"truthfulness": "good", "conciseness": "fair"}, "b": {}}


def test_people_grade_for_a_judge_to_agree_with(client: TestClient, tmp_path: Path) -> None:
    from pomona.evaluation.judge_report import read_labels

    project = begin(client, 1)
    item = take(client, project, "Anna")["item"]
    grade(client, item["id"], "Anna", verdict="left", level="better")
    path = tmp_path / "labels.jsonl"
    path.write_text(client.get(f"/v1/grading/projects/{project}/export?rows=gradings").text)
    won = 1.0 if side(item["left"]) == "a" else 0.0
    assert read_labels(path, "four bits", "sixteen bits") == [("0", 0, won)]
    assert read_labels(path, "sixteen bits", "four bits") == [("0", 0, 1 - won)]


def test_summaries_have_five_dimensions(client: TestClient) -> None:
    project = begin(client, 0, kind="summaries")
    rows = [{"prompt": "the mail", "response": "short", "system": "four bits"}] * 2
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert client.post(f"/v1/grading/projects/{project}/items", json={"jsonl": text}).json() == {"added": 2}
    item = take(client, project, "Anna")["item"]
    assert (item["kind"], item["response"], item["left"]) == ("summaries", "short", None)
    grades = dict.fromkeys(DIMENSIONS, "good")
    missing = grade(client, item["id"], "Anna", grades={"composition": "good"})
    assert missing.status_code == 400 and missing.json()["error"]["param"] == "grades"
    grade(client, item["id"], "Anna", grades={**grades, "harmfulness": "poor"})
    report = client.get(f"/v1/grading/projects/{project}/results").json()["report"]
    assert report["systems"]["four bits"]["overall"]["poor"]["count"] == 1
    [line] = client.get(f"/v1/grading/projects/{project}/export?rows=gradings").text.splitlines()
    assert json.loads(line)["overall"] == "poor" and json.loads(line)["system"] == "four bits"
    assert client.get(f"/v1/grading/projects/{project}/export").status_code == 400


def test_an_import_is_all_or_nothing(client: TestClient) -> None:
    project = begin(client, 2)
    good = json.dumps({"id": "new", "prompt": "p", "a": "x", "b": "y"})
    for bad, told in (
        ('{"prompt": "p", "a": "x"}', "line 2"),
        (json.dumps({"id": "1", "prompt": "p", "a": "x", "b": "y"}), "id 1"),
        (good, "id new"),
    ):
        reply = client.post(f"/v1/grading/projects/{project}/items", json={"jsonl": f"{good}\n{bad}"})
        assert reply.status_code == 400 and told in reply.json()["error"]["message"]
    assert client.get("/v1/grading/projects").json()["data"][0]["items"] == 2


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({}, "verdict"),
        ({"verdict": "a"}, "verdict"),
        ({"verdict": "left"}, "body"),
        ({"verdict": "tie", "level": "better"}, "body"),
        ({"verdict": "tie", "gradings": {"middle": {}}}, "gradings"),
        ({"verdict": "tie", "gradings": {"left": {"beauty": "good"}}}, "gradings"),
        ({"verdict": "tie", "gradings": {"left": {"truthfulness": "great"}}}, "gradings"),
        ({"verdict": "tie", "mood": "fine"}, "mood"),
    ],
)
def test_what_is_no_grading_is_refused(client: TestClient, said: dict[str, Any], param: str) -> None:
    project = begin(client, 1)
    item = take(client, project, "Anna")["item"]["id"]
    reply = grade(client, item, "Anna", **said)
    assert reply.status_code == 400
    assert (reply.json()["error"]["param"] or "body").startswith(param)
    assert client.get(f"/v1/grading/projects/{project}/results").json()["report"] is None


def test_unknown_ids_names_and_projects_are_refused(client: TestClient) -> None:
    assert client.post("/v1/grading/projects/none/next", json={"grader": "x"}).status_code == 404
    assert client.get("/v1/grading/projects/none/results").status_code == 404
    project = begin(client, 1)
    for grader in ("", " ", "x" * 101, "a\nb"):
        reply = client.post(f"/v1/grading/projects/{project}/next", json={"grader": grader})
        assert reply.status_code == 400, grader
    assert client.post("/v1/grading/projects", json={"name": "n", "a": "x", "b": "x"}).status_code == 400
    assert client.post("/v1/grading/projects", json={"name": " "}).status_code == 400


def test_a_deleted_project_is_gone_with_its_gradings(client: TestClient) -> None:
    project = begin(client, 1)
    item = take(client, project, "Anna")["item"]["id"]
    assert client.delete(f"/v1/grading/projects/{project}").json() == {"id": project, "deleted": True}
    assert grade(client, item, "Anna", verdict="tie").status_code == 404
    assert client.get(f"/v1/grading/projects/{project}/results").status_code == 404


# --- the store


def test_two_graders_never_take_the_last_place_of_an_item(tmp_path: Path) -> None:
    store = GradingStore(tmp_path / "deep" / "g.db")
    project = store.new_project("n", "pairs", "A", "B", 2)
    store.add_items(project.id, read_items(pairs(12), "pairs"))
    taken: list[str] = []
    failed: list[BaseException] = []

    def work(grader: str) -> None:
        try:
            while (task := store.take(project, grader)[0]) is not None:
                taken.append(task.id)
                store.grade(task.id, grader, {"verdict": "tie", "level": None, "a": {}, "b": {}})
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(f"g{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and len(taken) == 24
    assert sorted(taken.count(item) for item in set(taken)) == [2] * 12
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("not a database, but long enough to be looked at " * 40)
    before = path.read_bytes()
    with pytest.raises(PomonaError, match="grading_db"):
        GradingStore(path).projects()
    assert path.read_bytes() == before
