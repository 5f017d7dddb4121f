"""A process with the imports done, that forks a child for each command; `python -m tests.faults.fork_server`.

Reads lines of `kind argument...` from stdin, answers each with the child's pid on stdout. Not to be imported.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from pwl_hf import PWLForImageClassification, RetryPolicy
from pwl_hf.modeling.publishing.push import Target
from pwl_hf.quantising import quantise_repository
from tests.tiny import tiny_images, tiny_model


def stream(repo_id: str, cache: str, started: str) -> None:
    """Grow to the teacher while answering."""
    model = PWLForImageClassification.from_pretrained(repo_id, cache_dir=cache, retry=RetryPolicy(first_wait=0.01))
    images = tiny_images("resnet")
    Path(started).touch()
    handle = model.stream_stages()
    while not handle.done:
        model(images)
    if handle.exception is not None:
        raise handle.exception
    Path(cache, f"done-{os.getpid()}").touch()


def save(folder: str, started: str, second: str) -> None:
    """Save two models over each other for ever."""
    models = [tiny_model("resnet", seed=seed) for seed in (0, 1)]
    if second == "rungs":
        models[1].add_tier()
    Path(started).touch()
    while True:
        for model in models:
            model.save_pretrained(folder)


def download(repo_id: str, cache: str, started: str) -> None:
    """Load everything at once."""
    Path(started).touch()
    PWLForImageClassification.from_pretrained(repo_id, cache_dir=cache, keep_all=True)


def quantise(folder: str, started: str, times: str) -> None:
    """Add low precision to a repository in its own folder, and take it out again, so many times."""
    plain = tiny_model("resnet")
    Path(started).touch()
    for _ in range(int(times)):
        quantise_repository(folder, target=Target("none"))
        plain.save_pretrained(folder)
    Path(folder, f"done-{os.getpid()}").touch()


def push(repo_id: str, started: str, second: str) -> None:
    """Push two models over each other for ever."""
    models = [tiny_model("vit", num_stages=2, seed=seed) for seed in (0, 1)]
    if second == "rungs":
        models[1].add_tier()
    Path(started).touch()
    while True:
        for model in models:
            model.push_to_hub(repo_id)


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main() -> None:
    torch.set_num_threads(1)
    commands = {"stream": stream, "save": save, "download": download, "push": push, "quantise": quantise}
    # Nobody waits for the children; their exit status is of no interest.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    say("ready")
    for line in sys.stdin:
        kind, *arguments = line.split()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                commands[kind](*arguments)
                code = 0
            finally:
                os._exit(code)
        say(str(pid))


if __name__ == "__main__":
    main()
