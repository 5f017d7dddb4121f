# %% [markdown]
# # Sounds: a classifier that answers first and loads the rest later
#
# A tiny Audio Spectrogram Transformer learns whether a tone in noise rises, falls, stays or trembles, a student of
# half its width learns with it, and the model that has both answers as its student and grows into its teacher. The
# sounds are made up here, with no network; it takes some three minutes on two cores.
#
# ```bash
# pip install "pwl-hf[train,onnx,audio]"
# ```
#
# This notebook is made from the script next to it: edit `sounds.py`, and run `python make.py sounds`.

# %%
from pathlib import Path

import numpy as np
import soundfile

RATE = 8000
KINDS = ("falls", "rises", "stays", "trembles")


def sound(kind: str, generator: np.random.Generator) -> np.ndarray:
    """Half a second, (samples,) float32: a tone of any pitch, in noise."""
    moments = np.arange(RATE // 2) / RATE
    pitch, bend = generator.uniform(500, 1500), generator.uniform(300, 600)
    course = {
        "falls": -bend * moments,
        "rises": bend * moments,
        "stays": 0,
        "trembles": bend / 8 * np.sin(50 * moments),
    }
    phase = 2 * np.pi * np.cumsum(pitch + course[kind]) / RATE
    noise = generator.normal(0, 0.1, len(moments))
    return (0.3 * np.sin(phase + generator.uniform(0, 6)) + noise).astype(np.float32)


# A folder for each split, in it one for each label: what any data set of one's own may look like.
generator = np.random.default_rng(0)
for split, count in (("train", 250), ("test", 100)):
    for kind in KINDS:
        Path("tones", split, kind).mkdir(parents=True)
        for number in range(count):
            soundfile.write(f"tones/{split}/{kind}/{number}.wav", sound(kind, generator), RATE)
sorted(path.name for path in Path("tones/train").iterdir())

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
    --dataset tones --task audio-classification --num_train_epochs 40 --per_device_train_batch_size 50
    --keep_in_memory true --per_device_eval_batch_size 100 --learning_rate 1e-3 --use_cpu true
    --disable_tqdm true --save_strategy no
"""
teacher = f"""
    --model_type audio-spectrogram-transformer --sampling_rate {RATE}
    --config_overrides num_mel_bins=32 max_length=24 patch_size=8 frequency_stride=8 time_stride=8
    hidden_size=48 num_hidden_layers=3 num_attention_heads=4 intermediate_size=96 --output_dir teacher
"""
student = """
    --teacher teacher --num_blocks 3
    --student_config_overrides hidden_size=4 num_attention_heads=2 intermediate_size=8
    --init_student_from_teacher spread --init_converters matched --output_dir tones-pwl
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

manifest = Manifest.from_json(Path("tones-pwl/pwl_index.json").read_bytes())
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

classify = pipeline("audio-classification", model="tones-pwl")
classify.model.set_stage("teacher")
some = [sound(kind, generator) for kind in KINDS]
inputs = classify.feature_extractor(some, sampling_rate=RATE, return_tensors="pt")
plain = pipeline("audio-classification", model="tones-pwl/teacher")
with torch.inference_mode():
    same = torch.equal(classify.model(**inputs).logits, plain.model(**inputs).logits)
same

# %% [markdown]
# ## While it answers
#
# In a server the stages load in the background. Each answer keeps to the route that it began with.

# %%
classify = pipeline("audio-classification", model="tones-pwl")
seen = []
with classify.model.stream_stages() as stream:
    while not stream.done:
        seen.append(classify.model.stage)
        classify(some)
classify.model.stage, seen == sorted(seen)

# %% [markdown]
# ## Without torch
#
# ONNX graphs that hold no weights name ranges of the repository's own files. `pwl_hf.runtime` runs them with
# onnxruntime, and makes spectrograms in numpy; files are decoded by soundfile, and brought to the network's rate.

# %%
from pwl_hf import runtime

pwl_hf.PWLForAudioClassification.from_pretrained("tones-pwl").export("tones-pwl")
light = runtime.load("tones-pwl", stage="teacher")
[(kind, light.predict(f"tones/test/{kind}/0.wav", top_k=1)[0]["label"]) for kind in KINDS]

# %% [markdown]
# Next: sounds of your own in [docs/audio.md](../../docs/audio.md), a server in
# [docs/serving.md](../../docs/serving.md).
