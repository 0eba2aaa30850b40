"""The paged cache whose one-token requests are attended to by Triton's kernel, and the choice of it.

On an NVIDIA GPU the kernel reads keys and values where they lie; torch gathers a copy of them first. It has
been run in Triton's interpreter and compiled for sm_80 and sm_90, never yet on hardware: so the engine tries
it beside torch when it starts, and says what it chose.
"""

import itertools
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from course_lib.cache.paged import PAGED_CACHES, KVCacheDtype, PagedCache, Singles, tensor
from course_lib.model.config import ModelConfig

Attention = Literal["auto", "torch", "triton"]
ATTENTIONS: tuple[Attention, ...] = ("auto", "torch", "triton")
NEAR = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}  # of two ways to the same numbers


class TritonPagedCache(PagedCache):
    def attend_singles(
        self,
        layer: int,
        query: Float[Tensor, "N H D"],
        part: Singles,
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "N H D"]:
        from course_lib.kernels.triton import paged_attention

        tables = part.blocks.view(len(part.lengths), -1)
        keys, values = self.keys[layer], self.values[layer]
        return paged_attention(query, keys, values, tables, part.lengths, scale, window)


def choose_cache(
    attention: Attention,
    kv_cache_dtype: KVCacheDtype,
    config: ModelConfig,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[type[PagedCache], str]:
    """The cache to use, and a phrase for the start line: what attends, and why.

    Raises:
        ValueError: Triton's kernel is asked for and cannot be used.
    """
    with_torch = PAGED_CACHES[kv_cache_dtype]
    if attention not in ATTENTIONS:
        raise ValueError(f"attention is {attention!r}; choose {', '.join(ATTENTIONS)}.")
    if attention == "torch":
        return with_torch, "torch: as asked"
    if attention == "auto" and (device.type != "cuda" or torch.version.hip):
        return with_torch, "torch: no NVIDIA GPU"
    if kv_cache_dtype != "auto":
        reason: str | None = f"Triton's kernel does not read keys and values of {kv_cache_dtype}"
    else:
        reason = trial(config, block_size, dtype, device)
    if reason is None:
        why = (
            "as asked" if attention == "triton" else "its result was torch's in a trial; new on GPUs, untimed"
        )
        return TritonPagedCache, f"triton: {why}"
    if attention == "triton":
        raise ValueError(f"attention='triton' cannot be used: {reason}.")
    return with_torch, f"torch: {reason}"


@torch.inference_mode()
def trial(config: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Attend once in both ways, on random texts. A phrase if Triton's fails or differs, else None."""
    lengths, most = (1, 2 * block_size + 1), 3
    part = Singles(0, 2, tensor([0, 0, 0, 3, 1, 2], device), tensor(lengths, device))
    one_layer = replace(config, num_hidden_layers=1)
    caches = [kind(one_layer, most + 1, block_size, dtype, device) for kind in (PagedCache, TritonPagedCache)]
    random = torch.Generator().manual_seed(1)
    for pool in (caches[0].keys, caches[0].values):
        pool.copy_(torch.randn(pool.shape, generator=random))
    caches[1].keys, caches[1].values = caches[0].keys, caches[0].values
    heads = (2, config.num_attention_heads, config.head_dim)
    query = torch.randn(heads, generator=random).to(device, dtype)
    try:
        windows = (None, block_size)
        results = [c.attend_singles(0, query, part, 0.5, w) for w, c in itertools.product(windows, caches)]
    except Exception as error:  # no Triton, no compiler, a chip that it does not know: torch serves, too
        return f"Triton's kernel failed here ({type(error).__name__}: {str(error).splitlines()[0]})"
    for by_torch, by_triton in zip(results[::2], results[1::2], strict=True):
        if not torch.allclose(by_torch, by_triton, rtol=NEAR[dtype], atol=NEAR[dtype]):
            return "Triton's kernel gave other numbers in a trial"
    return None
