"""Graphs without weights: what an exported repository says of them, and how onnxruntime runs them (no torch)."""
