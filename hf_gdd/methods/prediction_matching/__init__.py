"""Adversarial prediction matching (Chen et al., 2023), which optimizes the images."""
