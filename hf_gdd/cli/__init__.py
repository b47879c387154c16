"""The command line `hf-gdd`."""
