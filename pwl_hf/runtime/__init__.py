"""A model that grows, on onnxruntime alone: neither torch nor transformers."""
