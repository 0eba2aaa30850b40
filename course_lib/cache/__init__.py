"""Keys and values of tokens already read, kept so that they are computed once."""

from course_lib.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "course_lib.cache.blocks": ["BlockAllocator", "BlockTable"],
        "course_lib.cache.contiguous": ["ContiguousCache", "kv_cache_bytes"],
        "course_lib.cache.paged": ["PagedCache"],
        "course_lib.cache.prefix": ["HashPrefixCache", "NoPrefixCache", "PrefixCache"],
        "course_lib.cache.radix": ["RadixPrefixCache"],
    },
)
