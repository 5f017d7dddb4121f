"""How each architecture is cut into blocks: a family names the modules of the original network and their order."""
