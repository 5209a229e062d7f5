"""What a request may not do: reach this server under another name, send too much, or be framed.

Plain ASGI, so that nothing of a request is read before it is judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

__all__ = ["HEADERS", "LOCAL", "MOST_BODY", "Guard", "host_name"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LOCAL = frozenset({"127.0.0.1", "localhost", "[::1]"})
MOST_BODY = 5 * 2**20  # bytes of an upload
_MOST_TARGET = 16_384  # bytes of a path and its query
_HOST = re.compile(r"^(\[[0-9a-f:.]+\]|[^:@/\[\]]+)(?::[0-9]{0,5})?$")

# the two inline styles that Plotly sets: an empty element, which it fills by rule, and the crisp
# edges of heat maps; nothing else inline is allowed
_STYLES = (
    b"'unsafe-hashes' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=' "
    b"'sha256-S+l+cz1wXqs2B0FcjqqT7NvjwGmhD1UjJswXjlSkj0s='"
)
HEADERS = (
    (b"content-security-policy",
     b"default-src 'none'; script-src 'self'; style-src 'self' " + _STYLES + b"; img-src 'self' "
     b"data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
     b"frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)  # fmt: skip


def host_name(value: str) -> str:
    """Name in a Host header, lower case, without the port.

    >>> host_name("LocalHost:8080"), host_name("[::1]:80"), host_name("[::1].evil.example")
    ('localhost', '[::1]', '')
    """
    match = _HOST.match(value.strip().lower())
    return match.group(1) if match else ""


class Guard:
    """Refuses foreign Host and Origin headers and bodies that are too large; adds HEADERS."""

    def __init__(self, app: Any, hosts: Iterable[str]) -> None:
        self.app = app
        self.hosts = frozenset(h.lower() for h in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge a request by its headers, then pass it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        refused = self._refusal(scope)
        if refused:
            await _refuse(send, *refused)
            return
        await self.app(scope, _counted(receive), _with_headers(send))

    def _refusal(self, scope: Scope) -> tuple[int, str, str, str] | None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        hosts = headers.get(b"host", [])
        asked = hosts[0].decode("latin-1") if len(hosts) == 1 else ""
        if host_name(asked) not in self.hosts:
            return (421, "host", f"got {asked[:80]!r}, allowed: {', '.join(sorted(self.hosts))}",
                    "open the address that `ridgecast web` printed, or start it with "
                    "--allow-host NAME")  # fmt: skip
        for origin in headers.get(b"origin", []):
            if _origin(origin) != asked.strip().lower():
                return (403, "origin", f"got {origin.decode('latin-1')[:80]!r}, which is another "
                        "site", "ask from the page itself")  # fmt: skip
        target = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        if target > _MOST_TARGET:
            return 414, "query", f"got {target} bytes, at most {_MOST_TARGET}", "ask for less"
        length = headers.get(b"content-length", [b"0"])[0]
        if not length.isdigit() or len(length) > 12 or int(length) > MOST_BODY:
            return (413, "body", f"got {length.decode('latin-1')[:20]} bytes, at most {MOST_BODY}",
                    "split the table, or use `ridgecast predict --table FILE`")  # fmt: skip
        return None


def _origin(value: bytes) -> str:
    """Host and port of an Origin header; nothing where it is none."""
    try:
        return urlsplit(value.decode("latin-1")).netloc.lower()
    except ValueError:
        return ""


def _counted(receive: Receive) -> Receive:
    """Stop reading a body without a length once it is too large."""
    seen = 0

    async def run() -> MutableMapping[str, Any]:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MOST_BODY:
            return {"type": "http.disconnect"}
        return message

    return run


def _with_headers(send: Send) -> Send:
    async def run(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return run


async def _refuse(send: Send, status: int, field: str, message: str, cure: str) -> None:
    body = json.dumps({"errors": [
        {"kind": "refused", "field": field, "message": f"{field}: {message}", "cure": cure}
    ]}).encode()  # fmt: skip
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
               (b"connection", b"close"), *HEADERS]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
