"""Networks of texts: families that are data, and a task that the library does not have."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertConfig, LlamaConfig, MPNetConfig, PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutput

from pwl_hf import PWLConfig, PWLForSequenceClassification, PWLPreTrainedModel


class LanguageModel(PWLPreTrainedModel):
    task = "AutoModelForCausalLM"
    main_input_name = "input_ids"

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, sources: Any = None) -> Any:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        logits, _ = self.run(inputs, sources)
        return CausalLMOutput(logits=logits)


_SMALL = {"vocab_size": 50, "num_labels": 3, "pad_token_id": 0, "max_position_embeddings": 40}
_SIZES = {
    "teacher": {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_hidden_layers": 4},
    "student": {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 3},
}
_CONFIGS: dict[str, type[PreTrainedConfig]] = {"bert": BertConfig, "mpnet": MPNetConfig, "llama": LlamaConfig}


def config_of(model_type: str, role: str, **kwargs: Any) -> PreTrainedConfig:
    heads = {"num_key_value_heads": 2} if model_type == "llama" else {}
    return _CONFIGS[model_type](**_SMALL, **_SIZES[role], **heads, **kwargs)


def driven_model(model_type: str, num_blocks: int = 3, student: str = "student", **kwargs: Any) -> PWLPreTrainedModel:
    """A model of random weights; `student="teacher"` makes a student of the teacher's size."""
    kind = LanguageModel if kwargs.pop("language_model", False) else PWLForSequenceClassification
    networks = {"teacher_config": config_of(model_type, "teacher", **kwargs)}
    networks["student_config"] = config_of(model_type, student, **kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(PWLConfig(**networks, num_blocks=num_blocks)).eval()


def texts() -> dict[str, torch.Tensor]:
    """Three texts of different lengths, padded on the right."""
    input_ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [5, 6, 7, 8, 9, 0, 0, 0], [20, 20, 20, 0, 0, 0, 0, 0]])
    return {"input_ids": input_ids, "attention_mask": (input_ids != 0).long()}
