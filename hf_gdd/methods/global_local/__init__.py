"""Global-local matching of a GAN (Li et al., 2024), its baselines CGAN and DiM."""
