"""Graphs without weights, exported from a repository: traced, pointed at its files, and proved."""
