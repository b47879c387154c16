"""Load real and distilled images as tensors, and transform them for classifiers."""

from hf_gdd.utils.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    image_tensors="ImageTensors",
    normalization="InputTransform Normalize ZCAWhitening input_transform",
    imagenet="class_rows_of",
    decoding="dataset_features",
    pixels="encode_png tanh_to_uint8 to_tanh to_unit unit_to_uint8",
)
