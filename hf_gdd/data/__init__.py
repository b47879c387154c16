"""Load real and distilled images as tensors, and transform them for classifiers."""

from hf_gdd.utils.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ImageTensors": "image_tensors",
        "InputTransform": "normalization",
        "Normalize": "normalization",
        "ZCAWhitening": "normalization",
        "input_transform": "normalization",
        "class_rows_of": "imagenet",
        "dataset_features": "decoding",
        "encode_png": "pixels",
        "tanh_to_uint8": "pixels",
        "to_tanh": "pixels",
        "to_unit": "pixels",
        "unit_to_uint8": "pixels",
    },
)
