"""New processes that need not import torch: forks of one that has, and that knows nothing of the package.

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
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

# Most of what transformers and the package import, and none of them.
_IMPORTED = ("torch._dynamo", "torch.distributed.tensor", "scipy.optimize", "sklearn.metrics", "safetensors.torch")
_LATER = {"huggingface_hub", "transformers", "pwl_hf", "datasets", "accelerate", "matplotlib"}


@dataclass
class Child:
    """A process that runs.

    Args:
        pid: Its number.
        code: What it runs.
        folder: Holds what it is given to read and what it says.
    """

    pid: int
    code: str
    folder: tempfile.TemporaryDirectory[str]

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """What it said, when it has ended.

        Raises:
            subprocess.TimeoutExpired: If it has not after so many seconds; it is killed then.
        """
        end = time.monotonic() + timeout
        while (status := _ask({"wait": self.pid})) is None:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(self.code, timeout)
            time.sleep(0.005)
        said = [Path(self.folder.name, name).read_text() for name in ("out", "err")]
        self.folder.cleanup()
        return subprocess.CompletedProcess(self.code, status, *said)


def start(
    code: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | str = ".",
    *,
    arguments: Sequence[object] = (),
    stdin: str | None = None,
) -> Child:
    """Run code in a new process.

    Args:
        code: As after `python -c`.
        env: The whole environment; this process's by default. torch has one thread whatever it says.
        cwd: Its folder.
        arguments: `sys.argv[1:]`.
        stdin: What it reads.
    """
    folder = tempfile.TemporaryDirectory(prefix="pwl-hf-child-")
    Path(folder.name, "in").write_text(stdin or "")
    order = {"code": code, "env": dict(os.environ if env is None else env), "cwd": str(Path(cwd).resolve())}
    order |= {"arguments": [str(argument) for argument in arguments], "folder": folder.name}
    return Child(_ask(order), code, folder)


def python(
    code: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | str = ".",
    *,
    arguments: Sequence[object] = (),
    stdin: str | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run code in a new process to its end; the arguments are those of `start` and `Child.wait`."""
    return start(code, env, cwd, arguments=arguments, stdin=stdin).wait(timeout)


# --- The process that forks ----------------------------------------------------------------------------------------

_lock = threading.Lock()
_server: subprocess.Popen[str] | None = None


def _ask(order: dict[str, Any]) -> Any:
    global _server
    with _lock:
        if _server is None:
            threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            _server = subprocess.Popen(
                [sys.executable, __file__],
                env={**os.environ, **threads},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            atexit.register(_server.communicate)
        assert _server.stdin is not None
        assert _server.stdout is not None
        _server.stdin.write(json.dumps(order) + "\n")
        _server.stdin.flush()
        return json.loads(_server.stdout.readline())


def _serve() -> None:
    for name in _IMPORTED:
        import_module(name)
    assert not _LATER & set(sys.modules), _LATER & set(sys.modules)
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            pid, status = os.waitpid(order["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                _run(order)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _run(order: dict[str, Any]) -> NoReturn:
    for descriptor, name in enumerate(("in", "out", "err")):
        flags = os.O_RDONLY if name == "in" else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        opened = os.open(os.path.join(order["folder"], name), flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    # The old one may hold what it read ahead.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.path[0] = ""
    sys.argv = ["-c", *order["arguments"]]
    code = 0
    try:
        exec(compile(order["code"], "<string>", "exec"), {"__name__": "__main__"})
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


if __name__ == "__main__":
    _serve()
