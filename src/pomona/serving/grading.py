"""/v1/grading: people grade pairs and summaries, each their own queue, not told whose answer is whose.

A project holds items that were imported. A grader, who is a name, takes one after the other: of a pair two
texts, on sides that the server shuffles for this grader; of a summary its content and the summary. What the
systems are called and who else said what is told by /results and /export alone, which graders need not see.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from pomona.evaluation.graded_items import read_items
from pomona.evaluation.side_by_side import (
    DIMENSIONS,
    Dimension,
    SummaryGrade,
    pair_report,
    preferences,
    summary_report,
)
from pomona.models.store import cache_dir
from pomona.posttraining.preferences import Grade, Level, Question
from pomona.serving.errors import RESPONSES, ApiError
from pomona.serving.grading_store import GradingStore, Kind, Project, Task
from pomona.serving.state import state_of

router = APIRouter(prefix="/v1/grading", tags=["grading"], responses=RESPONSES)

Grader = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$"),
]
Place = Literal["left", "right"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewProject(_Body):
    """a, b: what the sides of pairs are. overlap: graders per item; null: all of them."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    kind: Kind = "pairs"
    a: Annotated[str, Field(max_length=200)] = "A"
    b: Annotated[str, Field(max_length=200)] = "B"
    overlap: Annotated[int, Field(ge=1, le=100)] | None = None


class NewItems(_Body):
    """jsonl: one item a line."""

    jsonl: Annotated[str, Field(min_length=1)]


class Added(BaseModel):
    added: int


class ProjectJson(BaseModel):
    """created: seconds since 1970."""

    id: str
    name: str
    kind: Kind
    a: str
    b: str
    overlap: int | None
    created: float
    items: int
    gradings: int


class ProjectList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ProjectJson]


class Deleted(BaseModel):
    id: str
    deleted: bool


class NewTask(_Body):
    """In the body, since addresses end up in the logs of proxies."""

    grader: Grader


class MessageJson(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class BlindItem(BaseModel):
    """What a grader may know. left, right: of a pair; response: a summary of the prompt."""

    id: str
    kind: Kind
    prompt: list[MessageJson]
    left: str | None = None
    right: str | None = None
    response: str | None = None


class NextItem(BaseModel):
    """item: null where nothing is left. done: graded or skipped; open: what can still be graded."""

    item: BlindItem | None
    done: int
    open: int


class NewGrading(_Body):
    """Of a pair: verdict, level unless it is a tie, and grades of each side, questions that were left open
    not among them. Of a summary: all five dimensions. skip: nothing can be said."""

    grader: Grader
    skip: bool = False
    verdict: Literal["left", "right", "tie"] | None = None
    level: Level | None = None
    gradings: dict[Place, dict[Question, Grade]] = Field(default_factory=dict)
    grades: dict[Dimension, SummaryGrade] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> NewGrading:
        if not self.skip and self.verdict in ("left", "right") and self.level is None:
            raise ValueError("level: say by how much it is better")
        if self.verdict == "tie" and self.level is not None:
            raise ValueError("level: a tie has none; leave it out")
        return self


class Graded(BaseModel):
    id: str
    done: int
    open: int


class Results(BaseModel):
    """report: null before the first grading; its form is that of pairs or of summaries (docs/grading.md)."""

    project: ProjectJson
    report: dict[str, Any] | None


def _store(request: Request) -> GradingStore:
    return GradingStore(state_of(request).settings.grading_db or cache_dir() / "grading.db")


def _found(store: GradingStore, project: str) -> Project:
    found = store.project(project)
    if found is None:
        raise ApiError(404, f"project {project[:40]}: there is none of that id", param="project")
    return found


@router.get("/projects", response_model=ProjectList, summary="All gradings, the newest project first")
def list_projects(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [asdict(project) for project in _store(request).projects()]}


@router.post(
    "/projects", status_code=201, response_model=ProjectJson, summary="Begin a project of pairs or summaries"
)
def new_project(body: NewProject, request: Request) -> dict[str, Any]:
    if not body.name.strip():
        raise ApiError(400, "name is empty; give one", param="name")
    sides = (body.a.strip(), body.b.strip())
    if body.kind == "pairs" and sides[0] == sides[1]:
        raise ApiError(400, "a and b have the same name; change one of them", param="b")
    return asdict(_store(request).new_project(body.name.strip(), body.kind, *sides, body.overlap))


@router.delete(
    "/projects/{project}", response_model=Deleted, summary="Forget a project, its items and its gradings"
)
def delete_project(project: str, request: Request) -> dict[str, Any]:
    store = _store(request)
    _found(store, project)
    return {"id": project, "deleted": store.delete_project(project)}


@router.post(
    "/projects/{project}/items", status_code=201, response_model=Added, summary="Import what is to be graded"
)
def add_items(project: str, body: NewItems, request: Request) -> dict[str, Any]:
    """All lines or none of them."""
    store = _store(request)
    found = _found(store, project)
    items = read_items(body.jsonl, found.kind, first=found.items + 1)
    return {"added": store.add_items(project, items)}


@router.post(
    "/projects/{project}/next", response_model=NextItem, summary="Take the next item of a grader's queue"
)
def next_item(project: str, body: NewTask, request: Request) -> dict[str, Any]:
    """The same one again until it is graded or skipped."""
    store = _store(request)
    task, standing = store.take(_found(store, project), body.grader)
    return {"item": None if task is None else blind_json(task), **asdict(standing)}


@router.post(
    "/items/{item}/gradings", response_model=Graded, summary="Grade an item that the grader has taken"
)
def grade(item: str, body: NewGrading, request: Request) -> dict[str, Any]:
    """Again, to correct what was said before."""
    store = _store(request)
    task = store.task(item, body.grader)
    if task is None:
        raise ApiError(404, f"item {item[:40]}: this grader has taken none of that id", param="item")
    store.grade(item, body.grader, None if body.skip else _answer(task, body))
    standing = store.standing(_found(store, task.project), body.grader)
    return {"id": item, **asdict(standing)}


@router.get("/projects/{project}/results", response_model=Results, summary="What the gradings say")
def results(project: str, request: Request) -> dict[str, Any]:
    store = _store(request)
    found = _found(store, project)
    report: dict[str, Any] | None = None
    if found.gradings:
        report = (
            pair_report(store.pair_gradings(project)).to_json()
            if found.kind == "pairs"
            else summary_report(store.summary_gradings(project)).to_json()
        )
    return {"project": asdict(found), "report": report}


@router.get(
    "/projects/{project}/export",
    response_class=Response,
    responses={200: {"content": {"application/jsonl": {}}}},
    summary="Gradings as JSONL",
)
def export(
    project: str, request: Request, rows: Literal["preferences", "gradings"] = "preferences"
) -> Response:
    """preferences: the reward model's rows, one for each item. gradings: each one that was given."""
    store = _store(request)
    found = _found(store, project)
    if rows == "gradings":
        made = _grading_rows(store, found)
    elif found.kind == "pairs":
        source = f"graded by people: {found.name}, {found.a} and {found.b}"[:200]
        made = [
            {"source": source, **row.to_json()}
            for row in preferences(store.items(project), store.pair_gradings(project))
        ]
    else:
        raise ApiError(400, "summaries prefer nothing; export rows=gradings", param="rows")
    return Response(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made),
        media_type="application/jsonl",
        headers={"Content-Disposition": f'attachment; filename="grading-{found.id}-{rows}.jsonl"'},
    )


def blind_json(task: Task) -> dict[str, Any]:
    item = task.item
    blind = {"id": task.id, "prompt": [dict(message) for message in item.prompt]}
    if item.b is None:
        return {**blind, "kind": "summaries", "response": item.a}
    left, right = (item.a, item.b) if task.left == "a" else (item.b, item.a)
    return {**blind, "kind": "pairs", "left": left, "right": right}


def _answer(task: Task, body: NewGrading) -> dict[str, Any]:
    """As it is kept: by sides, not by places."""
    if task.item.b is None:
        if missing := [name for name in DIMENSIONS if name not in body.grades]:
            raise ApiError(400, f"grades: {missing[0]} is missing; grade all five", param="grades")
        return {"grades": body.grades}
    if body.verdict is None:
        raise ApiError(400, "verdict is missing: left, right or tie", param="verdict")
    sides: Mapping[str, str] = {"left": task.left, "right": "b" if task.left == "a" else "a", "tie": "tie"}
    graded = {sides[place]: given for place, given in body.gradings.items()}
    return {
        "verdict": sides[body.verdict],
        "level": body.level,
        "a": graded.get("a", {}),
        "b": graded.get("b", {}),
    }


def _grading_rows(store: GradingStore, project: Project) -> list[dict[str, Any]]:
    """Each grading with its texts; of pairs with the keys by which `pomona judge --human` reads a verdict."""
    items = {item.id: item for item in store.items(project.id)}
    rows: list[dict[str, Any]] = []
    if project.kind == "summaries":
        for summary in store.summary_gradings(project.id):
            item = items[summary.item]
            rows.append(
                {
                    "id": item.key,
                    "grader": summary.grader,
                    "system": item.system,
                    "prompt": list(item.prompt),
                    "response": item.a,
                    "grades": dict(summary.grades),
                    "overall": summary.overall,
                }
            )
        return rows
    for given in store.pair_gradings(project.id):
        item = items[given.item]
        rows.append(
            {
                "question_id": item.key,
                "turn": 1,
                "model_a": project.a,
                "model_b": project.b,
                "winner": given.verdict,
                "level": given.level,
                "grader": given.grader,
                "left": given.left,
                "prompt": list(item.prompt),
                "a": item.a,
                "b": item.b,
                "gradings": {"a": dict(given.a), "b": dict(given.b)},
            }
        )
    return rows
