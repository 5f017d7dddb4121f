"""The forks that tests run code in behave as fresh processes do."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests import children
from tests.children import Child, python


def test_code_has_its_own_arguments_environment_folder_and_streams(tmp_path):
    code = """
import os, sys
print(sys.argv, sorted(os.environ), os.getcwd(), __name__, sys.stdin.read())
sys.stderr.write("told")
"""
    done = python(code, {"ONE": "1"}, tmp_path, arguments=["a", 2], stdin="asked")
    assert done.stdout == f"{['-c', 'a', '2']} {['ONE']} {tmp_path} __main__ asked\n"
    assert (done.returncode, done.stderr) == (0, "told")


@pytest.mark.parametrize(
    ("code", "returncode", "told"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('wrong')", 1, "wrong\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})", -signal.SIGKILL, ""),
    ],
)
def test_end_is_told_as_of_any_process(code, returncode, told):
    done = python(code)
    assert done.returncode == returncode
    assert done.stderr.endswith(told)


def test_what_is_registered_for_the_end_and_threads_come_first():
    code = """
import atexit, threading, time
atexit.register(print, "last")
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
"""
    assert python(code).stdout == "thread\nlast\n"


def test_nothing_is_imported_that_reads_settings_or_is_ours():
    later = {"huggingface_hub", "transformers", "pwl_hf", "datasets", "accelerate"}
    code = f"import sys; print(sorted({later!r} & set(sys.modules)), 'torch' in sys.modules)"
    assert python(code).stdout == "[] True\n"


def test_modules_and_scripts_are_run_too(tmp_path):
    (tmp_path / "here.py").write_text("import sys; print(__name__, sys.argv[1:], sys.path[0])")
    for command in (["-m", "here", "x"], [str(tmp_path / "here.py"), "x"]):
        with Child([sys.executable, *command], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as child:
            said, _ = child.communicate()
        assert (child.returncode, said) == (0, f"__main__ ['x'] {tmp_path}\n")


def test_process_that_takes_too_long_is_killed(monkeypatch):
    started = []

    class Noted(Child):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(children, "Child", Noted)
    with pytest.raises(subprocess.TimeoutExpired):
        python("import time; time.sleep(3600)", timeout=0.5)
    assert [child.returncode for child in started] == [-signal.SIGKILL]
