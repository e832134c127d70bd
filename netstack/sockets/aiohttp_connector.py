"""aiohttp's client on the stack: `aiohttp.ClientSession(connector=StackConnector(stack))`. Needs aiohttp installed.

aiohttp's server needs nothing of the kind: `stack.create_server(runner.server, host, port)`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiohttp import ClientConnectorCertificateError, ClientConnectorError, ClientConnectorSSLError
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import cert_errors, ssl_errors

from netstack.sockets.addresses import interleave
from netstack.sockets.connect import establish
from netstack.sockets.stack import AsyncStack, checked_hostname, tls_settings


class StackConnector(aiohttp.TCPConnector):
    """aiohttp's own connector (pooling, limits, TLS, traces, happy eyeballs), whose connections are the stack's.

    Takes TCPConnector's options. Names are asked of aiohttp's resolver; give `resolver=` for another.
    """

    def __init__(self, stack: AsyncStack, **options: Any):
        super().__init__(**options)
        self._stack = stack

    async def _wrap_create_connection(self, factory: Any, *, addr_infos: list, req: ClientRequest, timeout: Any,
                                      client_error: type[Exception] = ClientConnectorError,
                                      ssl: Any = None, server_hostname: str | None = None,
                                      ssl_shutdown_timeout: float | None = None, **ignored: Any) -> tuple[Any, Any]:
        if ssl:
            ssl_shutdown_timeout = ssl_shutdown_timeout or getattr(self, "_ssl_shutdown_timeout", None) or None
        settings = tls_settings(ssl, None, ssl_shutdown_timeout)
        infos = interleave(addr_infos, self._interleave or 1)
        try:
            async with asyncio.timeout(timeout.sock_connect):
                attempt = await establish(self._stack, infos, self._local_addr_infos, self._happy_eyeballs_delay)
                return await self._stack.wrap(attempt, factory, settings,
                                              checked_hostname(ssl, server_hostname, req.url.host))
        except cert_errors as exc:
            raise ClientConnectorCertificateError(req.connection_key, exc) from exc
        except ssl_errors as exc:
            raise ClientConnectorSSLError(req.connection_key, exc) from exc
        except OSError as exc:
            if exc.errno is None and isinstance(exc, TimeoutError):     # ours: sock_connect is over
                raise
            raise client_error(req.connection_key, exc) from exc
