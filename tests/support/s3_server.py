"""A real S3 server (moto's), in this process, where its answers can be made to fail, or alone."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "something",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nowhere",
    "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    "NO_PROXY": "127.0.0.1",
}
Refusal = tuple[str, str]
"""Status line and S3's code of an error."""


class S3Server:
    """The server; `address` is its own, `requests` are (method, path) as they came.

    `refuse` is asked before each request whether to answer with an error instead.
    """

    def __init__(self, port: int = 0) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, *args: Any) -> None:
                pass

        self._app = DomainDispatcherApplication(create_backend_app)
        self.requests: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str], Refusal | None] = lambda method, path: None
        self._server = make_server("127.0.0.1", port, self._answer, threaded=True, request_handler=Quiet)
        self._server.daemon_threads = True  # type: ignore[attr-defined]
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def serve(self) -> None:
        self._server.serve_forever()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        if refusal := self.refuse(method, path):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            body = f"<Error><Code>{refusal[1]}</Code><Message>{refusal[1]}</Message></Error>".encode()
            start(refusal[0], [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]

        def once(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            return start(status, [one for one in headers if one[0].lower() != "server"], *more)

        return self._app(environ, once)


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run a server in this process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = S3Server()
    server.start()
    try:
        yield server
    finally:
        server.stop()


if __name__ == "__main__":
    alone = S3Server()
    print(alone.address, flush=True)
    alone.serve()
    sys.exit(0)
