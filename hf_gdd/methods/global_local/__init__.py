"""Global-local matching of a conditional GAN (Li et al., 2024), and its baselines CGAN and DiM."""
