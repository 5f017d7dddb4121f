"""What a model is made of: networks without weights, their blocks' tensors on disk, how they are joined and saved."""
