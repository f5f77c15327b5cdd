"""The peers of the adapters benchmark: llama.cpp's own server, and transformers with PEFT.

Both run in processes of their own and rest while others are measured. `LlamaServer` starts `llama-server`
(which `make bench-setup` builds) with all adapters and sends it all requests at once over HTTP, each naming
its adapter, as its documentation says. `PeftPeer` starts the far end of this file

    python -m benchmarks.adapter_peer

which needs torch, transformers and peft, and asks it for one thing at a time. Its batches are PEFT's mixed
ones: `generate(..., adapter_names=[...])`, one name per row.
"""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.common import BenchmarkError
from benchmarks.peer import ROOT

START_SECONDS = 60.0
REPLY_SECONDS = 600.0
TOKENS_PER_SLOT = 256


class ChildProcess:
    """A context manager around a child process that ends with the block."""

    name = "process"

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it is dead, and a request is still on its way
                self._process.stdin.close()
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LlamaServer(ChildProcess):
    """llama.cpp's server with one model and any number of adapters, none applied unless a request says so."""

    def __init__(
        self,
        program: Path,
        model: Path,
        adapters: Sequence[Path],
        *,
        slots: int,
        threads: int,
        slot_tokens: int = TOKENS_PER_SLOT,
        options: Sequence[str] = (),
    ) -> None:
        """slot_tokens: room for prompt and answer of each of the requests that run at once. options: more
        words of its command line.

        Returns when the server answers. Raises BenchmarkError: not built, or it does not start.
        """
        for file in (program, model, *adapters):
            if not file.is_file():
                raise BenchmarkError(f"{file}: llama.cpp's server is not set up; run `make bench-setup`")
        self.adapters, self.slots = len(adapters), slots
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        command = [str(program), "--model", str(model), "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--threads", str(threads), "--threads-batch", str(threads), "--parallel", str(slots)]
        command += ["--ctx-size", str(slots * slot_tokens), "--lora-init-without-apply"]
        command += [*options, *(word for file in adapters for word in ("--lora", str(file)))]
        super().__init__(
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
        )
        try:
            self._wait(program)
        except BenchmarkError:
            self.close()
            raise

    def _wait(self, program: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if (code := self._process.poll()) is not None:
                raise BenchmarkError(
                    f"{program}: ended with {code} while it loaded; run it by hand to see why"
                )
            try:
                if self._ask("GET", "/health")[0] == 200:
                    return
            except OSError:
                pass  # it does not listen yet
            time.sleep(0.05)
        raise BenchmarkError(f"{program}: does not answer after {START_SECONDS:.0f} s; run it by hand")

    def seconds(self, prompts: Sequence[Sequence[int]], adapters: Sequence[int | None], tokens: int) -> float:
        """Seconds until every one of these requests, sent at once, has its `tokens` tokens.

        adapters: for each prompt the number of its adapter, or None.
        """
        bodies = [
            self._body(prompt, adapter, n_predict=tokens)
            for prompt, adapter in zip(prompts, adapters, strict=True)
        ]
        with ThreadPoolExecutor(len(bodies)) as pool:
            started = time.perf_counter()
            answers = list(pool.map(self._complete, bodies))
            seconds = time.perf_counter() - started
        for answer in answers:
            if answer["tokens_predicted"] != tokens:
                raise BenchmarkError(
                    f"llama.cpp's server gave {answer['tokens_predicted']} of {tokens} tokens"
                )
        return seconds

    def log_probabilities(self, prompt: Sequence[int], adapter: int | None, count: int) -> dict[int, float]:
        """Token -> log probability of the `count` likeliest next tokens."""
        answer = self._complete(self._body(prompt, adapter, n_predict=1, n_probs=count))
        return {
            entry["id"]: entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]
        }

    def _body(self, prompt: Sequence[int], adapter: int | None, **options: Any) -> dict[str, Any]:
        # An adapter that a request does not name is off for it.
        lora = [{"id": number, "scale": float(number == adapter)} for number in range(self.adapters)]
        greedy = {"temperature": 0.0, "samplers": ["temperature"], "ignore_eos": True, "cache_prompt": False}
        return {"prompt": list(prompt), "lora": lora, **greedy, **options}

    def _complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        status, answer = self._ask("POST", "/completion", body)
        if status != 200:
            raise BenchmarkError(f"llama.cpp's server: {answer}")
        return answer

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REPLY_SECONDS)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())
        finally:
            connection.close()


class LineProcess(ChildProcess):
    """A process that answers each line of JSON by one."""

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchmarkError(f"{self.name}'s process ended; its last words stand above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{self.name}: {answer['error']}")
        return answer


class PeftPeer(LineProcess):
    """transformers and PEFT with all adapters loaded: the near end. A method is one call of the far end."""

    name = "PEFT"

    def __init__(self, python: Path, model: Path, adapters: Sequence[Path], *, threads: int) -> None:
        """Raises BenchmarkError: no torch, transformers or peft there, or they refuse."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        command = [str(python), "-m", "benchmarks.adapter_peer"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        super().__init__(subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes))
        try:
            self.facts = self._ask(
                {
                    "do": "load",
                    "model": str(model),
                    "adapters": [str(path) for path in adapters],
                    "threads": threads,
                }
            )
        except BenchmarkError:
            self.close()
            raise

    def seconds(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[int | None], tokens: int, dtype: str
    ) -> float:
        """Seconds of one `generate` over all prompts, in bfloat16 or float32; prompts of equal length."""
        request = {
            "do": "generate",
            "prompts": prompts,
            "adapters": adapters,
            "tokens": tokens,
            "dtype": dtype,
        }
        return float(self._ask(request)["seconds"])

    def swap(self, directory: Path, repeats: int) -> dict[str, list[float]]:
        """Seconds of `load_adapter` on a directory in the page cache, and of `set_adapter`."""
        answer = self._ask({"do": "swap", "directory": str(directory), "repeats": repeats})
        return {name: answer[name] for name in ("load_adapter", "set_adapter")}


# --- the far end of PeftPeer -----------------------------------------------------------------------------


class _Peft:
    """One PEFT model per data type, made when it is first asked for."""

    def __init__(self) -> None:
        self.model_directory, self.adapter_directories = "", [""]
        self.models: dict[str, Any] = {}

    def load(self, model: str, adapters: list[str], threads: int) -> dict[str, Any]:
        import peft
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self.model_directory, self.adapter_directories = model, adapters
        return {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        }

    def model(self, dtype: str) -> Any:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        if dtype not in self.models:
            base = AutoModelForCausalLM.from_pretrained(self.model_directory, dtype=getattr(torch, dtype))
            first, *others = self.adapter_directories
            model = PeftModel.from_pretrained(base, first, adapter_name="0", autocast_adapter_dtype=False)
            for number, directory in enumerate(others, start=1):
                model.load_adapter(directory, str(number), autocast_adapter_dtype=False)
            self.models[dtype] = model.eval()
        return self.models[dtype]

    def generate(
        self, prompts: list[list[int]], adapters: list[int | None], tokens: int, dtype: str
    ) -> dict[str, Any]:
        import torch

        model = self.model(dtype)
        ids = torch.tensor(prompts)
        # In a mixed batch, PEFT's name for "none" is __base__.
        names = ["__base__" if adapter is None else str(adapter) for adapter in adapters]
        options = {"do_sample": False, "min_new_tokens": tokens, "max_new_tokens": tokens, "pad_token_id": 0}
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names, **options
            )
        seconds = time.perf_counter() - started
        if out.shape[1] != ids.shape[1] + tokens:
            raise RuntimeError(f"gave {out.shape[1] - ids.shape[1]} of {tokens} tokens")
        return {"seconds": seconds}

    def swap(self, directory: str, repeats: int) -> dict[str, Any]:
        model = self.model("bfloat16")
        times: dict[str, list[float]] = {"load_adapter": [], "set_adapter": []}
        for _ in range(repeats):
            started = time.perf_counter()
            model.load_adapter(directory, "swap", autocast_adapter_dtype=False)
            loaded = time.perf_counter()
            model.set_adapter("swap")
            times["set_adapter"].append(time.perf_counter() - loaded)
            times["load_adapter"].append(loaded - started)
            model.set_adapter("0")
            model.delete_adapter("swap")
            gc.collect()
        return {**times}


def main() -> int:
    """Reads one JSON request per line from standard input and answers each by one line."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the libraries print must not land among the replies
    peft = _Peft()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(peft, request.pop("do"))(**request)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
