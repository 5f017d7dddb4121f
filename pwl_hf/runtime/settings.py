"""How onnxruntime is to run a model's graphs (onnxruntime is imported once there is something to run)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pwl_hf.modeling.errors import InputError

if TYPE_CHECKING:
    import onnxruntime

# A provider by onnxruntime's name, with its options or without.
Provider = str | tuple[str, Mapping[str, Any]]
CPU: tuple[Provider, ...] = ("CPUExecutionProvider",)

# Each session has threads of its own, which spin on for a while when a run is over: beside the next graph's.
_NO_SPINNING_BETWEEN_RUNS = ("session.force_spinning_stop", "1")


@dataclass(frozen=True)
class Settings:
    """How onnxruntime is to run a model's graphs.

    Args:
        providers: Its execution providers in the order in which they are tried, by its names.
        threads: The threads of a run; as many as there are cores by default.
        session_options: Makes the `SessionOptions` of a graph's session, anew each time.

    Raises:
        ValueError: If one of them cannot be.
    """

    providers: tuple[Provider, ...] = CPU
    threads: int | None = None
    session_options: Callable[[], onnxruntime.SessionOptions] | None = None

    def __post_init__(self) -> None:
        if not self.providers or not all(_is_provider(provider) for provider in self.providers):
            raise ValueError(
                "providers must be a sequence of onnxruntime's names, each alone or in a pair with its options, such "
                f"as ['CUDAExecutionProvider', 'CPUExecutionProvider'], got {self.providers!r:.200}"
            )
        threads = self.threads
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads must be a whole number of at least 1, got {threads!r:.100}")
        if self.session_options is not None and not callable(self.session_options):
            raise ValueError(
                "session_options must be a function that makes an onnxruntime.SessionOptions, as each graph's session "
                f"has its own, got {type(self.session_options).__name__}"
            )

    @classmethod
    def of(cls, providers: Sequence[Provider], threads: int | None, session_options: Any) -> Settings:
        """Settings as a caller gives them."""
        if isinstance(providers, str) or not isinstance(providers, Sequence):
            raise ValueError(f"providers must be a sequence of onnxruntime's names, got {providers!r:.200}")
        return cls(tuple(providers), threads, session_options)

    @property
    def names(self) -> tuple[str, ...]:
        """The providers' names."""
        return tuple(provider if isinstance(provider, str) else provider[0] for provider in self.providers)

    def check(self) -> None:
        """Compare them with the onnxruntime that is installed, which itself would go on without what it lacks.

        Raises:
            InputError: If it has no such provider.
            ValueError: If `session_options` makes something else, or the same object twice.
        """
        import onnxruntime

        available = onnxruntime.get_available_providers()
        for name in self.names:
            if name not in available:
                raise InputError(
                    f"providers: {name!r:.100} is not in the onnxruntime that is installed, which has "
                    f"{', '.join(available)}: give one of these, or install the onnxruntime that has it"
                )
        if self.session_options is not None:
            one, other = self.session_options(), self.session_options()
            if not isinstance(one, onnxruntime.SessionOptions) or one is other:
                raise ValueError(
                    "session_options must make a new onnxruntime.SessionOptions each time it is called, got "
                    f"{'the same object twice' if one is other else type(one).__name__}"
                )

    def make(self) -> onnxruntime.SessionOptions:
        """The options of one session. The caller's own are taken as they are, but for `threads`."""
        import onnxruntime

        if self.session_options is not None:
            made = self.session_options()
        else:
            made = onnxruntime.SessionOptions()
            made.add_session_config_entry(*_NO_SPINNING_BETWEEN_RUNS)
        if self.threads is not None:
            made.intra_op_num_threads = self.threads
        return made


def _is_provider(given: Any) -> bool:
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping):
        given = given[0]
    return isinstance(given, str)
