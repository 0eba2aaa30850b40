"""Keys and values of tokens already read, kept so that they are computed once."""

from course_lib.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "course_lib.cache.contiguous": ["ContiguousCache", "kv_cache_bytes"],
    },
)
