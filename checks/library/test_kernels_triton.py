"""The kernels in Triton, interpreted: results and bytes over awkward shapes; and compiled without a GPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from course_lib.kernels.catalog import Kernel
from course_lib.kernels.catalog import triton as catalog

if sys.platform != "linux":
    pytest.skip("Triton exists for Linux only", allow_module_level=True)

from course_lib.classroom.expect import TOLERANCES
from course_lib.kernels import triton as kernels
from course_lib.quant.linear import dequantize_groups, quantize_groups

CASES = [
    pytest.param(kernel, shape, id=f"{kernel.name}-{shape}".replace(" ", ""))
    for kernel in catalog.KERNELS
    for shape in (*kernel.shapes, kernel.counted)
]
NARROW = [torch.float16, torch.bfloat16]
interpreted = pytest.mark.skipif(not kernels.INTERPRETED, reason="bytes are counted in the interpreter")


def agree(got: torch.Tensor, want: torch.Tensor) -> None:
    """Within what the type of `got` can hold, by the table of tolerances."""
    tolerance = TOLERANCES[str(got.dtype).removeprefix("torch.")]
    torch.testing.assert_close(got.double(), want.double(), rtol=tolerance.rtol, atol=tolerance.atol)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    device = "cpu" if kernels.INTERPRETED else "cuda"
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)


@pytest.mark.parametrize(("kernel", "shape"), CASES)
def test_results_and_bytes(kernel: Kernel[catalog.TritonCase], shape: tuple[Any, ...]) -> None:
    case = kernel.at(*shape)
    counted = case.run()
    assert case.wrong() is None
    if kernels.INTERPRETED:
        assert case.miscounted(counted) == []


# float16 and bfloat16


@pytest.mark.parametrize("dtype", NARROW)
def test_rows_in_16_bits(dtype: torch.dtype) -> None:
    x, weight, bias = normal(3, 331, dtype=dtype), normal(331, dtype=dtype), normal(331, dtype=dtype)
    agree(kernels.vector_add(weight, bias), weight.double() + bias.double())
    for in_registers in (64, 16384):
        agree(kernels.softmax(x, in_registers), x.double().softmax(-1))
    exact, scale, shift = x.double(), weight.double(), bias.double()
    agree(kernels.rms_norm(x, weight), F.rms_norm(exact, (331,), scale, 1e-5))
    agree(kernels.layer_norm(x, weight, bias), F.layer_norm(exact, (331,), scale, shift, 1e-5))


@pytest.mark.parametrize("dtype", NARROW)
def test_products_in_16_bits(dtype: torch.dtype) -> None:
    a, b = normal(37, 53, dtype=dtype), normal(41, 53, dtype=dtype)
    agree(kernels.matmul(a, b.T), a.double() @ b.double().T)  # b is taken as it lies, by its strides
    codes, scale, middle = quantize_groups(normal(37, 96, dtype=dtype), 32)
    x = normal(5, 96, dtype=dtype)
    want = x.double() @ dequantize_groups(codes, scale.float(), middle.float()).double().T
    agree(kernels.int4_matmul(x, codes[:, ::2] | codes[:, 1::2] << 4, scale, middle), want)


@pytest.mark.parametrize("dtype", NARROW)
def test_attention_in_16_bits(dtype: torch.dtype) -> None:
    q, k, v = normal(1, 4, 37, 24, dtype=dtype), *(normal(2, 1, 2, 37, 24, dtype=dtype))
    want = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True, enable_gqa=True)
    agree(kernels.flash_attention(q, k, v)[0], want)
    keys, values = normal(2, 5, 8, 2, 24, dtype=dtype)
    tables = torch.tensor([[4, 1, 3], [0, 2, 2]], device=q.device)
    lengths = torch.tensor([19, 9], device=q.device)
    query = normal(2, 4, 24, dtype=dtype)
    got = kernels.paged_attention(query, keys, values, tables, lengths, parts=2)
    for text, length in enumerate(lengths.tolist()):
        key, value = (
            pool[tables[text]].flatten(0, 1)[:length].transpose(0, 1)[None].double()
            for pool in (keys, values)
        )
        asked = query[text][None, :, None].double()
        want = F.scaled_dot_product_attention(asked, key, value, enable_gqa=True)
        agree(got[text], want[0, :, 0])


# What the catalog's problems do not ask for


def test_attention_of_the_last_queries_of_a_batch_and_of_all_keys() -> None:
    q, (k, v) = normal(2, 4, 5, 16), normal(2, 2, 2, 41, 16)
    above = torch.ones(5, 41, dtype=torch.bool, device=q.device).tril(36)
    for causal, mask in ((True, above), (False, None)):
        want = F.scaled_dot_product_attention(
            q.double(), k.double(), v.double(), attn_mask=mask, enable_gqa=True
        )
        agree(kernels.flash_attention(q, k, v, causal=causal)[0], want)


@pytest.mark.parametrize("window", [1, 7, 100])
def test_paged_attention_sees_its_window(window: int) -> None:
    keys, values = normal(2, 4, 8, 1, 16)
    tables, lengths = torch.tensor([[2, 0, 3]], device=keys.device), torch.tensor([21], device=keys.device)
    query = normal(1, 3, 16)
    got = kernels.paged_attention(query, keys, values, tables, lengths, window=window, scale=0.5)
    read = [pool[tables[0]].flatten(0, 1)[max(0, 21 - window) : 21, 0].double() for pool in (keys, values)]
    want = (0.5 * query[0].double() @ read[0].T).softmax(-1) @ read[1]
    agree(got[0], want)


def test_nothing_gives_nothing() -> None:
    assert kernels.vector_add(normal(0), normal(0)).shape == (0,)
    assert kernels.softmax(normal(0, 5)).shape == (0, 5)
    assert kernels.matmul(normal(0, 3), normal(3, 2)).shape == (0, 2)
    assert torch.equal(kernels.matmul(normal(2, 0), normal(0, 3)).cpu(), torch.zeros(2, 3))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="vectors of one length"):
        kernels.vector_add(normal(3), normal(4))
    with pytest.raises(ValueError, match="as wide as b is high"):
        kernels.matmul(normal(3, 4), normal(5, 4))
    with pytest.raises(ValueError, match="5 queries cannot be the last ones of 4 keys"):
        kernels.flash_attention(normal(1, 1, 5, 16), normal(1, 1, 4, 16), normal(1, 1, 4, 16))
    with pytest.raises(ValueError, match="group has 16 columns"):
        kernels.int4_matmul(normal(1, 32), normal(4, 16).byte(), normal(4, 2), normal(4, 2))
    with pytest.raises(ValueError, match="it takes tensors on"):
        kernels.vector_add(torch.empty(3, device="meta"), torch.empty(3, device="meta"))


# The watch, the choice, and the compiler


@interpreted
def test_a_missing_mask_is_found() -> None:
    import triton
    import triton.language as tl

    from course_lib.kernels.triton.watch import OutOfBounds, watch

    @triton.jit
    def copy(x, y, n, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y + i, tl.load(x + i), i < n)

    x = torch.arange(40.0)[:20]
    y = torch.empty(20)
    with watch() as seen, pytest.raises(Exception, match="of x, which has 80: a mask is missing") as caught:
        copy[(1,)](x, y, 20, BLOCK=32)
    assert isinstance(caught.value.__cause__, OutOfBounds)
    assert seen.bytes == {}


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | environment,
        check=False,
    )


def test_a_machine_without_triton_is_told_in_one_sentence() -> None:
    blocked = "import sys; sys.modules['triton'] = None; import course_lib.kernels.triton"
    done = python(blocked)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and last.startswith(
        "ImportError: course_lib.kernels.triton needs the package triton"
    )
    assert "course_lib.kernels.lab" in last


@interpreted
def test_triton_that_was_set_up_for_a_gpu_is_refused() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", "import triton.language; import course_lib.kernels.triton"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).resolve().parents[2],
        check=False,
    )
    assert done.returncode and "import course_lib.kernels.triton first" in done.stderr


def test_every_kernel_compiles_to_machine_code_without_a_gpu(tmp_path: Path) -> None:
    code = """
from course_lib.kernels.triton.compile import SOURCES, all_compiled
made = list(all_compiled((80, 90), ["fp16"]))
assert len(made) == 2 * len(SOURCES)
for each in made:
    assert f".target {each.chip}" in each.ptx and each.code_bytes > 1000, each
    products = each.kernel.split("_")[-1] in ("matmul", "attention")
    assert each.tensor_cores.endswith(".f32.f16.f16.f32") == products, (each.kernel, each.tensor_cores)
"""
    done = python(code, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
