"""What deploy/ holds: a configuration that the server takes, a hardened unit, a container file."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pomona.serving.settings import ServerSettings, load_settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
EXPOSURE = 1.5


def unit() -> dict[str, list[str]]:
    """The settings of the unit, all sections together."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "pomona.service").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"([A-Za-z]+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


class TestConfiguration:
    def test_the_server_takes_it_and_it_says_the_defaults(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("POMONA_API_KEY", raising=False)
        assert load_settings(DEPLOY / "server.yaml") == ServerSettings()

    def test_it_shows_every_key_some_as_comments(self) -> None:
        text = (DEPLOY / "server.yaml").read_text(encoding="utf-8")
        shown = re.sub(r"^# (?=[a-z_]+: )", "", text, flags=re.MULTILINE)
        values = yaml.safe_load(shown)
        assert set(values) == set(ServerSettings.model_fields) - {"api_key"}
        settings = ServerSettings.model_validate(values)
        assert settings.adapter_store == Path("/var/lib/pomona/adapters")

    def test_no_key_is_in_it(self) -> None:
        assert "api_key" not in yaml.safe_load((DEPLOY / "server.yaml").read_text(encoding="utf-8"))


class TestUnit:
    def test_it_drains_before_it_is_killed(self) -> None:
        found = unit()
        assert found["KillSignal"] == ["SIGTERM"]
        assert int(found["TimeoutStopSec"][0]) > ServerSettings().drain_seconds

    def test_it_is_bound_to_the_port_of_the_configuration(self) -> None:
        assert unit()["SocketBindAllow"] == [f"tcp:{ServerSettings().port}"]

    def test_it_has_a_user_of_its_own_and_no_rights(self) -> None:
        found = unit()
        for name in ("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "MemoryDenyWriteExecute"):
            assert found[name] == ["yes"], name
        assert found["CapabilityBoundingSet"] == [""]
        assert found["ProtectSystem"] == ["strict"]

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
    def test_systemd_finds_little_that_is_open(self) -> None:
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(DEPLOY / "pomona.service")],
            capture_output=True,
            text=True,
            check=False,
        )
        match = re.search(r"Overall exposure level for pomona.service: ([0-9.]+)", done.stdout)
        assert match is not None, done.stdout + done.stderr
        assert float(match[1]) <= EXPOSURE


class TestContainer:
    def lines(self) -> list[str]:
        text = (DEPLOY / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
        return [line for line in text.splitlines() if line and not line.startswith("#")]

    def test_what_it_copies_is_there_and_not_left_out(self) -> None:
        ignored = (DEPLOY / "Containerfile.dockerignore").read_text(encoding="utf-8").splitlines()
        copied = [
            line.split()[1:-1] for line in self.lines() if line.startswith("COPY ") and "--from" not in line
        ]
        names = [name for words in copied for name in words]
        assert {"native", "src", "zoo", "deploy/server.yaml"} <= set(names)
        for name in names:
            assert (ROOT / name).exists(), name
            assert f"!{name}" in ignored, name

    def test_it_runs_as_nobody_with_a_health_check_and_only_short_image_names(self) -> None:
        lines = self.lines()
        images = [line.split()[1] for line in lines if line.startswith("FROM ")]
        assert images == ["python:3.11-slim"] * 2
        assert any(re.fullmatch(r"USER [1-9]\d*", line) for line in lines)
        assert any(line.startswith("HEALTHCHECK ") and "/ready" in line for line in lines)
        assert "STOPSIGNAL SIGTERM" in lines
