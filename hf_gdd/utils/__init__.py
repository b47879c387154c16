"""Helpers for random numbers, files, devices and plots."""
