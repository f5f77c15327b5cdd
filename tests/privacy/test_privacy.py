"""No byte leaves the machine unasked, no prompt is written down, nobody is told of the use.

Commands run as a user runs them, behind two walls: a network namespace without routes, in which the kernel
counts what was tried, and an audit hook that writes down and refuses every wish for another machine. Where
namespaces are not permitted the hook stands alone.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serving"))
from tiny_model import tiny_model

HERE = Path(__file__).resolve().parent
NOT_PERMITTED = 77
CANARY = "quince-4711-marmalade"
PRIVATE = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "POMONA_CACHE")


@dataclass(frozen=True)
class Outcome:
    """wishes: [event, host]. counters: None without a namespace."""

    code: int
    out: str
    err: str
    wishes: list[list[str]]
    counters: dict[str, int] | None

    @property
    def silent(self) -> bool:
        return not self.wishes and (self.counters is None or not any(self.counters.values()))


@dataclass
class Machine:
    """A home of its own, in which everything that is written must lie."""

    home: Path
    model: Path

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in PRIVATE}
        kept = {key: value for key, value in kept.items() if not key.startswith("XDG_")}
        places = {"HOME": str(self.home), "TMPDIR": str(self.home / "tmp"), "HF_HOME": str(self.home / "hf")}
        return {**kept, **places, "OMP_NUM_THREADS": "1"}

    def run(self, *words: str, script: str = "audited.py", before: tuple[str, ...] = ()) -> Outcome:
        """`script WISHES *before *words`, within the walls. What it prints goes into the home, too."""
        work = self.home / "run"
        work.mkdir(exist_ok=True)
        wishes, report = work / "wishes.jsonl", work / "counters.json"
        for stale in (wishes, report):
            stale.unlink(missing_ok=True)
        audited = [str(HERE / "audited.py")] if script != "audited.py" else []
        command = [sys.executable, str(HERE / script), *audited, str(wishes), *before, *words]
        walled = [sys.executable, str(HERE / "no_network.py"), str(report), *command]
        done = self._run(walled)
        code = done.returncode
        counters: dict[str, int] | None = None
        if code == NOT_PERMITTED:
            done = self._run(command)
            code = done.returncode
        elif report.is_file():
            counters = json.loads(report.read_text())
            assert counters is not None
            code = counters.pop("code")
        (work / "output.txt").write_text(done.stdout + done.stderr)
        found = [json.loads(line) for line in wishes.read_text().splitlines()] if wishes.is_file() else []
        return Outcome(code, done.stdout, done.stderr, found, counters)

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=240, env=self.environment(), check=False
        )

    def written(self, text: str) -> list[str]:
        """Files of the home that hold a text, as it is or encoded."""
        raw = text.encode()
        forms = {raw, raw.upper(), base64.b64encode(raw)[:-4], raw.hex().encode(), raw.replace(b"-", b"%2D")}
        return sorted(
            str(path.relative_to(self.home))
            for path in self.home.rglob("*")
            if path.is_file() and any(form in path.read_bytes() for form in forms)
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def machine(tmp_path: Path, model: Path) -> Machine:
    home = tmp_path / "home"
    (home / "tmp").mkdir(parents=True)
    return Machine(home, model)


class TestNoNetwork:
    def test_the_walls_see_one_who_calls_home(self, machine: Machine) -> None:
        """The check of the check: `pull` of a hub's model is the one command that asks another machine."""
        done = machine.run("pull", "nobody/nothing")
        assert done.code == 2
        assert any(event == "socket.getaddrinfo" for event, _ in done.wishes), done.err

    def test_the_kernel_counts_what_no_hook_sees(self, machine: Machine) -> None:
        sender = (
            "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))"
        )
        report = machine.home / "counters.json"
        command = [sys.executable, str(HERE / "no_network.py"), str(report), sys.executable, "-c", sender]
        if subprocess.run(command, capture_output=True, check=False).returncode == NOT_PERMITTED:
            pytest.skip("network namespaces are not permitted here: the audit hook stands alone")
        assert json.loads(report.read_text())["no_route"] >= 1

    def test_compress(self, machine: Machine) -> None:
        done = machine.run(
            "compress", str(machine.model), "--out", str(machine.home / "small"), "--calibration", "none"
        )
        assert (done.code, done.silent) == (0, True), done.err

    def test_run_write_and_perplexity(self, machine: Machine) -> None:
        text = machine.home / "mail.txt"
        text.write_text("Hi Anna, the meeting is on Friday. Ben")
        for words in (
            ("run", str(machine.model), "Hello.", "--max-tokens", "8"),
            ("write", "summarize", str(text), "--model", str(machine.model)),
            ("perplexity", str(machine.model), "--text", str(text), "--context", "16"),
        ):
            done = machine.run(*words)
            assert (done.code, done.silent) == (0, True), (words, done.err, done.wishes, done.counters)

    def test_serve(self, machine: Machine) -> None:
        done, statuses = serve(machine, [chat("Hello.")])
        assert (done.code, statuses) == (0, [200]), done.err
        assert done.silent, (done.wishes, done.counters)

    @pytest.mark.slow
    def test_adapt(self, machine: Machine) -> None:
        rows = machine.home / "rows.jsonl"
        row = {"prompt": "sky?", "completion": "blue"}
        rows.write_text("".join(json.dumps({**row, "prompt": f"{i} sky?"}) + "\n" for i in range(12)))
        target = machine.home / "model"
        target.symlink_to(machine.model)
        done = machine.run(
            "adapt", str(target), str(rows), "--name", "probe", "--epochs", "1", "--lr", "1e-3"
        )
        assert (done.code, done.silent) == (0, True), (done.err, done.wishes, done.counters)

    def test_the_native_code_cannot_open_a_socket(self) -> None:
        from pomona import _native

        calls = re.compile(rb"\0(?:socket|connect|sendto|sendmsg|getaddrinfo|gethostbyname)(?:@\w+)?\0")
        assert calls.search(Path(_native.__file__).read_bytes()) is None
        curl = re.compile(calls.pattern)
        assert curl.search(b"\0malloc\0connect\0free\0") is not None


def chat(text: str, **more: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}
    return {"path": "/v1/chat/completions", "body": json.dumps(body), "headers": {}}


def serve(machine: Machine, requests: list[dict[str, Any]], *options: str) -> tuple[Outcome, list[int]]:
    """A server for these requests; its outcome, and the status of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    work = machine.home.parent / "requests"
    work.mkdir(exist_ok=True)
    asked, answered = work / "requests.json", work / "answers.json"
    asked.write_text(json.dumps(requests))
    before = (port, str(asked), str(answered))
    done = machine.run("serve", str(machine.model), *options, script="served.py", before=before)
    statuses = [status for status, _ in json.loads(answered.read_text())] if answered.is_file() else []
    return done, statuses


class TestNoPromptIsKept:
    def test_a_servers_logs_and_files_hold_nothing_of_what_was_asked(self, machine: Machine) -> None:
        requests = [
            chat(f"Tell me about {CANARY}."),
            chat("Hello.", messages=[{"role": "nobody", "content": CANARY}]),
            chat("Hello.", model=CANARY),
            chat("Hello.", stop=[CANARY], stream=True),
            {"path": "/v1/chat/completions", "body": f"{{{CANARY}", "headers": {}},
            {"path": f"/v1/{CANARY}?q={CANARY}", "body": "{}", "headers": {"X-Canary": CANARY}},
            {
                "path": "/v1/completions",
                "body": json.dumps({"model": "tiny", "prompt": CANARY, "max_tokens": 4}),
                "headers": {},
            },
        ]
        done, statuses = serve(machine, requests, "--log-level", "debug")
        assert statuses == [200, 400, 404, 200, 400, 404, 200], (statuses, done.err)
        assert "request" in done.err  # there is a log
        assert machine.written(CANARY) == []

    def test_one_answer_leaves_nothing_behind(self, machine: Machine) -> None:
        done = machine.run("run", str(machine.model), f"Say {CANARY}.", "--max-tokens", "8")
        assert done.code == 0
        assert machine.written(CANARY) == []

    def test_an_unexpected_error_tells_no_prompt(self, machine: Machine) -> None:
        done = machine.run("run", str(machine.home / "nothing"), f"Say {CANARY}.")
        assert done.code == 2 and machine.written(CANARY) == []

    def test_the_search_finds_what_is_kept_on_purpose(self, machine: Machine) -> None:
        """A comparison is kept because its user asked for it: there the canary lies."""
        (machine.home / "cache").mkdir()
        from pomona.serving.compare_store import Answer, CompareStore

        store = CompareStore(machine.home / "cache" / "compare.db")
        session = store.new_session("s", "tiny", {}, {})
        store.add_pair(session.id, CANARY, *(Answer("a", "stop", 1, 0.1, 0) for _ in range(2)))
        assert machine.written(CANARY) == ["cache/compare.db"]


class TestNoTelemetry:
    def test_libraries_are_told_before_any_is_imported(self, machine: Machine) -> None:
        program = (
            "import os, sys; from pomona.cli.main import main; main(['--version']); "
            "print(os.environ['HF_HUB_DISABLE_TELEMETRY'], os.environ['DO_NOT_TRACK'], "
            "'huggingface_hub' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env=machine.environment(),
            check=True,
        )
        assert done.stdout.splitlines()[1] == "1 1 False"

    def test_what_the_user_has_said_stays(self, machine: Machine) -> None:
        program = (
            "import os; from pomona.cli.main import main; main(['--version']); "
            "print(os.environ['DO_NOT_TRACK'])"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env={**machine.environment(), "DO_NOT_TRACK": "0"},
            check=True,
        )
        assert done.stdout.splitlines()[1] == "0"

    @pytest.mark.slow
    def test_the_trainers_are_told_too(self, machine: Machine) -> None:
        """TRL reports its use unless the hub is off or telemetry is."""
        program = (
            "import pomona.posttraining.training.base\n"
            "from huggingface_hub import constants\n"
            "print(constants.HF_HUB_DISABLE_TELEMETRY, constants.HF_HUB_OFFLINE)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env=machine.environment(),
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "True True"
