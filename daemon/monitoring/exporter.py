"""The Prometheus endpoint: GET /metrics on a loopback address, nothing else, and nothing to change.

Owns the server and its threads, which only read. Ends with the daemon.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from prometheus_client import start_http_server
from prometheus_client.registry import CollectorRegistry

from microdiffusion.addresses import loopback
from microdiffusion.daemon.monitoring.prometheus import StatusCollector
from microdiffusion.errors import AddressError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from microdiffusion.daemon.status import StatusBoard, StatusSnapshot


class Exporter:
    """Serves the metrics until it is closed.

    Parameters
    ----------
    address : str
        "HOST:PORT" on loopback; port 0 takes a free one.
    board, latest, log_lines_dropped
        See `StatusCollector`.

    Attributes
    ----------
    address : str
        Where it listens.

    Raises
    ------
    AddressError
        Other machines could reach the address, or its port is taken.
    """

    def __init__(
        self,
        address: str,
        board: StatusBoard,
        latest: Callable[[], StatusSnapshot],
        log_lines_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        try:
            host, port = loopback(address)
        except ValueError as error:
            raise AddressError(f"monitoring.prometheus = {address!r} cannot be used: {error}.") from None
        # A registry of its own: what a library in this process registers elsewhere is nobody's business.
        registry = CollectorRegistry(auto_describe=False)
        registry.register(StatusCollector(board, latest, log_lines_dropped))
        try:
            if port:  # the server would share a port that is taken with its owner, where the system lets it
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                socket.create_server((host, port), family=family).close()
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise AddressError(
                f"monitoring.prometheus = {address!r} cannot be used ({error.strerror or error}): another "
                "daemon may be there; give another port (9464 is the usual one)."
            ) from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
