"""The commands as a user types them, on the real SmolLM2-135M: own processes, real pipes and terminals."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "pomona.cli.main"]
QUESTION = "What is the capital of France?"


def call(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `pomona ARGUMENTS` with nothing on its standard input."""
    line = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=300, **({"stdin": subprocess.DEVNULL} | options)
    )


def answer_json(*arguments: str | Path) -> dict[str, Any]:
    process = call(*arguments, "--json")
    assert process.returncode == 0, process.stderr
    found: dict[str, Any] = json.loads(process.stdout)
    return found


# run


def test_both_models_know_the_capital_of_france(smollm2_dir: Path, smollm2_4bit_dir: Path) -> None:
    for directory in (smollm2_dir, smollm2_4bit_dir):
        process = call("run", directory, QUESTION, "--max-tokens", "32")
        assert process.returncode == 0, process.stderr
        assert "Paris" in process.stdout
        assert re.fullmatch(r"\d+ tokens, [\d,]+ tokens/s; prompt .*\n", process.stderr), process.stderr


def test_greedy_answers_and_seeded_answers_come_again(smollm2_4bit_dir: Path) -> None:
    greedy = ("run", smollm2_4bit_dir, "Tell me a story.", "--max-tokens", "24")
    assert call(*greedy).stdout == call(*greedy).stdout
    drawn = (*greedy, "--temperature", "1", "--top-k", "50")
    first, again, other = (call(*drawn, "--seed", seed).stdout for seed in ("1", "1", "2"))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    "prompt", ["Tell me a story.", "Tell me a short story.", "Tell me a very short story."]
)
def test_the_number_of_threads_changes_nothing(smollm2_4bit_dir: Path, prompt: str) -> None:
    one, two = (
        answer_json("run", smollm2_4bit_dir, prompt, "--max-tokens", "24", "--threads", threads)["response"]
        for threads in ("1", "2")
    )
    assert one == two


def test_json_holds_the_same_answer_and_its_counts(smollm2_4bit_dir: Path) -> None:
    options = ("run", smollm2_4bit_dir, QUESTION, "--max-tokens", "16")
    found = answer_json(*options)
    assert found["response"] == call(*options).stdout.removesuffix("\n")
    assert 0 < found["new_tokens"] <= 16
    assert found["prompt_tokens"] > 5
    assert found["decode_tokens_per_second"] > 1
    assert 0 < found["first_token_seconds"] <= found["prefill_seconds"] + found["decode_seconds"] + 0.1


def test_max_tokens_cuts_the_answer(smollm2_4bit_dir: Path) -> None:
    found = answer_json("run", smollm2_4bit_dir, "Write a long story.", "--max-tokens", "5")
    assert (found["new_tokens"], found["finish_reason"]) == (5, "length")


def test_the_prompt_may_come_through_a_pipe(smollm2_4bit_dir: Path) -> None:
    options = ("--max-tokens", "16")
    piped = call("run", smollm2_4bit_dir, *options, stdin=None, input=QUESTION + "\n")
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == call("run", smollm2_4bit_dir, QUESTION, *options).stdout


def test_raw_text_goes_on_where_it_stops(smollm2_dir: Path) -> None:
    text = "1, 2, 3, 4, 5, 6, 7,"
    process = call("run", smollm2_dir, text, "--raw", "--max-tokens", "9")
    assert process.returncode == 0, process.stderr
    assert "8, 9" in process.stdout
    assert process.stdout != call("run", smollm2_dir, text, "--max-tokens", "9").stdout


def test_a_system_message_changes_the_answer(smollm2_4bit_dir: Path) -> None:
    plain, told = (
        call("run", smollm2_4bit_dir, "Who are you?", "--max-tokens", "24", *more).stdout
        for more in ((), ("--system", "You are a pirate called Blackbeard. Talk like a pirate."))
    )
    assert plain != told


def test_the_first_token_is_there_within_a_second(smollm2_4bit_dir: Path) -> None:
    """From the start of the process; the best of five, because the machine may be busy."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        with subprocess.Popen(
            [*COMMAND, "run", str(smollm2_4bit_dir), QUESTION, "--max-tokens", "4"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.read(1)
            seconds.append(time.perf_counter() - started)
            process.communicate()
    assert min(seconds) < 1.0, f"seconds to the first token: {seconds}"


def test_a_reader_that_goes_away_stops_the_answer_quietly(smollm2_4bit_dir: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "run", str(smollm2_4bit_dir), "Write a long story.", "--max-tokens", "400"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def test_ctrl_c_ends_a_single_answer_with_130(smollm2_4bit_dir: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "run", str(smollm2_4bit_dir), "Write a long story.", "--max-tokens", "4000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == b"pomona: interrupted\n"
        assert process.wait(60) == 130


# The chat, at a real terminal


class Keyboard:
    """The other end of a pseudo-terminal."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.seen = ""

    def wait_for(self, text: str, seconds: float = 60.0) -> str:
        """What appears up to and including `text`."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.end], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not appear; there was {self.seen!r}"
            try:
                block = os.read(self.end, 4096)
            except OSError:  # Linux says so when the other end has closed
                block = b""
            assert block, f"ended before {text!r}; there was {self.seen!r}"
            self.seen += block.decode(errors="replace")
        head, _, self.seen = self.seen.partition(text)
        return head + text

    def type(self, keys: str) -> None:
        os.write(self.end, keys.encode())


@contextmanager
def terminal(*arguments: str | Path) -> Iterator[tuple[Keyboard, subprocess.Popen[bytes]]]:
    here, there = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=there,
        stdout=there,
        stderr=there,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(there)
    try:
        yield Keyboard(here), process
    finally:
        process.kill()
        process.wait()
        os.close(here)


def test_a_chat_remembers_stops_and_leaves(smollm2_4bit_dir: Path) -> None:
    with terminal("run", smollm2_4bit_dir, "--max-tokens", "400") as (keyboard, process):
        keyboard.wait_for("/help lists the commands")
        keyboard.wait_for("> ")
        keyboard.type(QUESTION + "\n")
        assert "Paris" in keyboard.wait_for("tokens/s;")

        keyboard.wait_for("> ")
        keyboard.type("Write a very long story about the sea.\n")
        keyboard.wait_for("sea.\r\n")
        keyboard.wait_for(" ")  # the answer has begun
        process.send_signal(signal.SIGINT)
        keyboard.wait_for("stopped")

        keyboard.wait_for("> ")
        keyboard.type("/exit\n")
        assert process.wait(30) == 0


def test_ctrl_d_leaves_a_chat(smollm2_4bit_dir: Path) -> None:
    with terminal("run", smollm2_4bit_dir) as (keyboard, process):
        keyboard.wait_for("> ")
        keyboard.type("\x04")
        assert process.wait(30) == 0


# inspect, perplexity, compress


def test_inspect_tells_what_the_files_hold(smollm2_dir: Path, smollm2_4bit_dir: Path) -> None:
    before = answer_json("inspect", smollm2_dir)
    after = answer_json("inspect", smollm2_4bit_dir, "--tensors")
    assert before["parameters"] == after["parameters"] == 134_515_008
    assert before["projection_bits_per_weight"] == 16
    assert 4.0 < after["projection_bits_per_weight"] < 4.5
    assert 4.0 < after["file_bits_per_weight"] < 6.0
    assert before["fingerprint"] != after["fingerprint"]
    for found, directory in ((before, smollm2_dir), (after, smollm2_4bit_dir)):
        size = (directory / "model.safetensors").stat().st_size
        assert found["file_bytes"] == size
        assert found["file_bits_per_weight"] == pytest.approx(8 * size / found["parameters"], rel=1e-6)
    assert 0 <= after["file_bytes"] - sum(tensor["bytes"] for tensor in after["tensors"]) < 200_000


def test_perplexity_of_the_built_in_text_before_and_after(smollm2_dir: Path, smollm2_4bit_dir: Path) -> None:
    before, after = (
        answer_json("perplexity", directory, "--chunks", "2") for directory in (smollm2_dir, smollm2_4bit_dir)
    )
    assert before["tokens"] == after["tokens"] == 2 * 1023
    assert 5 < before["perplexity"] < 40
    assert before["perplexity"] * 0.98 < after["perplexity"] < before["perplexity"] * 1.5


def test_compress_with_a_text_of_ones_own(smollm2_dir: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("The boat left the harbour at six, and nobody waved. " * 40)
    target = tmp_path / "small"
    options = ("compress", smollm2_dir, "--out", target, "--table-columns", "64", "--calibration", text)
    found = answer_json(*options)
    assert found["directory"] == str(target)
    assert 4.0 < found["projection_bits_per_weight"] < 5.0
    report = json.loads((target / "compression_report.json").read_text())
    assert report["file_bytes"] == found["file_bytes"] == (target / "model.safetensors").stat().st_size
    assert call("run", target, "Hello!", "--max-tokens", "3").returncode == 0

    again = call(*options)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert str(target) in again.stderr


def test_a_damaged_model_is_one_line_that_names_the_file(smollm2_4bit_dir: Path, tmp_path: Path) -> None:
    for file in smollm2_4bit_dir.iterdir():
        if file.is_file() and file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with (smollm2_4bit_dir / "model.safetensors").open("rb") as source:
        (tmp_path / "model.safetensors").write_bytes(source.read(1_000_000))
    for command in (("run", tmp_path, "x"), ("inspect", tmp_path), ("perplexity", tmp_path)):
        process = call(*command)
        assert process.returncode == 2, process.stderr
        assert process.stderr.count("\n") == 1
        assert "model.safetensors" in process.stderr


# quickstart


def test_the_quickstart_on_a_filled_cache(
    smollm2_dir: Path, smollm2_4bit_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "smollm2-135m").symlink_to(smollm2_dir, target_is_directory=True)
    (models / "smollm2-135m-4bit").symlink_to(smollm2_4bit_dir, target_is_directory=True)
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path))
    monkeypatch.setenv("POMONA_ZOO", str(models))  # no adapter: the models are other tests' too
    found = answer_json("quickstart")
    assert found["reused"] == ["smollm2-135m", "smollm2-135m-4bit"]
    assert found["torch_imported"] is False
    assert found["compressed"]["file_bytes"] * 2 < found["source"]["file_bytes"]
    assert found["compressed"]["decode_tokens_per_second"] > found["source"]["decode_tokens_per_second"]
    assert found["compressed"]["perplexity"] < found["source"]["perplexity"] * 1.5
    assert all(len(answer["response"].split()) > 5 for answer in found["answers"])
    assert found["seconds"]["total"] < 110
