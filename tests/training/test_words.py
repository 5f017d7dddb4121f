"""Losses of words, relations of texts, orders of batches and schedules: what counts, and what does not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForTokenClassification

from pwl_hf import PWLForSequenceClassification, PWLForTokenClassification
from pwl_hf.modeling.schedule import Schedule
from pwl_hf.training.networks.inheritance import inherit
from pwl_hf.training.objective.distillation import build_objective, build_terms
from pwl_hf.training.objective.masks import distribution, stage_masks
from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
from pwl_hf.training.objective.passes import Passes
from pwl_hf.training.objective.relations import RelationLoss
from pwl_hf.training.objective.terms import PathLoss, PrefixLoss
from pwl_hf.training.trainer.lengths import GroupedByLength
from tests.modeling.types import batch, network_config
from tests.training.test_texts import text_model

LABELS = torch.tensor(
    [[-100, 0, 1, 2, 0, -100, 1, -100], [-100, 2, 2, 1, -100, -100, -100, -100], [-100, 1, *[-100] * 6]]
)


def tagger() -> PWLForTokenClassification:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [
            AutoModelForTokenClassification.from_config(network_config("bert", role)) for role in ("teacher", "student")
        ]
        return PWLForTokenClassification.from_teacher_student(*networks, num_blocks=3).eval()


@torch.no_grad()
def test_a_loss_is_over_the_words_that_have_a_label() -> None:
    model, inputs = tagger(), batch("bert")
    found = PathLoss(0.3, 2.0)(Passes(model, inputs, labels=LABELS), "TSS")
    counted = LABELS != -100
    logits, wanted = (model(**inputs, sources=mask).logits[counted] for mask in ("TSS", "TTT"))
    hard = functional.cross_entropy(logits, LABELS[counted])
    teacher = (wanted / 2).log_softmax(-1)
    soft = functional.kl_div((logits / 2).log_softmax(-1), teacher, reduction="batchmean", log_target=True) * 4
    torch.testing.assert_close(found, 0.3 * hard + 0.7 * soft)
    # transformers' own loss of the same words.
    torch.testing.assert_close(hard, model(**inputs, labels=LABELS, sources="TSS").loss)


@torch.no_grad()
def test_padding_changes_no_loss_of_words_without_labels_either() -> None:
    model, inputs = tagger(), batch("bert")
    longer = {name: functional.pad(tensor, (0, 4)) for name, tensor in inputs.items()}
    short, padded = (PathLoss(0.0, 1.0)(Passes(model, given), "TSS") for given in (inputs, longer))
    assert short > 0
    torch.testing.assert_close(short, padded, rtol=1e-4, atol=1e-7)


def test_a_part_without_a_word_is_no_loss_and_no_nan() -> None:
    model = tagger().train()
    labels = LABELS.clone()
    labels[2] = -100
    loss = PathLoss(0.5, 1.0)(Passes(model, batch("bert"), labels=labels), "TSS", slice(2, 3))
    assert loss == 0
    loss.backward()


def test_every_term_trains_a_tagger() -> None:
    model = tagger().train()
    losses = build_objective(model, ObjectiveArguments(relation_weight=1.0, relation_heads=2, mask_count=2)).train()(
        batch("bert"), LABELS, step=0
    )
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    assert {"relation", "student", "prefix", "mask", "sync", "recon"} <= losses.keys()


# --- MiniLM's relations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", ["bert", "distilbert"])
@torch.no_grad()
def test_relations_are_the_networks_own_attention_over_what_is_no_padding(student: str) -> None:
    model, inputs = text_model(student=student), batch("bert")
    found = RelationLoss(("QK",), heads=2)(Passes(copy.deepcopy(model), inputs))
    kept = inputs["attention_mask"].bool()
    distributions = []
    for network, heads in ((model.teacher, 2), (model.student, 2)):
        # As many heads as relations have: the same projections split alike.
        network.set_attn_implementation("eager")
        for name, module in network.named_modules():
            if name.endswith(("attention.self", "attention")) and hasattr(module, "num_attention_heads"):
                module.num_attention_heads = heads
                module.attention_head_size = module.all_head_size // heads
                module.scaling = module.attention_head_size**-0.5
            elif name.endswith("attention") and hasattr(module, "n_heads"):
                module.n_heads, module.attention_head_size = heads, module.dim // heads
                module.scaling = module.attention_head_size**-0.5
        distributions.append(network(**inputs, output_attentions=True).attentions[-1])
    t, s = distributions
    apart = torch.where(t > 0, t * (t.clamp_min(1e-30).log() - s.clamp_min(1e-30).log()), 0).sum(-1).mean(1)
    expected = ((apart * kept).sum(1) / kept.sum(1)).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert found > 0


@torch.no_grad()
def test_more_padding_changes_no_relation() -> None:
    model, inputs = text_model(), batch("bert")
    longer = {name: functional.pad(tensor, (0, 4)) for name, tensor in inputs.items()}
    term = RelationLoss(("QQ", "KK", "VV"), heads=2)
    short, padded = (term(Passes(model, given)) for given in (inputs, longer))
    torch.testing.assert_close(short, padded, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("model_type", ["deberta-v2", "modernbert", "llama"])
def test_types_without_such_attention_are_refused(model_type: str) -> None:
    model = text_model(model_type, model_type)
    with pytest.raises(ValueError, match=f"and not model_type '{model_type}': set relation_weight to 0"):
        build_objective(model, ObjectiveArguments(relation_weight=1.0))


# --- Slices of the teacher ----------------------------------------------------------------------------------------


def test_padding_chooses_no_channels() -> None:
    inputs = batch("bert")
    longer = {name: functional.pad(tensor, (0, 12)) for name, tensor in inputs.items()}
    made = []
    for given in (inputs, longer):
        model = text_model(student="bert")
        inherit(model, batches=[given], converters=True)
        made.append(model.state_dict())
    for name, tensor in made[0].items():
        torch.testing.assert_close(made[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


# --- Batches and schedules ----------------------------------------------------------------------------------------


def test_an_order_by_length_is_of_seed_and_epoch_alone() -> None:
    lengths = torch.randint(1, 50, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = GroupedByLength(4, lengths, 7)
    first = list(sampler)
    assert sorted(first) == list(range(100))
    sampler.set_epoch(1)
    second = list(sampler)
    again = GroupedByLength(4, lengths, 7)
    again.set_epoch(1)
    assert list(again) == second != first
    assert list(GroupedByLength(4, lengths, 8)) != first
    # Batches of like lengths have little padding.
    batches = [[lengths[i] for i in first[start : start + 4]] for start in range(0, 100, 4)]
    assert sum(max(found) * 4 - sum(found) for found in batches) < 0.2 * sum(lengths)


def test_stages_are_those_of_the_models_own_schedule(tmp_path: Path) -> None:
    model: Any = text_model()
    model.save_pretrained(tmp_path / "repo")
    from pwl_hf.modeling.publishing.saving import write_schedule
    from pwl_hf.modeling.repository.source import Repository

    schedule = Schedule.of(["SSS", "SST", "STT", "TTT"])
    write_schedule(tmp_path / "repo", schedule, Repository.open(tmp_path / "repo").manifest())
    opened = PWLForSequenceClassification.from_pretrained(tmp_path / "repo", keep_all=True)
    (prefix,) = [term for _, term in build_objective(opened, ObjectiveArguments()).terms if term.name == "prefix"]
    assert prefix.term.stages == ("SST", "STT")
    assert isinstance(prefix.term, PrefixLoss)
    # Other masks are those that are no stage.
    others = {mask for group in distribution("uniform", 3, prefix.term.stages) for mask in group}
    assert others == {"TSS", "STS", "TTS", "TST"}


def test_stages_in_low_precision_are_trained_as_the_teachers() -> None:
    assert stage_masks(["SSS", "QSS", "QQS", "QQQ", "TQQ", "TTT"]) == ["TSS", "TTS"]
    terms = build_terms(ObjectiveArguments(), 3, ["STS"])
    (prefix,) = [term for _, term in terms if term.name == "prefix"]
    assert prefix.term.stages == ("STS",)
