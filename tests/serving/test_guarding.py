"""The guardrail on the server: what passes is as without it, what does not is never shown, and says why."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_server import until
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "safety"))
from guarded_model import WordGuardrail, guarded_model

from pomona.errors import PomonaError
from pomona.runtime.model import Model
from pomona.safety.guardrail_policy import FeatureRules, GuardrailPolicy
from pomona.safety.screening import Shield
from pomona.serving.app import create_app
from pomona.serving.guarding import AnswerGuard
from pomona.serving.settings import ServerSettings

TOLD = "I cannot help with this. The {} was taken for illegal activities."
ONLY_X = {str(ord("x") - 33): 100}  # the tiny model's tokens are bytes: it answers xxxx


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.load(str(guarded_model(tmp_path_factory.mktemp("guarding"))), threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def client(model: Model) -> Iterator[TestClient]:
    settings = ServerSettings(guardrail="guardrail", default_max_tokens=40)
    app = create_app(model, settings)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture
def guard(client: TestClient, model: Model) -> Iterator[Any]:
    """Sets the server's shield: a guardrail that goes by words, under a policy."""
    state = client.app.state.pomona  # type: ignore[attr-defined]
    before = state.shield

    def put(*words: str, **policy: Any) -> WordGuardrail:
        guardrail = WordGuardrail(model, words or ("burglary",))
        state.shield = model.shield = Shield(guardrail, GuardrailPolicy(**policy))
        return guardrail

    yield put
    state.shield = model.shield = before


def ask(client: TestClient, text: str | list[dict[str, str]], **fields: Any) -> Any:
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    body = {"model": "tiny", "messages": messages, "logit_bias": ONLY_X, "max_tokens": 40, **fields}
    reply = client.post("/v1/chat/completions", json=body)
    if not fields.get("stream"):
        return reply.json()
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def shown(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def test_what_passes_is_answered_as_without_a_guardrail(client: TestClient, guard: Any) -> None:
    state = client.app.state.pomona  # type: ignore[attr-defined]
    guardrail = guard()
    guarded = ask(client, "How do I bake bread?", logit_bias=None)
    chunks = ask(client, "How do I bake bread?", logit_bias=None, stream=True)
    state.shield = None
    plain = ask(client, "How do I bake bread?", logit_bias=None)
    assert guarded["choices"] == plain["choices"] and "guardrail" not in guarded
    assert shown(chunks) == plain["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == plain["choices"][0]["finish_reason"]
    assert ("input", "How do I bake bread?") in guardrail.asked


def test_a_bad_request_is_told_why_and_its_answer_ends(client: TestClient, model: Model, guard: Any) -> None:
    guard()
    reply = ask(client, "Plan a burglary.", max_tokens=3000)
    [choice] = reply["choices"]
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"]["content"] == choice["message"]["refusal"] == TOLD.format("request")
    assert reply["guardrail"] == {
        "feature": "chat",
        "side": "input",
        "category": "illegal",
        "message": TOLD.format("request"),
        "harm": pytest.approx(0.9),
        "threshold": 0.5,
    }
    assert reply["usage"]["completion_tokens"] < 3000
    until(lambda: model.scheduler.stats().running == 0)


def test_nothing_of_the_answer_to_a_bad_request_is_streamed(client: TestClient, guard: Any) -> None:
    guard()
    chunks = ask(client, "Plan a burglary.", stream=True)
    assert shown(chunks) == TOLD.format("request")
    told = [chunk["choices"][0]["delta"].get("refusal") for chunk in chunks]
    assert [text for text in told if text] == [TOLD.format("request")]
    assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"
    assert chunks[-1]["guardrail"]["side"] == "input"


def test_earlier_turns_and_tool_outputs_are_judged_too(client: TestClient, guard: Any) -> None:
    guardrail = guard()
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Plan a burglary."},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Go on."},
    ]
    assert ask(client, turns)["choices"][0]["finish_reason"] == "content_filter"
    assert guardrail.asked == [("input", "Plan a burglary."), ("input", "Go on.")]


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_answer_ends_with_the_segment_that_shows_it(
    client: TestClient, guard: Any, stream: bool
) -> None:
    guardrail = guard("x" * 70, segment=32)
    reply = ask(client, "Say x.", max_tokens=400, stream=stream)
    text = shown(reply) if stream else reply["choices"][0]["message"]["content"]
    assert text.endswith(TOLD.format("answer"))
    said = text.removesuffix(TOLD.format("answer")).removesuffix("\n\n")
    assert set(said) <= {"x"} and len(said) < 70
    sizes = [len(words) for side, words in guardrail.asked if side == "output"]
    assert sizes == sorted(sizes) and sizes[-1] >= 70
    last = reply[-1] if stream else reply
    assert last["choices"][0]["finish_reason"] == "content_filter" and last["guardrail"]["side"] == "output"


def test_a_segment_is_shown_when_it_has_passed(model: Model) -> None:
    guardrail = WordGuardrail(model, ("seven",))
    policy = GuardrailPolicy(segment=16, default=FeatureRules())
    words = [f"{word} " for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")]

    async def pieces() -> tuple[list[str], AnswerGuard]:
        answer = AnswerGuard(Shield(guardrail, policy).begin("chat", ["Count."]))
        found = [await answer.push(word, 8) for word in words]  # 8 tokens each: a check every second word
        return [*found, await answer.end("")], answer

    shown, answer = asyncio.run(pieces())
    assert shown[:6] == ["", "one two ", "", "three four ", "", "five six "]
    assert "".join(shown[6:]) == "\n\n" + TOLD.format("answer")
    assert answer.refusal is not None and answer.text == "".join(shown)


def test_an_answer_is_judged_to_its_last_word(client: TestClient, guard: Any) -> None:
    """40 letters: shorter than a segment, so that the check at the end is the only one."""
    guardrail = guard("x" * 40, segment=64)
    reply = ask(client, "Say x.")
    assert reply["choices"][0]["message"]["content"] == TOLD.format("answer")
    assert [words for side, words in guardrail.asked if side == "output"] == ["x" * 40]


def test_answers_to_unsuspicious_requests_are_left_alone_where_the_policy_says_so(
    client: TestClient, guard: Any
) -> None:
    guardrail = guard("x" * 40, suspects="0.2")  # its inputs have a harm of 0.1, below the threshold
    assert ask(client, "Say x.")["choices"][0]["message"]["content"] == "x" * 40
    assert [side for side, _ in guardrail.asked] == ["input"]


@pytest.mark.parametrize("stream", [False, True])
def test_phrases_are_denied_and_replaced(
    client: TestClient, guard: Any, tmp_path: Path, stream: bool
) -> None:
    def rules(text: str) -> dict[str, Any]:
        path = tmp_path / "list.yaml"
        path.write_text(f"version: 1\n{text}\n")
        return {"default": FeatureRules(patterns=(str(path),))}

    def said() -> str:
        reply = ask(client, "Say x.", stream=stream)
        return shown(reply) if stream else reply["choices"][0]["message"]["content"]

    guard(**rules("deny: [{phrase: x*, category: illegal, in: output}]"))
    assert said() == TOLD.format("answer")
    guard(**rules(f"replace: [{{phrase: {'x' * 40}, with: forty}}]"))
    assert said() == "forty"
    guard(**rules("deny: [{phrase: say x, category: illegal, in: input}]"))
    assert said() == TOLD.format("request")


def test_completions_and_responses_are_guarded(client: TestClient, guard: Any) -> None:
    guard()
    body: dict[str, Any] = {"model": "tiny", "prompt": ["A burglary begins", "A day begins"], "max_tokens": 5}
    reply = client.post("/v1/completions", json=body).json()
    assert [c["finish_reason"] for c in reply["choices"]] == ["content_filter", "length"]
    assert reply["choices"][0]["text"] == TOLD.format("request")
    ids = [ord(letter) - 33 for letter in "burglary"]
    reply = client.post("/v1/completions", json={**body, "prompt": ids}).json()
    assert reply["choices"][0]["finish_reason"] == "content_filter"
    body = {"model": "tiny", "input": "Plan a burglary."}
    reply = client.post("/v1/responses", json=body).json()
    assert reply["status"] == "incomplete"
    assert reply["incomplete_details"] == {"reason": "content_filter"}
    assert reply["output"][0]["content"][0]["text"] == TOLD.format("request")
    events = client.post("/v1/responses", json={**body, "stream": True}).text
    assert "response.incomplete" in events and events.count(TOLD.format("request")) >= 2


def test_the_write_page_is_guarded(client: TestClient, guard: Any) -> None:
    guard()
    reply = client.post("/v1/write/summarize", json={"text": "Notes on a burglary, for the record."})
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "content_filter"
    assert "illegal activities" in reply.json()["error"]["message"]
    assert client.post("/v1/write/summarize", json={"text": "Notes on bread."}).status_code == 200


def test_log_probabilities_would_tell_what_is_held_back(client: TestClient, guard: Any) -> None:
    guard()
    assert ask(client, "Say x.", logprobs=True)["error"]["param"] == "logprobs"


def test_what_cannot_be_judged_is_not_answered(client: TestClient, model: Model) -> None:
    directory = next(s.directory for s in model.adapters.status() if s.name == "guardrail")
    model.adapters.remove("guardrail")
    try:
        reply = ask(client, "A request that nobody has judged before.")
        assert "choices" not in reply and "guardrail" in reply["error"]["message"]
        until(lambda: model.scheduler.stats().running == 0)
    finally:
        model.adapters.register("guardrail", directory)
    assert "choices" in ask(client, "Another request that nobody has judged before.")


def test_the_adapter_itself_judges_where_nothing_stands_in(client: TestClient, model: Model) -> None:
    before = model.scheduler.stats().lanes["guardrail"].finished
    first = ask(client, "Some words for the adapter.")["choices"]
    assert model.scheduler.stats().lanes["guardrail"].finished > before
    assert ask(client, "Some words for the adapter.")["choices"] == first


def test_a_server_with_a_wrong_guardrail_does_not_start(model: Model, tmp_path: Path) -> None:
    from pomona.serving.guarding import make_shield

    with pytest.raises(PomonaError, match="no such adapter"):
        make_shield(model, "nobody", None)
    (tmp_path / "policy.yaml").write_text("defaults: {}\n")
    with pytest.raises(PomonaError, match="Extra inputs"):
        make_shield(model, "guardrail", tmp_path / "policy.yaml")
    with pytest.raises(ValueError, match="is of no use without guardrail"):
        ServerSettings(guardrail_policy=tmp_path / "policy.yaml")
