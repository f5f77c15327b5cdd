"""The benchmark of the server: the same work for everyone, and a whole small run against a stand-in for
llama.cpp's server."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import serving
from benchmarks.common import BenchmarkError
from benchmarks.load import Reply
from benchmarks.serving import ADAPTERS, Bench, Contestant, Measured, Work, their_body, work
from pomona.models.config import ModelConfig
from pomona.models.random_init import random_model

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=49152,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=2048,
    rope_theta=10_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)

# Answers like llama.cpp's server; `SHORT` tokens less than it was asked for.
STAND_IN = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
if sys.argv[1:] == ["--help"]:
    sys.exit(print("--cache-ram N"))
arguments = dict(zip(sys.argv[1:], sys.argv[2:]))
assert sys.argv.count("--lora") == 8 and arguments["--parallel"] == "2" and arguments["--cache-ram"] == "0"
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["ignore_eos"] and len(body["lora"]) == 8
        assert sum(entry["scale"] for entry in body["lora"]) == 1.0
        count = body["max_tokens"] - SHORT
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        usage = {"prompt_tokens": 5, "completion_tokens": count}
        said = [{"choices": [{"text": "a"}]}] * count + [{"choices": [], "usage": usage}]
        for told in [*map(json.dumps, said), "[DONE]"]:
            data = f"data: {told}\\n\\n".encode()
            self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(data), data))
        self.wfile.write(b"0\\r\\n\\r\\n")
ThreadingHTTPServer(("127.0.0.1", int(arguments["--port"])), Handler).serve_forever()
"""


class TestWork:
    def test_a_round_is_the_same_for_everyone_and_no_other_round(self) -> None:
        assert work(0, 32, quick=False) == work(0, 32, quick=False)
        prompts = [w.prompt for number in range(3) for w in work(number, 32, quick=False)]
        assert len({prompt.split()[0] for prompt in prompts}) > 0.99 * len(prompts)  # no common beginnings

    @pytest.mark.parametrize("clients", [1, 8, 32, 64])
    def test_adapters_and_lengths_are_mixed_in_equal_parts(self, clients: int) -> None:
        requests = work(0, clients, quick=False)
        assert len(requests) == max(8, 2 * clients)
        adapters = Counter(request.adapter for request in requests)
        assert set(adapters) == set(range(ADAPTERS)) and len(set(adapters.values())) == 1
        if clients >= 32:
            assert {request.tokens for request in requests} == set(serving.NEW_TOKENS)
            lengths = Counter(len(request.prompt.split()) - 1 for request in requests)
            assert set(lengths) == set(serving.PROMPT_WORDS)
            assert max(lengths.values()) - min(lengths.values()) <= 1

    def test_one_adapter_is_on_for_llama_cpp_or_none(self) -> None:
        request = Work("Hello", 8, 3)
        assert [entry["id"] for entry in their_body(True, request)["lora"] if entry["scale"]] == [3]
        assert [entry["scale"] for entry in their_body(False, request)["lora"]] == [0.0] * ADAPTERS


def measured(seconds: float, first: float) -> Measured:
    reply = Reply(200, {}, 0.0, times=[first, first + 0.9], usage={"completion_tokens": 10})
    return Measured([reply] * 4, seconds, server_cpu=1.0, generator_cpu=0.1)


class TestGoals:
    def bench(self) -> Bench:
        names = [
            ("pomona", True),
            ("slow peer", True),
            ("fast peer", True),
            ("fast peer, no adapters", False),
        ]
        contestants = [Contestant(name, 0, 0, lambda request: {}, adapted) for name, adapted in names]
        bench = Bench(serving.parser().parse_args([]), contestants)
        bench.measured[32, "pomona"] = [measured(1.0, 0.5), measured(2.0, 0.5)]
        bench.measured[32, "slow peer"] = [measured(8.0, 9.0), measured(9.0, 9.0)]
        bench.measured[32, "fast peer"] = [measured(3.0, 1.0), measured(6.0, 1.0)]
        bench.measured[32, "fast peer, no adapters"] = [measured(0.1, 0.1)] * 2
        return bench

    def test_the_fastest_peer_with_adapters_is_the_measure_round_by_round(self) -> None:
        throughput, first = self.bench().goals()
        assert throughput.value == pytest.approx(3.0) and throughput.met
        assert first.value == pytest.approx(0.5) and first.met

    def test_what_was_not_measured_is_missed(self) -> None:
        bench = self.bench()
        del bench.measured[32, "pomona"]
        assert [goal.value for goal in bench.goals()] == [None, None]
        assert not any(goal.met for goal in bench.goals())

    def test_the_row_says_how_long_a_token_takes(self) -> None:
        row = serving.row(32, "pomona", self.bench().measured[32, "pomona"])
        assert row["per token p50 / p95 / p99, ms"] == "100.0 / 100.0 / 100.0"
        assert row["first token p50 / p95 / p99, s"] == "0.50 / 0.50 / 0.50"


@pytest.fixture(scope="module")
def model(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small, random, with the real tokenizer."""
    return random_model(
        CONFIG, tmp_path_factory.mktemp("serving") / "small", seed=3, tokenizer_from=smollm2_dir
    )


def stand_in(folder: Path, short: int) -> list[str]:
    """The options that name a stand-in for llama.cpp's server."""
    program = folder / "llama-server"
    program.write_text(f"#!{sys.executable}\nSHORT = {short}\n{STAND_IN}", encoding="utf-8")
    program.chmod(0o755)
    (folder / "q4_0_pure.gguf").touch()
    return ["--server", str(program), "--peer-models", str(folder)]


def options(model: Path, *more: str) -> list[str]:
    return ["--quick", "--model", str(model), "--threads", "1", "--clients", "2", *more]


def test_a_whole_run(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serving.main(options(model, *stand_in(tmp_path, 0))) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == "serving"
    rows = {row["server"]: row for row in report["results"]["rows"]}
    assert set(rows) == {"pomona", serving.PLAIN_SERVER}
    found = report["results"]["levels"]["2"]["pomona"]
    assert found["requests"] == 8
    assert found["tokens_per_second"][0] > 0 and found["server_cores"][0] > 0
    assert 0 < found["first_token"]["p50"] <= found["first_token"]["p99"]
    assert [goal["met"] for goal in report["goals"]] == [False, False]  # 32 clients were not asked for


def test_answers_of_other_lengths_are_no_fair_comparison(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serving.main(options(model, *stand_in(tmp_path, 1))) == 2
    assert "no fair comparison" in capsys.readouterr().err


def test_a_missing_peer_is_said_before_anything_is_started(tmp_path: Path) -> None:
    arguments = serving.parser().parse_args(
        ["--peer-models", str(tmp_path), "--server", str(tmp_path / "none")]
    )
    with pytest.raises(BenchmarkError, match="make bench-setup"):
        serving.peer_files(arguments)
