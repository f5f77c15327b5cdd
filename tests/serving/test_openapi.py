"""The OpenAPI document against the server: schemathesis makes requests from it, good ones and bad ones.

Every reply has a status, a content type and a body that the document tells of, and none is a 500; what the
document forbids is refused. That everything it allows is accepted is not demanded: no document can say which
JSON schemas can be compiled, or what fits the context.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from serving_server import Running, loaded, serving

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
CASES = int(os.environ.get("POMONA_SCHEMATHESIS_CASES", "2000"))  # of the slow test, over all operations
MODELS = ("small", "small:a", "small:base", None)  # None: as it was made up


@pytest.fixture(scope="module")
def running(small_dir_served: Path) -> Iterator[Running]:
    limits: dict[str, Any] = {"default_max_tokens": 4, "max_choices": 2, "deadline_seconds": 20}
    with loaded(small_dir_served) as model, serving(model, **limits) as running:
        yield running


@pytest.fixture(scope="module")
def operations(running: Running) -> dict[str, Any]:
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    found = {result.ok().label: result.ok() for result in schema.get_all_operations()}
    assert len(found) >= 12
    return found


def check(operation: Any, running: Running, cases: int, seed: int) -> int:
    """Makes `cases` requests of one operation, half of them bad ones on purpose; gives how many it made."""
    good = operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
    bad = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
    made = 0

    @hypothesis_seed(seed)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(st.builds(with_known_model, good, st.sampled_from(MODELS)), bad))
    def every_case(case: Any) -> None:
        nonlocal made
        made += 1
        case.call_and_validate(base_url=running.url, checks=CHECKS)

    every_case()
    return made


def with_known_model(case: Any, model: str | None) -> Any:
    """A good case, which would nearly always end at an unknown model; with time for a short answer."""
    if isinstance(case.body, dict):
        case.body.pop("deadline_seconds", None)
        if model is not None and "model" in case.body:
            case.body["model"] = model
        for field in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if isinstance(case.body.get(field), int):
                case.body[field] = min(case.body[field], 6)
    return case


def test_the_document_tells_of_every_route(running: Running, operations: dict[str, Any]) -> None:
    posts = ("chat/completions", "completions", "responses", "tokenize", "detokenize", "adapters")
    gets = ("/v1/models", "/v1/models/{model_id}", "/v1/adapters", "/health", "/ready", "/metrics")
    assert {*(f"POST /v1/{one}" for one in posts), *(f"GET {one}" for one in gets)} <= set(operations)
    with running.http() as http:
        document = http.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert "422" not in operation["responses"], f"{method} {path}: errors are 400, in OpenAI's shape"
            assert operation.get("summary"), f"{method} {path}"


def test_replies_are_as_the_document_says(running: Running, operations: dict[str, Any]) -> None:
    assert sum(check(operation, running, 8, seed=1) for operation in operations.values()) >= 60


@pytest.mark.slow
def test_replies_are_as_the_document_says_in_thousands_of_cases(
    running: Running, operations: dict[str, Any]
) -> None:
    # Operations without parameters have one good request; the others share the cases.
    rich = [operation for operation in operations.values() if operation.body or operation.path_parameters]
    share = -(-CASES // len(rich))
    assert sum(check(operation, running, share, seed=2) for operation in rich) >= CASES
