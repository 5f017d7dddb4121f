"""The server: a store, behind HTTP, on a free port of the loopback interface."""

import contextlib
import socket
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .access import Access
from .faults import Fault, Faults, Throttle
from .handler import HubHandler
from .log import Request, RequestLog
from .store import Store


class HubSocket(ThreadingHTTPServer):
    """The listening socket; a client that goes away is no error."""

    daemon_threads = True
    request_queue_size = 64
    hub: "HubServer"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about lost connections only."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, ValueError)):
            super().handle_error(request, client_address)


class HubServer:
    """A Hub to push to and to pull from; serves between ``with`` and its end.

    Args:
        root: folder of the repositories; one used before is read back.
        users: token -> user name.
        orgs: organization -> its members, who may write to it.

    Attributes:
        url: ``http://127.0.0.1:PORT``, for HF_ENDPOINT.
        store: the repositories, to fill and inspect without HTTP.
        faults: rules that make answers go wrong.
        errors: tracebacks of mistakes in the server itself; tests expect none.

    Example:
        >>> with HubServer(tmp_path, {"hf_token": "tester"}) as server:
        ...     server.store.create_repo("tester/model")
        ...     with server.record() as requests:
        ...         hf_hub_download("tester/model", ".gitattributes", endpoint=server.url)
        ...     assert [request.method for request in requests] == ["HEAD", "GET"]
    """

    def __init__(self, root: Path, users: Mapping[str, str], orgs: Mapping[str, Collection[str]] | None = None) -> None:
        self.store = Store(root)
        self.access = Access(users, orgs or {})
        self.log = RequestLog()
        self.faults = Faults()
        self.errors: list[str] = []
        self.connections: set[socket.socket] = set()
        self.throttle = Throttle()
        self._http = HubSocket(("127.0.0.1", 0), HubHandler)
        self._http.hub = self
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "HubServer":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin to serve, in a thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and end the connections that clients keep open."""
        self.throttle.stop()
        self._http.shutdown()
        self._http.server_close()
        for connection in self.connections.copy():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    @property
    def requests(self) -> list[Request]:
        """All requests since the start or the last `clear_requests`."""
        return self.log.requests

    def clear_requests(self) -> None:
        """Forget the requests so far."""
        self.log.requests.clear()

    def record(self) -> AbstractContextManager[list[Request]]:
        """A context manager that gives the list of the requests made within."""
        return self.log.record()

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second, for all connections together and both ways; None for no limit."""
        return self.throttle.bandwidth

    @bandwidth.setter
    def bandwidth(self, value: float | None) -> None:
        self.throttle.bandwidth = value

    @property
    def latency(self) -> float:
        """Seconds before each answer."""
        return self.throttle.latency

    @latency.setter
    def latency(self, value: float) -> None:
        self.throttle.latency = value

    def reset(self) -> None:
        """Drop faults, limits and recorded requests; the repositories stay."""
        self.faults.clear()
        # Answers that were waiting go on.
        self.bandwidth, self.latency = None, 0.0
        self.clear_requests()
        self.errors.clear()

    @contextlib.contextmanager
    def faulty(self, *faults: Fault) -> Iterator[None]:
        """Have the rules in force within the block, and none after it: answers that they stall go on."""
        try:
            for fault in faults:
                self.faults.append(fault)
            yield
        finally:
            self.faults.clear()
            self.throttle.release()
