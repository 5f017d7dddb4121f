"""New Python processes that need not import torch: forks of one that has, and that knows nothing of the package.

    done = python("import pwl_hf; print(pwl_hf.__version__)", fresh_env, tmp_path)

A child has its own environment, folder and streams. Nothing that reads settings of the Hub at its import is there
before the fork: neither huggingface_hub nor transformers. What is about the imports of torch itself, about memory or
about the interpreter's end needs a process of its own all the same.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

# Most of what transformers and the package import, and none of them.
_IMPORTED = ("torch._dynamo", "torch.distributed.tensor", "scipy.optimize", "sklearn.metrics", "safetensors.torch")
_LATER = {"huggingface_hub", "transformers", "pwl_hf", "datasets", "accelerate", "matplotlib"}

_Popen = subprocess.Popen


class Child(subprocess.Popen[str]):
    """`subprocess.Popen` for `[sys.executable, ...]` with `-c`, `-m` or a script; torch has one thread in it."""

    def _execute_child(self, args: Any, *rest: Any) -> None:
        (_, _, _, _, cwd, env, _, _, _, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *_) = rest
        executable, *command = map(str, args)
        assert executable == sys.executable
        order = {
            "command": command,
            "cwd": os.path.abspath(cwd or "."),
            "env": dict(os.environ if env is None else env),
        }
        streams = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        self.pid = _ask(order, streams)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        while (status := _ask({"wait": self.pid})) is None:
            if wait_flags & os.WNOHANG:
                return 0, 0
            time.sleep(0.005)
        return self.pid, status

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        # What is left over when its interpreter ends is nobody's.
        if self.returncode is None and _deadstate is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


if sys.platform != "linux":
    # Nothing to fork from, on Windows at all and on macOS safely: each child is new, which takes longer.
    Child = subprocess.Popen  # type: ignore[assignment,misc]


def python(
    code: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    *,
    arguments: Sequence[object] = (),
    stdin: str | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run code in a new process to its end.

    Args:
        code: As after `python -c`.
        env: The whole environment; this process's by default.
        cwd: Its folder; this process's by default.
        arguments: `sys.argv[1:]`.
        stdin: What it reads.
        timeout: Seconds after which it is killed, and this an error.
    """
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    with Child(command, env=env, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        try:
            said = child.communicate(stdin, timeout)
        except BaseException:
            child.kill()
            raise
    return subprocess.CompletedProcess(command, child.returncode, *said)


# --- The process that forks ----------------------------------------------------------------------------------------

_lock = threading.Lock()
_socket: socket.socket | None = None


def _ask(order: Mapping[str, Any], streams: Sequence[int] = ()) -> Any:
    global _socket
    with _lock:
        if _socket is None:
            _socket = _start()
        body = json.dumps(order).encode()
        socket.send_fds(_socket, [len(body).to_bytes(8, "big")], list(streams))
        _socket.sendall(body)
        return json.loads(_read(_socket, int.from_bytes(_read(_socket, 8), "big")))


def _start() -> socket.socket:
    ours, its = socket.socketpair()
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(its.fileno())]
    server = _Popen(command, env={**os.environ, **threads}, pass_fds=[its.fileno()])
    its.close()

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours


def _read(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            raise EOFError
        found += part
    return found


def _serve(connection: socket.socket) -> None:
    for name in _IMPORTED:
        import_module(name)
    assert not _LATER & set(sys.modules), _LATER & set(sys.modules)
    gc.freeze()
    while True:
        size, streams, _, _ = socket.recv_fds(connection, 8, 3)
        if not size:
            return
        order = json.loads(_read(connection, int.from_bytes(size, "big")))
        if "wait" in order:
            pid, status = os.waitpid(order["wait"], os.WNOHANG)
            answer = status if pid else None
        else:
            answer = os.fork()
            if not answer:
                connection.close()
                _run(order, streams)
            for stream in streams:
                os.close(stream)
        body = json.dumps(answer).encode()
        connection.sendall(len(body).to_bytes(8, "big") + body)


def _run(order: dict[str, Any], streams: Sequence[int]) -> NoReturn:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    code = 0
    try:
        _main(*order["command"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if code and ended.code != code:
            sys.stderr.write(f"{ended.code}\n")
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # To take all of torch down piece by piece takes a second.
    os._exit(code)


def _main(first: str, *rest: str) -> None:
    if first == "-c":
        sys.path[0], sys.argv = "", ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.path[0], sys.argv = os.getcwd(), list(rest)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = os.path.dirname(os.path.abspath(first)), [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
