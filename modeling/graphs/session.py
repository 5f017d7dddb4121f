"""An onnxruntime session over a graph and the mapped tensors of its files (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..arrays.mapped import TensorFile
from ..errors import RepositoryError
from .index import FEATURES_IN, Graph, initialiser

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

CPU = ("CPUExecutionProvider",)
# Where a graph's files would be looked for if they were not handed over: onnxruntime must not look anywhere.
_FOLDER = "session.model_external_initializers_file_folder_path"
_NOWHERE = "no folder: tensors are handed over"


class Options(Protocol):
    """Makes the options of a session; each session has its own, as each has its own tensors."""

    def __call__(self) -> onnxruntime.SessionOptions:
        """The options, to which the tensors are added."""
        ...


class GraphSession:
    """A graph that is ready to run.

    Its weights stay in the mapped files, but for those that onnxruntime lays out anew for its kernels.

    Args:
        graph: What the index says of it.
        content: The graph's bytes, compared with its hash before.
        files: The files that it takes tensors of, by path.
        options: Makes the session's options.
        providers: onnxruntime's execution providers, in the order in which they are to be tried; each may be a pair
            of its name and its options.

    Raises:
        RepositoryError: If a tensor is missing, or onnxruntime does not take the graph.
    """

    def __init__(
        self,
        graph: Graph,
        content: bytes,
        files: Mapping[str, TensorFile],
        options: Options,
        providers: Sequence[Any] = CPU,
    ) -> None:
        import onnxruntime

        self.graph = graph
        names, values = [], []
        for file, tensors in graph.tensors.items():
            if file not in files:
                raise RepositoryError(f"{graph.path!r} takes tensors of {file!r}, which was not handed over")
            for tensor in tensors:
                if tensor not in files[file].places:
                    raise RepositoryError(f"{graph.path!r} takes the tensor {tensor!r:.200}, which {file!r} lacks")
                names.append(initialiser(file, tensor))
                values.append(
                    onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
                        files[file][tensor], files[file].places[tensor].format.onnx
                    )
                )
        made = options()
        made.add_external_initializers(names, values)
        made.add_session_config_entry(_FOLDER, _NOWHERE)
        try:
            self._session = onnxruntime.InferenceSession(content, made, providers=list(providers))
        except Exception as error:  # onnxruntime's errors have no class in common
            raise RepositoryError(f"{graph.path!r} cannot be run by onnxruntime: {error}") from error
        # onnxruntime does not own what was handed over.
        self._values = values
        self.inputs = tuple(node.name for node in self._session.get_inputs())

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers that came up: onnxruntime goes on without one that does not."""
        return tuple(self._session.get_providers())

    def __call__(self, features: NDArray[Any] | None, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Run it.

        Args:
            features: What the graph before it gave; None for the first.
            inputs: What the model was called with, by name.

        Returns:
            The features that it gives, or the logits if it is the last.
        """
        feeds = {name: features if name == FEATURES_IN else inputs[name] for name in self.inputs}
        found: NDArray[Any] = self._session.run(None, feeds)[0]
        return found


def run_chain(sessions: Sequence[GraphSession], inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The logits of graphs that follow each other.

    Args:
        sessions: The graphs of one stage, in their order.
        inputs: What the model is called with, by name.
    """
    features = None
    for session in sessions:
        features = session(features, inputs)
    if features is None:
        raise ValueError("there is no graph to run")
    return features
