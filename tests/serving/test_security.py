"""What hostile clients and hostile web pages try (docs/security.md)."""

from __future__ import annotations

import json
import pickle
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serving_server import Running, loaded, serving

from pomona.errors import PomonaError
from pomona.serving.gate import Gate
from pomona.serving.settings import ServerSettings, load_settings

HELLO: list[Any] = [{"role": "user", "content": "Hello there."}]
KEY = "correct-horse-battery-staple"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, small_dir_served: Path) -> Path:
    """An adapter store with one good adapter, and links and files that are not."""
    root = tmp_path_factory.mktemp("roots")
    store, outside = root / "store", root / "outside"
    store.mkdir()
    source = small_dir_served / "adapters" / "a"
    for target in (store / "good", outside):
        target.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors", "pomona.json"):
            (target / name).write_bytes((source / name).read_bytes())
    (store / "link").symlink_to(outside)
    (store / "linked-file").mkdir()
    (store / "linked-file" / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    (store / "linked-file" / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
    (store / "loop").symlink_to(store / "loop")
    (store / "pickled").mkdir()
    (store / "pickled" / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    (store / "pickled" / "adapter_model.bin").write_bytes(pickle.dumps(Boom()))
    (store / "renamed").mkdir()
    (store / "renamed" / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    (store / "renamed" / "adapter_model.safetensors").write_bytes(pickle.dumps(Boom()))
    return store


class Boom:
    """Does harm when it is unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemError('unpickled')",))


@pytest.fixture(scope="module")
def running(small_dir_served: Path, store: Path) -> Iterator[Running]:
    with (
        loaded(small_dir_served) as model,
        serving(model, adapter_store=store, max_body_bytes=100_000) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def http(running: Running) -> Iterator[httpx2.Client]:
    with running.http() as client:
        yield client


@pytest.fixture(scope="module")
def locked(small_dir_served: Path) -> Iterator[Running]:
    """A server with an API key."""
    with loaded(small_dir_served) as model, serving(model, api_key=KEY) as running:
        yield running


def ask(http: httpx2.Client, headers: dict[str, str] | None = None, **options: Any) -> httpx2.Response:
    body = {"model": "small", "messages": HELLO, "max_tokens": 2, **options}
    return http.post(CHAT, json=body, headers=headers or {})


def code(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


class TestAdapterPaths:
    @pytest.mark.parametrize(
        "path",
        [
            *(
                "..",
                ".",
                "../outside",
                "good/../../outside",
                "/etc",
                "/etc/passwd",
                "link",
                "linked-file",
                "loop",
            ),
            *(
                "good\x00",
                "good/adapter_config.json",
                "nothing",
                "~",
                "a/" * 400,
                "..\\outside",
                "%2e%2e/outside",
            ),
        ],
    )
    def test_nothing_outside_the_roots_is_read(self, http: httpx2.Client, path: str) -> None:
        response = http.post("/v1/adapters", json={"name": "new", "path": path})
        assert code(response) == (400, "bad_path"), path

    def test_an_absolute_path_inside_is_inside(self, http: httpx2.Client, store: Path) -> None:
        assert (
            http.post("/v1/adapters", json={"name": "inside", "path": str(store / "good")}).status_code == 200
        )

    @pytest.mark.parametrize("name", ["../x", "a/b", "base", ".hidden", "x\n", "ü", "con:x", "-"])
    def test_names_are_names(self, http: httpx2.Client, name: str) -> None:
        response = http.post("/v1/adapters", json={"name": name, "path": "good"})
        assert response.status_code == 400 and response.json()["error"]["param"] == "name"

    @pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2f..%2fetc", "a%00b"])
    def test_names_in_addresses_are_names(self, running: Running, name: str) -> None:
        head = f"DELETE /v1/adapters/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        status = running.raw(head.encode()).split(b" ")[1]
        assert status in (b"404", b"405")

    @pytest.mark.parametrize("path", ["pickled", "renamed"])
    def test_pickles_are_not_opened(self, http: httpx2.Client, path: str) -> None:
        response = http.post("/v1/adapters", json={"name": "evil", "path": path})
        assert response.status_code == 400
        assert "evil" not in [one["id"] for one in http.get("/v1/adapters").json()["data"]]

    def test_messages_tell_no_paths_of_the_machine(self, http: httpx2.Client, store: Path) -> None:
        assert str(store) not in http.post("/v1/adapters", json={"name": "x", "path": "renamed"}).text


class TestBodies:
    def test_one_that_is_too_large_is_refused_before_it_is_read(self, running: Running) -> None:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        reply = running.raw(f"{head}Content-Length: 10000000000\r\n\r\n".encode())
        assert reply.startswith(b"HTTP/1.1 413 ")

    def test_one_without_a_length_is_cut_off(self, http: httpx2.Client) -> None:
        def parts() -> Iterator[bytes]:
            for _ in range(200):
                yield b" " * 1000

        response = http.post(CHAT, content=parts(), headers={"Content-Type": "application/json"})
        assert response.status_code == 413

    @pytest.mark.parametrize(
        "text",
        [
            "[" * 50_000,
            '{"a":' * 15_000,
            "{",
            "",
            "nul",
            "\x00",
            '{"model": NaN}',
            "1" * 5_000,
            '"\\ud800"',
            "[1e999999]",
        ],
    )
    def test_nonsense_is_400(self, http: httpx2.Client, text: str) -> None:
        response = http.post(CHAT, content=text.encode(), headers={"Content-Type": "application/json"})
        assert response.status_code == 400 and set(response.json()["error"]) == {
            "message",
            "type",
            "param",
            "code",
        }

    def test_bytes_that_are_no_text_are_400(self, http: httpx2.Client) -> None:
        response = http.post(CHAT, content=b'{"model": "\xff"}', headers={"Content-Type": "application/json"})
        assert response.status_code == 400

    @pytest.mark.parametrize("content", ["half \ud800 pair", "\udfff"])
    def test_half_a_surrogate_pair_is_400(self, http: httpx2.Client, content: str) -> None:
        body = json.dumps({"model": "small", "messages": [{"role": "user", "content": content}]})
        response = http.post(CHAT, content=body.encode(), headers={"Content-Type": "application/json"})
        assert response.status_code == 400

    @pytest.mark.parametrize(
        "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
    )
    def test_what_an_html_form_can_send_is_refused(self, http: httpx2.Client, kind: str) -> None:
        response = http.post(CHAT, content=b'{"model":"small"}', headers={"Content-Type": kind})
        assert code(response) == (415, "unsupported_media_type")


class TestSchemas:
    def schema(self, http: httpx2.Client, schema: Any) -> httpx2.Response:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        return ask(http, response_format=form, max_tokens=20)

    def test_deep_nesting_is_refused(self, http: httpx2.Client) -> None:
        schema: dict[str, Any] = {}
        for _ in range(100):
            schema = {"properties": {"a": schema}}
        assert code(self.schema(http, schema)) == (400, "schema_too_deep")

    def test_size_is_bounded(self, http: httpx2.Client) -> None:
        assert code(self.schema(http, {"enum": ["x" * 70_000]})) == (400, "schema_too_large")

    def test_the_tools_of_a_request_are_bounded_together(self, http: httpx2.Client) -> None:
        parameters = {"type": "object", "properties": {"a": {"enum": ["x" * 30_000]}}}
        tools = [
            {"type": "function", "function": {"name": f"f{n}", "parameters": parameters}} for n in range(3)
        ]
        assert ask(http, tools=tools).status_code == 400

    @pytest.mark.parametrize(
        "schema",
        [
            {"$ref": "#"},
            {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
            {"$ref": "http://localhost/secret"},
            {"$ref": "file:///etc/passwd"},
            {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}},
            {"allOf": [{"type": "string"}, {"type": "integer"}]},
            {"type": "array", "minItems": 1_000_000, "items": {"type": "string"}},
        ],
    )
    def test_what_cannot_be_answered_is_400_and_soon(self, http: httpx2.Client, schema: Any) -> None:
        started = time.monotonic()
        assert self.schema(http, schema).status_code == 400
        assert time.monotonic() - started < 30

    @pytest.mark.parametrize(
        "pattern",
        [
            "^(a+)+$",
            "^(a|a)*$",
            "^((a{1,100}){1,100}){1,100}$",
            "^(.*.*.*.*.*.*.*.*.*.*x)$",
            "^(?:a?){500}a{500}$",
            "[ab]*a[ab]{200}",
            "(" * 3000 + "a" + ")" * 3000,
        ],
    )
    def test_regular_expressions_are_bounded(
        self, running: Running, http: httpx2.Client, pattern: str
    ) -> None:
        started = time.monotonic()
        response = self.schema(http, {"type": "string", "pattern": pattern})
        assert response.status_code in (200, 400)
        assert time.monotonic() - started < 30
        assert http.get("/health").status_code == 200
        assert ask(http).status_code == 200


class TestHeaders:
    @pytest.mark.parametrize(
        "lines",
        [
            "Content-Length: 2\r\nTransfer-Encoding: chunked",
            "Content-Length: 2\r\nContent-Length: 3",
            "Content-Length: -1",
            "Content-Length: 2x",
            "Content-Length : 2",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: xchunked",
            "X\x00: a",
            "Host: other",
        ],
    )
    def test_requests_that_two_readers_would_read_differently_are_refused(
        self, running: Running, lines: str
    ) -> None:
        smuggled = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{lines}\r\n\r\n"
        reply = running.raw((head + "{}" + smuggled).encode())
        assert reply.split(b" ")[1] in (b"400", b"501")
        assert reply.count(b"HTTP/1.1 ") == 1 and b"small" not in reply  # what was smuggled was not answered

    def test_many_headers_are_bounded(self, running: Running) -> None:
        for more in ("X: y\r\n" * 200, f"X: {'y' * 40_000}\r\n", "X: y\r\n" * 100_000):
            reply = running.raw(f"GET /health HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode())
            assert reply[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"")

    @pytest.mark.parametrize("given", ["a\tb", "x" * 65, "<script>", "ü"])
    def test_a_request_id_that_could_do_harm_is_not_repeated(self, http: httpx2.Client, given: str) -> None:
        response = http.get("/health", headers={"X-Request-Id": given.encode("latin-1")})
        assert response.headers["X-Request-Id"].startswith("req_")

    def test_replies_are_not_sniffed(self, http: httpx2.Client) -> None:
        for path in ("/health", "/v1/models", "/nothing"):
            assert http.get(path).headers["X-Content-Type-Options"] == "nosniff"


class TestOtherSites:
    @pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.nip.io", "localhost.evil.example", "small"])
    def test_a_foreign_name_that_resolves_to_us_gets_nothing(self, http: httpx2.Client, host: str) -> None:
        for path in ("/v1/models", "/", "/metrics", "/health"):
            assert code(http.get(path, headers={"Host": host})) == (403, "bad_host")
        assert code(ask(http, {"Host": host})) == (403, "bad_host")

    @pytest.mark.parametrize(
        "host", ["localhost", "localhost:1234", "127.0.0.1", "[::1]:80", "192.168.1.5:8000", "LOCALHOST"]
    )
    def test_addresses_and_localhost_are_us(self, http: httpx2.Client, host: str) -> None:
        assert http.get("/v1/models", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host", ["", "a b", "localhost/evil", "user@localhost", "localhost:99999999", "[::1"]
    )
    def test_what_is_no_host_is_400(self, running: Running, host: str) -> None:
        assert running.raw(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).split(b" ")[1] == b"400"

    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://localhost:9"},
            {"Origin": "http://127.0.0.1"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ],
    )
    def test_pages_of_other_sites_cannot_use_us(self, http: httpx2.Client, headers: dict[str, str]) -> None:
        assert code(ask(http, headers)) == (403, "bad_origin")
        assert code(http.delete("/v1/adapters/a", headers=headers)) == (403, "bad_origin")
        assert code(http.put("/v1/adapters/a", json={}, headers=headers)) == (403, "bad_origin")

    def test_our_own_pages_can(self, running: Running, http: httpx2.Client) -> None:
        headers = {"Origin": running.url, "Sec-Fetch-Site": "same-origin"}
        assert ask(http, headers).status_code == 200

    def test_no_page_elsewhere_may_read_replies(self, http: httpx2.Client) -> None:
        response = http.get("/v1/models", headers={"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in response.headers
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        assert http.options(CHAT, headers=asked).status_code == 403

    def test_a_site_that_was_named_may(self, small_dir_served: Path) -> None:
        site = "https://notes.example"
        with (
            loaded(small_dir_served) as model,
            serving(model, allowed_origins=[site]) as running,
            running.http() as http,
        ):
            asked = {"Origin": site, "Access-Control-Request-Method": "POST"}
            preflight = http.options(CHAT, headers=asked)
            assert preflight.status_code == 204
            assert preflight.headers["Access-Control-Allow-Origin"] == site
            reply = ask(http, {"Origin": site, "Sec-Fetch-Site": "cross-site"})
            assert reply.status_code == 200 and reply.headers["Access-Control-Allow-Origin"] == site
            assert ask(http, {"Origin": "https://other.example"}).status_code == 403

    def test_websockets_are_not_spoken(self, running: Running) -> None:
        head = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        reply = running.raw(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n".encode())
        assert not reply.startswith(b"HTTP/1.1 101")


class TestApiKey:
    @pytest.mark.parametrize(
        "given",
        [
            None,
            "",
            "Bearer",
            f"Bearer {KEY}x",
            f"Bearer {KEY[:-1]}",
            f"Basic {KEY}",
            KEY,
            f"Bearer {KEY.upper()}",
            "Bearer ü",
        ],
    )
    def test_nothing_works_without_it(self, locked: Running, given: str | None) -> None:
        headers = {} if given is None else {"Authorization": given.encode("latin-1")}
        with locked.http(headers=headers) as http:
            for path in ("/v1/models", "/v1/adapters", "/metrics", "/openapi.json", "/v1/nothing"):
                assert code(http.get(path)) == (401, "invalid_api_key"), path
            assert code(ask(http)) == (401, "invalid_api_key")
            assert http.get("/health").status_code == 200 and http.get("/ready").status_code == 200

    def test_everything_works_with_it(self, locked: Running) -> None:
        client = locked.client(api_key=KEY)
        assert client.models.list().data
        with locked.http(headers={"Authorization": f"bearer {KEY}"}) as http:
            assert ask(http).status_code == 200 and http.get("/metrics").status_code == 200

    @pytest.mark.parametrize(
        "path", ["//v1/models", "/v1//models", "/./v1/models", "/V1/models", "/x/../v1/models"]
    )
    def test_no_other_spelling_of_a_path_gets_around_it(self, locked: Running, path: str) -> None:
        reply = locked.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert reply.split(b" ")[1] in (b"401", b"404")

    def test_keys_are_compared_in_constant_time(self, locked: Running) -> None:
        """A wrong first letter takes as long as a wrong last one: the digests are compared, by a function
        that does not stop at a difference."""
        gate = Gate(lambda *_: None, locked.state)  # type: ignore[arg-type, return-value]

        def seconds(key: str) -> float:
            scope = {"headers": [(b"authorization", f"Bearer {key}".encode())]}
            times = []
            for _ in range(2000):
                started = time.perf_counter()
                with pytest.raises(Exception, match="API key"):
                    gate._check_key(scope)
                times.append(time.perf_counter() - started)
            return statistics.median(times)

        first, last = seconds("X" + KEY[1:]), seconds(KEY[:-1] + "X")
        assert 0.5 < first / last < 2.0

    def test_another_address_demands_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("POMONA_API_KEY", raising=False)
        for host in ("0.0.0.0", "::", "192.168.1.5", "server.example"):
            with pytest.raises(PomonaError, match="set an API key"):
                load_settings(None, {"host": host})
        for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
            assert load_settings(None, {"host": host}).api_key is None
        monkeypatch.setenv("POMONA_API_KEY", KEY)
        assert load_settings(None, {"host": "0.0.0.0"}).api_key is not None

    def test_a_short_one_is_refused_and_none_is_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(PomonaError, match="16 printable"):
            load_settings(None, {"api_key": "short"})
        assert KEY not in repr(ServerSettings(api_key=KEY))  # type: ignore[arg-type]
