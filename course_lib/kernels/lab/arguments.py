"""From Python's arguments to a kernel's: which arrays become buffers, which numbers become values.

Arrays are NumPy arrays or torch tensors on the CPU. Two that share memory share a buffer, so that a kernel
that works in place sees what it would see on a GPU.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from course_lib.kernels.lab import native
from course_lib.kernels.lab.errors import LaunchError

_NAMES = {
    "f4": "float",
    "f8": "double",
    "f2": "half",
    "g2": "bfloat16",
    "b1": "bool",
    "i1": "int8",
    "i2": "int16",
    "i4": "int",
    "i8": "long long",
    "u1": "uint8",
    "u2": "uint16",
    "u4": "unsigned int",
    "u8": "unsigned long long",
}
_DTYPES = {
    "f4": "float32",
    "f8": "float64",
    "f2": "float16",
    "g2": "torch.bfloat16, or np.uint16 holding its bits",
    "b1": "bool",
    "i1": "int8",
    "i2": "int16",
    "i4": "int32",
    "i8": "int64",
    "u1": "uint8",
    "u2": "uint16",
    "u4": "uint32",
    "u8": "uint64",
}


@dataclass
class Packed:
    """A launch's arguments in C: storage for each value, buffers, and which pointers point where."""

    values: ctypes.Array[ctypes.c_void_p]
    buffers: ctypes.Array[native.Buffer]
    pointers: ctypes.Array[native.Pointer]
    names: list[str]  # of the parameters that use each buffer, "a" or "a/b"
    pointer_count: int
    kept: list[Any]  # what must live as long as the launch


def array_of(value: Any) -> tuple[np.ndarray, str] | None:
    """The NumPy array behind an argument, sharing its memory, and its element's kind ("f4"); None for a
    number."""
    if type(value).__module__.split(".")[0] == "torch" and hasattr(value, "data_ptr"):
        if value.device.type != "cpu":
            raise LaunchError(
                f"the kernel lab works on the CPU: a tensor on {value.device} was given; pass value.cpu()"
            )
        flat = value.detach()
        if str(flat.dtype) == "torch.bfloat16":
            import torch

            return flat.view(torch.int16).numpy(), "g2"
        array = flat.numpy()
    elif isinstance(value, np.ndarray) and value.ndim > 0:
        array = value
    else:
        return None
    return array, f"{array.dtype.kind}{array.dtype.itemsize}"


def pack(
    kernel: str, names: Sequence[str], parameters: Sequence[native.Parameter], arguments: Sequence[Any]
) -> Packed:
    """Check the arguments against the kernel's parameters and lay them out. LaunchError says what does not
    fit."""
    if len(arguments) != len(parameters):
        wants = ", ".join(f"{describe(p)} {n}" for n, p in zip(names, parameters, strict=True))
        raise LaunchError(
            f"{kernel} takes {len(parameters)} arguments ({wants}), and the launch gave it {len(arguments)}."
        )
    values = (ctypes.c_void_p * max(1, len(parameters)))()
    kept: list[Any] = []
    arrays: list[tuple[int, np.ndarray, bool]] = []
    for i, (name, parameter, value) in enumerate(zip(names, parameters, arguments, strict=True)):
        storage = ctypes.create_string_buffer(max(16, parameter.size) + 16)
        address = (ctypes.addressof(storage) + 15) & ~15
        kept.append(storage)
        values[i] = address
        if parameter.pointer:
            array = _pointer(kernel, name, parameter, value)
            if array is not None:
                arrays.append((i, array, bool(parameter.constant)))
        else:
            data = _value(kernel, name, parameter, value)
            ctypes.memmove(address, data, len(data))
    buffers, pointers, shown = _buffers(arrays, names)
    return Packed(values, buffers, pointers, shown, len(arrays), [kept, [a for _, a, _ in arrays]])


def describe(parameter: native.Parameter) -> str:
    """A parameter's type, as a learner would write it."""
    kind = parameter.kind
    if kind == "v1":
        name = "void"
    elif not kind:
        name = f"struct of {parameter.size} bytes"
    else:
        count = parameter.size // int(kind[1:])
        name = _NAMES.get(kind, kind) + (f"{count}" if count > 1 else "")
    if not parameter.pointer:
        return name
    return f"{'const ' if parameter.constant else ''}{name}*"


def _pointer(kernel: str, name: str, parameter: native.Parameter, value: Any) -> np.ndarray | None:
    if value is None:
        return None  # a null pointer
    found = array_of(value)
    if found is None:
        raise LaunchError(
            f"{kernel}: {name} is a {describe(parameter)}, which takes an array, and was given "
            f"{_shown(value)}."
        )
    array, kind = found
    wanted = parameter.kind
    bits = wanted == "g2" and kind in ("u2", "i2")
    if wanted not in ("v1", "") and kind != wanted and not bits:
        raise LaunchError(
            f"{kernel}: {name} is a {describe(parameter)}, so its array holds "
            f"{_DTYPES.get(wanted, wanted)}; it was given "
            f"an array of {_DTYPES.get(kind, array.dtype)}. Convert it with .astype(…) before the launch."
        )
    if not array.flags.c_contiguous:
        raise LaunchError(
            f"{kernel}: {name} was given an array that is not contiguous (strides {array.strides}, shape "
            f"{array.shape}): a "
            "kernel sees plain memory. Pass np.ascontiguousarray(…)."
        )
    if not parameter.constant and not array.flags.writeable:
        raise LaunchError(
            f"{kernel}: {name} is a {describe(parameter)} that the kernel may write, and its array is "
            "read-only. Pass a copy, "
            "or make the parameter const."
        )
    if parameter.size and array.nbytes % parameter.size:
        raise LaunchError(
            f"{kernel}: {name} is a {describe(parameter)}, elements of {parameter.size} bytes, and its "
            f"array has {array.nbytes} "
            "bytes, which is no multiple of that."
        )
    return array


def _value(kernel: str, name: str, parameter: native.Parameter, value: Any) -> bytes:
    """A value's bytes as the kernel expects them."""
    if hasattr(value, "item") and not isinstance(value, np.void) and getattr(value, "ndim", 0) == 0:
        value = value.item()
    kind, wrong = parameter.kind, None
    if array_of(value) is not None or value is None:
        wrong = "an array" if value is not None else "None"
    elif not kind:
        data = (
            value.tobytes()
            if isinstance(value, np.void)
            else bytes(value)
            if isinstance(value, bytes)
            else b""
        )
        if len(data) == parameter.size:
            return data
        wrong = _shown(value)
    if wrong is None:
        count = parameter.size // int(kind[1:])
        parts = [value] if count == 1 else list(value) if isinstance(value, (tuple, list)) else []
        if len(parts) == count and all(_fits(kind, p) for p in parts):
            return b"".join(_bytes(kind, p) for p in parts)
        wrong = _shown(value)
    raise LaunchError(f"{kernel}: {name} is a value of type {describe(parameter)}, and was given {wrong}.")


def _fits(kind: str, value: Any) -> bool:
    if kind[0] in "fg":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind[0] == "b":
        return isinstance(value, (bool, int)) and value in (0, 1)
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    limits = np.iinfo(np.dtype(kind))
    return int(limits.min) <= value <= int(limits.max)


def _bytes(kind: str, value: Any) -> bytes:
    if kind == "g2":
        raw = int(np.float32(value).view(np.uint32))
        return int((raw + 0x7FFF + (raw >> 16 & 1)) >> 16).to_bytes(2, "little")
    return np.array(value, dtype=np.dtype(kind)).tobytes()


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) < 60 else text[:57] + '…'} ({type(value).__name__})"


def _buffers(
    arrays: list[tuple[int, np.ndarray, bool]], names: Sequence[str]
) -> tuple[ctypes.Array[native.Buffer], ctypes.Array[native.Pointer], list[str]]:
    """One buffer for each stretch of memory that the arrays cover."""
    spans = sorted({(a.ctypes.data, a.ctypes.data + a.nbytes) for _, a, _ in arrays if a.nbytes})
    merged: list[list[int]] = []
    for begin, end in spans:
        if merged and begin < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    users: list[list[tuple[int, bool]]] = [[] for _ in merged]
    pointers = []
    for i, array, constant in arrays:
        at = array.ctypes.data
        for number, (begin, end) in enumerate(merged):
            if begin <= at < end and array.nbytes:
                users[number].append((i, constant))
                pointers.append(native.Pointer(i, number, at - begin))
                break
        else:  # an array without elements: a buffer of its own, of no bytes
            merged.append([at, at])
            users.append([(i, constant)])
            pointers.append(native.Pointer(i, len(merged) - 1, 0))
    buffers = [
        native.Buffer(begin, end - begin, 0, int(all(c for _, c in users[n])), 0)
        for n, (begin, end) in enumerate(merged)
    ]
    shown = ["/".join(names[i] for i, _ in group) for group in users]
    return (
        (native.Buffer * max(1, len(buffers)))(*buffers),
        (native.Pointer * max(1, len(pointers)))(*pointers),
        shown,
    )
