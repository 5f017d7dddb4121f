"""A Hub of its own for each test process, set up before anything imports huggingface_hub.

Not to be imported from: use the fixtures.
"""

import atexit
import gc
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.hub import HubServer  # noqa: E402

TOKEN = "hf_tester"
OTHER_TOKEN = "hf_other"

if "huggingface_hub" in sys.modules:
    raise RuntimeError("huggingface_hub was imported before tests/conftest.py could set HF_ENDPOINT; load it later")

_FOLDER = Path(tempfile.mkdtemp(prefix="pwl-hf-tests-"))
_SERVER = HubServer(
    _FOLDER / "hub",
    users={TOKEN: "tester", OTHER_TOKEN: "other"},
    orgs={"org": ["tester"], "other-org": ["other"]},
)
_SERVER.start()


def _hub_environment(environment: dict[str, str], home: Path) -> dict[str, str]:
    """A copy of an environment that points at the server, with caches under ``home`` only."""
    prefixes = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")
    kept = {name: value for name, value in environment.items() if not name.startswith(prefixes)}
    loopback = ",".join(filter(None, [kept.get("NO_PROXY"), "127.0.0.1"]))
    return {
        **kept,
        "HF_ENDPOINT": _SERVER.url,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "10",
        "HF_HUB_ETAG_TIMEOUT": "10",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "NO_PROXY": loopback,
        "no_proxy": loopback,
    }


def _use_environment() -> None:
    environment = _hub_environment(dict(os.environ), _FOLDER / "home")
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def _clean_up() -> None:
    _SERVER.close()
    shutil.rmtree(_FOLDER, ignore_errors=True)


_use_environment()
atexit.register(_clean_up)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As with `--dist worksteal`: a process gets tests that follow one another, which make their fixtures once."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


def pytest_collection_finish() -> None:
    """What the imports left stays: without it each full collection of garbage goes through all of torch again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """The process's Hub, without requests, faults or limits; its repositories live on from test to test."""
    _SERVER.reset()
    yield _SERVER
    mistakes = list(_SERVER.errors)
    _SERVER.reset()
    assert not mistakes, mistakes[0]


@pytest.fixture
def repo_id() -> str:
    """The name of a repository that does not exist yet, in the user's namespace."""
    return f"tester/name-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def other_token() -> str:
    """The token of the user "other", who owns nothing of tester's."""
    return OTHER_TOKEN


@pytest.fixture
def fresh_env(tmp_path: Path) -> dict[str, str]:
    """The environment for a new process: the same Hub, an empty cache. HF_HUB_OFFLINE=1 takes it offline."""
    return _hub_environment(dict(os.environ), tmp_path / "hf-home")
