"""Small helpers that know nothing of image sets: random numbers, files, devices, plots."""
