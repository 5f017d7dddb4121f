"""One HTTP connection: reads requests, has them answered, and sends the answers, faults included."""

import contextlib
import io
import socket
import struct
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, unquote

from . import api_files, api_repos, api_upload
from .blobs import CHUNK
from .errors import HubError
from .faults import Fault, FaultKind
from .log import Request
from .routing import Call, Reply, Router

if TYPE_CHECKING:
    from .server import HubServer, HubSocket

ROUTER = Router(api_repos.router, api_upload.router, api_files.router)


class HubHandler(BaseHTTPRequestHandler):
    """Serves the requests of one connection, one after the other."""

    protocol_version = "HTTP/1.1"
    server_version = "TestHub"
    disable_nagle_algorithm = True
    wbufsize = CHUNK

    @property
    def hub(self) -> "HubServer":
        """The server this connection belongs to."""
        return cast("HubSocket", self.server).hub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: requests are recorded instead."""

    def serve(self) -> None:
        """Answer one request."""
        raw_path, _, query = self.path.partition("?")
        request = Request(self.command, unquote(raw_path), query, self.headers.get("Range"))
        self.hub.log.add(request)
        chunks = self._read_body(request)
        fault = self.hub.faults.take(request.method, request.path)
        request.fault = fault.kind if fault else None
        self.hub.throttle.pause(self.hub.latency)
        reply = self._answer(request, raw_path, chunks, fault)
        with contextlib.suppress(ConnectionError):
            for _ in chunks:  # what nobody has read, or the next request would begin there
                pass
            self._send(request, reply, fault)
            return
        self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def _answer(self, request: Request, raw_path: str, chunks: Iterator[bytes], fault: Fault | None) -> Reply:
        hub = self.hub
        try:
            request.user = hub.access.user(self.headers.get("Authorization"))
            if fault is not None and fault.kind == "status":
                raise HubError(fault.status, "injected fault", headers=fault.headers)
            answer, params = ROUTER.find(request.method, raw_path)
            arguments = parse_qs(request.query)
            return answer(Call(hub.store, hub.access, hub.url, request.user, params, arguments, self.headers, chunks))
        except HubError as error:
            return Reply.error(error)
        except ConnectionError:
            self.close_connection = True
            return Reply(400)
        except Exception as error:
            hub.errors.append(traceback.format_exc())
            return Reply.error(HubError(500, f"{type(error).__name__} in the test server"))

    def _read_body(self, request: Request) -> Iterator[bytes]:
        """The request's body, with a declared length or in chunks."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                yield self._received(request, self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0:
            data = self.rfile.read(min(left, CHUNK))
            if not data:
                raise ConnectionAbortedError("the client went away while sending")
            left -= len(data)
            yield self._received(request, data)

    def _received(self, request: Request, data: bytes) -> bytes:
        request.received += len(data)
        self.hub.throttle.transfer(len(data))
        return data

    def _send(self, request: Request, reply: Reply, fault: Fault | None) -> None:
        """Send the answer, struck by a fault of the kinds that concern it."""
        kind, after = (fault.kind, fault.after) if fault is not None else (None, None)
        if fault is not None and after is None and kind in ("reset", "close", "stall"):
            if self._strike(fault):
                return
            kind = None
        length = reply.length
        if kind == "truncate":
            length = min(length, length // 2 if after is None else after)
        request.status = reply.status
        self.send_response(reply.status)
        added = fault.headers if fault is not None and kind == "headers" else {}
        for name, value in {**reply.headers, "Content-Length": str(length), **added}.items():
            self.send_header(name, value.encode("ascii", "replace").decode())
        self.end_headers()
        if request.method != "HEAD":
            self._send_body(request, reply, length, kind, fault)
        self.wfile.flush()

    def _send_body(
        self, request: Request, reply: Reply, length: int, kind: FaultKind | None, fault: Fault | None
    ) -> None:
        """Send the body up to ``length``; ``kind`` is the fault that strikes within it, if one does."""
        cut = None
        if fault is not None and kind in ("reset", "close", "stall", "corrupt"):
            cut = length // 2 if fault.after is None else fault.after
        for data in _pieces(reply, length, cut):
            if fault is not None and request.sent == cut:
                self.wfile.flush()
                if kind == "corrupt":
                    data = bytes([data[0] ^ 1]) + data[1:]
                elif self._strike(fault):
                    return
            self.hub.throttle.transfer(len(data))
            request.sent += len(data)
            self.wfile.write(data)

    def _strike(self, fault: Fault) -> bool:
        """Pause, or end the connection; true when it has ended."""
        if fault.kind == "stall":
            self.hub.throttle.pause(fault.seconds)
            return False
        self.close_connection = True
        if fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.wfile.close()
            self.connection.close()
        return True

    def setup(self) -> None:
        """Note the connection, for the server to end it when it stops."""
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        """Forget the connection."""
        self.hub.connections.discard(self.connection)
        with contextlib.suppress(ConnectionError):
            super().finish()


def _pieces(reply: Reply, length: int, cut: int | None) -> Iterator[bytes]:
    """The body in pieces, one of which begins at ``cut``."""
    with io.BytesIO(reply.body) if isinstance(reply.body, bytes) else reply.body.open("rb") as file:
        file.seek(reply.start)
        for size in (length,) if cut is None or cut > length else (cut, length - cut):
            while size > 0 and (data := file.read(min(size, CHUNK))):
                size -= len(data)
                yield data
