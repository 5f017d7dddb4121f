"""The tasks that models are of: what each is called, here and by others (pure Python)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A task of models.

    Args:
        auto_class: transformers' Auto class of its networks, by which a config and a model's class name it.
        class_name: The class of its models.
        module: Where that is, within this package.
        pipeline: The name of transformers' pipeline, and of the task on the Hub.
        samples: What is classified, in the plural.
        example: A sample, as Python code.
        processing: What makes inputs of samples, as people call it.
        processing_class: transformers' Auto class of what makes inputs of samples.
        files: What that may be saved as; without the first of them there is none.
    """

    auto_class: str
    class_name: str
    module: str
    pipeline: str
    samples: str
    example: str
    processing: str
    processing_class: str
    files: tuple[str, ...] = ("preprocessor_config.json",)


TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = (
    "tokenizer_config.json",
    TOKENIZER_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)

TASKS = {
    task.auto_class: task
    for task in (
        Task(
            "AutoModelForImageClassification",
            "PWLForImageClassification",
            "tasks.image_classification",
            "image-classification",
            "images",
            '"cat.png"',
            "an image processor",
            "AutoImageProcessor",
        ),
        Task(
            "AutoModelForSequenceClassification",
            "PWLForSequenceClassification",
            "tasks.sequence_classification",
            "text-classification",
            "texts",
            '"I liked it"',
            "a tokenizer",
            "AutoTokenizer",
            TOKENIZER_FILES,
        ),
        Task(
            "AutoModelForTokenClassification",
            "PWLForTokenClassification",
            "tasks.token_classification",
            "token-classification",
            "texts",
            '"Sarah lives in London"',
            "a tokenizer",
            "AutoTokenizer",
            TOKENIZER_FILES,
        ),
        Task(
            "AutoModelForAudioClassification",
            "PWLForAudioClassification",
            "tasks.audio_classification",
            "audio-classification",
            "sounds",
            '"bark.wav"',
            "a feature extractor",
            "AutoFeatureExtractor",
        ),
    )
}

# What was saved without a task is of the time when there was this one alone.
FIRST_TASK = "AutoModelForImageClassification"
