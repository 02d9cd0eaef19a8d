"""Who may call: the hosts that serving is called by, the pages that may call it, and an optional token."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from learners.features.shown import shown
from serving.refusals import Refusal, RefusedError

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Callers:
    """Checks a call by its headers alone, before its body is read.

    A browser sends what any page tells it to a server that it reaches, and shows the page the answers where a name of
    the page's own leads there. A program that is no browser says neither another Host nor an Origin.

    Parameters
    ----------
    hosts : names that a call may be sent to, None: any; the names of loopback are always among them, with addresses.
    token : what ``Authorization: Bearer`` must hold; None: nobody needs one.
    """

    hosts: frozenset[str] | None = None
    token: str | None = None

    @classmethod
    def of(cls, allowed_hosts: str | None, listens_on: str, token: str | None) -> Callers:
        """``allowed_hosts`` by commas; without them any host may call a server that listens beyond loopback."""
        if allowed_hosts:
            return cls(hosts=frozenset(name.strip().lower() for name in allowed_hosts.split(",")), token=token)
        return cls(hosts=frozenset({listens_on.lower()}) if _is_loopback(listens_on) else None, token=token)

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Raise RefusedError for a call that was sent to another name."""
        host = headers.get("Host", "")
        if not self._knows(_name(host)):
            raise RefusedError(
                Refusal.HOST,
                f"Host {shown(host)} is not a name of this server: a page could have sent the call. Call it by "
                f"{', '.join(sorted(self.hosts or ()))}, or add the name to MILLSTREAM_ALLOWED_HOSTS.",
            )

    def check_call(self, headers: Mapping[str, str]) -> None:
        """Raise RefusedError for a call from a foreign page, without the token, or of another type than JSON."""
        origin = headers.get("Origin")
        if origin is not None and not self._same_site(origin, headers.get("Host", "")):
            raise RefusedError(
                Refusal.ORIGIN,
                f"Origin {shown(origin)} is another site than Host {shown(headers.get('Host', ''))}: what any page "
                "sends would be scored, logged and learned. Call from a program, or add its host to "
                "MILLSTREAM_ALLOWED_HOSTS.",
            )
        if self.token is not None and not self._has_token(headers.get("Authorization", "")):
            raise RefusedError(
                Refusal.TOKEN,
                "Authorization holds no 'Bearer' token, or not the one of MILLSTREAM_API_TOKEN: nothing was scored. "
                "Send the header 'Authorization: Bearer <token>'.",
            )
        content_type = headers.get("Content-Type", "")
        kind = content_type.partition(";")[0].strip().lower()
        if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            raise RefusedError(
                Refusal.CONTENT_TYPE,
                f"Content-Type {shown(content_type)} is not application/json: any page can send other types, so "
                "nothing was scored. Send the header 'Content-Type: application/json' (curl --json).",
            )

    def _knows(self, name: str) -> bool:
        return self.hosts is None or name in self.hosts or name in _LOOPBACK_NAMES or _is_address(name)

    def _same_site(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
            named = self.hosts is not None and (parts.hostname or "") in self.hosts - _LOOPBACK_NAMES
        except ValueError:
            return False
        return bool(parts.netloc) and (parts.netloc.lower() == host.lower() or named)

    def _has_token(self, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        wanted = (self.token or "").encode()
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(errors="replace"), wanted)


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    return host.lower() in _LOOPBACK_NAMES or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    """Whether it is an address: no page can make a browser send a foreign one as the Host of its own name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
