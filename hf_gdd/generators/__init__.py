"""Generators: an image for every (class, index, seed)."""
