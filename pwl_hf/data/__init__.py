"""Labelled images, from wherever they lie, as networks take them."""
