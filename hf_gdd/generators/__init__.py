"""Everything that turns (label, index, seed) into an image."""
