"""From logits to tokens: samplers and the loops that use them, in NumPy (Day 7) and in torch."""

from course_lib.decode.numpy_generate import generate
from course_lib.decode.numpy_sample import keep_top_p, sample
from course_lib.decode.speculative import ngram_draft
from course_lib.lazy import lazy_exports

__all__ = ["generate", "keep_top_p", "ngram_draft", "sample"]

# The torch ones are imported when they are asked for.
__getattr__ = lazy_exports(
    __name__,
    {
        "course_lib.decode.beam": ["Beam", "CachedBeams", "beam_search"],
        "course_lib.decode.draft_model": ["DraftModel"],
        "course_lib.decode.params": ["SamplingParams", "StructuredOutputsParams"],
        "course_lib.decode.sampler": ["Sampler"],
        "course_lib.decode.loop": ["generate_cached", "generate_uncached"],
    },
)
