"""AWS Lambda as a function sees it: the Runtime and Extensions APIs, and an environment that is frozen when it is idle.

    with Lambda(python, "lambda_function.handler", folder, environment) as service:
        answer = service.invoke({"requestContext": ...})

The function runs in AWS's own runtime client (`awslambdaric`). As in Lambda, an environment gets an event when the
runtime and every extension have asked for the next one; from then on until it gets it, its process is stopped.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RUNTIME, EXTENSION = "/2018-06-01/runtime", "/2020-01-01/extension"


class Lambda:
    """One environment of a function.

    Args:
        python: The interpreter, which has `awslambdaric`.
        handler: `module.function`.
        folder: The function's code.
        environment: Its variables.
        timeout: The function's, in seconds.
    """

    def __init__(
        self, python: Path, handler: str, folder: Path, environment: Mapping[str, str], timeout: float = 60
    ) -> None:
        self.timeout = timeout
        self.extensions: dict[str, list[str]] = {}
        self.failures: list[str] = []
        self._waiting: set[str] = set()
        self._changed = threading.Condition()
        self._events: dict[str, queue.Queue[dict[str, Any] | None]] = {"runtime": queue.Queue()}
        self._answers: queue.Queue[tuple[str, Any]] = queue.Queue()
        service = self

        class Api(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                service._get(self)

            def do_POST(self) -> None:
                service._post(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.process = subprocess.Popen(
            [str(python), "-m", "awslambdaric", handler],
            cwd=folder,
            env={**environment, "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._server.server_port}"},
            stderr=subprocess.STDOUT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stdout or ()), daemon=True)
        self._reader.start()

    def invoke(self, event: Any) -> dict[str, Any]:
        """Send an event when the environment is free, and return the function's answer at once.

        Raises:
            AssertionError: If the function failed; with its log.
        """
        self.wait_until_frozen()
        os.kill(self.process.pid, signal.SIGCONT)
        given = {"id": str(uuid.uuid4()), "event": event, "deadline": int(1000 * (time.time() + self.timeout))}
        with self._changed:
            self._waiting.clear()
        for waiting in self._events.values():
            waiting.put(given)
        kind, answer = self._answers.get(timeout=120)
        assert kind == "response", (answer, self.log)
        return answer

    def wait_until_frozen(self) -> None:
        """Wait until the runtime and all extensions are done with the last event; the process is stopped then."""
        with self._changed:
            done = self._changed.wait_for(
                lambda: self.failures or (self._waiting == set(self._events) and self.extensions), 120
            )
        assert done, f"still waiting for {set(self._events) - self._waiting}: {self.log}"
        assert not self.failures, (self.failures, self.log)
        os.kill(self.process.pid, signal.SIGSTOP)

    def __enter__(self) -> Lambda:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for waiting in self._events.values():
            waiting.put(None)
        self._server.shutdown()
        self._server.server_close()

    # --- The two APIs -------------------------------------------------------------------------------------------

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        name = "runtime" if request.path == f"{RUNTIME}/invocation/next" else ""
        if request.path == f"{EXTENSION}/event/next":
            name = request.headers["Lambda-Extension-Identifier"]
        if name not in self._events:
            return _say(request, 403, {"errorType": "Extension.UnknownExtensionIdentifier"})
        with self._changed:
            self._waiting.add(name)
            self._changed.notify_all()
        given = self._events[name].get()
        if given is None:
            return None
        if name == "runtime":
            headers = {"Lambda-Runtime-Aws-Request-Id": given["id"], "Lambda-Runtime-Deadline-Ms": given["deadline"]}
            return _say(request, 200, given["event"], headers)
        return _say(
            request, 200, {"eventType": "INVOKE", "requestId": given["id"], "deadlineMs": given["deadline"]}, {}
        )

    def _post(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if request.path == f"{EXTENSION}/register":
            # An internal extension may not ask for SHUTDOWN, nor come once the function is initialised.
            events, late = json.loads(body)["events"], "runtime" in self._waiting
            if late or events != ["INVOKE"]:
                return _say(request, 403, {"errorType": "Extension.RegistrationNotAllowed"})
            identity = str(uuid.uuid4())
            with self._changed:
                self.extensions[request.headers["Lambda-Extension-Name"]] = events
                self._events[identity] = queue.Queue()
            return _say(request, 200, {"functionName": "f"}, {"Lambda-Extension-Identifier": identity})
        kind = request.path.rpartition("/")[2]
        if request.path == f"{RUNTIME}/init/error":
            with self._changed:
                self.failures.append(body.decode())
                self._changed.notify_all()
        else:
            self._answers.put((kind, json.loads(body)))
        return _say(request, 202, {})


def _say(request: BaseHTTPRequestHandler, status: int, content: Any, headers: Mapping[str, Any] | None = None) -> None:
    body = json.dumps(content).encode()
    request.send_response(status)
    for name, value in {"Content-Type": "application/json", **(headers or {}), "Content-Length": len(body)}.items():
        request.send_header(name, str(value))
    request.end_headers()
    request.wfile.write(body)
