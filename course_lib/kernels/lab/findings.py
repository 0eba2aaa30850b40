"""From the runtime's record of a fault to a sentence that a learner can act on."""

from collections.abc import Callable

from course_lib.kernels.lab import native
from course_lib.kernels.lab.report import Finding, Place

# The order is that of LabFindingKind in runtime/launch.h.
KINDS = (
    "out of bounds",
    "shared out of bounds",
    "null",
    "wild address",
    "misaligned",
    "uninitialized",
    "race",
    "divergent barrier",
    "missing barrier",
    "absent lanes",
    "absent source lane",
    "endless loop",
    "stack overflow",
    "division by zero",
    "crash",
    "assertion",
    "misuse",
    "write to const",
    "array out of bounds",
)
_DID = {"read": "reads", "write": "writes", "atomic": "updates atomically"}
_OTHER_DID = {"read": "read", "write": "wrote", "atomic": "updated"}
Variable = Callable[[int], tuple[str, int]]


def finding(
    raw: native.RawFinding, kernel: str, label: str, variable: Variable, seconds: float, metal: bool
) -> Finding:
    """Put a record into words. `variable` gives the name and bytes of an object by its number."""
    here, other = _place(raw.here), _place(raw.other)
    kind = KINDS[raw.kind]
    name, size = variable(raw.object) if raw.object != native.NO_OBJECT else ("", 0)
    if kind == "array out of bounds":
        name = raw.text.decode("utf-8", "replace")
    at = f"{label}, line {here.line}: " if here.line else f"{label}: "
    # raw.other is filled in where two threads take part.
    two = other if raw.other.line or kind in ("race", "missing barrier", "divergent barrier") else None
    said = _sentence(kind, raw, here, other, name, size, seconds, metal)
    return Finding(kind, f"{at}{kernel}: {said}", kernel, here, name, two)


def _place(raw: native.Place) -> Place:
    block, thread = tuple(raw.block), tuple(raw.thread)
    return Place(
        (block[0], block[1], block[2]), (thread[0], thread[1], thread[2]), raw.line, native.ACCESSES[raw.kind]
    )


def _sentence(
    kind: str,
    raw: native.RawFinding,
    here: Place,
    other: Place,
    name: str,
    size: int,
    seconds: float,
    metal: bool,
) -> str:
    text = raw.text.decode("utf-8", "replace")
    did, width = _DID[here.kind], f"{raw.size} byte{'s' if raw.size != 1 else ''}"
    barrier = "threadgroup_barrier" if metal else "__syncthreads()"
    match kind:
        case "out of bounds" | "shared out of bounds":
            end = "before its beginning" if raw.offset < 0 else f"past its {size:,} bytes"
            element = f", {name}[{raw.offset // raw.size}]" if raw.offset % raw.size == 0 else ""
            return f"{here} {did} {width} at byte {raw.offset:,} of {name}{element}, {end}."
        case "null":
            return f"{here} {did} at address {raw.offset:#x}: a null pointer, or an array given as None."
        case "wild address":
            return (
                f"{here} {did} {width} at address {raw.offset:#x}, which belongs to no array of the launch."
            )
        case "misaligned":
            return (
                f"{here} {did} {width} at once at byte {raw.offset:,} of {name}, which is no multiple of "
                f"{raw.size}: a GPU "
                "faults there. A vector's address must be a multiple of its size."
            )
        case "uninitialized":
            return (
                f"{here} reads {width} at byte {raw.offset:,} of {name}, which no thread of its block has "
                "written: shared memory "
                "begins with anything in it."
            )
        case "race":
            if metal:
                memory = "mem_threadgroup" if raw.object >= native.SHARED_OBJECT else "mem_device"
                barrier = f"threadgroup_barrier(mem_flags::{memory})"
            where = "in another block" if other.block != here.block else f"with no {barrier} between"
            return (
                f"a data race on byte {raw.offset:,} of {name}: {here} {did} it, and {other} "
                f"{_OTHER_DID[other.kind]} it at line "
                f"{other.line}, {where}. Which comes first is chance."
            )
        case "divergent barrier":
            return (
                f"{here} waits at the barrier of this line, and {other} at that of line {other.line}: all "
                "threads of a block must "
                "come to the same barrier."
            )
        case "missing barrier":
            threads = (
                f"{raw.size} thread{'s' if raw.size != 1 else ''} of the block (the first: {here.thread})"
            )
            return (
                f"{threads} returned, and {other} waits at this barrier of block {other.block}. Let every "
                "thread come to it: put the "
                "work under an if, not the barrier. (Since Volta the hardware lets this pass: strict=False "
                "does, too.)"
            )
        case "absent lanes":
            return _absent(raw, here, other, text)
        case "absent source lane":
            return (
                f"{here} asks {text} for the value of lane {raw.size}, which takes no part in it: what "
                "comes is undefined. Name "
                "only lanes that are there, or use the result only where the source lane is."
            )
        case "endless loop":
            near = f" Its last access to memory was at line {here.line}." if here.line else ""
            return f"{here} still ran after {seconds:.1f} s: an endless loop?{near}"
        case "stack overflow":
            return f"{here} needs more than 64 KB for its own variables: a recursion, or a large array?"
        case "division by zero":
            return (
                f"{here} divides an integer by zero, or the least one by -1, after its access at line "
                f"{here.line}."
            )
        case "assertion":
            return f"the assertion {text} fails for {here}."
        case "misuse":
            return f"{text}."
        case "array out of bounds":
            element = "1 element, 0" if raw.size == 1 else f"{raw.size:,} elements, 0 to {raw.size - 1:,}"
            return f"{here} uses {name}[…] at index {raw.offset:,}, and there this array has {element}."
        case "write to const":
            return f"{here} {did} {name}, which is a pointer to const."
    return f"{here} crashed (its last access to memory was at line {here.line})."


def _absent(raw: native.RawFinding, here: Place, other: Place, text: str) -> str:
    lanes = [i for i in range(32) if raw.lanes >> i & 1]
    if len(lanes) == 1 and other.thread == here.thread:
        return f"{here} calls {text} with a mask that does not name its own lane, {lanes[0]}."
    listed = ", ".join(map(str, lanes[:8])) + (", …" if len(lanes) > 8 else "")
    where = f"{other} waits at line {other.line}" if other.line else f"{other} is not there"
    return (
        f"{here} calls {text} with a mask that names lane{'s' if len(lanes) > 1 else ''} {listed} of its "
        "warp, which "
        f"do{'es' if len(lanes) == 1 else ''} not come to it: {where}. All lanes that the mask names must "
        "make the same call."
    )
