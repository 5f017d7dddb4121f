"""A model that answers with neither torch nor transformers."""
