"""The distillation methods, one folder each, and their registry."""

from hf_gdd.utils.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, registry="Method all_methods find_method register_method")
