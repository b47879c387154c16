"""Random numbers, files, devices and plots: helpers that know nothing of image sets."""
