"""The same source on an NVIDIA GPU: compiled by NVRTC or nvcc, launched through the driver.

Driver and NVRTC are called by ctypes, so that no package is needed beside them. NVRTC comes with the CUDA
toolkit and with PyTorch's CUDA builds; where it is missing nvcc does. The calls follow the references of the
CUDA Driver API and of NVRTC, 13.0. Written without a GPU at hand: compiling is tested, launching is not.
"""

import ctypes
import functools
import glob
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import Any

from course_lib.kernels.lab.arguments import Packed
from course_lib.kernels.lab.build import compile_error
from course_lib.kernels.lab.errors import LabError, LaunchError

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@functools.cache
def driver() -> ctypes.CDLL | None:
    """The driver, started, if this machine has one and a GPU with it; else None."""
    try:
        found = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = c_int()
    if found.cuInit(0) or found.cuDeviceGetCount(byref(count)) or not count.value:
        return None
    return found


def _toolkit_folders() -> list[Path]:
    """Where parts of a CUDA toolkit may lie: beside nvcc, where CUDA_HOME says, in the wheels of PyTorch."""
    folders = [
        Path(p) for p in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda") if p
    ]
    if nvcc := shutil.which("nvcc"):
        folders.append(Path(nvcc).resolve().parents[1])
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or [] if spec else []:
        folders += [Path(p) for p in sorted(glob.glob(f"{place}/*"))]
    return [f for f in folders if f.is_dir()]


@functools.cache
def nvrtc() -> ctypes.CDLL | None:
    """NVIDIA's run-time compiler, if it is here."""
    names = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"]
    for folder in _toolkit_folders():
        for part in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
            names += sorted(glob.glob(f"{folder}/{part}/libnvrtc.so*"))
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def compile_cubin(source: str, label: str, kernel: str, chip: str) -> tuple[bytes, str]:
    """Machine code of a source for a chip ("sm_90"), and the kernel's name in it. CompileError, LabError."""
    compiler = nvrtc()
    if compiler is None:
        return _by_nvcc(source, label, kernel, chip)
    program = c_void_p()
    made = compiler.nvrtcCreateProgram(byref(program), source.encode(), label.encode(), 0, None, None)
    _nvrtc_ok(compiler, made)
    try:
        _nvrtc_ok(compiler, compiler.nvrtcAddNameExpression(program, kernel.encode()))
        options = [f"--gpu-architecture={chip}", "-std=c++17"]
        for folder in _toolkit_folders():
            for include in (folder / "include", folder / "targets/x86_64-linux/include"):
                if include.is_dir():
                    options.append(f"-I{include}")
        texts = (c_char_p * len(options))(*(o.encode() for o in options))
        if compiler.nvrtcCompileProgram(program, len(options), texts):
            raise compile_error(_nvrtc_log(compiler, program), label, source)
        size, name = c_size_t(), c_char_p()
        _nvrtc_ok(compiler, compiler.nvrtcGetCUBINSize(program, byref(size)))
        code = ctypes.create_string_buffer(size.value)
        _nvrtc_ok(compiler, compiler.nvrtcGetCUBIN(program, code))
        _nvrtc_ok(compiler, compiler.nvrtcGetLoweredName(program, kernel.encode(), byref(name)))
        return code.raw, (name.value or b"").decode()
    finally:
        compiler.nvrtcDestroyProgram(byref(program))


def _by_nvcc(source: str, label: str, kernel: str, chip: str) -> tuple[bytes, str]:
    if shutil.which("nvcc") is None:
        raise LabError(
            "neither NVRTC nor nvcc, which compile kernels for an NVIDIA GPU, was found: install the CUDA "
            "toolkit, or a CUDA build of PyTorch."
        )
    with tempfile.TemporaryDirectory(prefix="course-nvcc-") as folder:
        unit, cubin = Path(folder, label), Path(folder, "kernel.cubin")
        # A pointer to the kernel makes the compiler keep it, and instantiate it if it is a template.
        unit.write_text(f"{source}\nstatic auto* lab_kept = &{kernel};\n", encoding="utf-8")
        command = ["nvcc", f"-arch={chip}", "-std=c++17", "-cubin", "-o", str(cubin), str(unit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise compile_error(_placed(done.stderr), label, source)
        code = cubin.read_bytes()
    # Each kernel is a section .text.NAME; its name holds its length and its own name (Itanium C++ ABI).
    base = kernel.split("<")[0].strip()
    for found in re.findall(rb"\.text\.(\w+)", code):
        name: str = found.decode()
        if name == base or f"{len(base)}{base}" in name:
            return code, name
    raise LabError(f"nvcc compiled {label} and left no kernel called {kernel} in it")


def _placed(log: str) -> str:
    """NVIDIA's `name(line): error: …` in the form of the host's compilers, `name:line: error: …`."""
    return re.sub(r"^(.*?)\((\d+)\): ", r"\1:\2: ", log, flags=re.MULTILINE)


def _nvrtc_ok(compiler: ctypes.CDLL, result: int) -> None:
    if result:
        compiler.nvrtcGetErrorString.restype = c_char_p
        raise LabError(f"NVRTC: {compiler.nvrtcGetErrorString(result).decode()}")


def _nvrtc_log(compiler: ctypes.CDLL, program: c_void_p) -> str:
    size = c_size_t()
    compiler.nvrtcGetProgramLogSize(program, byref(size))
    log = ctypes.create_string_buffer(size.value)
    compiler.nvrtcGetProgramLog(program, log)
    return _placed(log.value.decode("utf-8", "replace"))


class _Driver:
    """The driver's calls, each checked."""

    def __init__(self, library: ctypes.CDLL):
        self.library = library

    def __getattr__(self, name: str) -> Callable[..., None]:
        call = getattr(self.library, name)

        def checked(*arguments: Any) -> None:
            result = call(*arguments)
            if result:
                text = c_char_p()
                self.library.cuGetErrorString(result, byref(text))
                raise LabError(f"the GPU's driver says: {(text.value or b'?').decode()} ({name})")

        return checked


def launch(
    source: str,
    label: str,
    kernel: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    packed: Packed,
    shared_bytes: int,
) -> tuple[str, float]:
    """Run a kernel on the first GPU; its arrays are changed in place. Returns the GPU's name and the kernel's
    seconds.

    LaunchError without a GPU; LabError with the driver's words if the launch fails.
    """
    library = driver()
    if library is None:
        raise LaunchError("there is no NVIDIA GPU with a driver on this machine: use backend='lab'.")
    cuda = _Driver(library)
    device, context, major, minor = c_int(), c_void_p(), c_int(), c_int()
    cuda.cuDeviceGet(byref(device), 0)
    cuda.cuDeviceGetAttribute(byref(major), _MAJOR, device)
    cuda.cuDeviceGetAttribute(byref(minor), _MINOR, device)
    code, name = compile_cubin(source, label, kernel, f"sm_{major.value}{minor.value}")
    title = ctypes.create_string_buffer(128)
    cuda.cuDeviceGetName(title, 128, device)
    cuda.cuDevicePrimaryCtxRetain(byref(context), device)
    module, buffers = c_void_p(), []
    try:
        cuda.cuCtxSetCurrent(context)
        cuda.cuModuleLoadData(byref(module), code)
        function = c_void_p()
        cuda.cuModuleGetFunction(byref(function), module, name.encode())
        for buffer in packed.buffers[: len(packed.names)]:
            at = c_void_p()
            cuda.cuMemAlloc_v2(byref(at), c_size_t(max(1, buffer.size)))
            buffers.append(at)
            if buffer.size:
                cuda.cuMemcpyHtoD_v2(at, c_void_p(buffer.host), c_size_t(buffer.size))
        for pointer in packed.pointers[: packed.pointer_count]:
            place = ctypes.cast(packed.values[pointer.argument], ctypes.POINTER(ctypes.c_uint64))
            place[0] = (buffers[pointer.buffer].value or 0) + pointer.offset
        if shared_bytes > 48 * 1024:
            cuda.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, shared_bytes)
        start, end, milliseconds = c_void_p(), c_void_p(), c_float()
        cuda.cuEventCreate(byref(start), 0)
        cuda.cuEventCreate(byref(end), 0)
        cuda.cuEventRecord(start, None)
        sizes = [c_uint(n) for n in (*grid, *block, shared_bytes)]
        cuda.cuLaunchKernel(function, *sizes, None, packed.values, None)
        cuda.cuEventRecord(end, None)
        cuda.cuEventSynchronize(end)
        cuda.cuEventElapsedTime(byref(milliseconds), start, end)
        for buffer, at in zip(packed.buffers, buffers, strict=False):
            if buffer.size and not buffer.constant:
                cuda.cuMemcpyDtoH_v2(c_void_p(buffer.host), at, c_size_t(buffer.size))
        return title.value.decode(), milliseconds.value / 1000
    finally:
        for at in buffers:
            library.cuMemFree_v2(at)
        if module:
            library.cuModuleUnload(module)
        library.cuDevicePrimaryCtxRelease_v2(device)
