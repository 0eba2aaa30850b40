"""Fewer bits for the same numbers."""

from course_lib.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "course_lib.quant.linear": [
            "Int4Linear",
            "Int8Linear",
            "QuantizedLinear",
            "dequantize_groups",
            "dequantize_rows",
            "quantize_groups",
            "quantize_linears",
            "quantize_rows",
        ],
    },
)
