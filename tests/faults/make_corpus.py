"""Writes `corpus/`, where the fuzz test begins: `python -m tests.faults.make_corpus`. The corpus is kept in git.

Each file is a whole file of a small repository (see `small_repository`), spoiled in one way that readers of JSON or
of safetensors have got wrong somewhere; `...-sound` are as they should be.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.repository.helpers import INDEX, encoder
from tests.tiny import tiny_model

CORPUS = Path(__file__).parent / "corpus"


def small_repository(folder: Path) -> Path:
    """A ViT pair in two stages; always the same bytes."""
    tiny_model("vit", num_stages=2).save_pretrained(folder)
    return folder


def join(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def split(content: bytes) -> tuple[bytes, bytes]:
    (size,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + size], content[8 + size :]


# What becomes of a header (as JSON); both tensors are "weight" and "bias".
HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "sound": lambda h: h,
    "empty": lambda h: {},
    "list": lambda h: [h],
    "null": lambda h: None,
    "only-metadata": lambda h: {"__metadata__": {"format": "pt"}},
    "metadata-number": lambda h: h | {"__metadata__": {"format": 1}},
    "metadata-list": lambda h: h | {"__metadata__": []},
    "metadata-tensor": lambda h: {"__metadata__": h["weight"], "bias": h["bias"]},
    "name-empty": lambda h: {"": h["weight"], "bias": h["bias"]},
    "name-null-byte": lambda h: {"weight\0": h["weight"], "bias": h["bias"]},
    "extra-tensor": lambda h: (
        h | {"extra": {"dtype": "F32", "shape": [0], "data_offsets": h["weight"]["data_offsets"]}}
    ),
    "offsets-negative": lambda h: h | {"bias": h["bias"] | {"data_offsets": [-64, 0]}},
    "offsets-reversed": lambda h: h | {"bias": h["bias"] | {"data_offsets": h["bias"]["data_offsets"][::-1]}},
    "offsets-equal": lambda h: h | {"weight": h["weight"] | {"data_offsets": h["bias"]["data_offsets"]}},
    "offsets-beyond": lambda h: h | {"weight": h["weight"] | {"data_offsets": [0, 2**63]}},
    "offsets-float": lambda h: h | {"bias": h["bias"] | {"data_offsets": [0.0, 64.0]}},
    "offsets-three": lambda h: h | {"bias": h["bias"] | {"data_offsets": [0, 64, 64]}},
    "shape-overflow": lambda h: h | {"weight": h["weight"] | {"shape": [2**32, 2**32]}},
    "shape-negative": lambda h: h | {"weight": h["weight"] | {"shape": [-16, -24]}},
    "shape-zero": lambda h: h | {"weight": h["weight"] | {"shape": [0, 24], "data_offsets": [64, 64]}},
    "shape-transposed": lambda h: h | {"weight": h["weight"] | {"shape": h["weight"]["shape"][::-1]}},
    "shape-flat": lambda h: h | {"weight": h["weight"] | {"shape": [16 * 24]}},
    "shape-scalar": lambda h: h | {"bias": h["bias"] | {"shape": []}},
    "dtype-integers": lambda h: h | {"weight": h["weight"] | {"dtype": "I32"}},
    "dtype-half": lambda h: h | {"weight": h["weight"] | {"dtype": "F16", "shape": [16, 48]}},
    "dtype-lower": lambda h: h | {"weight": h["weight"] | {"dtype": "f32"}},
    "dtype-four-bits": lambda h: h | {"weight": h["weight"] | {"dtype": "F4", "shape": [16, 192]}},
    "dtype-missing": lambda h: h | {"weight": {k: v for k, v in h["weight"].items() if k != "dtype"}},
}

# What becomes of the manifest, or of the config.
DOCUMENTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "sound": lambda d: d,
    "null": lambda d: None,
    "keys-missing": lambda d: {},
    "all-null": lambda d: dict.fromkeys(d),
    "all-true": lambda d: dict.fromkeys(d, True),
    "all-large": lambda d: dict.fromkeys(d, 10**30),
    "all-lists": lambda d: {key: [value] for key, value in d.items()},
    "all-themselves": lambda d: dict.fromkeys(d, d),
}
MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no-stages": lambda d: d | {"stages": []},
    "path-up": lambda d: json.loads(json.dumps(d).replace("converters/", "converters/../../")),
    "path-root": lambda d: json.loads(json.dumps(d).replace("converters/", "/converters/")),
    "path-backslash": lambda d: json.loads(json.dumps(d).replace("converters/", "converters\\\\")),
    "path-null-byte": lambda d: json.loads(json.dumps(d).replace(".safetensors", "\\u0000.safetensors")),
    "sha256-long": lambda d: json.loads(json.dumps(d).replace('"sha256": "', '"sha256": "A')),
    "bytes-float": lambda d: json.loads(json.dumps(d).replace('"bytes": ', '"bytes": 0.')),
    "dtype-complex": lambda d: d | {"dtype": "complex64"},
    "version-next": lambda d: d | {"min_reader": 2},
}
CONFIGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "stages-none": lambda d: d | {"num_stages": 0},
    "stages-negative": lambda d: d | {"num_stages": -1},
    "stages-many": lambda d: d | {"num_stages": 99},
    "cuts-beyond": lambda d: d | {"teacher_cuts": [99, 100]},
    "cuts-falling": lambda d: d | {"teacher_cuts": [8, 4]},
    "teacher-unknown": lambda d: d | {"teacher_config": d["teacher_config"] | {"model_type": "nothing"}},
    "teacher-itself": lambda d: d | {"teacher_config": d},
    "teacher-text": lambda d: d | {"teacher_config": d["teacher_config"] | {"model_type": "bert"}},
    "width-none": lambda d: d | {"student_config": d["student_config"] | {"hidden_size": 0}},
    "width-negative": lambda d: d | {"student_config": d["student_config"] | {"hidden_size": -16}},
    "heads-none": lambda d: d | {"student_config": d["student_config"] | {"num_attention_heads": 0}},
    "patch-none": lambda d: d | {"student_config": d["student_config"] | {"patch_size": 0}},
    "activation-unknown": lambda d: d | {"student_config": d["student_config"] | {"hidden_act": "nothing"}},
    "layers-none": lambda d: d | {"student_config": d["student_config"] | {"num_hidden_layers": 0}},
    "labels-text": lambda d: d | {"id2label": {"x": "y"}},
}
# What becomes of the text of either.
TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda t: b"",
    "byte-order-mark": lambda t: b"\xef\xbb\xbf" + t,
    "utf-16": lambda t: t.decode().encode("utf-16"),
    "cut": lambda t: t[: len(t) // 2],
    "twice": lambda t: t + t,
    "not-utf-8": lambda t: t.replace(b"float32", b"fl\xff\xfet32"),
    "nan": lambda t: t.replace(b": 1,", b": NaN,"),
    "lone-surrogate": lambda t: t.replace(b'"float32"', b'"\\ud800"'),
    "deep": lambda t: b"[" * 20_000,
    "key-twice": lambda t: b'{"dtype": "float64",' + t.lstrip()[1:],
}


def weights(content: bytes) -> dict[str, bytes]:
    """Name -> spoiled converter."""
    header, data = split(content)
    found = {name: join(json.dumps(change(json.loads(header))).encode(), data) for name, change in HEADERS.items()}
    twice = header[:-1].rstrip(b" }") + b'}, "bias"' + header.split(b'"bias"')[1]
    return found | {
        "nothing": b"",
        "half-a-length": content[:4],
        "length-only": struct.pack("<Q", 0),
        "length-huge": struct.pack("<Q", 2**63) + content[8:],
        "length-long": struct.pack("<Q", len(header) + 1) + content[8:],
        "header-spaces": join(header + b" " * 64, data),
        "header-leading-space": join(b" " + header, data),
        "header-not-utf-8": join(header.replace(b"weight", b"w\xff\xfeght"), data),
        "name-twice": join(twice, data),
        "data-cut": content[:-1],
        "data-more": content + b"\0",
        "data-none": join(header, b""),
        "pickle": b"\x80\x04\x95" + content[3:],
    }


def documents(content: bytes, own: dict[str, Callable[[dict[str, Any]], Any]]) -> dict[str, bytes]:
    """Name -> spoiled JSON file."""
    data = json.loads(content)
    found = {name: json.dumps(change(data)).encode() for name, change in (DOCUMENTS | own).items()}
    return found | {name: change(content) for name, change in TEXTS.items()}


def main() -> None:
    CORPUS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        root = small_repository(Path(folder))
        kinds = {
            "converter.safetensors": weights((root / encoder(1)).read_bytes()),
            INDEX: documents((root / INDEX).read_bytes(), MANIFESTS),
            "config.json": documents((root / "config.json").read_bytes(), CONFIGS),
        }
    for file, found in kinds.items():
        stem, suffix = file.split(".")
        for name, content in found.items():
            (CORPUS / f"{stem}-{name}.{suffix}").write_bytes(content)


if __name__ == "__main__":
    main()
