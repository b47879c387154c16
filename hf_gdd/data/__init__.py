"""The one door for real and distilled images."""
