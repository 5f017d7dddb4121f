"""The client's default way, Xet: pushing, pulling, and its faults, which come as errors of another kind.

In processes of their own: the client decides at its import whether to use Xet, and these tests alone want it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.children import python
from tests.hub import HubServer
from tests.repository.helpers import STUDENT, bodies, tree

ROOT = Path(__file__).resolve().parents[2]

PUSH = """
import sys
from pwl_hf import PWLForImageClassification
model = PWLForImageClassification.from_pretrained(sys.argv[1], stage=1)
print(model.push_to_hub(sys.argv[2]).oid)
"""

PULL = """
import sys
from pathlib import Path
import torch
from huggingface_hub.utils._runtime import is_xet_available
from pwl_hf import FetchError, RetryPolicy
from tests.repository.helpers import load, logits

folder, repo_id, storage = sys.argv[1:]
retry = RetryPolicy(tries=2, first_wait=0.01)
assert is_xet_available()

# The content is lost for a while: whatever goes wrong with Xet is a bare RuntimeError.
lost = {path: path.read_bytes() for path in Path(storage, "xet", "xorbs", "xorbs").iterdir() if path.is_file()}
for path in lost:
    path.unlink()
try:
    load(repo_id, retry=retry)
    print("loaded")
except FetchError as error:
    print("refused", type(error.__cause__.__cause__).__name__, str(error).replace("\\n", " "))
for path, content in lost.items():
    path.write_bytes(content)
model = load(repo_id, retry=retry)
assert torch.equal(logits(model), logits(load(folder)))
for stage in range(1, 4):
    model.load_next_stage()
    assert torch.equal(logits(model), logits(load(folder, stage=stage))), stage

# A stream over the rest, and all of it anew.
with model.stream_stages() as stream:
    assert stream.wait(60)
assert torch.equal(logits(model), logits(load(folder, stage=4)))
model = load(repo_id, retry=retry, force_download=True, stage=4)
assert torch.equal(logits(model), logits(load(folder, stage=4)))

# A byte that changes on this disk is found, and the file is fetched again.
from huggingface_hub import constants
[cached] = [p for p in Path(constants.HF_HUB_CACHE).rglob("snapshots/**/model-00001-of-00004.safetensors")]
content = cached.read_bytes()
cached.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
assert torch.equal(logits(load(repo_id, retry=retry, stage=1)), logits(load(folder, stage=1)))
assert cached.read_bytes() == content
print("done")
"""


@pytest.fixture
def with_xet(fresh_env: dict[str, str]) -> dict[str, str]:
    """The environment of a client as it is out of the box, telemetry apart."""
    kept = {name: value for name, value in fresh_env.items() if name != "HF_HUB_DISABLE_XET"}
    quick = {"HF_XET_TELEMETRY_ENABLED": "0", "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1", "OMP_NUM_THREADS": "1"}
    return kept | quick


def run(code: str, environment: dict[str, str], *arguments: object) -> str:
    done = python(code, environment, ROOT, arguments=arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_push_and_pull_through_xet_are_exact_and_its_faults_are_explained(
    hub: HubServer, repo_id: str, saved: Path, with_xet: dict[str, str], tmp_path: Path
):
    with hub.record() as requests:
        oid = run(PUSH, with_xet, saved, repo_id).strip()
    assert hub.store.head(repo_id) == oid
    assert not [r for r in requests if r.method == "PUT"]
    assert [r.path for r in requests if "/xet-write-token/" in r.path]
    weights = {path for path in tree(saved) if path.endswith(".safetensors")}
    assert set(hub.store.commits(repo_id)[0].operations.lfs) == weights
    assert all(hub.store.xet.hash_of(hub.store.entries(repo_id)[path].sha256) for path in weights)

    environment = with_xet | {"HF_HOME": str(tmp_path / "another-home")}
    with hub.record() as requests:
        said = run(PULL, environment, saved, repo_id, hub.store.xet.root).splitlines()
    assert not weights & set(bodies(requests))
    assert [r.path for r in requests if "/xet-read-token/" in r.path]
    assert said[-1] == "done"
    assert said[0].startswith(f"refused RuntimeError {repo_id}@{oid}: '{STUDENT}' could not be fetched: ")
