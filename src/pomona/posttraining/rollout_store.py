"""Roll-outs that outlive their process: every response is on disk before the next is waited for.

A file holds one line per response. What an interrupted run left is kept, what is missing is sampled; a last
line that was cut off counts as missing. With LocalRollOuts the result is that of a run without interruption.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pomona.errors import PomonaError
from pomona.posttraining.rollouts import Job, Response, RollOuts, RollOutSampling, missing


def sample_kept(
    rollouts: RollOuts,
    jobs: Sequence[Job],
    sampling: RollOutSampling,
    path: Path,
    *,
    on_count: Callable[[int, int], None] | None = None,
) -> list[list[Response]]:
    """The responses of all jobs, those in `path` among them. on_count: gets how many are there, of how many.

    PomonaError: the file belongs to other jobs."""
    have = read_responses(path)
    known = {(number, place) for number, job in enumerate(jobs) for place in range(job.n)}
    if not set(have) <= known:
        raise PomonaError(f"{path}: holds responses to other prompts; delete it, or give --restart")
    _write(path, have)
    left = missing(jobs, have)
    total = len(known)
    count = total - sum(job.n for job in left)
    with path.open("a", encoding="utf-8") as file:

        def keep(number: int, place: int, response: Response) -> None:
            nonlocal count
            have[number, place] = response
            file.write(_line(number, place, response))
            file.flush()
            count += 1
            if on_count is not None:
                on_count(count, total)

        rollouts.sample_mixed(left, sampling, keep)
    return [[have[number, place] for place in range(job.n)] for number, job in enumerate(jobs)]


def read_responses(path: Path) -> dict[tuple[int, int], Response]:
    """By (job, number of the response). Reading ends at the first line that is not whole."""
    found: dict[tuple[int, int], Response] = {}
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if not line.endswith("\n"):
                break
            job, number, finished, ids, version = json.loads(line)
            found[int(job), int(number)] = Response(tuple(map(int, ids)), bool(finished), version)
        except (ValueError, TypeError):
            break
    return found


def _write(path: Path, have: dict[tuple[int, int], Response]) -> None:
    new = path.with_name(path.name + ".new")
    lines = [_line(job, number, response) for (job, number), response in have.items()]
    new.write_text("".join(lines), encoding="utf-8")
    new.replace(path)


def _line(job: int, number: int, response: Response) -> str:
    parts = [job, number, response.finished, list(response.token_ids), response.adapter_version]
    return json.dumps(parts) + "\n"
