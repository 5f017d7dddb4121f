"""A narrower student begins as slices of its teacher: which axes there are, which channels stay, and what is read."""
