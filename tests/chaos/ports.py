"""Ports that stay ours while a server is down: below those that the kernel gives to outgoing connections."""

from __future__ import annotations

import random

from stream.embedded.process import port_is_free

_FIRST, _LAST = 18_000, 32_000


def lasting_ports(count: int) -> list[int]:
    """Return so many free ports of loopback, each once."""
    drawn = random.SystemRandom()
    ports: set[int] = set()
    while len(ports) < count:
        port = drawn.randint(_FIRST, _LAST)
        if port_is_free(port):
            ports.add(port)
    return sorted(ports)
