"""Every type: bit equality at both ends, any mask, gradients, and nothing in memory but what runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from pwl_hf import Sources
from pwl_hf.modeling.families.registry import family_of
from pwl_hf.modeling.routes.batchnorm import BATCH_NORMS
from tests.modeling.types import AUDIO, IMAGES, TEXT, batch, model_class, network_config
from tests.slow import covering, slow_but

# One of each mechanism; the others are slow together.
MECHANISMS = [
    "bert",
    "deberta-v2",  # a convolution after its first layer, tables for all layers
    "mpnet",  # a table for all layers, which return tuples
    "modernbert",  # layers of two kinds
    "distilbert",
    "llama",  # rotary tables
    "gemma3_text",
    "gpt2",
    "opt",
    "wav2vec2",  # a parameter of the base itself
    "wavlm",  # a table within a layer
    "sew-d",  # a sequence that is squeezed
    "wav2vec2-bert",
    "audio-spectrogram-transformer",
    "whisper",
    "beit",
    "clip",  # a config within the config
    "siglip2",  # padded patches
    "regnet",
    "hgnet_v2",  # no base model
    "mobilenet_v1",  # two modules a unit
    "mobilevit",
    "cvt",  # units that are levels
    "swinv2",  # a grid that flows along
    "focalnet",  # tokens between levels are made of maps
    "pvt",
    "hiera",  # tokens in another order
    "levit",
]
EVERY = (*IMAGES, *TEXT, *AUDIO)
TYPES = slow_but(MECHANISMS, EVERY)
# Each of the quick ones in one dtype, and in the other where it is slow.
DTYPES = ["float32", "bfloat16"]
OTHERS = [name for name in EVERY if name not in MECHANISMS]
TYPES_AND_DTYPES = [
    *covering(MECHANISMS, DTYPES),
    *(pytest.param(name, dtype, marks=pytest.mark.slow) for name in OTHERS for dtype in DTYPES),
]
BY_HAND = ("vit", "deit", "dinov2", "resnet", "convnext", "swin")
# transformers' own code fails there: a mask of another dtype, an embedding of float32.
WITHOUT_BFLOAT16 = ["deberta"]


def networks(model_type: str, student: str = "student", dtype: torch.dtype = torch.float32, **others: Any) -> list[Any]:
    """A teacher and a student of random weights."""
    auto_class = getattr(transformers, model_class(model_type).task)
    configs = [network_config(model_type, role, **others) for role in ("teacher", student)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = [auto_class.from_config(config, dtype=dtype).eval() for config in configs]
        if model_type in IMAGES:
            for network in found:
                _stir(network, given(model_type, dtype))
        # As within a model: torch multiplies in another order where weights require gradients (LeViT, SwiftFormer).
        found[0].requires_grad_(False)
        return found


@torch.no_grad()
def _stir(network: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """Weights that are not trivial, and statistics of them: of fresh ones networks of images give nearly the same."""
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    norms = {module: module.momentum for module in network.modules() if isinstance(module, BATCH_NORMS)}
    for module in norms:
        module.momentum = None
    if norms:
        network.train()(**inputs)
        network.eval()
    for module, momentum in norms.items():
        module.momentum = momentum


def joined(model_type: str, student: str = "student", **others: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        kind = model_class(model_type)
        return kind.from_teacher_student(*networks(model_type, student, **others), num_blocks=3).eval()


def given(model_type: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in batch(model_type).items()}


def attentions(model_type: str) -> list[str]:
    """The kinds of attention that run on a CPU."""
    network = networks(model_type)[0]
    found = ["eager"]
    try:
        network.set_attn_implementation("sdpa")
    except ValueError:
        return found
    return [*found, "sdpa"] if network.config._attn_implementation == "sdpa" else found


@pytest.mark.parametrize("model_type", TYPES)
@torch.no_grad()
def test_ends_are_the_networks_and_a_twin_is_the_teacher_at_every_mask(model_type: str) -> None:
    model, twin, inputs = joined(model_type), joined(model_type, "teacher"), given(model_type)
    twin.student.load_state_dict(twin.teacher.state_dict())
    twin.student.requires_grad_(False)
    for converter in (*twin.encoders.values(), *twin.decoders.values()):
        converter.weight.copy_(torch.eye(len(converter.bias)))
        converter.bias.zero_()
    for attention in attentions(model_type):
        teacher, student = networks(model_type)
        for network in (model, twin, teacher, student):
            network.set_attn_implementation(attention)
        answers = {str(mask): model(**inputs, sources=str(mask)).logits for mask in Sources.all(3)}
        assert torch.equal(answers["TTT"], teacher(**inputs).logits)
        assert torch.equal(answers["SSS"], student(**inputs).logits)
        assert all(bool(torch.isfinite(logits).all()) for logits in answers.values())
        assert len({tuple(logits.flatten().tolist()) for logits in answers.values()}) == 8
        for mask in Sources.all(3):
            assert torch.equal(twin(**inputs, sources=str(mask)).logits, twin.teacher(**inputs).logits), (
                mask,
                attention,
            )


@pytest.mark.parametrize(("model_type", "dtype"), TYPES_AND_DTYPES)
def test_it_grows_from_a_folder_into_the_teacher(tmp_path: Path, model_type: str, dtype: str) -> None:
    _grows_from_a_folder(tmp_path, model_type, getattr(torch, dtype))


@torch.no_grad()
def _grows_from_a_folder(tmp_path: Path, model_type: str, dtype: torch.dtype) -> None:
    if model_type in WITHOUT_BFLOAT16 and dtype == torch.bfloat16:
        with pytest.raises(RuntimeError, match="BFloat16"):
            networks(model_type, dtype=dtype)[0](**given(model_type, dtype))
        return
    whole, inputs = joined(model_type, dtype=dtype), given(model_type, dtype)
    teacher, student = networks(model_type, dtype=dtype)
    whole.save_pretrained(tmp_path)
    # 1. From the student to the teacher, with a warm-up of each block before it is swapped in.
    model = model_class(model_type).from_pretrained(tmp_path)
    assert torch.equal(model(**inputs).logits, student(**inputs).logits)
    assert sum(p.numel() for p in model.teacher.parameters()) == 0
    with model.stream_stages():
        pass
    assert torch.equal(model(**inputs).logits, teacher(**inputs).logits)
    # 2. Any mask, with what it needs alone in memory.
    for mask in Sources.all(3):
        model.set_sources(str(mask))
        assert torch.equal(model(**inputs).logits, whole(**inputs, sources=str(mask)).logits), mask
    # 3. The teacher alone, in plain transformers, and the same bytes from any stage.
    plain, info = getattr(transformers, whole.task).from_pretrained(tmp_path / "teacher", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(plain.requires_grad_(False).eval()(**inputs).logits, teacher(**inputs).logits)
    model.save_pretrained(tmp_path / "again")
    for path in (tmp_path / "again").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / path.relative_to(tmp_path / "again")).read_bytes()


@pytest.mark.parametrize("model_type", TYPES)
def test_gradients_reach_the_blocks_and_converters_of_a_mask(model_type: str) -> None:
    model = joined(model_type).train()
    model(**given(model_type), labels=torch.tensor([0, 1, 2]), sources="STS").loss.backward()
    names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"decoders.1.weight", "encoders.2.weight"} <= names
    assert not any(name.startswith(("teacher.", "decoders.2", "encoders.1")) for name in names)
    own = {name for name, parameter in model.named_parameters() if name.startswith("student.")}
    parts = {part.id.number: part for part in model.parts if part.role == "student" and part.id.kind == "student"}
    assert own.isdisjoint(names & parts[2].specs.keys())
    assert names & parts[1].specs.keys()
    assert names & parts[3].specs.keys()


@pytest.mark.parametrize("model_type", TYPES)
def test_a_middle_segment_holds_its_layers_and_what_blocks_share(model_type: str) -> None:
    if model_type in BY_HAND:
        pytest.skip("its layers are called one by one")
    model = joined(model_type)
    route = model._router.of("STS")
    middle = route.segments[1]
    of_teacher = [part for part in model.parts if part.role == "teacher" and not part.is_low]
    own = [part for part in of_teacher if part.id.number == 2 or part.blocks]
    expected = {id(tensor) for part in own for module in part.modules().values() for tensor in module.parameters()}
    assert {id(tensor) for tensor in middle.runner.parameters()} == expected
    buffers = {name.rpartition(".")[2] for name, _ in _loose_buffers(middle.runner, own)}
    assert buffers <= {"inv_freq", "original_inv_freq", "pe", "full_attention_inv_freq", "sliding_attention_inv_freq",
                       "full_attention_original_inv_freq", "sliding_attention_original_inv_freq"}  # fmt: skip


def _loose_buffers(runner: nn.Module, own: list[Any]) -> list[tuple[str, torch.Tensor]]:
    known = {id(buffer) for part in own for module in part.modules().values() for buffer in module.buffers()}
    return [(name, buffer) for name, buffer in runner.named_buffers() if id(buffer) not in known]


@pytest.mark.parametrize(
    "model_type",
    slow_but(["llama", "wavlm", "siglip2"], ["bert", "mpnet", "llama", "wav2vec2", "wavlm", "siglip2", "focalnet"]),
)
@torch.no_grad()
def test_it_grows_from_a_pushed_repository(tmp_path: Path, hub: Any, repo_id: str, model_type: str) -> None:
    whole, inputs = joined(model_type), given(model_type)
    whole.push_to_hub(repo_id)
    model = getattr(transformers, whole.task).from_pretrained(repo_id, cache_dir=tmp_path)
    assert type(model) is type(whole)
    for stage in range(4):
        model.set_stage(stage)
        assert torch.equal(model(**inputs).logits, whole(**inputs, sources=model.sources).logits)
    assert torch.equal(model(**inputs).logits, networks(model_type)[0](**inputs).logits)


@pytest.mark.parametrize(
    "model_type",
    slow_but(
        ["deberta-v2", "wavlm", "mobilenet_v1"],
        ["bert", "deberta-v2", "llama", "wav2vec2", "wavlm", "clip", "mobilenet_v1"],
    ),
)
@torch.no_grad()
def test_it_grows_by_rungs_of_precision(tmp_path: Path, model_type: str) -> None:
    whole, inputs = joined(model_type), given(model_type)
    whole.add_tier()
    whole.save_pretrained(tmp_path)
    kept = model_class(model_type).from_pretrained(tmp_path, keep_all=True)
    model = model_class(model_type).from_pretrained(tmp_path)
    assert "QSS" in model.schedule
    for mask in (*model.schedule, "STQ", "QST", "SSS"):
        model.set_sources(mask)
        kept.set_sources(mask)
        assert torch.equal(model(**inputs).logits, kept(**inputs).logits), mask
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in model.student.parameters())
    with model.stream_stages(low_precision=True):
        pass
    assert torch.equal(model(**inputs).logits, networks(model_type)[0](**inputs).logits)


@torch.no_grad()
def test_a_network_without_what_its_kind_may_share_is_cut(tmp_path: Path) -> None:
    whole, inputs = joined("deberta-v2", relative_attention=False), given("deberta-v2")
    whole.save_pretrained(tmp_path)
    model = model_class("deberta-v2").from_pretrained(tmp_path)
    for mask in Sources.all(3):
        model.set_sources(str(mask))
        assert torch.equal(model(**inputs).logits, whole(**inputs, sources=str(mask)).logits)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet", "distilbert", "electra", "gpt2", "opt"])
@torch.no_grad()
def test_the_longest_text_is_as_long_as_positions_reach(model_type: str) -> None:
    config = network_config(model_type, "teacher", pad_token_id=1)
    network = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    longest = family_of(model_type).max_tokens(config)
    network(input_ids=torch.full((1, longest), 7))
    with pytest.raises((IndexError, RuntimeError)):
        network(input_ids=torch.full((1, longest + 1), 7))


# --- The table of the docs --------------------------------------------------------------------------------------


def docs_table() -> str:
    """The table of docs/tasks.md, from what the types are here."""
    lines = ["| `model_type` | takes | tokens | attention | bfloat16 | graphs |", "|---|---|---|---|---|---|"]
    for model_type in (*TEXT, *AUDIO):
        config = network_config(model_type, "teacher")
        tokens = "yes" if type(config) in transformers.AutoModelForTokenClassification._model_mapping else ""
        bfloat16 = "transformers' own code fails" if model_type in WITHOUT_BFLOAT16 else "yes"
        takes = family_of(model_type).takes
        graphs = f"no: {reason}" if (reason := family_of(model_type).not_exported) else "yes"
        attention = ", ".join(attentions(model_type))
        lines.append(f"| {model_type} | {takes} | {tokens} | {attention} | {bfloat16} | {graphs} |")
    return "\n".join(lines)


def test_the_docs_have_every_type() -> None:
    text = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    table = docs_table()
    assert table in text, f"docs/tasks.md should have this table:\n{table}"
    assert f"{len(TEXT)} types of text and {len(AUDIO)} of sound" in text
