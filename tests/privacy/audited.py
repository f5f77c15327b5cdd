"""Run by test_privacy.py as a script: a command of pomona, with every wish to reach another machine written
down and refused.

    python audited.py WISHES.jsonl run MODEL "Hello"

Python tells an audit hook of each connection, datagram and question for a name before it happens. Loopback
and sockets of the file system are let through.
"""

from __future__ import annotations

import ipaddress
import json
import sys
from typing import Any

NAMES = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
SENDING = ("socket.connect", "socket.sendto", "socket.sendmsg")


def is_here(host: Any) -> bool:
    if host in (None, "", b"", "localhost", "0.0.0.0", "::"):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def install(file: str) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in NAMES:
            host = arguments[0]
        elif event in SENDING and len(arguments) > 1 and isinstance(arguments[1], tuple):
            host = arguments[1][0]  # an address in the file system is a text, and stays on this machine
        else:
            return
        host = host.decode() if isinstance(host, bytes) else host
        if not is_here(host):
            with open(file, "a", encoding="utf-8") as wishes:
                wishes.write(json.dumps([event, str(host)]) + "\n")
            raise ConnectionRefusedError(f"{event} {host}: nothing leaves this machine here")

    sys.addaudithook(hook)


if __name__ == "__main__":
    install(sys.argv[1])
    from pomona.cli.main import main

    sys.exit(main(sys.argv[2:]))
