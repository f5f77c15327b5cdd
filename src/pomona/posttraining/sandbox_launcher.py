"""Run by sandbox.py as a script of its own: locks itself up, then runs programs one by one.

It uses the standard library alone and imports nothing of pomona: `python -I -S sandbox_launcher.py FOLDER`.
Standard input: one JSON object (programs, seconds, memory, file, output: bytes). Standard output: first a
line that says which walls stand, then one JSON object per program, as each of them ends.

The walls, from Linux namespaces (user, mount, network, process ids, IPC): a root of its own on an empty
memory disk, with the interpreter and the system's libraries bound read-only; no network interface; no
process outside in sight. Where namespaces are refused only the limits stand: an empty folder to begin in, an
empty environment, and caps on time, memory, file size, open files and processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import secrets
import select
import signal
import sys
import time
from typing import Any

_NEW_NS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_READ_ONLY, _NO_SUID, _NO_DEV, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_INSIDE = 1000  # the user within: not 0, so that a program cannot win back what is dropped here
_NO_NEW_PRIVILEGES, _CAPABILITY_VERSION = 38, 0x20080522
_PROCESSES, _FILES = 16, 32


def main() -> None:
    folder = sys.argv[1]
    order = json.loads(sys.stdin.buffer.read())
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), 0)
    report = os.dup(1)
    os.set_inheritable(report, False)
    walls = _namespaces(folder)
    if walls != "namespaces":
        os.chdir(folder)
    os.write(report, json.dumps({"walls": walls}).encode() + b"\n")
    if walls == "namespaces" and (first := os.fork()):
        # The fork is process 1 of its namespace; when it is killed, all within it die.
        _, status = os.waitpid(first, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _limits(order)
    _drop_rights()
    for program in order["programs"]:
        os.write(report, json.dumps(_run(program, order, report)).encode() + b"\n")
    os._exit(0)


def _namespaces(folder: str) -> str:
    """Moves into fresh namespaces with a new root: "namespaces", or the reason why not."""
    if sys.platform != "linux":
        return "limits: namespaces are Linux's"
    libc = ctypes.CDLL(None, use_errno=True)

    def check(code: int, what: str) -> None:
        if code != 0:
            raise OSError(ctypes.get_errno(), what)

    def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
        words = [None if word is None else word.encode() for word in (source, target, kind)]
        check(
            libc.mount(*words, ctypes.c_ulong(flags), None if data is None else data.encode()),
            f"mount {target}",
        )

    user, group = os.getuid(), os.getgid()
    try:
        check(libc.unshare(_NEW_USER | _NEW_NS | _NEW_NET | _NEW_PID | _NEW_IPC), "unshare")
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{_INSIDE} {user} 1"),
            ("gid_map", f"{_INSIDE} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        mount("none", "/", None, _RECURSIVE | _PRIVATE)
        mount("tmpfs", folder, "tmpfs", _NO_SUID | _NO_DEV, "size=4m,mode=755")
        for path in _needed():
            inside = folder + path
            if os.path.islink(path):
                os.makedirs(os.path.dirname(inside), exist_ok=True)
                os.symlink(os.readlink(path), inside)
                continue
            os.makedirs(inside, exist_ok=True)
            mount(path, inside, None, _BIND | _RECURSIVE)
            # A bind inherits flags that a user namespace may not lift; more may always be added.
            flags = _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEV | _locked_flags(inside)
            mount(path, inside, None, flags)
        os.makedirs(folder + "/work")
        os.chroot(folder)
        os.chdir("/work")
    except OSError as error:
        return f"limits: {error.strerror} ({error.args[1] if error.args[1:] else ''})"
    return "namespaces"


def _needed() -> list[str]:
    """Folders that the interpreter lives in, and the system's libraries; none of them is a user's."""
    paths = [path for path in ("/usr", "/lib", "/lib64") if os.path.exists(path)]
    for prefix in (os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)):
        if not any(prefix == path or prefix.startswith(path + "/") for path in paths):
            paths.append(prefix)
    return paths


def _locked_flags(path: str) -> int:
    flags = os.statvfs(path).f_flag
    return flags & (os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME | os.ST_RELATIME)


def _limits(order: dict[str, Any]) -> None:
    seconds = int(order["seconds"]) + 1
    for what, value in (
        (resource.RLIMIT_AS, order["memory"]),
        (resource.RLIMIT_FSIZE, order["file"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _FILES),
        (resource.RLIMIT_CPU, seconds * (len(order["programs"]) + 1)),
        (resource.RLIMIT_NPROC, _PROCESSES),
    ):
        with contextlib.suppress(ValueError, OSError):  # already lower, or unknown here
            resource.setrlimit(what, (value, value))


def _drop_rights() -> None:
    """Gives up all capabilities, those that came with the namespaces among them, for good."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0 or libc.capset(header, nothing) != 0:
        os._exit(1)  # nothing is run with rights that were meant to be gone


def _run(program: str, order: dict[str, Any], report: int) -> dict[str, str]:
    """One program in a child of its own. It has passed if it says the word that only its end knows."""
    word = secrets.token_hex(16)
    said, say = os.pipe()
    shown, show = os.pipe()
    child = os.fork()
    if child == 0:
        for end in (said, shown, report):
            os.close(end)
        os.dup2(show, 1)
        os.dup2(show, 2)
        _child(program, say, word)
    os.close(say)
    os.close(show)
    deadline = time.monotonic() + order["seconds"]
    kept = {said: b"", shown: b""}
    room = {said: 4096, shown: order["output"]}
    open_ends = [said, shown]
    late = ended = False
    while open_ends and not late:
        left = deadline - time.monotonic()
        ready = select.select(open_ends, [], [], max(left, 0))[0]
        late = not ready
        for end in ready:
            if piece := os.read(end, 65536):
                kept[end] = (kept[end] + piece)[: room[end]]  # the rest is read and dropped
            else:
                open_ends.remove(end)
        if not ended and (said not in open_ends or kept[said]):
            ended = True  # one that it left behind may hold the pipes still; wait for output on its way alone
            deadline = min(deadline, time.monotonic() + 0.2)
    for end in (said, shown):
        os.close(end)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    status, _, message = kept[said].decode("utf-8", "replace").partition("\n")
    if not ended:
        status, message = "timeout", f"ran longer than {order['seconds']:g} s"
    elif status == word:
        status, message = "passed", ""
    elif status != "failed":
        status, message = "crashed", "the process ended before the program's end"
    return {"status": status, "message": message, "output": kept[shown].decode("utf-8", "replace")}


def _child(program: str, say: int, word: str) -> None:
    os.setpgid(0, 0)
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "program"})
        sys.stdout.flush()
        os.write(say, word.encode())
    except BaseException as error:
        with contextlib.suppress(BaseException):
            os.write(say, f"failed\n{type(error).__name__}: {error}".encode("utf-8", "replace")[:2000])
    os._exit(0)


if __name__ == "__main__":
    main()
