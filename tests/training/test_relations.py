"""MiniLM's relations: against transformers' own attention, by hand, and with what else happens to a layer."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pwl_hf import PWLConfig, PWLForImageClassification
from pwl_hf.training.objective.distillation import Distillation, build_objective
from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
from pwl_hf.training.objective.passes import Passes
from pwl_hf.training.objective.relations import RelationLoss, last_layer, relation, relation_loss
from pwl_hf.training.objective.terms import PathLoss, StudentLoss
from tests.tiny import tiny_images, tiny_model, tiny_pair

TRANSFORMERS = ["vit", "deit", "dinov2"]


def _attentions(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The last layer's attention distributions as the network itself computes them, (B, heads, L, L)."""
    network.set_attn_implementation("eager")
    with torch.no_grad():
        return network(images, output_attentions=True).attentions[-1]


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_relation_is_the_kl_of_the_networks_own_distributions(family, attention):
    model, images = tiny_model(family), tiny_images(family)
    reference = copy.deepcopy(model)
    t, s = (_attentions(network, images) for network in (reference.teacher, reference.student))
    model.set_attn_implementation(attention)
    found = RelationLoss(("QK",))(Passes(model, images))
    torch.testing.assert_close(found, (t * (t.log() - s.log())).sum(-1).mean(), rtol=1e-4, atol=1e-7)
    assert found > 0


def _by_hand(model: PWLForImageClassification, images: torch.Tensor, pairs: list[str], heads: int) -> float:
    """With loops in place of matrices, on what hooks on the projections see while a network runs by itself."""
    total = 0.0
    seen = {}
    for role in ("teacher", "student"):
        network = getattr(model, role)
        attention = last_layer(network).attention
        for letter in "QKV":
            projection = getattr(attention, f"{letter.lower()}_proj")
            projection.register_forward_hook(
                lambda _m, _i, out, key=(role, letter): seen.__setitem__(key, out.double())
            )
        with torch.no_grad():
            network(images)
    for pair in pairs:
        parts = []
        for image in range(len(images)):
            for head in range(heads):
                rows = {}
                for role in ("teacher", "student"):
                    left, right = seen[role, pair[0]][image], seen[role, pair[1]][image]
                    size = left.shape[1] // heads
                    place = slice(head * size, (head + 1) * size)
                    rows[role] = [
                        torch.softmax(torch.stack([q[place].dot(k[place]) / math.sqrt(size) for k in right]), 0)
                        for q in left
                    ]
                parts += [(t * (t / s).log()).sum() for t, s in zip(rows["teacher"], rows["student"], strict=True)]
        total += torch.stack(parts).mean()
    return float(total)


@pytest.mark.parametrize(
    ("pairs", "heads"), [(["QK", "VV"], None), (["QQ", "KK", "VV"], 8), (["VV"], 1), (["QK", "VV"], 4)]
)
def test_relations_by_hand(pairs, heads):
    model, images = tiny_model("vit"), tiny_images("vit", 1)
    options = ObjectiveArguments(alpha=0.0, relation_weight=2.0, relation_pairs=pairs, relation_heads=heads)
    found = build_objective(model, options)(images)
    plain = build_objective(model, ObjectiveArguments(alpha=0.0))(images)
    expected = _by_hand(copy.deepcopy(model), images, pairs, heads or 2)
    assert found["relation"].item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(found["loss"], plain["loss"] + 2 * found["relation"])


def test_networks_of_one_mind_have_no_distance_and_others_do():
    q, k = (torch.randn(2, 5, 8) for _ in range(2))
    same = relation(q, k, 2)
    torch.testing.assert_close(same.exp().sum(-1), torch.ones(2, 2, 5))
    assert relation_loss(same, same) == 0
    assert relation_loss(relation(q, q, 2), same) > 0
    assert relation(q.bfloat16(), k.bfloat16(), 2).dtype == torch.float32


def test_gradient_reaches_the_students_last_attention_and_what_comes_before_and_nothing_else():
    model = tiny_model("vit").train()
    RelationLoss()(Passes(model, tiny_images("vit"))).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert "student.vit.layers.3.attention.v_proj.weight" in with_gradient
    assert "student.vit.layers.0.mlp.fc1.weight" in with_gradient
    assert not any("teacher" in name or "coders" in name for name in with_gradient)
    assert not any(name.startswith(("student.vit.layers.3.mlp", "student.classifier")) for name in with_gradient)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_networks_answer_as_before_and_keep_no_hook(family):
    model, images = tiny_model(family), tiny_images(family)
    before = {mask: model(images, sources=mask).logits for mask in ("TTTT", "SSSS", "TTSS")}
    passes = Passes(model, images)
    RelationLoss()(passes)
    assert all(torch.equal(passes.path(mask).logits, logits) for mask, logits in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_go_when_a_pass_fails():
    model = tiny_model("vit")
    with pytest.raises(ValueError, match="doesn't match model"):
        RelationLoss()(Passes(model, torch.zeros(1, 3, 20, 20)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_of_all_passes_the_networks_own_are_taken(training, shared):
    # Masks that end in the same blocks run through the same last layers.
    model, images = tiny_model("vit").train(training), tiny_images("vit")
    alone = RelationLoss()(Passes(model, images))
    options = ObjectiveArguments(alpha=0.0, relation_weight=1.0, mask_count=4, shared_statistics=not shared)
    torch.testing.assert_close(build_objective(model, options).train(training)(images)["relation"], alone.detach())


def test_term_that_comes_too_late_raises():
    model = tiny_model("vit")
    objective = Distillation(model, [(1.0, StudentLoss(PathLoss(0.0, 2.0))), (1.0, RelationLoss())])
    with pytest.raises(RuntimeError, match=r"ran 0 times where once was expected: .* put it before all terms"):
        objective(tiny_images("vit"))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("vit").train()
        if checkpointing:
            model.student.activation_checkpointing_enable({"use_reentrant": reentrant})
            # Reentrant checkpoints pass gradients only through inputs that require them.
            model.student.enable_input_require_grads()
        options = ObjectiveArguments(alpha=0.0, relation_weight=5.0)
        build_objective(model, options)(tiny_images("vit"))["loss"].backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_networks_give_the_same_loss(whole):
    images = tiny_images("vit")
    options = ObjectiveArguments(alpha=0.0, relation_weight=1.0, prefix_weight=0, mask_weight=0)
    expected = build_objective(tiny_model("vit"), options)(images)
    model = tiny_model("vit")
    objective = build_objective(model, options)
    if whole:
        called = torch.compile(objective, backend="eager")
    else:
        model.compile(backend="eager")
        called = objective
    before = last_layer(model.student)._compiled_call_impl
    for _ in range(2):
        torch.testing.assert_close(called(images), expected)
    assert last_layer(model.student)._compiled_call_impl is before
    assert (before is None) == whole


def test_bfloat16_autocast_agrees_with_full_precision():
    model, images = tiny_model("vit"), tiny_images("vit")
    full = RelationLoss()(Passes(model, images))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(RelationLoss()(Passes(model, images)), full, rtol=0.1, atol=1e-3)


def _model_of_heads(teacher_heads: int, student_heads: int) -> PWLForImageClassification:
    teacher, student = tiny_pair("vit")
    teacher.num_attention_heads, student.num_attention_heads = teacher_heads, student_heads
    return PWLForImageClassification(PWLConfig(teacher_config=teacher, student_config=student))


def test_heads_that_differ_need_relation_heads():
    model = _model_of_heads(3, 2)
    options = ObjectiveArguments(alpha=0.0, relation_weight=1.0)
    with pytest.raises(ValueError, match=r"teacher has 3 attention heads and the student 2: .* a divisor of 8"):
        build_objective(model, options)
    options.relation_heads = 4
    assert build_objective(model, options)(tiny_images("vit"))["relation"] > 0


@pytest.mark.parametrize(("heads", "role", "width"), [(3, "student", 16), (16, "teacher", 24), (0, "teacher", 24)])
def test_relation_heads_that_do_not_divide_are_refused(heads, role, width):
    options = ObjectiveArguments(relation_weight=1.0, relation_heads=heads)
    with pytest.raises(ValueError, match=f"relation_heads must divide the {role}'s width {width}, got {heads}"):
        build_objective(tiny_model("vit"), options)


@pytest.mark.parametrize("family", ["swin", "resnet", "pwl_vgg"])
def test_other_families_are_refused(family):
    with pytest.raises(ValueError, match=f"as vit, deit, dinov2, bert, .* have it, and not model_type '{family}'"):
        build_objective(tiny_model(family), ObjectiveArguments(relation_weight=1.0))


@pytest.mark.parametrize("pairs", [[], ["QK", "QV"]])
def test_pairs_that_do_not_exist_are_refused(pairs):
    with pytest.raises(ValueError, match="relation_pairs must be of QK, QQ, KK, VV, got"):
        ObjectiveArguments(relation_pairs=pairs)
    with pytest.raises(ValueError, match="relation_pairs must be of QK, QQ, KK, VV, got 'VQ'"):
        RelationLoss(("VQ",)).check(tiny_model("vit"))


def test_distributed_wrapper_changes_nothing(tmp_path):
    from torch.distributed import FileStore, destroy_process_group, init_process_group
    from torch.nn.parallel import DistributedDataParallel

    options, images = ObjectiveArguments(alpha=0.0, relation_weight=5.0), tiny_images("vit")
    gradients = []
    for distributed in (False, True):
        model = tiny_model("vit").train()
        objective: nn.Module = build_objective(model, options)
        if distributed:
            init_process_group("gloo", store=FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
        try:
            wrapped = DistributedDataParallel(objective, find_unused_parameters=True) if distributed else objective
            for step in range(2):
                wrapped(images, step=step)["loss"].backward()
        finally:
            if distributed:
                destroy_process_group()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0])
