# %% [markdown]
# # Words: a tagger that answers first and loads the rest later
#
# A tiny BERT learns to tag people and places in sentences, a far narrower student learns with it, and the
# model that has both answers as its student and grows into its teacher. The sentences are made up here, with no
# network; it takes some three minutes on two cores.
#
# ```bash
# pip install "pwl-hf[train,onnx]"
# ```
#
# This notebook is made from the script next to it: edit `words.py`, and run `python make.py words`.

# %%
import random
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import BertTokenizer

# All of these are names of people and of places: what is said of them tells which.
NAMES = ["paris", "florence", "austin", "sydney", "milan", "chelsea", "jordan", "georgia"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
OF_PEOPLE, OF_PLACES = ["sang", "slept", "laughed", "waved"], ["burned", "flooded", "grew", "froze"]


def sentence(chance: random.Random) -> dict[str, list]:
    """Words, and a tag for each: people have one name or two."""
    words, tags = [], []
    for _ in range(chance.choice([1, 2])):
        are_people = chance.random() < 0.5
        for number in range(chance.choice([1, 2, 3])):
            words += ["and"] * (number > 0 or len(words) > 0)
            tags += ["O"] * (len(words) - len(tags))
            count = chance.choice([1, 2]) if are_people else 1
            words += chance.sample(NAMES, count)
            tags += ["B-PER", "I-PER"][:count] if are_people else ["B-LOC"]
        words.append(chance.choice(OF_PEOPLE if are_people else OF_PLACES))
        tags.append("O")
    return {"tokens": words, "tags": [TAGS.index(tag) for tag in tags]}


chance = random.Random(0)
features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=TAGS))})
Path("sentences").mkdir()
for split, count in (("train", 3000), ("test", 1000)):
    rows = [sentence(chance) for _ in range(count)]
    Dataset.from_list(rows, features=features).to_parquet(f"sentences/{split}.parquet")

tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *NAMES, *OF_PEOPLE, *OF_PLACES, "and"]
BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}).save_pretrained("words")
" ".join(rows[0]["tokens"]), [TAGS[tag] for tag in rows[0]["tags"]]

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
    --dataset sentences --task token-classification --num_train_epochs 6 --per_device_train_batch_size 64
    --per_device_eval_batch_size 250 --learning_rate 2e-3 --use_cpu true --disable_tqdm true --save_strategy no
"""
teacher = f"""
    --model_type bert --tokenizer words
    --config_overrides vocab_size={len(tokens)} hidden_size=48 num_hidden_layers=3 num_attention_heads=4
    intermediate_size=96 max_position_embeddings=32 --output_dir teacher
"""
student = """
    --teacher teacher --num_blocks 3
    --student_config_overrides hidden_size=8 num_attention_heads=2 intermediate_size=16
    --init_student_from_teacher spread --init_converters matched --output_dir tagger-pwl
"""
with redirect_stdout(None):  # their logs
    train_teacher.train_teacher(train_teacher.command_line().parse(shlex.split(common + teacher)))
    train.train(train.command_line().parse(shlex.split(common + student)))

# %% [markdown]
# ## Stage by stage
#
# Training measured every stage on the saved files: accuracy over words, macro F1, and the F1 of whole names.

# %%
from pwl_hf import Manifest

manifest = Manifest.from_json(Path("tagger-pwl/pwl_index.json").read_bytes())
for number, stage in enumerate(manifest.stages):
    measured = {metric.name: metric.value for metric in stage.metrics}
    print(f"stage {number} {stage.sources}: {measured['accuracy']:.1%} of words, span F1 {measured['span_f1']:.1%}")

# %% [markdown]
# transformers' pipelines open it as any other model. The last stage is the teacher, bit for bit: the file in
# `teacher/` is a plain checkpoint.

# %%
import torch
from transformers import pipeline

import pwl_hf

tag = pipeline("token-classification", model="tagger-pwl", aggregation_strategy="simple")
tag.model.set_stage("teacher")
texts = [" ".join(row["tokens"]) for row in rows[:64]]
inputs = tag.tokenizer(texts, padding=True, return_tensors="pt")
plain = pipeline("token-classification", model="tagger-pwl/teacher")
with torch.inference_mode():
    same = torch.equal(tag.model(**inputs).logits, plain.model(**inputs).logits)
same

# %% [markdown]
# ## While it answers
#
# In a server the stages load in the background. Each answer keeps to the route that it began with.

# %%
tag = pipeline("token-classification", model="tagger-pwl", aggregation_strategy="simple")
seen = []
with tag.model.stream_stages() as stream:
    while not stream.done:
        seen.append(tag.model.stage)
        tag(texts[:8])
tag.model.stage, seen == sorted(seen)

# %%
[(entity["word"], entity["entity_group"]) for entity in tag("sydney austin and paris sang and milan froze")]

# %% [markdown]
# ## Without torch
#
# ONNX graphs that hold no weights name ranges of the repository's own files. `pwl_hf.runtime` runs them with
# onnxruntime, and makes tokens with `tokenizers` alone.

# %%
from pwl_hf import runtime

pwl_hf.PWLForTokenClassification.from_pretrained("tagger-pwl").export("tagger-pwl")
light = runtime.load("tagger-pwl", stage="teacher")
found = light.predict("sydney austin and paris sang and milan froze", aggregation_strategy="simple")
[(entity["word"], entity["entity_group"]) for entity in found]

# %% [markdown]
# Next: words of your own in [docs/text.md](../../docs/text.md), whole texts in [texts.ipynb](texts.ipynb), a server
# in [docs/serving.md](../../docs/serving.md).
