"""From logits to tokens: samplers and the loops that use them."""

from course_lib.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "course_lib.decode.sampler": ["Sampler", "SamplingParams"],
        "course_lib.decode.generate": ["generate_cached", "generate_uncached"],
    },
)
