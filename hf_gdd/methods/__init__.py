"""The distillation methods, one folder each."""
