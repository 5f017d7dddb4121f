"""Dockerfiles, built and run as far as that goes without Docker: their steps in a folder, by the tests' own Python.

    image = build(DOCKERFILE, folder, {"REPO": "org/pwl"}, environment)
    process = image.run({"HF_ENDPOINT": ...})

`pip install` of the checkout is done for real; what it requires is linked from the tests' environment.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.serving.slim import slim_environment

ROOT = Path(__file__).resolve().parents[2]
# The folders of an image, each of which is one below the folder that it is built in.
FOLDERS = ("/src", "/app", "/baked", "/cache", "/var/task", "/tmp/huggingface")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def steps(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, in order, with their arguments."""
    lines = [line for line in dockerfile.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines()]


@dataclass
class Image:
    """What was built.

    Args:
        root: The folder that its root folder is.
        python: Its interpreter.
        base: FROM.
        env: Its variables, without those of a process at all.
        command: CMD, in JSON.
        user: USER, if there is one.
        health: The command of HEALTHCHECK, if there is one.
    """

    root: Path
    python: Path
    env: dict[str, str]
    base: str = ""
    command: Sequence[str] = ()
    user: str | None = None
    health: Sequence[str] = ()

    def here(self, text: str) -> str:
        """A text with the image's folders where they are."""
        for folder in FOLDERS:
            text = re.sub(rf"(?<![\w.]){folder}\b", str(self.root) + folder, text)
        return text

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """All variables of a process in it; it has no home of its own."""
        path = f"{self.python.parent}:{os.environ['PATH']}"
        image = {name: self.here(value) for name, value in self.env.items()}
        return {**image, "HOME": "/nonexistent", "PATH": path, **more}

    def start(self, command: Sequence[str], more: Mapping[str, str]) -> subprocess.Popen[str]:
        """Start one of its commands, with its log on stderr."""
        given = [self.here(part) for part in command]
        return subprocess.Popen(given, env=self.environment(more), cwd=self.root, stderr=subprocess.PIPE, text=True)


def build(dockerfile: Path, folder: Path, arguments: Mapping[str, str], environment: Mapping[str, str]) -> Image:
    """Do what the steps of a Dockerfile say.

    Args:
        dockerfile: The file.
        folder: An empty folder.
        arguments: `--build-arg`.
        environment: What a step has besides the image's own variables, such as the address of a Hub.

    Raises:
        AssertionError: If a step fails; for an instruction that is not known here.
    """
    image = Image(folder, folder / "venv" / "bin" / "python", {"LAMBDA_TASK_ROOT": "/var/task"})
    declared: dict[str, str] = {}

    def expand(text: str) -> str:
        return _VARIABLE.sub(lambda m: {**declared, **image.env}.get(m[1] or m[2], ""), text)

    for name, argument in steps(dockerfile):
        if name == "ARG":
            key, _, default = argument.partition("=")
            declared[key] = arguments.get(key, default)
        elif name == "ENV":
            image.env |= dict(part.split("=", 1) for part in shlex.split(expand(argument)))
        elif name == "COPY":
            *sources, target = shlex.split(expand(argument))
            _copy(sources, Path(image.here(target)), is_folder=target.endswith("/"))
        elif name == "RUN":
            if "pip install" in argument:
                _pip_install(image, shlex.split(expand(argument)))
            else:
                # Whoever runs the tests owns what he makes.
                command = re.sub(r"-o 1000 -g 1000", f"-o {os.getuid()} -g {os.getgid()}", image.here(argument))
                _run(["sh", "-ec", command], image.environment({**environment, **declared}))
        elif name == "CMD":
            image.command = json.loads(argument)
        elif name == "USER":
            image.user = argument
        elif name == "HEALTHCHECK":
            image.health = json.loads(argument.partition(" CMD ")[2])
        elif name == "FROM":
            image.base = argument
        else:
            assert name == "EXPOSE", name
    return image


def _copy(sources: Sequence[str], target: Path, *, is_folder: bool) -> None:
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place = target / Path(source).name if is_folder else target
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, place)


def _pip_install(image: Image, command: Sequence[str]) -> None:
    """What pip would bring, linked; but the checkout itself as it was copied, built and installed."""
    *_, after = " ".join(command).partition("pip install ")
    given = [part for part in shlex.split(after) if part != "--no-cache-dir"]
    assert given[:2] == ["-c", "/src/constraints.txt"]
    wanted = [part.replace("/src", "pwl-hf") for part in given[2:]]
    assert wanted[0].startswith("pwl-hf")
    # Lambda's own image has its runtime client.
    base = ["awslambdaric"] if "/lambda/" in image.base else []
    slim_environment(image.root / "venv", [*wanted, *base])
    (site,) = image.python.parent.parent.glob("lib/python*/site-packages")
    for link in site.glob("*pwl_hf*"):
        link.unlink()
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(site)]
    _run([sys.executable, "-m", "pip", "install", *options, str(_wheel_of(Path(image.here("/src"))))], os.environ)


_WHEELS: dict[str, Path] = {}


def _wheel_of(source: Path) -> Path:
    """The wheel of a copy of the checkout; of equal copies it is built once."""
    digest = hashlib.sha256()
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(source)} {path.stat().st_size} ".encode() + path.read_bytes())
    if digest.hexdigest() not in _WHEELS:
        folder = Path(tempfile.mkdtemp(prefix="pwl-hf-wheel-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder)]
        _run([sys.executable, "-m", "pip", "wheel", *options, str(source)], os.environ)
        (_WHEELS[digest.hexdigest()],) = folder.glob("*.whl")
    return _WHEELS[digest.hexdigest()]


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
