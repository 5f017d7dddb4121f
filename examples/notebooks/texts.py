# %% [markdown]
# # Texts: a classifier that answers first and loads the rest later
#
# A tiny BERT learns whether a film was liked, a far narrower student learns with it, and the model that has
# both answers as its student and grows into its teacher. The reviews are made up here, with no network; it takes some
# three minutes on two cores.
#
# ```bash
# pip install "pwl-hf[train,onnx]"
# ```
#
# This notebook is made from the script next to it: edit `texts.py`, and run `python make.py texts`.

# %%
import random
from pathlib import Path

from datasets import Dataset
from transformers import BertTokenizer

PRAISE, BLAME = ["good", "great", "witty", "lovely"], ["bad", "dull", "weak", "silly"]
OTHERS = ["trailer", "poster", "popcorn", "cinema"]


def review(chance: random.Random) -> dict[str, str]:
    """What is said of the film, among other things, and whether it was liked."""
    parts, liked = [], False
    for thing in chance.sample(["film", *chance.sample(OTHERS, 2)], 3):
        negated, word = chance.random() < 0.5, chance.choice(PRAISE + BLAME)
        parts.append(f"the {thing} was {'not ' if negated else ''}{word}")
        liked = (word in PRAISE) != negated if thing == "film" else liked
    return {"text": " , ".join(parts), "label": "liked" if liked else "disliked"}


chance = random.Random(0)
Path("reviews").mkdir()
for split, count in (("train", 3000), ("test", 1000)):
    Dataset.from_list([review(chance) for _ in range(count)]).to_parquet(f"reviews/{split}.parquet")

words = [*PRAISE, *BLAME, *OTHERS, "film", "the", "was", "not", ","]
tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}).save_pretrained("words")
Dataset.from_parquet("reviews/test.parquet")[0]

# %% [markdown]
# ## Train
#
# What `training/train_teacher.py` and `training/train.py` do on a command line. The student is half as wide, and
# begins as slices of its teacher.

# %%
import shlex
from contextlib import redirect_stdout

from pwl_hf.training import train, train_teacher

common = """
    --dataset reviews --task text-classification --num_train_epochs 14 --per_device_train_batch_size 64
    --per_device_eval_batch_size 250 --learning_rate 2e-3 --use_cpu true --disable_tqdm true --save_strategy no
"""
teacher = f"""
    --model_type bert --tokenizer words
    --config_overrides vocab_size={len(tokens)} hidden_size=48 num_hidden_layers=4 num_attention_heads=4
    intermediate_size=96 max_position_embeddings=32 --output_dir teacher
"""
student = """
    --teacher teacher --num_blocks 4
    --student_config_overrides hidden_size=8 num_attention_heads=2 intermediate_size=16
    --init_student_from_teacher spread --init_converters matched --output_dir reviews-pwl
"""
with redirect_stdout(None):  # their logs
    train_teacher.train_teacher(train_teacher.command_line().parse(shlex.split(common + teacher)))
    train.train(train.command_line().parse(shlex.split(common + student)))

# %% [markdown]
# ## Stage by stage
#
# Training measured every stage on the saved files. A stage adds one block of the teacher, and its file.

# %%
from pwl_hf import Manifest

manifest = Manifest.from_json(Path("reviews-pwl/pwl_index.json").read_bytes())
kilobytes = 0.0
for number, stage in enumerate(manifest.stages):
    kilobytes += sum(file.bytes for file in stage.files) / 1000
    print(f"stage {number} {stage.sources}: {kilobytes:6.1f} kB so far, {stage.metrics[0].value:.1%} right")

# %% [markdown]
# transformers' pipelines open it as any other model. The last stage is the teacher, bit for bit: the file in
# `teacher/` is a plain checkpoint.

# %%
import torch
from transformers import pipeline

import pwl_hf

classify = pipeline("text-classification", model="reviews-pwl")
classify.model.set_stage("teacher")
review_texts = Dataset.from_parquet("reviews/test.parquet")["text"][:64]
inputs = classify.tokenizer(review_texts, padding=True, return_tensors="pt")
plain = pipeline("text-classification", model="reviews-pwl/teacher")
with torch.inference_mode():
    same = torch.equal(classify.model(**inputs).logits, plain.model(**inputs).logits)
same

# %% [markdown]
# ## While it answers
#
# In a server the stages load in the background. Each answer keeps to the route that it began with.

# %%
classify = pipeline("text-classification", model="reviews-pwl")
seen = []
with classify.model.stream_stages() as stream:
    while not stream.done:
        seen.append(classify.model.stage)
        classify(review_texts[:8])
classify.model.stage, seen == sorted(seen)

# %%
for text in review_texts[:3]:
    print(text, "->", classify(text)[0]["label"])

# %% [markdown]
# ## Without torch
#
# ONNX graphs that hold no weights name ranges of the repository's own files. `pwl_hf.runtime` runs them with
# onnxruntime, and makes tokens with `tokenizers` alone.

# %%
from pwl_hf import runtime

pwl_hf.PWLForSequenceClassification.from_pretrained("reviews-pwl").export("reviews-pwl")
light = runtime.load("reviews-pwl", stage="teacher")
[answers[0]["label"] for answers in light.predict(review_texts[:3])]

# %% [markdown]
# Next: texts of your own in [docs/text.md](../../docs/text.md), words with a label each in
# [words.ipynb](words.ipynb), a server in [docs/serving.md](../../docs/serving.md).
