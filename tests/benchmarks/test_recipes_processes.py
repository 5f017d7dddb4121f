"""The processes that train and measure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.recipes.processes import ChildFailed, Children
from tests.children import Child


def test_child_has_one_thread_and_its_output_is_logged(tmp_path):
    log = tmp_path / "log.txt"
    with Children() as children:
        children([sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"], log)
    assert log.read_text() == "1\n"


def test_failed_child_is_told_with_the_end_of_its_log(tmp_path):
    with Children() as children, pytest.raises(ChildFailed, match=r"ended with 3(.|\n)*no such option"):
        children([sys.executable, "-c", "print('no such option'); raise SystemExit(3)"], tmp_path / "log.txt")


def test_children_end_with_the_command(tmp_path):
    """A command that is asked to end leaves no training behind."""
    code = f"""
import signal, sys, threading
from pathlib import Path
from benchmarks.recipes.command import interrupt
from benchmarks.recipes.processes import Children
signal.signal(signal.SIGTERM, interrupt)
child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
with Children() as children:
    threading.Thread(target=lambda: children([sys.executable, "-c", child], Path({str(tmp_path / "log")!r}))).start()
    threading.Event().wait()
"""
    parent = Child(
        [sys.executable, "-c", code],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    log = tmp_path / "log"
    wait_for(lambda: log.exists() and log.read_text().strip() != "")
    child = int(log.read_text())
    parent.send_signal(signal.SIGTERM)
    parent.wait(60)
    wait_for(lambda: not Path(f"/proc/{child}").exists())


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
