"""Paths through the two networks: cuts, converters, statistics of masks, and what paths have in common."""
