"""The same source on an Apple GPU, through Metal's own API, called by ctypes through the Objective-C runtime.

MLX's `mx.fast.metal_kernel` takes a kernel's body only and writes the signature itself; Metal's API takes the
file as it stands, so that one source serves the lab and the GPU. The calls follow Apple's reference of
MTLDevice, MTLLibrary and MTLComputeCommandEncoder. Written without a Mac at hand: untested.
"""

import ctypes
import functools
import sys
from ctypes import Structure, c_char_p, c_double, c_ulong, c_void_p
from typing import Any

from course_lib.kernels.lab.arguments import Packed
from course_lib.kernels.lab.errors import CompileError, LabError, LaunchError


class Size(Structure):
    """MTLSize."""

    _fields_ = (("width", c_ulong), ("height", c_ulong), ("depth", c_ulong))


class _Objects:
    """Messages to Objective-C objects."""

    def __init__(self) -> None:
        self.runtime = ctypes.CDLL("/usr/lib/libobjc.A.dylib")
        ctypes.CDLL("/System/Library/Frameworks/Foundation.framework/Foundation")
        self.metal = ctypes.CDLL("/System/Library/Frameworks/Metal.framework/Metal")
        self.runtime.objc_getClass.restype = c_void_p
        self.runtime.objc_getClass.argtypes = [c_char_p]
        self.runtime.sel_registerName.restype = c_void_p
        self.runtime.sel_registerName.argtypes = [c_char_p]
        self.send_address = ctypes.cast(self.runtime.objc_msgSend, c_void_p).value or 0
        self.metal.MTLCreateSystemDefaultDevice.restype = c_void_p
        self.device = self.metal.MTLCreateSystemDefaultDevice()

    def send(self, target: Any, message: str, *arguments: Any, returns: Any = c_void_p) -> Any:
        """[target message], each argument an object of ctypes, so that its type is known."""
        types: list[Any] = [c_void_p, c_void_p, *(type(a) for a in arguments)]
        call = ctypes.CFUNCTYPE(returns, *types)(self.send_address)
        return call(target, self.runtime.sel_registerName(message.encode()), *arguments)

    def string(self, text: str) -> c_void_p:
        kind = self.runtime.objc_getClass(b"NSString")
        return c_void_p(self.send(kind, "stringWithUTF8String:", c_char_p(text.encode())))

    def said(self, error: c_void_p) -> str:
        text = self.send(error, "localizedDescription")
        return (self.send(text, "UTF8String", returns=c_char_p) or b"").decode()


@functools.cache
def objects() -> _Objects | None:
    """The Objective-C runtime with Metal's device, or None where there is no Apple GPU."""
    if sys.platform != "darwin":
        return None
    try:
        found = _Objects()
    except OSError:
        return None
    return found if found.device else None


def launch(
    source: str,
    label: str,
    kernel: str,
    buffer_numbers: tuple[int, ...],
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    threads: tuple[int, int, int] | None,
    packed: Packed,
    sizes: list[int],
    lengths: list[int],
) -> tuple[str, float]:
    """Run a kernel on this Mac's GPU; its arrays are changed in place. Returns the GPU's name and the seconds
    it took.

    buffer_numbers: the [[buffer(i)]] of each argument; sizes: the bytes of each value (0 for a pointer).
    """
    metal = objects()
    if metal is None:
        raise LaunchError("there is no Apple GPU on this machine: use backend='lab'.")
    send, device = metal.send, metal.device
    error = c_void_p()
    library = send(
        device,
        "newLibraryWithSource:options:error:",
        metal.string(source),
        c_void_p(),
        ctypes.pointer(error),
    )
    if not library:
        raise CompileError(f"{label} does not compile: {metal.said(error)}")
    function = send(library, "newFunctionWithName:", metal.string(kernel))
    pipeline = send(
        device, "newComputePipelineStateWithFunction:error:", c_void_p(function), ctypes.pointer(error)
    )
    if not pipeline:
        raise LabError(f"{label}: {kernel}: {metal.said(error)}")
    commands = send(send(device, "newCommandQueue"), "commandBuffer")
    encoder = send(commands, "computeCommandEncoder")
    send(encoder, "setComputePipelineState:", c_void_p(pipeline), returns=None)
    made = []
    for buffer in packed.buffers[: len(packed.names)]:
        bytes_, length = c_void_p(buffer.host), c_ulong(max(1, buffer.size))
        made.append(send(device, "newBufferWithBytes:length:options:", bytes_, length, c_ulong(0)))
    pointers = {p.argument: p for p in packed.pointers[: packed.pointer_count]}
    for i, number in enumerate(buffer_numbers):
        if i in pointers:
            place = c_void_p(made[pointers[i].buffer]), c_ulong(pointers[i].offset)
            send(encoder, "setBuffer:offset:atIndex:", *place, c_ulong(number), returns=None)
        elif sizes[i]:
            value = c_void_p(packed.values[i]), c_ulong(sizes[i])
            send(encoder, "setBytes:length:atIndex:", *value, c_ulong(number), returns=None)
    for i, bytes_each in enumerate(lengths):
        if bytes_each:
            at = c_ulong((bytes_each + 15) // 16 * 16), c_ulong(i)
            send(encoder, "setThreadgroupMemoryLength:atIndex:", *at, returns=None)
    message = "dispatchThreads:" if threads else "dispatchThreadgroups:"
    send(encoder, message + "threadsPerThreadgroup:", Size(*(threads or grid)), Size(*block), returns=None)
    send(encoder, "endEncoding", returns=None)
    send(commands, "commit", returns=None)
    send(commands, "waitUntilCompleted", returns=None)
    failure = send(commands, "error")
    if failure:
        raise LabError(f"{label}: {kernel}: the GPU says: {metal.said(c_void_p(failure))}")
    for buffer, there in zip(packed.buffers, made, strict=False):
        if buffer.size and not buffer.constant:
            ctypes.memmove(buffer.host, send(there, "contents"), buffer.size)
    took = send(commands, "GPUEndTime", returns=c_double) - send(commands, "GPUStartTime", returns=c_double)
    for there in made:
        send(there, "release", returns=None)
    name = send(send(device, "name"), "UTF8String", returns=c_char_p)
    return (name or b"Apple GPU").decode(), took
