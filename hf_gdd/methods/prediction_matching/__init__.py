"""Adversarial prediction matching (Chen et al., 2023): optimize the images themselves."""
