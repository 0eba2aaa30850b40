"""`Module`: a CUDA or Metal source, compiled, whose kernels can be launched on NumPy arrays."""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from course_lib.kernels.lab import arguments, build, cuda, metal, native, on_cuda, on_metal
from course_lib.kernels.lab.chips import DEFAULT, Chip, chip_of
from course_lib.kernels.lab.errors import LaunchError
from course_lib.kernels.lab.findings import finding
from course_lib.kernels.lab.report import Finding, KernelFault, Place, Report, Row, SharedArray

Language = Literal["cuda", "metal"]
Level = Literal["off", "bounds", "counts", "races"]
Order = Literal["forward", "reversed", "shuffled"]
Size = int | Sequence[int]
Backend = Literal["lab", "cuda", "metal", "auto"]

TRACE = np.dtype(
    [
        ("line", "u4"),
        ("step", "u4"),
        ("lane", "u4"),
        ("object", "u4"),
        ("kind", "u4"),
        ("size", "u4"),
        ("offset", "u8"),
    ]
)
_MOST_BLOCKS = 1 << 24
_INSTANCES = 8


class Module:
    """The kernels of one source, ready to run on this machine's CPU.

        module = Module("kernels_cuda/vector_add.cu")
        report = module.launch("vector_add", grid, block, a, b, c, n)

    source: the text, or a path that ends in .cu or .metal. language: "cuda" or "metal"; a path's ending says
    it.
    name: what messages call the source. compiler and optimize ("0" to "3") are for those who test the lab.
    Raises CompileError (Unsupported for what the lab does not run) with the line, NoCompiler.
    """

    def __init__(
        self,
        source: str | Path,
        language: Language | None = None,
        *,
        name: str | None = None,
        compiler: str | None = None,
        optimize: str = "1",
    ):
        path = Path(source) if isinstance(source, Path) or _is_path(source) else None
        self.source = path.read_text(encoding="utf-8") if path else str(source)
        # A grader's source knows its language and its name, and wants to know what it ran on.
        language = language or getattr(source, "language", None)
        name = name or (None if path else getattr(source, "name", None))
        self._ran_on: set[str] = getattr(source, "ran_on", set())
        ending = {".cu": "cuda", ".cuh": "cuda", ".metal": "metal"}.get(path.suffix if path else "")
        self.language: Language = language or ending or "cuda"  # type: ignore[assignment]
        if self.language not in ("cuda", "metal"):
            raise ValueError(f"language is {self.language!r}; the lab runs 'cuda' and 'metal'")
        self.label = name or (
            path.name if path else {"cuda": "kernel.cu", "metal": "kernel.metal"}[self.language]
        )
        self._optimize = optimize
        self._compiler = build.find_compiler(compiler)
        translate = metal.translate if self.language == "metal" else cuda.translate
        self._translation = translate(self.source, self.label)
        self._load(True, self._instances())

    @property
    def kernels(self) -> tuple[str, ...]:
        """The names of the kernels in the source, in order; those of templates end in "<…>"."""
        return tuple(k.name + ("<…>" if k.template else "") for k in self._translation.kernels)

    def _instances(self, kernel: str = "") -> tuple[str, ...]:
        """Those of templates that are compiled for a launch: Metal's with the source, where they are few."""
        named = tuple(k.name for k in self._translation.kernels if k.instance)
        few = named if len(named) <= _INSTANCES else ()
        return few if kernel in few or not (kernel in named or "<" in kernel) else (kernel,)

    def _load(self, watched: bool, instances: tuple[str, ...]) -> tuple[build.Built, native.Library]:
        built = build.build(
            self._translation,
            self.label,
            self.source,
            self.language,
            watched=watched,
            optimize=self._optimize,
            instances=instances,
            compiler=self._compiler,
        )
        return built, _library(built.library)

    def _find(self, kernel: str, watched: bool) -> tuple[build.Built, native.Library, int]:
        base = kernel.split("<")[0].strip()
        known = {k.name: k for k in self._translation.kernels}
        if base not in known:
            raise LaunchError(
                f"{self.label} has no kernel called {kernel!r}; it has {', '.join(self.kernels)}."
            )
        if known[base].template != ("<" in kernel):
            mend = f"say which, as {base!r} + '<…>'" if known[base].template else f"launch it as {base!r}"
            raise LaunchError(f"{base} is {'' if known[base].template else 'not '}a template: {mend}.")
        built, library = self._load(watched, self._instances(kernel))
        return built, library, [k.name for k in built.kernels].index(kernel)

    def launch(
        self,
        kernel: str,
        grid: Size | None,
        block: Size,
        *args: Any,
        threads: Size | None = None,
        shared_bytes: int | Sequence[int] = 0,
        level: Level = "races",
        order: Order = "forward",
        seed: int = 0,
        chip: str | None = None,
        strict: bool = True,
        check: bool = True,
        time_limit: float = 10.0,
        trace: tuple[Size, int] | None = None,
        backend: Backend = "lab",
    ) -> Report:
        """Run a kernel; its arrays are changed in place.

        kernel: its name; of a template, with arguments: "matmul<16>".
        grid, block: blocks, and threads a block: numbers or (x, y, z).
        threads: instead of a grid (None), how many threads there are in all; the blocks at the edge are
        smaller. Metal's
            dispatchThreads.
        args: a NumPy array or a CPU tensor for each pointer, a number for each value, None for a null
        pointer.
        shared_bytes: dynamic shared memory; in Metal the length of [[threadgroup(0)]], or the lengths of all.
        level: what is watched. "off": nothing; "bounds": every address; "counts": and traffic; "races": and
        who touched
            each byte before.
        order: in which the blocks run; "shuffled" by `seed`. A correct kernel gives the same in each.
        chip: whose limits hold, such as "sm_90"; see `course_lib.kernels.lab.CHIPS`.
        strict: threads that return before a barrier are a finding.
        check: raise KernelFault if there are findings; otherwise they are in the report.
        time_limit: seconds of processor time after which the kernel is stopped.
        trace: (block, warp) whose accesses are kept in `report.trace`.
        backend: "lab" counts and checks on the CPU; "cuda" and "metal" run the same source on this machine's
        GPU, where
            nothing is counted; "auto" takes the GPU where there is one. `report.ran` says which it was.

        Raises LaunchError for arguments that don't fit, KernelFault for what the kernel does wrong. When it
        stopped early its arrays are left as they were.
        """
        if level not in native.LEVELS:
            raise ValueError(f"level is {level!r}; it is one of {', '.join(native.LEVELS)}")
        watched = level != "off"
        built, library, number = self._find(kernel, watched)
        limits = chip_of(chip or DEFAULT[self.language])
        size = _three(block, "block")
        total = _three(threads, "threads") if threads is not None else None
        if total is not None and grid is None and self.language == "metal":
            shape = _three([-(-n // s) for n, s in zip(total, size, strict=True)], "grid")
        elif grid is not None and total is None:
            shape = _three(grid, "grid")
        else:
            raise LaunchError(
                f"{kernel}: a launch takes a grid of blocks; in Metal also grid=None and threads=…."
            )
        lengths = [shared_bytes] if isinstance(shared_bytes, int) else list(shared_bytes)
        _check_shape(kernel, shape, size, sum(lengths), limits)
        parameters = library.parameters(number)
        packed = arguments.pack(kernel, built.kernels[number].parameters, parameters, args)
        where = _backend(backend, self.language)
        if where != "lab":
            return self._on_gpu(
                kernel, shape, size, total, packed, parameters, built.kernels[number], lengths
            )
        blocks = shape[0] * shape[1] * shape[2]
        sequence = _order(order, seed, blocks)

        run = native.Launch()
        run.grid[:], run.block[:] = shape, size
        if total:
            run.threads[:] = total
        run.warp_size, run.level, run.strict, run.poison = 32, native.LEVELS.index(level), int(strict), 1
        lines = (ctypes.c_uint32 * max(1, len(built.lines)))(*built.lines)
        run.sites, run.site_lines = len(built.lines), lines
        run.buffers, run.buffer = len(packed.names), packed.buffers
        run.pointers, run.pointer = packed.pointer_count, packed.pointers
        run.values, run.call = packed.values, library.entry(number)
        run.blocks, run.order = blocks, sequence.ctypes.data
        run.seconds = time_limit
        if self.language == "metal":
            run.arguments, run.argument_bytes = len(lengths), (ctypes.c_uint64 * len(lengths))(*lengths)
        else:
            run.shared_bytes = sum(lengths)
        run.trace_block, run.trace_warp = _traced(trace, shape)
        library.start(run)
        copied = False
        try:
            ended = native.wait(run.child, run.pipe, time_limit)
            report = self._read(
                run, ended, kernel, level, shape, size, packed.names, sequence, trace is not None, limits
            )
            copied = bool(run.report.contents.finished)
        finally:
            library.finish(run, copied)
        self._ran_on.add(report.ran)
        if check and report.findings:
            raise KernelFault(_summary(report.findings), report)
        return report

    def _on_gpu(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        threads: tuple[int, int, int] | None,
        packed: arguments.Packed,
        parameters: list[native.Parameter],
        text: cuda.Kernel,
        lengths: list[int],
    ) -> Report:
        if self.language == "cuda":
            name, seconds = on_cuda.launch(self.source, self.label, kernel, grid, block, packed, sum(lengths))
        else:
            sizes = [0 if p.pointer else p.size for p in parameters]
            name, seconds = on_metal.launch(
                self.source, self.label, kernel, text.buffers, grid, block, threads, packed, sizes, lengths
            )
        self._ran_on.add(name)
        return Report(kernel, self.label, name, "off", grid, block, seconds, source=self.source)

    def _read(
        self,
        run: native.Launch,
        ended: native.Ended,
        kernel: str,
        level: str,
        shape: tuple[int, int, int],
        threads: tuple[int, int, int],
        names: list[str],
        sequence: np.ndarray,
        traced: bool,
        limits: Chip,
    ) -> Report:
        raw = run.report.contents
        shared = tuple(
            SharedArray(a.name.decode(), a.size, a.line, bool(a.dynamic)) for a in raw.array[: raw.shared]
        )

        def variable(number: int) -> tuple[str, int]:
            if number >= native.SHARED_OBJECT:
                array = shared[number - native.SHARED_OBJECT]
                return array.name, array.size
            return names[number], run.buffer[number].size

        found = [
            finding(f, kernel, self.label, variable, ended.seconds, self.language == "metal")
            for f in raw.finding[: raw.findings]
        ]
        if not raw.finished and not found:
            found.append(_without_words(kernel, self.label, ended))
        found = _causes(found)
        found += _too_much_shared(kernel, self.label, shared, limits)
        rows = []
        for s in raw.stat[: raw.stats]:
            space = "shared" if s.object >= native.SHARED_OBJECT else "global"
            counts = (
                s.requests,
                s.accesses,
                s.bytes,
                s.sectors,
                s.ideal_sectors,
                s.wavefronts,
                s.ideal_wavefronts,
            )
            rows.append(Row(*counts, s.line, variable(s.object)[0], space, native.ACCESSES[s.kind], s.size))
        trace = None
        if traced:
            view = (native.Trace * raw.traced).from_address(ctypes.addressof(raw.trace))
            trace = np.frombuffer(view, dtype=TRACE).copy() if raw.traced else np.zeros(0, TRACE)
        return Report(
            kernel=kernel,
            label=self.label,
            ran="kernel lab",
            level=level,
            grid=shape,
            block=threads,
            seconds=ended.seconds,
            findings=tuple(found),
            rows=tuple(rows),
            barriers=raw.barriers,
            warp_operations=raw.warp_operations,
            atomics=raw.atomics,
            shared=shared,
            printed=raw.printed[: raw.text].decode("utf-8", "replace"),
            order=sequence,
            trace=trace,
            source=self.source,
            names=dict(enumerate(names)) | {native.SHARED_OBJECT + i: a.name for i, a in enumerate(shared)},
        )


@functools.lru_cache(maxsize=256)
def _library(path: Path) -> native.Library:
    return native.Library(path)


def _backend(backend: str, language: str) -> str:
    """The backend that will run: "lab", or the language's GPU."""
    if backend not in ("lab", "cuda", "metal", "auto"):
        raise ValueError(f"backend is {backend!r}; it is 'lab', 'cuda', 'metal' or 'auto'")
    if backend in ("cuda", "metal") and backend != language:
        raise LaunchError(f"a source in {language} does not run on the backend {backend!r}.")
    if backend == "auto":
        here = on_cuda.driver() if language == "cuda" else on_metal.objects()
        return language if here is not None else "lab"
    return backend


def _is_path(source: str) -> bool:
    return "\n" not in source and source.endswith((".cu", ".cuh", ".metal"))


def _three(size: Size, what: str) -> tuple[int, int, int]:
    parts = list(size) if isinstance(size, Sequence) else [size]
    if not 1 <= len(parts) <= 3 or any(isinstance(p, bool) or int(p) != p for p in parts):
        raise LaunchError(f"{what} is {size!r}: it takes one to three whole numbers, (x, y, z).")
    numbers = [int(p) for p in parts] + [1] * (3 - len(parts))
    return numbers[0], numbers[1], numbers[2]


def _check_shape(
    kernel: str, grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int, chip: Chip
) -> None:
    for what, shape, limits in (
        ("grid", grid, (2**31 - 1, 65535, 65535)),
        ("block", block, (chip.threads, chip.threads, 64 if chip.name.startswith("sm_") else chip.threads)),
    ):
        for axis, size, limit in zip("xyz", shape, limits, strict=True):
            if not 1 <= size <= limit:
                raise LaunchError(
                    f"{kernel}: {what} is {shape}, and its {axis} must lie between 1 and {limit:,}."
                    + (" An array without elements needs no launch." if size == 0 else "")
                )
    threads = block[0] * block[1] * block[2]
    if threads > chip.threads:
        raise LaunchError(
            f"{kernel}: a block of {block} has {threads:,} threads, and {chip.title} runs at most "
            f"{chip.threads:,} in a block."
        )
    if grid[0] * grid[1] * grid[2] > _MOST_BLOCKS:
        raise LaunchError(
            f"{kernel}: a grid of {grid} has more blocks than the lab runs one by one ({_MOST_BLOCKS:,})."
        )
    if shared_bytes < 0 or shared_bytes > chip.shared:
        raise LaunchError(
            f"{kernel}: shared_bytes is {shared_bytes:,}, and a block on {chip.title} has at most "
            f"{chip.shared:,} bytes of "
            "shared memory."
        )


def _causes(found: list[Finding]) -> list[Finding]:
    """The findings, the causes first: a read of what nobody has written yet is the effect of a race there."""
    races = [f for f in found if f.kind == "race"]
    raced = {(f.variable, p.line) for f in races for p in (f.place, f.other) if p is not None}
    rest = [f for f in found if f.kind != "race"]
    return races + [f for f in rest if f.kind != "uninitialized" or (f.variable, f.line) not in raced]


def _too_much_shared(kernel: str, label: str, shared: tuple[SharedArray, ...], chip: Chip) -> list[Finding]:
    """The limits that nvcc and the driver enforce on shared memory."""
    static = sum(a.size for a in shared if a.line and not a.dynamic)
    total = sum(a.size for a in shared)
    line = max((a.line for a in shared), default=0)
    opt_in = f"; with dynamic shared memory it is {chip.shared:,}" if chip.shared > chip.static_shared else ""
    for size, limit, what, more in (
        (static, chip.static_shared, "the arrays that a block declares take", opt_in),
        (total, chip.shared, "its block uses", ""),
    ):
        if size > limit:
            said = (
                f"{label}, line {line}: {kernel}: {what} {size:,} bytes of shared memory, and {limit:,} is "
                f"the most on {chip.title}{more}."
            )
            return [Finding("too much shared memory", said, kernel, Place((0, 0, 0), (0, 0, 0), line))]
    return []


def _order(order: str, seed: int, blocks: int) -> np.ndarray:
    """The blocks' numbers in the order in which they run, uint32, of shape (blocks,)."""
    forward = np.arange(blocks, dtype=np.uint32)
    if order == "forward":
        return forward
    if order == "reversed":
        return forward[::-1].copy()
    if order == "shuffled":
        return np.random.default_rng(seed).permutation(forward)
    raise ValueError(f"order is {order!r}; it is 'forward', 'reversed' or 'shuffled'")


def _traced(trace: tuple[Size, int] | None, grid: tuple[int, int, int]) -> tuple[int, int]:
    if trace is None:
        return 2**63, 0
    parts = [trace[0]] if isinstance(trace[0], int) else list(trace[0])
    x, y, z = (*parts, 0, 0)[:3]
    return x + grid[0] * (y + grid[1] * z), trace[1]


def _without_words(kernel: str, label: str, ended: native.Ended) -> Finding:
    nowhere = Place((0, 0, 0), (0, 0, 0), 0)
    if ended.overtime:
        said = f"{label}: {kernel} still ran after {ended.seconds:.1f} s: an endless loop?"
        return Finding("endless loop", said, kernel, nowhere)
    said = f"{label}: {kernel} ended the process that ran it (signal {ended.signal})."
    return Finding("crash", said, kernel, nowhere)


def _summary(findings: Sequence[Finding], most: int = 3) -> str:
    text, left = "\n".join(f.message for f in findings[:most]), len(findings) - most
    return text + (f"\n… and {left} more finding{'s' if left > 1 else ''}." if left > 0 else "")
