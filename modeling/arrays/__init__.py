"""The tensors of safetensors files as numpy arrays: mapped, or split in low precision and the rest (no torch)."""
