"""Converters and their closed-form fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pwl_hf import Converter, PWLConfig, PWLForImageClassification, StageError
from pwl_hf.modeling.routes.converters import LeastSquares, channel_rows
from tests.tiny import EACH_FAMILY, tiny_images, tiny_model, tiny_pair

Load = Callable[..., PWLForImageClassification]


# --- The module -------------------------------------------------------------------------------------------------


def test_a_converter_is_affine_on_the_last_dimension_of_tokens() -> None:
    converter, x = Converter(3, 5, channels_first=False), torch.randn(2, 7, 3)
    torch.testing.assert_close(converter(x), x @ converter.weight.T + converter.bias)


def test_a_converter_is_affine_on_the_channels_of_maps() -> None:
    converter, x = Converter(3, 5, channels_first=True), torch.randn(2, 3, 4, 6)
    expected = torch.einsum("oc,bchw->bohw", converter.weight, x) + converter.bias[:, None, None]
    torch.testing.assert_close(converter(x), expected)


def test_equal_widths_get_a_converter_that_is_not_the_identity() -> None:
    converter, x = Converter(4, 4, channels_first=False), torch.randn(2, 4)
    assert sum(p.numel() for p in converter.parameters()) == 20
    assert not torch.allclose(converter(x), x)


def test_channel_rows_are_the_feature_vectors() -> None:
    tokens, maps = torch.randn(2, 5, 3), torch.randn(2, 3, 4, 6)
    assert torch.equal(channel_rows(tokens, False), tokens.flatten(0, 1))
    assert torch.equal(channel_rows(maps, True), maps.permute(0, 2, 3, 1).reshape(-1, 3))
    assert "in_channels=3, out_channels=5" in repr(Converter(3, 5, True))


# --- Least squares ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    d_in=st.integers(1, 6), d_out=st.integers(1, 6), n=st.integers(20, 60), parts=st.integers(1, 5), seed=st.integers(0)
)
def test_least_squares_equals_lstsq_with_a_column_of_ones(d_in: int, d_out: int, n: int, parts: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**32)
    x = torch.randn(n, d_in, dtype=torch.float64, generator=generator) + 3
    y = torch.randn(n, d_out, dtype=torch.float64, generator=generator) - 1
    fit = LeastSquares(d_in, d_out, ridge=0)
    for part in torch.arange(n).chunk(parts):
        fit.add(x[part], y[part])
    weight, bias = fit.solve()
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(n, 1, dtype=x.dtype)], dim=1), y).solution
    torch.testing.assert_close(weight, solution[:-1].T, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(bias, solution[-1], rtol=1e-7, atol=1e-8)


@settings(deadline=None, max_examples=40)
@given(d_in=st.integers(1, 5), d_out=st.integers(1, 5), scale=st.floats(1e-3, 1e3), seed=st.integers(0))
def test_least_squares_recovers_an_affine_map(d_in: int, d_out: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**32)
    weight = torch.randn(d_out, d_in, dtype=torch.float64, generator=generator)
    bias = torch.randn(d_out, dtype=torch.float64, generator=generator)
    x = scale * torch.randn(50, d_in, dtype=torch.float64, generator=generator)
    fit = LeastSquares(d_in, d_out, ridge=1e-12)
    fit.add(x, x @ weight.T + bias)
    found = fit.solve()
    torch.testing.assert_close(found[0], weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1], bias, rtol=1e-5, atol=1e-5)


def test_features_that_do_not_span_their_space_get_a_small_finite_map() -> None:
    x = torch.randn(40, 1).expand(40, 6)
    fit = LeastSquares(6, 2)
    fit.add(x, x[:, :2] * 3)
    weight, bias = fit.solve()
    assert torch.isfinite(weight).all()
    torch.testing.assert_close(x.double() @ weight.T + bias, x[:, :2].double() * 3, rtol=1e-2, atol=1e-2)
    assert weight.abs().max() < 3


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_constant_features_give_the_mean(value: float) -> None:
    x, y = torch.full((10, 3), value), torch.randn(10, 2)
    fit = LeastSquares(3, 2)
    fit.add(x, y)
    weight, bias = fit.solve()
    assert torch.isfinite(weight).all()
    torch.testing.assert_close(x.double() @ weight.T + bias, y.double().mean(0).expand(10, 2))


def test_a_fit_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        LeastSquares(2, 2).solve()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("of", ["x", "y"])
def test_a_fit_to_what_is_not_finite_is_refused(of: str, value: float) -> None:
    rows = {"x": torch.randn(10, 3), "y": torch.randn(10, 2)}
    rows[of][4, 1] = value
    fit = LeastSquares(3, 2, name="encoder 2")
    fit.add(rows["x"], rows["y"])
    with pytest.raises(ValueError, match="encoder 2 cannot be fitted: features of these images are NaN or infinite"):
        fit.solve()


def test_a_solution_that_its_dtype_cannot_hold_is_refused() -> None:
    fit = LeastSquares(1, 1)
    fit.add(torch.arange(4.0)[:, None] * 1e-3, torch.arange(4.0)[:, None] * 1e3)
    with pytest.raises(ValueError, match=r"cannot be fitted in torch\.float16: its solution is not finite"):
        fit.solve(torch.float16)
    assert fit.solve(torch.bfloat16)[0].dtype == torch.bfloat16


# --- On a model -------------------------------------------------------------------------------------------------


def features(model: PWLForImageClassification, images: torch.Tensor, role: str) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return model(images, output_hidden_states=True, sources=role[0].upper() * 4).hidden_states


def error(model: PWLForImageClassification, images: torch.Tensor) -> dict[str, float]:
    """The relative error at each boundary, in each direction."""
    teacher, student = features(model, images, "teacher"), features(model, images, "student")
    found = {}
    for i in range(1, model.num_stages):
        pairs = {"encoders": (teacher[i - 1], student[i - 1]), "decoders": (student[i - 1], teacher[i - 1])}
        for name, (x, y) in pairs.items():
            with torch.no_grad():
                found[f"{name}.{i}"] = float((getattr(model, name)[str(i)](x) - y).square().sum() / y.square().sum())
    return found


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_fit_converters_improves_every_boundary_in_both_directions(model_type: str) -> None:
    model, images = tiny_model(model_type), tiny_images(model_type, 16)
    before = error(model, images)
    state = torch.get_rng_state()
    model.fit_converters(images)
    after = error(model, images)
    assert before.keys() == after.keys()
    assert len(after) == 6
    for name in before:
        assert after[name] < before[name], name
        assert after[name] <= 1.001, f"{name} is worse than no features at all"
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.stage, model.training) == (0, False)


def test_fit_converters_recovers_an_exact_relation() -> None:
    _, student = tiny_pair("vit")
    model = PWLForImageClassification(PWLConfig(teacher_config=student, student_config=student, num_stages=4)).eval()
    model.teacher.load_state_dict(model.student.state_dict())
    # From its second layer on the teacher's features are another affine image of the student's.
    model.teacher.vit.layers[1].register_forward_hook(lambda _, __, out: 2 * out + 1)
    images = tiny_images("vit", 16)
    model.fit_converters(images, ridge=1e-10)
    torch.testing.assert_close(model.encoders["1"].weight.detach(), torch.eye(16), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(model.encoders["1"].bias.detach(), torch.zeros(16), rtol=1e-2, atol=1e-2)
    found = error(model, images)
    assert max(found["encoders.1"], found["decoders.1"]) < 1e-6
    assert max(found["encoders.2"], found["decoders.2"]) < 1e-5


@pytest.mark.parametrize("model_type", ["vit", "resnet"])
def test_batches_fit_like_one_batch(model_type: str) -> None:
    images, models = tiny_images(model_type, 12), [tiny_model(model_type) for _ in range(3)]
    models[0].fit_converters(images)
    models[1].fit_converters(list(images.split(5)))
    models[2].fit_converters(batch for batch in images.split(1))
    for name, tensor in models[0].state_dict().items():
        for other in models[1:]:
            torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_fit_converters_changes_nothing_but_converters() -> None:
    model, images = tiny_model("resnet").train(), tiny_images("resnet", 8)
    model.set_stage(2)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    model.fit_converters(images)
    assert model.training
    assert model.student.training
    assert not model.teacher.training
    assert model.sources == "TTSS"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith(("encoders", "decoders")), name
    assert all(parameters[n] is p for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_fit_converters_ignores_dropout_and_batch_statistics() -> None:
    images, fitted = tiny_images("resnet", 8), []
    for training in (False, True):
        model = tiny_model("resnet").train(training)
        model.fit_converters(images)
        fitted.append(model.encoders.state_dict())
    assert all(torch.equal(tensor, fitted[1][name]) for name, tensor in fitted[0].items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_fit_converters_keeps_the_dtype(dtype: torch.dtype) -> None:
    model = tiny_model("vit").to(dtype)
    model.fit_converters(tiny_images("vit", 8))
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert all(torch.isfinite(p).all() for p in model.encoders.parameters())


@pytest.mark.parametrize("kwargs", [{}, {"stage": 2}])
def test_fit_converters_needs_everything_resident(load: Load, kwargs: dict) -> None:
    model, images = load("vit", **kwargs), tiny_images("vit")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(StageError, match="keep_all=True"):
        model.fit_converters(images)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("images", [[], torch.zeros(0, 3, 16, 16)])
def test_fit_converters_without_images_is_refused_and_changes_nothing(images: object) -> None:
    model = tiny_model("vit").train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError, match="at least one image"):
        model.fit_converters(images)
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_images_that_do_not_fit_are_refused_and_change_nothing() -> None:
    model = tiny_model("vit").train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError, match="doesn't match model"):
        model.fit_converters([tiny_images("vit"), torch.zeros(1, 3, 24, 24)])
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_fitted_converters_join_two_trained_networks() -> None:
    model, labels = tiny_model("pwl_vgg"), torch.arange(40) % 5
    images = functional.one_hot(labels, 5).float() @ torch.randn(5, 3 * 16 * 16)
    images = images.view(40, 3, 16, 16) + 0.5 * torch.randn(40, 3, 16, 16)
    for network in (model.teacher, model.student):
        network.requires_grad_(True).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(25):
            optimizer.zero_grad()
            functional.cross_entropy(network(images).logits, labels).backward()
            optimizer.step()
    model.requires_grad_(True).eval()

    def accuracy(mask: str) -> float:
        with torch.no_grad():
            return (model(images, sources=mask).logits.argmax(-1) == labels).float().mean().item()

    assert min(accuracy("TTTT"), accuracy("SSSS")) > 0.9
    before = accuracy("TSSS") + accuracy("TTSS") + accuracy("TTTS")
    model.fit_converters(images)
    after = accuracy("TSSS") + accuracy("TTSS") + accuracy("TTTS")
    assert after > before


@pytest.mark.parametrize("where", ["images", "teacher", "student"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fit_converters_to_what_is_not_finite_is_refused_and_changes_nothing(where: str, value: float) -> None:
    model, images = tiny_model("resnet").train(), tiny_images("resnet", 8)
    if where == "images":
        images[5, 0, 3, 3] = value
    else:
        with torch.no_grad():
            getattr(model, where).resnet.encoder.stages[1].layers[0].layer[0].convolution.weight[0, 0] = value
    before = {name: t.clone() for name, t in model.state_dict().items() if name.startswith(("encoders", "decoders"))}
    message = "batch 1 .* holds NaN" if where == "images" else "coder 2 cannot be fitted: features"
    with pytest.raises(ValueError, match=message):
        model.fit_converters(images.split(4))
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in before.items())
    assert model.training
