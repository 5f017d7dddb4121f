"""transformers' Trainer for PWL models."""
