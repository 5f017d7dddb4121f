"""Providers, threads and session options: passed through, and refused by name where they cannot be."""

from __future__ import annotations

import onnxruntime
import pytest

from pwl_hf import runtime
from pwl_hf.modeling.errors import InputError
from pwl_hf.modeling.graphs.session import GraphSession
from pwl_hf.runtime.settings import Settings

SPINNING = "session.force_spinning_stop"


def test_provider_that_is_not_installed_is_refused_before_weights_are_read(copied):
    (copied / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"'CUDAExecutionProvider' is not in the onnxruntime .* CPUExecutionProvider"):
        runtime.load(copied, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])


def test_provider_that_does_not_come_up_is_refused(exported, monkeypatch):
    monkeypatch.setattr(GraphSession, "providers", ("CPUExecutionProvider",))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["Odd", "CPUExecutionProvider"])
    real = onnxruntime.InferenceSession

    def cpu_alone(content, options, providers):
        assert providers == [("Odd", {"device_id": "1"}), "CPUExecutionProvider"]
        return real(content, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", cpu_alone)
    with pytest.raises(InputError, match="'Odd' did not come up"):
        runtime.load(exported(), providers=[("Odd", {"device_id": "1"}), "CPUExecutionProvider"])


WRONG = {
    "text": {"providers": "CPUExecutionProvider"},
    "none": {"providers": []},
    "number": {"providers": [1]},
    "threads": {"threads": 0},
    "threads that are true": {"threads": True},
    "options": {"session_options": 3},
}


@pytest.mark.parametrize("kind", WRONG)
def test_settings_that_cannot_be_are_refused_by_name(exported, kind):
    with pytest.raises(ValueError, match=next(iter(WRONG[kind]))):
        runtime.load(exported(), **WRONG[kind])


def test_options_must_be_made_anew(exported):
    one = onnxruntime.SessionOptions()
    with pytest.raises(ValueError, match="the same object twice"):
        runtime.load(exported(), session_options=lambda: one)
    with pytest.raises(ValueError, match="got dict"):
        runtime.load(exported(), session_options=dict)


def test_options_of_the_caller_are_taken_as_they_are_but_for_threads(load, expected):
    made = []

    def options() -> onnxruntime.SessionOptions:
        made.append(onnxruntime.SessionOptions())
        made[-1].graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return made[-1]

    model = load(stage=1, session_options=options, threads=3)
    found = model.logits(pixel_values=expected().pixels)
    assert abs(found - expected().logits[1]).max() < 1e-5
    assert {m.intra_op_num_threads for m in made[2:]} == {3}
    for one in made:
        with pytest.raises(RuntimeError):
            one.get_session_config_entry(SPINNING)


def test_threads_do_not_spin_between_the_graphs_of_a_call():
    assert Settings().make().get_session_config_entry(SPINNING) == "1"
