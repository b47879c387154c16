"""Measure what a distilled set is worth."""
