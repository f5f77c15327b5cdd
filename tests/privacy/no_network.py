"""Run by test_privacy.py as a script: a command in a network namespace of its own, and what it tried to send.

    python no_network.py REPORT.json COMMAND...

The namespace has no interface but loopback, and no route: nothing can leave. The kernel counts what was
tried: packets without a route (IPv4, IPv6) and datagrams, such as questions to a name server on this machine.
Exit code 77: namespaces are not permitted here.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

NOT_PERMITTED = 77
_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_SET_FLAGS, _UP = 0x8914, 0x1


def main() -> int:
    report, command = Path(sys.argv[1]), sys.argv[2:]
    if not walls():
        return NOT_PERMITTED
    done = subprocess.run(command, check=False)
    report.write_text(json.dumps({"code": done.returncode, **counters()}))
    return 0


def walls() -> bool:
    """Moves into a fresh namespace and brings its loopback up; False where that is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if not hasattr(libc, "unshare") or libc.unshare(_NEW_USER | _NEW_NET) != 0:
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(text)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
            fcntl.ioctl(handle, _SET_FLAGS, struct.pack("16sH14x", b"lo", _UP))
    except OSError:
        return False
    return True


def counters() -> dict[str, int]:
    found = {"no_route": 0, "datagrams": 0}
    lines = Path("/proc/net/snmp").read_text().splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        table = dict(zip(names.split(), values.split(), strict=True))
        if names.startswith("Ip:"):
            found["no_route"] += int(table["OutNoRoutes"])
        if names.startswith("Udp:"):
            found["datagrams"] += int(table["OutDatagrams"])
    for line in Path("/proc/net/snmp6").read_text().splitlines():
        name, value = line.split()
        if name == "Ip6OutNoRoutes":
            found["no_route"] += int(value)
        if name == "Udp6OutDatagrams":
            found["datagrams"] += int(value)
    return found


if __name__ == "__main__":
    sys.exit(main())
