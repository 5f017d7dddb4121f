"""What a step's log says besides the loss: every term of it, and samples a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


class StepLog:
    """Sums between two logs, kept where they were computed: nothing waits for the device until a log is due."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._samples = 0
        self._started: float | None = None

    def add(self, terms: Mapping[str, torch.Tensor], samples: int) -> None:
        """Take in a forward pass.

        Args:
            terms: Scalars by name; a term that does not apply at this step is not there.
            samples: How many samples this process saw in it.
        """
        if self._started is None:
            self._started = time.perf_counter()
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
            self._counts[name] = self._counts.get(name, 0) + 1
        self._samples += samples

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time within does not count as training."""
        before = time.perf_counter()
        try:
            yield
        finally:
            if self._started is not None:
                self._started += time.perf_counter() - before

    def drain(self, total: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> dict[str, float]:
        """The means since the last call; all processes must call it together.

        Args:
            total: The sum of a tensor over all processes.
            device: Where that sum is made.

        Returns:
            `loss_<term>`, the mean over the passes in which the term applied, and `samples_per_second`, of all
            processes together.
        """
        # The same terms in the same order everywhere: which apply depends on the step alone.
        names = list(self._sums)
        local = [self._sums[name].to(device) / self._counts[name] for name in names]
        ones = torch.tensor([1.0, float(self._samples)], device=device)
        found = total(torch.cat([torch.stack(local), ones]) if local else ones).tolist()
        *sums, processes, samples = found
        logs = {f"loss_{name}": value / processes for name, value in zip(names, sums, strict=True)}
        now = time.perf_counter()
        if self._started is not None:
            logs["samples_per_second"] = samples / max(now - self._started, 1e-9)
        self._sums, self._counts, self._samples, self._started = {}, {}, 0, now
        return logs
