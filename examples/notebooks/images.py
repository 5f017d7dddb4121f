# %% [markdown]
# # Images: a model that answers first and loads the rest later
#
# A tiny ViT of handwritten digits is trained, loaded as its student, and grown into its teacher while it answers. It
# takes some three minutes on two cores and needs neither a GPU nor the network.
#
# ```bash
# pip install "pwl-hf[train,onnx]"
# ```
#
# This notebook is made from the script next to it: edit `images.py`, and run `python make.py images`.

# %%
from pathlib import Path

from pwl_hf.demo import run_demo

run_demo(Path("digits-pwl"), quiet=True)
sorted(path.name for path in Path("digits-pwl").iterdir() if path.suffix in (".json", ".safetensors"))

# %% [markdown]
# ## Stage by stage
#
# `from_pretrained` reads the student's file alone. Each step brings in one block of the teacher and releases the
# student's.

# %%
import matplotlib.pyplot as plt
import torch
from transformers import AutoImageProcessor

from pwl_hf import Manifest, PWLForImageClassification
from pwl_hf.data.digits import load_splits

_, test = load_splits()
inputs = AutoImageProcessor.from_pretrained("digits-pwl")(test.images, return_tensors="pt")
labels = torch.tensor(test.labels)
manifest = Manifest.from_json(Path("digits-pwl/pwl_index.json").read_bytes())

model = PWLForImageClassification.from_pretrained("digits-pwl")
kilobytes, accuracies = [], []
for stage in manifest.stages:
    model.set_stage(stage.stage)
    with torch.inference_mode():
        right = (model(**inputs).logits.argmax(-1) == labels).float().mean().item()
    kilobytes.append(sum(file.bytes for file in stage.files) / 1000 + (kilobytes[-1] if kilobytes else 0))
    accuracies.append(right)
    print(f"stage {model.stage} {model.sources}: {kilobytes[-1]:6.1f} kB so far, {right:.1%} right")

# %%
figure, axes = plt.subplots(figsize=(5, 3))
axes.step(kilobytes, [100 * value for value in accuracies], where="post", marker="o")
axes.set_xlabel("kilobytes loaded")
axes.set_ylabel("right, in percent")
axes.set_title("Right answers over what was loaded")
axes.grid(alpha=0.3)

# %% [markdown]
# The last stage is the teacher, bit for bit: the file in `teacher/` is a plain checkpoint, which transformers opens
# by itself.

# %%
from transformers import AutoModelForImageClassification

teacher = AutoModelForImageClassification.from_pretrained("digits-pwl", subfolder="teacher").eval()
with torch.inference_mode():
    same = torch.equal(model(**inputs).logits, teacher(**inputs).logits)
same

# %% [markdown]
# ## While it answers
#
# In a server the stages load in the background. Each answer keeps to the route that it began with.

# %%
model = PWLForImageClassification.from_pretrained("digits-pwl")
seen = []
with torch.inference_mode(), model.stream_stages() as stream:
    while not stream.done:
        seen.append(model.stage)
        model(inputs["pixel_values"][:8])
model.stage, seen == sorted(seen)

# %% [markdown]
# ## Nearly the teacher at a third of its bytes
#
# `add_tier` puts the teacher in int8 on the way, and what makes that exact. Nothing is trained. `Q` is a block in low
# precision.

# %%
model.add_tier()
model.save_pretrained("digits-rungs")
rungs = PWLForImageClassification.from_pretrained("digits-rungs")
for stage, mask in enumerate(rungs.schedule):
    rungs.set_stage(stage)
    with torch.inference_mode():
        right = (rungs(**inputs).logits.argmax(-1) == labels).float().mean().item()
    print(f"stage {stage} {mask}: {right:.1%} right")

# %% [markdown]
# ## Without torch
#
# ONNX graphs that hold no weights name ranges of the repository's own files. `pwl_hf.runtime` runs them with
# onnxruntime alone.

# %%
from pwl_hf import runtime

PWLForImageClassification.from_pretrained("digits-pwl").export("digits-pwl")
light = runtime.load("digits-pwl", stage="teacher")
best = light.predict(test.images[0], top_k=1)[0]
best["label"], light.labels[test.labels[0]], light.sources

# %% [markdown]
# Next: your own images and networks in [docs/training.md](../../docs/training.md), a server in
# [docs/serving.md](../../docs/serving.md), texts and sounds in [docs/tasks.md](../../docs/tasks.md).
