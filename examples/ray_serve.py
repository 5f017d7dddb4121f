"""The example server as a Ray Serve deployment: from no replica to several, each of which grows by itself.

    pip install "ray[serve]" -e ".[serve]"       # with runtime=1: -e ".[runtime]"
    serve run examples.ray_serve:app repo=org/pwl-vit
    serve run examples.ray_serve:app repo=org/pwl-vit runtime=1 max_replicas=8
    curl --data-binary @cat.png http://127.0.0.1:8000/predict

A request that finds no replica waits for one, which takes requests as soon as it is at stage 0. So answers of the
same moment may be of different stages: each says its stage, and by the header X-Replica whose it is.
"""

import os
from typing import Any

from pydantic import BaseModel
from ray import serve
from ray.serve import Application


class Settings(BaseModel):
    """What `serve run` is given as NAME=VALUE.

    Args:
        repo: A folder that every node has, or a Hub id.
        runtime: Run on `pwl_hf.runtime`, rather than on torch.
        revision: Its branch, tag or commit.
        max_replicas: The most replicas.
        cpus: Cores of a replica, which is how many threads its forward passes have together.
        idle_seconds: How long a replica that is not needed is kept, the last one included.
    """

    repo: str
    runtime: bool = False
    revision: str | None = None
    max_replicas: int = 4
    cpus: int = 1
    idle_seconds: float = 300


def server() -> Any:
    """The server of `examples/serve.py`, made in the replica; it begins to listen at stage 0."""
    from examples.serve import app

    name = serve.get_replica_context().replica_id.unique_id

    @app.middleware("http")
    async def name_replica(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["X-Replica"] = name
        return response

    return app


class Replica:
    """A process with a model of its own.

    Ray looks after it by its process alone: no `check_health` here asks how far the model has grown, for a network
    that fails must not end a replica that answers.

    Args:
        repo: A folder or a Hub id.
        on_runtime: Whether it runs on `pwl_hf.runtime`.
        revision: Its branch, tag or commit.
    """

    def __init__(self, repo: str, on_runtime: bool, revision: str | None) -> None:
        # The server reads these when it is made, which is after this.
        os.environ |= {"PWL_REPO": repo, "PWL_RUNTIME": str(int(on_runtime)), "PWL_REVISION": revision or ""}


def scaling(settings: Settings) -> dict[str, Any]:
    """The options of a deployment that goes down to no replica, and up soon."""
    return {
        "autoscaling_config": {
            "min_replicas": 0,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": 2,
            # A replica at stage 0 is soon there, so it need not be thought over for Ray's 30 s.
            "upscale_delay_s": 1,
            "look_back_period_s": 11,
            "downscale_delay_s": settings.idle_seconds,
        },
        "max_ongoing_requests": 8,
        "ray_actor_options": {"num_cpus": settings.cpus},
    }


def app(settings: Settings) -> Application:
    """The application, as `serve run` and `serve.run` take it."""
    replica = serve.deployment(serve.ingress(server)(Replica)).options(**scaling(settings))
    made: Application = replica.bind(settings.repo, settings.runtime, settings.revision)
    return made
