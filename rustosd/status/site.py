"""The pages of the daemon's HTTP services, by path: the status page with what belongs to it, and the metrics."""

import hashlib
from collections.abc import Callable
from importlib import resources
from typing import Final

from rustosd.services.http import NOSNIFF, Response
from rustosd.status.document import Reporter
from rustosd.status.page import render

Pages = dict[str, Callable[[], Response]]

POLICY: Final = ("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
                 "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
_NO_STORE: Final = ("Cache-Control", "no-store")
_FOR_EVER: Final = ("Cache-Control", "max-age=31536000, immutable")     # the page asks for them by their hash
_HTML_HEADERS: Final = (POLICY, NOSNIFF, _NO_STORE, ("Referrer-Policy", "no-referrer"))
_ASSETS: Final = {"status.css": "text/css; charset=utf-8", "status.js": "text/javascript; charset=utf-8",
                  "icon.svg": "image/svg+xml"}


def site(reporter: Reporter, metrics: Callable[[], tuple[bytes, str]], *, own_stack: bool = True) -> Pages:
    """What a service answers at which path. `own_stack`: whether it is reached through our stack or the kernel's."""
    octets = {name: resources.files(__package__).joinpath(name).read_bytes() for name in _ASSETS}
    assets = hashlib.sha256(b"".join(octets.values())).hexdigest()[:12]

    def page() -> Response:
        return Response(200, render(reporter.status(), assets, own_stack=own_stack), "text/html; charset=utf-8", _HTML_HEADERS)

    def document() -> Response:
        return Response(200, reporter.json(), "application/json", (NOSNIFF, _NO_STORE))

    def exposition() -> Response:
        body, content_type = metrics()
        return Response(200, body, content_type, (NOSNIFF,))

    def asset(name: str) -> Callable[[], Response]:
        response = Response(200, octets[name], _ASSETS[name], (NOSNIFF, _FOR_EVER))
        return lambda: response

    return {"/": page, "/status.json": document, "/metrics": exposition} | {f"/{name}": asset(name) for name in _ASSETS}
