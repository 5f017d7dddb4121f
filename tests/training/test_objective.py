"""What a step minimises, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from pwl_hf import PWLForImageClassification
from pwl_hf.training.networks.identity import set_identity
from pwl_hf.training.networks.inheritance import inherit
from pwl_hf.training.objective.distillation import build_objective
from pwl_hf.training.objective.losses import distillation_loss, feature_distance
from pwl_hf.training.objective.masks import distribution, draw_masks
from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
from tests.tiny import WITH_BATCH_NORM, tiny_images, tiny_model, tiny_pair

LABELS = torch.tensor([0, 3, 1, 2])
OPTIONS = {
    "alpha": 0.3,
    "temperature": 3.0,
    "student_weight": 0.75,
    "prefix_weight": 0.5,
    "prefix_share": 1,
    "mask_weight": 0.25,
    "mask_count": 2,
    "mask_share": 1,
    "sync_weight": 0.125,
    "recon_weight": 0.0625,
    "feature_share": 1,
}


def _equal_widths(family: str = "resnet") -> PWLForImageClassification:
    teacher, student = tiny_pair(family)
    student.hidden_sizes, student.embedding_size = teacher.hidden_sizes, teacher.embedding_size
    networks = [PWLForImageClassification.config_class(teacher_config=teacher, student_config=student, num_stages=4)]
    torch.manual_seed(0)
    return PWLForImageClassification(networks[0])


@pytest.mark.parametrize("normalize", [False, True])
def test_loss_is_the_weighted_sum_of_its_terms(normalize):
    model, images = tiny_model("vit"), tiny_images("vit", 4)
    options = ObjectiveArguments(**OPTIONS, mask_alpha=0.9, normalize_features=normalize)
    found = build_objective(model, options, seed=5)(images, LABELS, step=7)

    teacher = model(images, sources="TTTT", output_hidden_states=True)
    student = model(images, sources="SSSS", output_hidden_states=True)

    def path(mask: str, alpha: float = 0.3) -> torch.Tensor:
        return distillation_loss(model(images, sources=mask).logits, LABELS, teacher.logits, alpha, 3.0)

    sync, recon = torch.zeros(()), torch.zeros(())
    for i in (1, 2, 3):
        t, s = teacher.hidden_states[i - 1], student.hidden_states[i - 1]
        encode, decode = model.encoders[str(i)], model.decoders[str(i)]
        sync = sync + feature_distance(encode(t), s, normalize) + feature_distance(decode(s), t, normalize)
        recon = recon + feature_distance(decode(encode(t)), t, normalize)
        recon = recon + feature_distance(encode(decode(s)), s, normalize)
    first, second = draw_masks(distribution("suffix-scattered", 4), 2, seed=5, step=7)
    expected = {
        "student": path("SSSS"),
        "prefix": (path("TSSS") + path("TTSS") + path("TTTS")) / 3,
        "mask": (path(first, 0.9) + path(second, 0.9)) / 2,
        "sync": sync / 3,
        "recon": recon / 3,
    }
    weighted = zip((0.75, 0.5, 0.25, 0.125, 0.0625), expected.values(), strict=True)
    expected["loss"] = torch.stack([weight * term for weight, term in weighted]).sum()
    torch.testing.assert_close(found, expected)
    assert found["loss"].requires_grad
    assert not any(found[name].requires_grad for name in found if name != "loss")


def test_terms_of_no_weight_are_left_out_and_masks_come_when_they_are_due():
    options = ObjectiveArguments(prefix_weight=0, sync_weight=0, recon_weight=0, mask_every=3)
    objective = build_objective(tiny_model("vit"), options)
    names = [set(objective(tiny_images("vit", 4), LABELS, step=step)) for step in range(4)]
    assert names == [{"loss", "student", "mask"}, {"loss", "student"}, {"loss", "student"}, {"loss", "student", "mask"}]


def test_stages_and_features_come_when_they_are_due():
    options = ObjectiveArguments(mask_weight=0, prefix_every=2, feature_every=3)
    objective = build_objective(tiny_model("vit"), options)
    names = [set(objective(tiny_images("vit", 4), LABELS, step=step)) - {"loss", "student"} for step in range(4)]
    assert names == [{"prefix", "sync", "recon"}, set(), {"prefix"}, {"sync", "recon"}]


@pytest.mark.parametrize("step", [0, 3])
def test_features_of_a_share_are_those_of_some_images(step):
    model, images = tiny_model("vit"), tiny_images("vit", 4)
    found = build_objective(model, ObjectiveArguments(feature_share=2), seed=5)(images, LABELS, step=step)
    some = images[step % 2 :: 2], LABELS[step % 2 :: 2]
    whole = build_objective(model, ObjectiveArguments(feature_share=1), seed=5)(*some, step=step)
    for name in ("sync", "recon"):
        torch.testing.assert_close(found[name], whole[name])


def test_routes_are_not_built_anew_at_every_step_but_in_a_new_mode():
    objective = build_objective(tiny_model("resnet"), ObjectiveArguments())
    objective.train()
    route = objective.model._router.of("TTSS")
    objective.train()
    assert objective.model._router.of("TTSS") is route
    objective.model.eval()
    objective.train()
    assert objective.model.training
    assert objective.model._router.of("TTSS") is not route


@pytest.mark.parametrize("step", [0, 1, 5])
def test_shares_give_each_path_other_images_and_another_part_at_every_step(step):
    model, images = tiny_model("vit"), tiny_images("vit", 4)
    options = ObjectiveArguments(prefix_share=2, mask_share=4, mask_count=3)
    found = build_objective(model, options, seed=5)(images, LABELS, step=step)
    teacher = model(images, sources="TTTT").logits

    def path(mask: str, rows: slice) -> torch.Tensor:
        logits = model(images, sources=mask).logits
        return distillation_loss(logits[rows], LABELS[rows], teacher[rows], 0.4, 2.0)

    prefixes = [path(mask, slice((step + i) % 2, None, 2)) for i, mask in enumerate(("TSSS", "TTSS", "TTTS"))]
    masks = draw_masks(distribution("suffix-scattered", 4), 3, seed=5, step=step)
    drawn = [path(mask, slice((step + i) % 4, None, 4)) for i, mask in enumerate(masks)]
    torch.testing.assert_close(found["prefix"], sum(prefixes).detach() / 3)
    torch.testing.assert_close(found["mask"], sum(drawn).detach() / 3)


def test_a_batch_smaller_than_the_shares_is_trained_on_all_paths():
    options = ObjectiveArguments(prefix_share=3, mask_share=8, feature_share=4)
    found = build_objective(tiny_model("vit"), options)(tiny_images("vit", 2), LABELS[:2], step=2)
    assert all(value.isfinite() for value in found.values())


def test_one_block_has_the_student_alone():
    found = build_objective(tiny_model("vit", num_stages=1), ObjectiveArguments())(tiny_images("vit", 4), LABELS)
    assert set(found) == {"loss", "student"}
    assert found["loss"] == found["student"]


def test_without_the_labels_weight_they_are_not_looked_at():
    objective, images = build_objective(tiny_model("vit"), ObjectiveArguments(alpha=0.0)), tiny_images("vit", 4)
    without = objective(images, None, step=3)
    assert all(torch.equal(without[name], value) for name, value in objective(images, LABELS, step=3).items())
    with pytest.raises(ValueError, match=r"alpha=0.4 weighs labels, but the samples have none: set alpha to 0"):
        build_objective(tiny_model("vit"), ObjectiveArguments())(images)


def test_every_parameter_but_the_teachers_learns():
    model = tiny_model("vit").train()
    build_objective(model, ObjectiveArguments())(tiny_images("vit", 4), LABELS)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("teacher."), name


def _steps(model: PWLForImageClassification, family: str, options: ObjectiveArguments) -> None:
    objective = build_objective(model, options)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.01)
    for step in range(4):
        objective.train()
        objective(tiny_images(family, 4), LABELS, step=step)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    objective.eval()


@pytest.mark.parametrize("family", ["vit", *WITH_BATCH_NORM])
def test_training_leaves_all_tensors_of_the_teacher_bit_identical(family):
    model = tiny_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _steps(model, family, ObjectiveArguments())
    after = model.state_dict()
    assert any(name.startswith("teacher.") and "running" in name for name in before) == (family != "vit")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"student", "encoders", "decoders"}


def test_mixed_paths_leave_the_students_statistics_alone():
    model, alone = tiny_model("resnet").train(), tiny_model("resnet").train()
    with torch.no_grad():
        build_objective(model, ObjectiveArguments(mask_count=3))(tiny_images("resnet", 4), LABELS)
        alone(tiny_images("resnet", 4), sources="SSSS")
    for (name, found), expected in zip(model.named_buffers(), alone.buffers(), strict=True):
        assert torch.equal(found, expected), name


def test_the_methods_own_defects_can_be_had():
    options = ObjectiveArguments(
        prefix_weight=0,
        mask_weight=2,
        mask_alpha=0,
        mask_distribution="method",
        shared_statistics=True,
        teacher_drift=True,
        identity_converters=True,
    )
    model = _equal_widths()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _steps(model, "resnet", options)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # The teacher's statistics drift, its parameters do not; the converters stay what they are.
    assert {name for name in changed if name.startswith("teacher.")} == {
        name for name in before if name.startswith("teacher.") and ("running" in name or "num_batches" in name)
    }
    assert torch.equal(after["decoders.1.weight"], torch.eye(8))
    assert not any(parameter.requires_grad for parameter in model.encoders.parameters())
    assert not any(module.training for module in model.modules())

    # With the teacher in eval mode its statistics stay, the student's are everyone's.
    model = _equal_widths()
    options.teacher_drift = False
    _steps(model, "resnet", options)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items() if n.startswith("teacher."))


def test_identity_converters_need_equal_widths():
    model = tiny_model("resnet")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="equal widths: at boundary 1 they are 8 and 4"):
        build_objective(model, ObjectiveArguments(identity_converters=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_student_of_the_teachers_layers_behind_identities_is_the_teacher_with_layers_left_out():
    model = _equal_widths()
    inherit(model)
    set_identity(model, "init_converters")
    images = tiny_images("resnet", 2)
    teacher, student = model.teacher.eval(), model.student.eval()
    with torch.no_grad():
        features = model.eval()(images, sources="TTTT", output_hidden_states=True).hidden_states
        expected = student.resnet.encoder.stages[3](features[2])
        assert torch.equal(model(images, sources="TTTS", output_hidden_states=True).hidden_states[3], expected)
    for own, other in zip(student.classifier.parameters(), teacher.classifier.parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha must be from 0 to 1, got 1.5"),
        ({"mask_alpha": -1}, "mask_alpha must be from 0 to 1, got -1"),
        ({"temperature": 0}, "temperature must be positive, got 0"),
        ({"sync_weight": float("nan")}, "sync_weight must not be negative, got nan"),
        ({"mask_count": 0}, "mask_count must be at least 1, got 0"),
        ({"mask_distribution": "all"}, "mask_distribution must be one of suffix-scattered, uniform, method, got 'all'"),
        ({"student_weight": 0, "prefix_weight": 0, "mask_weight": 0}, "nothing would be trained to answer"),
        ({"teacher_drift": True}, "give both"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveArguments(**options)
