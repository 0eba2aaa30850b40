"""The suite's rule, in every Python process that a test starts: no network beyond this machine.

`checks/conftest.py` puts this folder on PYTHONPATH, so each child process imports it at start-up. An attempt
raises a ConnectionError, as being offline would; and because a program may well live with that, it is also
written to the file COURSE_NETWORK_LOG, for which conftest.py fails the test.
"""

import ipaddress
import os
import socket
import sys
from typing import Any

NOBODY = ("127.0.0.1", 9)  # where conftest.py's proxy settings lead: whoever goes there wanted to go further


class NetworkForbidden(ConnectionError):
    """A test reached out to another machine."""


def is_local(host: object) -> bool:
    """Return whether the address or name means this machine. Names other than its own are not looked up."""
    text = host.decode(errors="replace") if isinstance(host, bytes) else host
    if text is None or not isinstance(text, str) or text in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: CPython calls it before it looks up a name, connects or sends."""
    if event == "socket.getaddrinfo" or event == "socket.gethostbyname":
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        channel, address = arguments[:2]
        if channel.family not in (socket.AF_INET, socket.AF_INET6) or not isinstance(address, tuple):
            return
        if event == "socket.connect" and channel.type & 0xF == socket.SOCK_DGRAM:
            return  # sends nothing: the usual way to ask for one's own address
        host = address[0]
        if address[:2] == NOBODY:
            host = "the proxy that is not there"
    else:
        return
    if is_local(host):
        return
    message = f"{event} to {host!r}: tests may only talk to this machine"
    if log := os.environ.get("COURSE_NETWORK_LOG"):
        with open(log, "a", encoding="utf-8") as stream:
            stream.write(f"{message}, in `{' '.join(sys.argv)[:120]}`\n")
    raise NetworkForbidden(message)


if os.environ.get("COURSE_NETWORK_LOG"):
    sys.addaudithook(watch)
