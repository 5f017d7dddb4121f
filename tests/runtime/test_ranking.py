"""Scores and their order are those of transformers' image-classification pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ImageClassificationPipeline, ViTImageProcessorPil
from transformers.modeling_outputs import ImageClassifierOutput

from pwl_hf.runtime.ranking import rank
from tests.tiny import tiny_model

PROBLEM_TYPES = [None, "regression", "single_label_classification", "multi_label_classification"]


@pytest.fixture(scope="module")
def pipeline():
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    return ImageClassificationPipeline(model=tiny_model("vit"), image_processor=processor)


def expected(pipeline, logits, problem_type, top_k):
    """What the pipeline makes of the logits of one image."""
    config = pipeline.model.config
    found = config.problem_type, config.id2label
    config.problem_type, config.id2label = problem_type, {i: f"label {i}" for i in range(logits.shape[1])}
    try:
        return pipeline.postprocess(ImageClassifierOutput(logits=logits), top_k=top_k)
    finally:
        config.problem_type, config.id2label = found


@pytest.mark.parametrize("num_labels", [1, 2, 5, 1000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_answers_are_the_pipeline_s_to_the_bit(pipeline, problem_type, dtype, num_labels):
    logits = (torch.randn(3, num_labels, generator=torch.Generator().manual_seed(0)) * 20).to(dtype)
    names = [f"label {i}" for i in range(num_labels)]
    for top_k in (1, 3, 5000):
        answers = rank(logits.numpy(), names, problem_type, top_k)
        assert answers == [expected(pipeline, row[None], problem_type, top_k) for row in logits]
        assert {type(answer["score"]) for row in answers for answer in row} == {float}


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_ties_and_extremes_are_in_the_pipeline_s_order(pipeline, problem_type):
    logits = torch.tensor([[1.0, -200.0, 1.0, 0.0, -0.0, 200.0, 1.0, 200.0, -torch.inf]])
    with np.errstate(over="ignore"):
        reference = expected(pipeline, logits, problem_type, 9)
    assert rank(logits.numpy(), [f"label {i}" for i in range(9)], problem_type, 9) == [reference]


def test_images_get_the_pipeline_s_answers(pipeline):
    image = Image.effect_mandelbrot((40, 30), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    with torch.no_grad():
        logits = pipeline.model(**pipeline.image_processor(image, return_tensors="pt")).logits
    labels = [pipeline.model.config.id2label[i] for i in range(5)]
    (answers,) = rank(logits.numpy(), labels, pipeline.model.config.problem_type)
    reference = pipeline(image)
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in reference]
    found, wanted = ([answer["score"] for answer in row] for row in (answers, reference))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_answers_without_numpy_arrays():
    scores = [{"label": "cat", "score": 0.4683105308334812}, {"label": "owl", "score": 0.4683105308334812}]
    assert rank([[2.0, 0.0, 2.0]], ["cat", "dog", "owl"], top_k=2) == [scores]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 2]], "ab"), r"logits must be floating numbers \(samples, labels\), got int64 of shape \(1, 2\)"),
        (([1.0, 2.0], "ab"), r"logits must be .* of shape \(2,\)"),
        (([[1.0, 2.0]], "abc"), "logits are of 2 labels and there are 3 names"),
        (([[]], ""), "logits are of 0 labels"),
        (([[1.0, 2.0]], "ab", "ranking"), "problem_type is 'ranking', it must be one of None, 'regression'"),
        (([[1.0, 2.0]], "ab", None, 0), "top_k is 0, it must be a whole number of at least 1"),
        (([[1.0, 2.0]], "ab", None, True), "top_k is True"),
        (([[1.0, 2.0]], "ab", None, 1.5), r"top_k is 1\.5"),
        (([[1.0, 2.0], [np.nan, 1.0]], "ab"), "logits of sample 1 make scores of NaN"),
        (([[np.inf, 2.0]], "ab"), "logits of sample 0 make scores of NaN"),
    ],
)
def test_what_cannot_be_ranked_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rank(*arguments)
