"""Diffusion tuned with per-class memories, and its baselines Minimax and DiT."""
