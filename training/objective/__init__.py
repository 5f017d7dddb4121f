"""What a step minimises: terms over the paths of a model."""
