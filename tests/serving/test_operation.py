"""The server under load and at its end: queue, deadlines, vanished clients, draining, adapters."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from serving_server import Running, loaded, serving, until

from pomona.runtime.model import Model
from pomona.serving.logs import JsonFormatter

HELLO: list[Any] = [{"role": "user", "content": "Hello there."}]
# Drawn at random, so that no draft of a repetition is right and every token takes a step.
LONG: dict[str, Any] = {"model": "small", "messages": HELLO, "max_tokens": 4000, "temperature": 2.0}


@pytest.fixture
def model(small_dir_served: Path) -> Iterator[Model]:
    with loaded(small_dir_served) as model:
        yield model


@pytest.fixture
def slow_model(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """Answers of thousands of tokens take seconds, also on a fast machine."""

    def slowed(step: Any) -> Any:
        def stepped(inputs: Any) -> Any:
            time.sleep(0.003)
            return step(inputs)

        return stepped

    engine = model.engine
    monkeypatch.setattr(engine, "step", slowed(engine.step), raising=False)
    monkeypatch.setattr(engine, "step_with_drafts", slowed(engine.step_with_drafts), raising=False)
    return model


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "small", "messages": HELLO, "max_tokens": 4, **options})


def counter(running: Running, name: str, **labels: str) -> float:
    return running.state.metrics.registry.get_sample_value(name, labels) or 0.0


class TestQueue:
    def test_a_full_queue_is_429_with_retry_after(self, slow_model: Model) -> None:
        with serving(slow_model, max_running=1, max_waiting=1) as running, running.http() as http:
            body = {**LONG, "stream": True}
            with http.stream("POST", "/v1/chat/completions", json=body) as first:
                lines = first.iter_lines()  # to let go of it would close the connection
                next(lines)  # it runs
                with http.stream("POST", "/v1/chat/completions", json=body):  # it waits
                    until(lambda: slow_model.scheduler.stats().waiting == 1)
                    refused = http.post("/v1/chat/completions", json=body)
                    assert refused.status_code == 429
                    assert refused.json()["error"]["code"] == "queue_full"
                    assert int(refused.headers["Retry-After"]) >= 1
                    assert http.get("/ready").status_code == 503
                    assert http.get("/health").status_code == 200
            until(running.idle)
            assert http.get("/ready").json() == {"ready": True, "reason": None, "waiting": 0, "running": 0}

    def test_the_official_client_waits_and_tries_again(self, model: Model) -> None:
        with serving(model, max_running=1, max_waiting=1) as running:
            client = running.client(max_retries=20)
            with ThreadPoolExecutor(6) as pool:
                replies = list(pool.map(lambda _: chat(client, max_tokens=30), range(6)))
        assert [reply.usage.completion_tokens for reply in replies] == [30] * 6

    def test_many_clients_get_what_one_gets(self, model: Model) -> None:
        with serving(model) as running:
            client = running.client()

            def answer(number: int) -> tuple[int, str]:
                said = [{"role": "user", "content": f"Number {number % 8}."}]
                adapter = ("small", "small:a", "small:b")[number % 3]
                pieces = chat(client, model=adapter, messages=said, max_tokens=20, stream=True)
                return number, "".join(piece.choices[0].delta.content or "" for piece in pieces)

            alone = dict(map(answer, range(24)))
            with ThreadPoolExecutor(24) as pool:
                assert dict(pool.map(answer, range(24))) == alone
        assert len(set(alone.values())) > 8

    def test_an_adapter_forgotten_while_a_request_waits_is_404(
        self, slow_model: Model, small_dir_served: Path
    ) -> None:
        store = small_dir_served / "adapters"
        with (
            serving(slow_model, max_running=1, max_waiting=1, adapter_store=store) as running,
            running.http() as http,
            ThreadPoolExecutor(1) as pool,
        ):
            assert http.post("/v1/adapters", json={"name": "c", "path": "b"}).status_code == 200
            with http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as first:
                lines = first.iter_lines()
                next(lines)
                body = {**LONG, "model": "small:c", "max_tokens": 4}
                waits = pool.submit(http.post, "/v1/chat/completions", json=body)
                until(lambda: slow_model.scheduler.stats().waiting == 1)
                assert http.delete("/v1/adapters/c", params={"forget": True}).json()["deleted"]
            refused = waits.result()
            assert refused.status_code == 404 and refused.json()["error"]["code"] == "model_not_found"


class TestDeadlines:
    def test_an_answer_that_takes_too_long_is_504(self, slow_model: Model) -> None:
        with serving(slow_model, deadline_seconds=0.2) as running:
            with pytest.raises(openai.APIStatusError) as caught:
                chat(running.client(max_retries=2), **LONG)
            assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
            until(running.idle)
            assert slow_model.scheduler.stats().submitted == 1  # the official client did not try again

    def test_a_request_may_ask_for_less_but_not_for_more(self, slow_model: Model) -> None:
        with serving(slow_model, deadline_seconds=0.5) as running:
            started = time.monotonic()
            with pytest.raises(openai.APIStatusError, match=r"within 0\.1 seconds"):
                chat(running.client(), **LONG, extra_body={"deadline_seconds": 0.1})
            with pytest.raises(openai.APIStatusError, match=r"within 0\.5 seconds"):
                chat(running.client(), **LONG, extra_body={"deadline_seconds": 1000})
            assert time.monotonic() - started < 30

    def test_a_stream_ends_with_the_error(self, slow_model: Model) -> None:
        with serving(slow_model, deadline_seconds=0.2) as running:
            pieces = chat(running.client(), **LONG, stream=True)
            assert next(pieces).choices[0].delta.content
            with pytest.raises(openai.APIError, match=r"within 0\.2 seconds"):
                list(pieces)

    def test_a_body_that_trickles_is_given_up(self, model: Model) -> None:
        with serving(model, body_seconds=0.2) as running:
            head = (
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            )
            assert running.raw(head + b"Content-Length: 100\r\n\r\n{").startswith(b"HTTP/1.1 408 ")


class TestVanishedClients:
    @pytest.mark.parametrize("stream", [True, False])
    def test_free_their_place(self, slow_model: Model, stream: bool) -> None:
        with serving(slow_model, max_running=1) as running:
            connection = send(running, {**LONG, "stream": stream})
            until(lambda: slow_model.scheduler.stats().running == 1)
            connection.close()
            until(running.idle)
            assert slow_model.scheduler.stats().finished["cancelled"] == 1
            assert chat(running.client()).usage.completion_tokens == 4

    def test_free_it_while_they_wait_in_the_queue(self, slow_model: Model) -> None:
        body = LONG
        with serving(slow_model, max_running=1) as running:
            first, second = send(running, body), send(running, body)
            until(lambda: slow_model.scheduler.stats().waiting == 1)
            second.close()
            until(lambda: slow_model.scheduler.stats().waiting == 0)
            first.close()
            until(running.idle)
            assert slow_model.scheduler.stats().new_tokens < 4000

    def test_with_several_choices_free_all(self, slow_model: Model) -> None:
        with serving(slow_model) as running:
            connection = send(running, {**LONG, "n": 4})
            until(lambda: slow_model.scheduler.stats().running == 4)
            connection.close()
            until(running.idle)

    def test_one_that_reads_nothing_is_dropped(self, slow_model: Model) -> None:
        with serving(slow_model, send_buffer=4096, stall_seconds=0.3, max_running=1) as running:
            body = {**LONG, "stream": True, "logprobs": True}
            connection = send(running, {**body, "top_logprobs": 20}, receive_buffer=4096)
            until(lambda: slow_model.scheduler.stats().running == 1)
            until(running.idle)
            assert slow_model.scheduler.stats().finished["cancelled"] == 1
            assert slow_model.scheduler.stats().new_tokens < 2000
            connection.close()


def send(running: Running, body: dict[str, Any], receive_buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(("127.0.0.1", running.port))
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


class TestDraining:
    def test_running_answers_come_to_their_end_and_new_ones_are_refused(self, slow_model: Model) -> None:
        with serving(slow_model) as running, running.http() as http:
            body = {**LONG, "max_tokens": 300, "stream": True}
            with http.stream("POST", "/v1/chat/completions", json=body) as response:
                lines = response.iter_lines()
                next(lines)
                running.server.handle_exit(15, None)
                until(lambda: running.state.draining)
                events = [line for line in lines if line]
            assert events[-1] == "data: [DONE]"
            assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
            running.thread.join(60)
            assert not running.thread.is_alive()

    def test_says_that_it_goes(self, model: Model) -> None:
        with serving(model) as running, running.http() as http:
            running.state.draining = True
            assert http.get("/ready").json()["reason"] == "shutting down"
            refused = http.post("/v1/chat/completions", json={"model": "small", "messages": HELLO})
            assert refused.status_code == 503 and refused.headers["Retry-After"]
            assert refused.json()["error"]["code"] == "shutting_down"

    def test_what_takes_longer_is_cancelled(self, slow_model: Model) -> None:
        with serving(slow_model, drain_seconds=1) as running:
            result: list[BaseException] = []

            def ask() -> None:
                try:
                    chat(running.client(), **LONG)
                except openai.APIError as error:
                    result.append(error)

            asking = threading.Thread(target=ask)
            asking.start()
            until(lambda: slow_model.scheduler.stats().running == 1)
            running.server.handle_exit(15, None)
            running.thread.join(60)
            asking.join(60)
            assert not running.thread.is_alive()
            until(running.idle)


class TestAdapters:
    def test_are_listed_with_their_memory_and_use(self, model: Model) -> None:
        with serving(model) as running, running.http() as http:
            chat(running.client(), model="small:a")
            listed = http.get("/v1/adapters").json()
            a, b = listed["data"]
            assert (a["id"], a["task"], a["version"], a["resident"], a["default"]) == (
                "a",
                "summarize",
                1,
                True,
                False,
            )
            assert a["bytes"] > 0 and a["misses"] == 1 and not b["resident"]
            assert 0 < listed["used_bytes"] <= listed["budget_bytes"]

    def test_are_loaded_replaced_pinned_and_unloaded_live(self, model: Model, small_dir_served: Path) -> None:
        with serving(model, adapter_store=small_dir_served / "adapters") as running, running.http() as http:
            client = running.client()
            before = chat(client, model="small:a").choices[0].message.content
            new = http.post("/v1/adapters", json={"name": "c", "path": "b"})
            assert new.status_code == 200 and new.json()["resident"]
            assert "small:c" in [one.id for one in client.models.list()]
            other = chat(client, model="small:c").choices[0].message.content
            assert other == chat(client, model="small:b").choices[0].message.content != before

            assert http.put("/v1/adapters/a", json={"path": "b"}).json()["version"] == 2
            reply = chat(client, model="small:a")
            assert reply.choices[0].message.content == other and reply.model_extra["adapter_version"] == 2

            assert http.post("/v1/adapters/a/pin", json={"pinned": True}).json()["pinned"]
            assert not http.post("/v1/adapters/a/pin", json={"pinned": False}).json()["pinned"]
            assert http.delete("/v1/adapters/a").json() == {"id": "a", "deleted": False}
            assert not http.get("/v1/adapters").json()["data"][0]["resident"]
            assert http.delete("/v1/adapters/c", params={"forget": True}).json()["deleted"]
            with pytest.raises(openai.NotFoundError):
                chat(client, model="small:c")

    def test_a_request_keeps_the_version_that_it_began_with(self, model: Model) -> None:
        with serving(model) as running, running.http() as http:
            client = running.client()
            options: dict[str, Any] = {"model": "small:a", "max_tokens": 200}
            whole = chat(client, **options).choices[0].message.content
            pieces = chat(client, stream=True, **options)
            text = next(iter(pieces)).choices[0].delta.content
            assert http.put("/v1/adapters/a", json={"path": "b"}).status_code == 200
            text += "".join(piece.choices[0].delta.content or "" for piece in pieces)
            assert text == whole

    def test_a_bad_replacement_changes_nothing(
        self, model: Model, small_dir_served: Path, tmp_path: Path
    ) -> None:
        store = tmp_path / "store"
        (store / "bad").mkdir(parents=True)
        (store / "bad" / "adapter_config.json").write_text("{}")
        with serving(model, adapter_store=store) as running, running.http() as http:
            before = chat(running.client(), model="small:a").choices[0].message.content
            refused = http.put("/v1/adapters/a", json={"path": "bad"})
            assert refused.status_code == 400 and str(tmp_path) not in refused.text
            assert http.get("/v1/adapters").json()["data"][0]["version"] == 1
            assert chat(running.client(), model="small:a").choices[0].message.content == before
            assert http.post("/v1/adapters", json={"name": "new", "path": "bad"}).status_code == 400
            assert [one["id"] for one in http.get("/v1/adapters").json()["data"]] == ["a", "b"]

    def test_a_name_that_is_taken_is_a_conflict(self, model: Model) -> None:
        with serving(model) as running, running.http() as http:
            assert http.post("/v1/adapters", json={"name": "a", "path": "b"}).status_code == 409
            assert http.post("/v1/adapters", json={"name": "a", "path": "a"}).status_code == 200
            assert http.put("/v1/adapters/z", json={}).status_code == 404


class TestTokenize:
    def test_there_and_back(self, model: Model) -> None:
        with serving(model) as running, running.http() as http:
            tokens = http.post("/v1/tokenize", json={"text": "One <|im_end|> two"}).json()
            assert tokens["count"] == len(tokens["tokens"]) > 5
            back = http.post("/v1/detokenize", json={"tokens": tokens["tokens"]}).json()
            assert back == {"text": "One <|im_end|> two"}

    def test_counts_a_conversation_as_chat_completions_do(self, model: Model) -> None:
        with serving(model) as running, running.http() as http:
            tokens = http.post("/v1/tokenize", json={"model": "small", "messages": HELLO}).json()
            assert tokens["count"] == chat(running.client()).usage.prompt_tokens
            assert http.post("/v1/tokenize", json={}).status_code == 400
            assert http.post("/v1/detokenize", json={"tokens": [1 << 20]}).status_code == 400


class TestMetricsAndLogs:
    def test_metrics_tell_what_was_done(self, model: Model) -> None:
        with serving(model) as running, running.http() as http:
            chat(running.client(), model="small:a", max_tokens=5)
            chat(running.client(), max_tokens=3)
            http.get("/no/such/page")
            metrics = http.get("/metrics")
            assert metrics.headers["Content-Type"].startswith("text/plain")
            assert counter(running, "pomona_answers_total", adapter="a", finish_reason="length") == 1
            assert counter(running, "pomona_new_tokens_total", adapter="a") == 5
            assert counter(running, "pomona_new_tokens_total", adapter="base") == 3
            assert counter(running, "pomona_first_token_seconds_count", adapter="a") == 1
            assert counter(running, "pomona_http_requests_total", route="other", status="404") == 1
            assert counter(running, "pomona_adapter_resident", adapter="a") == 1
            names = (
                "process_resident_memory_bytes",
                "pomona_waiting_requests",
                "pomona_rows_total",
                "pomona_kv_free_tokens",
            )
            assert all(f"\n{name}" in metrics.text for name in names)

    def test_a_line_per_request_and_nothing_of_what_was_said(
        self, model: Model, caplog: pytest.LogCaptureFixture
    ) -> None:
        secret = "Zanzibar"
        with caplog.at_level(logging.INFO, "pomona.serving"), serving(model) as running:
            reply = chat(running.client(), messages=[{"role": "user", "content": secret}])
            with pytest.raises(openai.NotFoundError):
                chat(running.client(), model=secret)
            with running.http() as http:
                http.get(f"/{secret}?key={secret}", headers={"X-Request-Id": "mine-1"})
        lines = [
            json.loads(JsonFormatter().format(record))
            for record in caplog.records
            if record.name == "pomona.serving"
        ]
        answered, unknown, other = (line for line in lines if line["event"] == "request")
        assert answered["completion_tokens"] == 4 and answered["status"] == 200
        assert answered["request_id"] == reply._request_id and answered["route"] == "/v1/chat/completions"
        assert unknown["status"] == 404 and (other["route"], other["request_id"]) == ("other", "mine-1")
        said = reply.choices[0].message.content
        assert secret not in json.dumps(lines) and said not in json.dumps(lines)
