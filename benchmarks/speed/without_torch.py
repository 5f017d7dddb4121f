"""What answers on onnxruntime, in the words that a task has for a model; one thread, and no torch.

It is imported in processes whose imports are timed, and imports nothing that a user's own program would not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pwl_hf import runtime

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray


class Output(NamedTuple):
    """An answer.

    Args:
        logits: (B, K) float32.
    """

    logits: NDArray[Any]


class Runtime:
    """A model of `pwl_hf.runtime`.

    Args:
        model: The model.
    """

    def __init__(self, model: runtime.RuntimeModel) -> None:
        self.model = model
        self.num_stages = model.num_stages

    @classmethod
    def from_pretrained(cls, source: str, cache_dir: str | None = None) -> Self:
        """Load stage 0 from a folder or the Hub."""
        return cls(runtime.load(source, cache_dir=cache_dir, threads=1))

    def __call__(self, pixel_values: NDArray[Any]) -> Output:
        """Answer prepared images, (B, C, H, W) float32."""
        return Output(self.model.logits(pixel_values=pixel_values))

    def load_next_stage(self) -> int:
        """As the model's."""
        return self.model.load_next_stage()

    def stream_stages(self, on_stage: Callable[[Any, int], None]) -> Any:
        """As the model's."""
        return self.model.stream_stages(on_stage=on_stage)


class TeacherSession:
    """The whole teacher in a plain session of onnxruntime, as one would write it without this library.

    Args:
        session: The session.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session

    @classmethod
    def from_pretrained(cls, source: str, cache_dir: str | None = None, threads: int = 1) -> Self:
        """Open `teacher/model.onnx` of a folder or of the Hub, from where it is fetched with the teacher's shards."""
        import onnxruntime

        folder = Path(source)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            wanted = ["teacher/*.onnx", "teacher/*.safetensors"]
            folder = Path(snapshot_download(source, allow_patterns=wanted, cache_dir=cache_dir))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return cls(onnxruntime.InferenceSession(folder / "teacher" / "model.onnx", options))

    def __call__(self, pixel_values: NDArray[Any]) -> Output:
        """Answer prepared images, (B, C, H, W) float32."""
        return Output(self.session.run(None, {"pixel_values": pixel_values})[0])
