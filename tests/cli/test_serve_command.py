"""`pomona serve`: what it may be told, and a server of its own process that ends in good order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pomona.errors import PomonaError
from pomona.serving.settings import ServerSettings, load_settings


def started(pomona: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> ServerSettings:
    """The settings with which the command would serve."""
    import pomona.serving.server as server

    given: list[ServerSettings] = []
    monkeypatch.setattr(server, "serve", lambda settings, ready: given.append(settings))
    outcome = pomona("serve", *arguments)
    assert outcome.code == 0, outcome.err
    return given[0]


class TestSettings:
    def test_defaults_stay_on_this_machine(self, pomona: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("POMONA_API_KEY", raising=False)
        settings = started(pomona, monkeypatch)
        assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 8000, "smollm2-135m-4bit")
        assert settings.api_key is None and settings.default_temperature == 0.0

    def test_options_win_over_the_file(
        self, pomona: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        config = tmp_path / "server.yaml"
        config.write_text("port: 9000\nmax_waiting: 7\nallowed_hosts: [notes.example]\n")
        settings = started(
            pomona,
            monkeypatch,
            "other",
            "--config",
            str(config),
            "--port",
            "9001",
            "--adapter-budget",
            "64MiB",
        )
        assert (settings.model, settings.port, settings.max_waiting) == ("other", 9001, 7)
        assert settings.allowed_hosts == ("notes.example",) and settings.adapter_budget_bytes == 64 << 20

    def test_toml_has_the_same_keys(self, tmp_path: Path) -> None:
        config = tmp_path / "server.toml"
        config.write_text('port = 9000\nallowed_hosts = ["notes.example"]\n')
        assert load_settings(config) == load_settings(
            None, {"port": 9000, "allowed_hosts": ("notes.example",)}
        )

    def test_the_key_comes_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("POMONA_API_KEY", "k" * 32)
        settings = load_settings(None, {"host": "0.0.0.0"})
        assert settings.api_key is not None and settings.api_key.get_secret_value() == "k" * 32

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("prot: 1", "prot"),
            ("port: many", "port"),
            ("port: 70000", "port"),
            ("- 1", "key: value"),
            ("a: [", "is no YAML"),
            ("host: 0.0.0.0", "set an API key"),
            ("allowed_origins: ['*']", "name each origin"),
            ("!!python/object/apply:os.system [ls]", "is no YAML"),
        ],
    )
    def test_a_bad_file_is_refused_by_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
    ) -> None:
        monkeypatch.delenv("POMONA_API_KEY", raising=False)
        config = tmp_path / "server.yaml"
        config.write_text(text)
        with pytest.raises(PomonaError, match=message) as caught:
            load_settings(config)
        assert str(config) in str(caught.value) and "\n" not in str(caught.value)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(PomonaError, match="cannot be read"):
            load_settings(tmp_path / "none.yaml")

    def test_a_bad_option_is_exit_code_2(self, pomona: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("POMONA_API_KEY", raising=False)
        outcome = pomona("serve", "--host", "0.0.0.0")
        assert outcome.code == 2 and "POMONA_API_KEY" in outcome.err
        assert pomona("serve", "--port", "99999").code == 2

    def test_a_port_that_is_taken_is_exit_code_2(self, pomona: Any) -> None:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as taken:
            outcome = pomona("serve", "--port", str(taken.getsockname()[1]))
        assert outcome.code == 2 and "cannot be bound" in outcome.err


def test_a_server_of_its_own_answers_and_ends_on_sigterm(smollm2_4bit_dir: Path) -> None:
    import httpx2

    command = [
        sys.executable,
        "-m",
        "pomona",
        "serve",
        str(smollm2_4bit_dir),
        "--port",
        "0",
        "--threads",
        "1",
        "--json",
    ]
    environment = {**os.environ, "POMONA_API_KEY": "k" * 32}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        lines = ""
        while not lines.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            lines += line
        told = json.loads(lines)
        with httpx2.Client(
            base_url=told["base_url"], headers={"Authorization": f"Bearer {'k' * 32}"}, timeout=60
        ) as http:
            body = {"model": told["model"], "prompt": "One, two,", "max_tokens": 2}
            assert http.post("/completions", json=body).json()["usage"]["completion_tokens"] == 2
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        events = [json.loads(line) for line in errors.splitlines()]  # nothing but JSON lines
        assert any(event.get("route") == "/v1/completions" and event["status"] == 200 for event in events)
        assert "k" * 32 not in errors and "One, two" not in errors
