"""The adapters benchmark: the same adapters for everyone, the peers, and a whole small run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import adapter_parts as parts
from benchmarks import adapters as benchmark
from benchmarks.adapter_files import ALPHA, B_DEVIATION, RANK, RandomAdapter, interleaved_rows
from benchmarks.adapter_ours import OurAdapters
from benchmarks.adapter_peer import LlamaServer, PeftPeer
from benchmarks.common import BenchmarkError
from benchmarks.peer import ROOT
from pomona.models.config import ModelConfig
from pomona.models.gguf_file import GgufFile
from pomona.models.import_gguf import _half_split_rows
from pomona.models.random_init import random_model
from pomona.models.safetensors_file import float32_from_bf16
from pomona.runtime.adapter_file import read_adapter

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=768,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=2048,
    rope_theta=10_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(CONFIG, tmp_path_factory.mktemp("model") / "small", seed=3)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories 0 .. 15 and GGUF files."""
    folder = tmp_path_factory.mktemp("adapters")
    benchmark.write_adapters(CONFIG, folder, gguf=True)
    return folder


def bits(number: int) -> dict[str, np.ndarray[Any, Any]]:
    return dict(RandomAdapter(CONFIG, number).tensors())


class TestFiles:
    def test_our_reader_takes_the_directory_with_all_projections_at_rank_16(self, adapters: Path) -> None:
        file = read_adapter(adapters / "3", CONFIG, "any")
        assert set(file.scales) == set(CONFIG.linear_shapes())
        assert len(file.scales) == 7 * CONFIG.num_hidden_layers
        assert file.rank == RANK == 16
        assert set(file.scales.values()) == {ALPHA / RANK}
        for name, (_, array) in file.tensors.items():
            assert np.array_equal(array, bits(3)[name.removesuffix(".weight")])

    def test_a_number_always_gives_the_same_adapter_and_another_number_another(self) -> None:
        first, again, other = bits(5), bits(5), bits(6)
        assert all(np.array_equal(first[name], again[name]) for name in first)
        assert not any(np.array_equal(first[name], other[name]) for name in first)

    def test_the_values_have_the_deviations_that_are_meant(self) -> None:
        for name, array in bits(0).items():
            values = float32_from_bf16(array)
            expected = array.shape[1] ** -0.5 if name.endswith("lora_A") else B_DEVIATION
            assert np.isclose(values.std(), expected, rtol=0.1), name

    def test_rows_for_gguf_are_what_the_gguf_import_undoes(self) -> None:
        values = np.arange(4 * 32 * 3, dtype=np.float16).reshape(128, 3)
        assert np.array_equal(interleaved_rows(values, 32)[_half_split_rows(128, 32)], values)
        assert not np.array_equal(interleaved_rows(values, 32), values)

    def test_the_gguf_file_holds_the_same_adapter(self, adapters: Path) -> None:
        with GgufFile(adapters / "3.gguf") as file:
            assert file.metadata["general.type"] == "adapter"
            assert file.metadata["general.architecture"] == "llama"
            assert file.metadata["adapter.type"] == "lora"
            assert file.metadata["adapter.lora.alpha"] == ALPHA
            assert len(file.tensors) == 2 * len(CONFIG.linear_shapes())
            expected = {name: float32_from_bf16(array) for name, array in bits(3).items()}
            for layer in range(CONFIG.num_hidden_layers):
                for ours, theirs in (("self_attn.q_proj", "attn_q"), ("mlp.down_proj", "ffn_down")):
                    for part in ("lora_A", "lora_B"):
                        found = file.dequantize(f"blk.{layer}.{theirs}.weight.{part.lower()}")
                        if theirs == "attn_q" and part == "lora_B":
                            found = found[_half_split_rows(len(found), CONFIG.head_dim)]
                        wanted = expected[f"model.layers.{layer}.{ours}.{part}"]
                        assert np.allclose(found, wanted, rtol=1e-3, atol=1e-5)


class TestOurs:
    def test_the_effect_of_the_same_adapter_agrees_and_of_another_does_not(
        self, model: Path, adapters: Path
    ) -> None:
        with OurAdapters(str(model), 1, "auto") as ours:
            ours.read([adapters / "0", adapters / "1"])
            prompt, tokens = parts.prompts(CONFIG.vocab_size)[0], list(range(0, CONFIG.vocab_size, 3))
            plain, changed = (ours._log_probabilities(prompt, a) for a in (None, ours.adapters[1]))
            effect = [float(changed[token] - plain[token]) for token in tokens]
            assert ours.correlation(prompt, 1, tokens, effect) == pytest.approx(1.0)
            assert ours.correlation(prompt, 0, tokens, effect) < parts.FAIR_CORRELATION

    def test_all_sequences_are_closed_and_all_times_positive(self, model: Path, adapters: Path) -> None:
        with OurAdapters(str(model), 1, "auto") as ours:
            free = ours.engine.native.free_tokens
            ours.read([adapters / str(number) for number in range(3)])
            prompts = parts.prompts(CONFIG.vocab_size)[:3]
            assert ours.decode_seconds(ours.adapters[0], 4) > 0
            assert ours.batch_seconds(prompts, [ours.adapters[0], None, ours.adapters[2]], 4) > 0
            assert ours.scheduler_seconds(prompts, [ours.adapters[0], None, ours.adapters[2]], 4) > 0
            resident, read = ours.swap_seconds(4)
            assert len(resident) == len(read) == 4
            assert min(resident + read) > 0
            assert ours.engine.native.free_tokens == free


# A stand-in for llama-server: answers as many tokens as it is asked for (one less for prompts that begin with
# 99), keeps what it was sent, and gives all requests of a kind back only when `slots` of them are there.
SERVER = """\
#!{python}
import json, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

words = sys.argv[1:]
together = threading.Barrier(int(words[words.index("--parallel") + 1]))

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({{"status": "ok"}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        open({log!r}, "a").write(json.dumps(body) + "\\n")
        if body.get("n_probs"):
            top = [{{"id": 7, "logprob": -1.5}}, {{"id": 9, "logprob": -2.5}}]
            return self.reply({{"completion_probabilities": [{{"top_logprobs": top}}]}})
        together.wait(timeout=20)  # all at once, or an error
        self.reply({{"tokens_predicted": body["n_predict"] - (body["prompt"][0] == 99)}})

    def reply(self, answer):
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
"""


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


class TestLlamaServer:
    def test_every_request_names_its_adapter_and_all_are_sent_at_once(
        self, tmp_path: Path, adapters: Path
    ) -> None:
        log = tmp_path / "log"
        file = program(tmp_path / "server", SERVER.format(python=sys.executable, log=str(log)))
        with LlamaServer(
            file, file, [adapters / "0.gguf", adapters / "1.gguf"], slots=3, threads=1
        ) as server:
            assert server.seconds([[1, 2], [3, 4], [5, 6]], [1, None, 0], tokens=8) > 0
            bodies = [json.loads(line) for line in log.read_text().splitlines()]
            found = {body["prompt"][0]: [entry["scale"] for entry in body["lora"]] for body in bodies}
            assert found == {1: [0.0, 1.0], 3: [0.0, 0.0], 5: [1.0, 0.0]}
            assert {
                (b["n_predict"], b["temperature"], b["ignore_eos"], b["cache_prompt"]) for b in bodies
            } == {(8, 0.0, True, False)}
            assert server.log_probabilities([1, 2], 0, 50) == {7: -1.5, 9: -2.5}
            with pytest.raises(BenchmarkError, match="7 of 8 tokens"):
                server.seconds([[1], [99], [5]], [None] * 3, tokens=8)

    def test_what_is_not_set_up_says_what_to_run(self, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match="make bench-setup"):
            LlamaServer(tmp_path / "llama-server", tmp_path / "model.gguf", [], slots=1, threads=1)

    def test_a_server_that_ends_is_an_error_not_a_wait(self, tmp_path: Path) -> None:
        file = program(tmp_path / "server", "#!/bin/sh\nexit 3\n")
        with pytest.raises(BenchmarkError, match="ended with 3"):
            LlamaServer(file, file, [], slots=1, threads=1)


class TestPeft:
    def test_mixed_batches_and_swaps_of_real_peft(self, model: Path, adapters: Path) -> None:
        directories = [adapters / "0", adapters / "1"]
        with PeftPeer(Path(sys.executable), model, directories, threads=1) as peer:
            assert set(peer.facts) == {"torch", "transformers", "peft"}
            prompts = parts.prompts(CONFIG.vocab_size)[:3]
            for dtype in ("bfloat16", "float32"):
                assert peer.seconds(prompts, [1, None, 0], 4, dtype) > 0
            found = peer.swap(adapters / "2", 2)
            assert {name: len(times) for name, times in found.items()} == {
                "load_adapter": 2,
                "set_adapter": 2,
            }
            with pytest.raises(BenchmarkError, match="PEFT: "):
                peer.swap(adapters / "nothing", 1)

    def test_a_python_without_peft_is_an_error(self, tmp_path: Path) -> None:
        python = program(tmp_path / "python", "#!/bin/sh\nexit 3\n")
        with pytest.raises(BenchmarkError, match="ended"):
            PeftPeer(python, tmp_path, [tmp_path], threads=1)


def test_memory_is_counted_in_a_process_of_its_own(model: Path, adapters: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(5):
        (many / str(number)).symlink_to(adapters / str(number))
    with OurAdapters(str(model), 1, "auto") as ours:
        ours.read([adapters / "0"])
        size = ours.adapters[0].bytes
    command = [sys.executable, "-m", "benchmarks.adapter_memory", str(model), str(many), str(2 * size), "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["adapters"], found["requests"], found["adapter_bytes"]) == (5, 10, size)
    assert found["loads"] == 10  # two fit, so each had given way when its turn came again
    assert found["largest_alive_bytes"] <= 2 * size
    assert found["base_resident_bytes"] > 1 << 20
    assert 0 <= found["largest_growth_bytes"] <= found["peak_growth_bytes"] + (1 << 20)


class TestRun:
    def options(self, *words: str) -> Any:
        return benchmark.complete(benchmark.parser().parse_args(list(words)))

    def test_a_small_run_gives_a_table_and_the_goals_of_its_parts(self, model: Path, tmp_path: Path) -> None:
        command = ["--model", str(model), "--quick", "--rounds", "2", "--threads", "1"]
        report = benchmark.run(self.options(*command, "--skip", "server", "peft", "memory"))
        columns = {tuple(row) for row in report.results["rows"]}
        assert columns == {("measure", "pomona", "against", "theirs", "times")}
        names = " | ".join(goal.name for goal in report.goals)
        for part in ("decode with a rank-16 adapter", "with 16 adapters", "int8", "resident", "page cache"):
            assert part in names
        assert all(goal.value is not None and goal.value > 0 for goal in report.goals)
        assert "server" not in names
        assert any("Left out of this run: server, peft, memory" in note for note in report.results["notes"])
        assert len(report.results["batch"]["pomona, 16 adapters"]) == 2
        json.dumps(report.to_json())

    def test_large_is_not_quick(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            self.options("--quick", "--large")
        assert ended.value.code == 2
        assert "--large" in capsys.readouterr().err

    def test_without_the_server_it_ends_with_one_line(self, model: Path, tmp_path: Path) -> None:
        words = ["--model", str(model), "--quick", "--skip", "decode", "batch", "peft", "swap", "memory"]
        words += ["--peer", str(tmp_path / "python")]
        command = [sys.executable, "-m", "benchmarks.adapters", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stdout == ""
        assert "make bench-setup" in done.stderr.splitlines()[-1]

    @pytest.mark.parametrize("same", [True, False])
    def test_a_server_whose_adapters_do_something_else_is_refused(
        self, model: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch, same: bool
    ) -> None:
        """The stand-in answers with our own probabilities, for the right adapter or for another."""
        bench = parts.Bench(
            self.options("--quick", "--threads", "1", "--peft-model", str(model), "--source", "x"),
            OurAdapters(str(model), 1, "auto"),
            adapters,
        )
        bench.ours.read([adapters / str(number) for number in range(4)])

        class Other:
            def __enter__(self) -> Other:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def log_probabilities(
                self, prompt: list[int], adapter: int | None, count: int
            ) -> dict[int, float]:
                number = adapter if adapter is None or same else adapter + 1
                found = bench.ours._log_probabilities(
                    prompt, None if number is None else bench.ours.adapters[number]
                )
                return {token: float(found[token]) for token in range(0, CONFIG.vocab_size, 2)}

        monkeypatch.setattr(bench, "llama_server", lambda _: Other())
        if same:
            bench.check_fair()
            assert min(bench.results["effect_correlation"]) > 0.99
        else:
            with pytest.raises(BenchmarkError, match="fair"):
                bench.check_fair()
        bench.ours.close()

    def test_help_names_the_options(self) -> None:
        text = benchmark.parser().format_help()
        for option in ("--quick", "--skip", "--large", "--json"):
            assert option in text
