"""Run by test_privacy.py as a script: a server, and requests to it from the same machine.

    python served.py AUDITED.py WISHES.jsonl PORT REQUESTS.json ANSWERS.json serve MODEL ...

REQUESTS.json: a list of {"path", "body" (text), "headers"}; ANSWERS.json gets [status, length of the answer]
of each. The server is asked to end by SIGTERM.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

WAIT = 90.0


def ask(port: int, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def main() -> int:
    audited, wishes, number, requests, answers, *command = sys.argv[1:]
    port = int(number)
    server = subprocess.Popen([sys.executable, audited, wishes, *command, "--port", number])
    try:
        end = time.monotonic() + WAIT
        while True:
            try:
                if ask(port, "GET", "/ready", None, {})[0] == 200:
                    break
            except OSError:
                pass
            if server.poll() is not None or time.monotonic() > end:
                return 3
            time.sleep(0.05)
        found = []
        for one in json.loads(Path(requests).read_text()):
            headers = {"Content-Type": "application/json", **one["headers"]}
            status, answer = ask(port, "POST", one["path"], one["body"].encode(), headers)
            found.append([status, len(answer)])
        Path(answers).write_text(json.dumps(found))
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(WAIT)
    return 0 if code in (0, -signal.SIGTERM) else code


if __name__ == "__main__":
    sys.exit(main())
