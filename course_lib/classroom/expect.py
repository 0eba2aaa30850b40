"""What a check may say about a learner's function, and how a failure tells what went wrong.

A check calls the function once and states what must hold::

    expect(merge_pair, [1, 2, 3], (1, 2), 256).equals([256, 3])
    expect(softmax, x).close(scipy.special.softmax(x, axis=-1))
    expect(decode, [-1]).raises(ValueError, match="-1")

Shapes and dtypes are compared before values, because `np.allclose` broadcasts: a `(3, 1)` answer would pass
for a `(3, 3)` one. Every failure carries three short texts: what was *given*, what was *expected* and what we
*got*.
"""

import copy
import dis
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple, NoReturn

import numpy as np

from course_lib.classroom.goldens import has_golden


class Tolerance(NamedTuple):
    """Allowed distance: `rtol * |want| + atol * min(1, max |want|)`."""

    rtol: float
    atol: float


# The one table of tolerances. The absolute part shrinks with the data: probabilities over a vocabulary are of
# size 1e-5, and an absolute 1e-5 would accept anything. It never grows: a mask's -1e9 excuses nothing.
TOLERANCES: dict[str, Tolerance] = {
    "float64": Tolerance(1e-7, 1e-9),
    "float32": Tolerance(1e-5, 1e-6),
    "float16": Tolerance(2e-3, 1e-3),
    "bfloat16": Tolerance(1.6e-2, 8e-3),
    "float8_e4m3fn": Tolerance(0.13, 0.07),
    "float8_e5m2": Tolerance(0.25, 0.13),
    "complex128": Tolerance(1e-7, 1e-9),
    "complex64": Tolerance(1e-5, 1e-6),
}

CELL_PREFIX = (
    "<your "  # file names of compiled learner's cells start with this; tracebacks are searched for it
)


class CheckFailure(AssertionError):
    """One unmet expectation: a sentence, and what was given, expected and got, each already abbreviated."""

    def __init__(
        self,
        message: str,
        given: str = "",
        expected: str = "",
        got: str = "",
        kind: str = "value",
        fingerprint: str = "",
    ):
        super().__init__(message)
        self.message, self.given, self.expected, self.got = message, given, expected, got
        self.kind = kind
        self.fingerprint = fingerprint or f"{kind}: {message}"


# showing values


def _is_tensor(x: Any) -> bool:
    return (
        type(x).__module__.partition(".")[0] in ("torch", "mlx")
        and hasattr(x, "shape")
        and hasattr(x, "dtype")
    )


def _family(x: Any) -> str:
    """Which library an array belongs to; Python's own numbers and sequences are "python"."""
    if isinstance(x, (np.ndarray, np.generic)):
        return "numpy"
    return type(x).__module__.partition(".")[0] if _is_tensor(x) else "python"


def _dtype_name(x: Any) -> str:
    """The dtype's name, the same for NumPy, torch and MLX ("bfloat16"); "" for what has none."""
    dtype = getattr(x, "dtype", None)
    return "" if dtype is None else str(dtype).rpartition(".")[2]


def _to_numpy(x: Any) -> np.ndarray:
    if type(x).__module__.startswith("torch"):
        x = x.detach().cpu()
        name = _dtype_name(x)
        return np.asarray(x.float() if name.startswith(("bfloat", "float8")) else x.resolve_conj().numpy())
    if type(x).__module__.startswith("mlx"):
        return np.array(x.astype(__import__("mlx.core").core.float32) if _dtype_name(x) == "bfloat16" else x)
    return np.asarray(x)


def _kind(name: str) -> str:
    """Kind of a dtype name: "float", "integer", "boolean", "complex" or the name itself."""
    for prefix, kind in (("bfloat", "float"), ("float", "float"), ("int", "integer"), ("uint", "integer")):
        if name.startswith(prefix):
            return kind
    return "boolean" if name.startswith("bool") else "complex" if name.startswith("complex") else name


def describe(x: Any) -> str:
    """What a value is, without its contents: "a float32 array of shape (3, 4)", "a list of 5", "an int"."""
    if isinstance(x, np.ndarray) or _is_tensor(x):
        noun = "array" if isinstance(x, np.ndarray) else "tensor"
        text = f"{_dtype_name(x)} {noun} of shape {tuple(x.shape)}"
    elif isinstance(x, np.generic):
        text = f"{_dtype_name(x)} scalar"
    elif x is None:
        return "None"
    elif isinstance(x, (list, tuple, dict, set, frozenset)):
        text = f"{type(x).__name__} of {len(x)}"
    else:
        text = type(x).__name__
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _show_array(x: Any, inline: bool = False) -> str:
    """A small array with its values; a big one, or one inside something else, as shape, dtype and ends."""
    a = _to_numpy(x)
    if a.ndim == 0:
        return f"{a} ({_dtype_name(x)})"
    head = describe(x).partition(" ")[2]
    if a.size == 0:
        return head
    if not inline and a.size <= 16 and a.ndim <= 2:
        return head + "\n" + np.array2string(a, precision=6, separator=", ", max_line_width=64)
    if a.size <= 4 and a.ndim == 1:
        return np.array2string(a, precision=6, separator=", ") + f" ({_dtype_name(x)})"
    ends = [np.array2string(v, precision=6) for v in (*a.flat[:3], *a.flat[-1:])]
    return f"{head}: {', '.join(ends[:3])}, …, {ends[-1]}"


def show(x: Any, limit: int = 240, depth: int = 0) -> str:
    """`repr` for people: long sequences and big arrays keep their ends, addresses are left out."""
    if isinstance(x, np.ndarray) or _is_tensor(x):
        return _show_array(x, inline=depth > 0)
    if isinstance(x, np.generic):
        return f"{x.item()!r} ({_dtype_name(x)})"
    if isinstance(x, (str, bytes)) and len(x) > limit:
        unit = "characters" if isinstance(x, str) else "bytes"
        return f"{x[: limit // 2]!r} … {x[-limit // 4 :]!r} ({len(x):,} {unit})"
    if type(x) in (list, tuple, set, frozenset) and x:
        return _show_items(x, max(24, limit // 4), depth + 1)
    if isinstance(x, dict) and x and depth < 5:
        inner = max(24, limit // 4)
        pairs = (f"{show(k, inner, depth + 1)}: {show(v, inner, depth + 1)}" for k, v in list(x.items())[:8])
        return "{" + ", ".join(pairs) + (f", … ({len(x):,} entries)}}" if len(x) > 8 else "}")
    if callable(x) and hasattr(x, "__name__"):
        return str(x.__name__)
    try:
        text = repr(x)
    except Exception as error:  # a learner's __repr__ may be broken; the verdict must still come
        text = f"<{type(x).__name__}, whose repr raises {type(error).__name__}>"
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _show_items(x: Any, limit: int, depth: int) -> str:
    brackets: dict[type, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")"), set: ("{", "}")}
    left, right = brackets.get(type(x), ("frozenset({", "})"))
    items = _sorted(x) if isinstance(x, (set, frozenset)) else x
    if depth > 5:  # also a list that holds itself
        return f"{left}…{right}"
    if len(items) <= 12:
        texts = [show(i, limit, depth) for i in items]
    else:
        texts = [
            *(show(i, limit, depth) for i in items[:8]),
            "…",
            *(show(i, limit, depth) for i in items[-2:]),
        ]
    comma = "," if type(x) is tuple and len(items) == 1 else ""
    count = f" ({len(items):,} items)" if len(items) > 12 else ""
    return f"{left}{', '.join(texts)}{comma}{right}{count}"


def _call_text(fn: Any, args: tuple, kwargs: dict) -> str:
    name = getattr(fn, "__name__", type(fn).__name__)
    parts = [show(a, 120) for a in args] + [f"{k}={show(v, 120)}" for k, v in kwargs.items()]
    if any("\n" in p for p in parts):
        return f"{name}(\n" + ",\n".join("    " + p.replace("\n", "\n    ") for p in parts) + ")"
    return f"{name}({', '.join(parts)})"


# goldens


def _sorted(items: Any) -> list:
    try:
        return sorted(items)
    except TypeError:
        return sorted(items, key=repr)


def plain(x: Any) -> Any:
    """The value a golden is made of: None, bool, int, str, bytes, and lists and dicts of those.

    Tuples become lists (as dict keys they stay tuples), sets become sorted lists, arrays of integers or
    booleans become nested lists, dtypes and shapes become strings and lists. Raises TypeError for a float:
    floats are asserted with a tolerance, never recorded.
    """
    if x is None or isinstance(x, (bool, str, bytes)):
        return x
    if isinstance(x, np.bool_):
        return bool(x)
    if isinstance(x, (int, np.integer)):
        return int(x)
    if isinstance(x, (np.ndarray, np.generic)) or _is_tensor(x):
        if _kind(_dtype_name(x)) in ("integer", "boolean"):
            return _to_numpy(x).tolist()
    elif isinstance(x, (np.dtype, type)):
        return x.name if isinstance(x, np.dtype) else x.__name__
    elif type(x).__module__ == "torch" and type(x).__name__ == "dtype":
        return str(x)
    elif isinstance(x, Mapping):
        return {_plain_key(k): plain(x[k]) for k in _sorted(x)}
    elif isinstance(x, (set, frozenset)):
        return [plain(i) for i in _sorted(x)]
    elif isinstance(x, Sequence):
        return [plain(i) for i in x]
    raise TypeError(
        f"a golden holds integers, strings, booleans and shapes, and this is {describe(x)}: "
        "assert floats with close(…) instead"
    )


def _plain_key(key: Any) -> Any:
    return tuple(_plain_key(k) for k in key) if isinstance(key, tuple) else plain(key)


def golden_text(value: Any) -> str:
    """The one-line text of a golden, as it stands in checks/day_NN.ipynb."""
    return repr(plain(value))


def fingerprint(value: Any) -> str:
    """A short text that is equal for equal answers (floats to 5 digits), to recognise a known mistake by
    what it gives.
    """
    text = _canonical(value)
    return text if len(text) <= 80 else "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:24]


def _canonical(x: Any) -> str:
    if isinstance(x, (np.ndarray, np.generic)) or _is_tensor(x):
        return f"{_kind(_dtype_name(x))}{tuple(x.shape)}{_canonical(_to_numpy(x).tolist())}"
    if isinstance(x, (float, complex)):
        return f"{x:.5g}".replace("-0", "0") if x == 0 else f"{x:.5g}"
    if isinstance(x, Mapping):
        return "{" + ",".join(sorted(f"{_canonical(k)}:{_canonical(v)}" for k, v in x.items())) + "}"
    if isinstance(x, Set):
        return "{" + ",".join(sorted(map(_canonical, x))) + "}"
    if isinstance(x, (list, tuple)):
        return type(x).__name__ + "[" + ",".join(map(_canonical, x)) + "]"
    return show(x, 10_000)


# comparing


class _Difference(Exception):
    """Found by a comparison: the sentence that says where two values part."""


def _where(path: str) -> str:
    return f"at {path}: " if path else ""


_PLAIN = (int, float, complex, str, bytes)
_EQUALITIES = {kind.__eq__ for kind in _PLAIN}


def _same(got: Any, want: Any, path: str = "") -> None:
    """Exact equality of types and values; raises _Difference at the first place that differs."""
    if isinstance(got, _PLAIN) and not isinstance(got, np.generic) and type(got).__eq__ not in _EQUALITIES:
        raise _Difference(f"{_where(path)}got {describe(got)}, whose class says itself what it is equal to")
    if _family(want) != "python" and not isinstance(want, np.generic):
        if _family(got) != _family(want) or not hasattr(got, "shape"):
            raise _Difference(f"{_where(path)}got {describe(got)}, expected {describe(want)}")
        if tuple(got.shape) != tuple(want.shape):
            raise _Difference(f"{_where(path)}got shape {tuple(got.shape)}, expected {tuple(want.shape)}")
        if _kind(_dtype_name(got)) != _kind(_dtype_name(want)):
            raise _Difference(f"{_where(path)}got dtype {_dtype_name(got)}, expected {_dtype_name(want)}")
        a, b = _to_numpy(got), _to_numpy(want)
        wrong = ~((a == b) | ((a != a) & (b != b)))
        if wrong.any():
            raise _Difference(_first_wrong(wrong, a, b, path))
        return
    if isinstance(want, (bool, np.bool_)) or isinstance(got, (bool, np.bool_)):
        if not (
            isinstance(want, (bool, np.bool_))
            and isinstance(got, (bool, np.bool_))
            and bool(got) == bool(want)
        ):
            raise _Difference(f"{_where(path)}got {show(got)}, expected {show(want)}")
    elif isinstance(want, Mapping):
        if not isinstance(got, Mapping):
            raise _Difference(f"{_where(path)}got {describe(got)}, expected {describe(want)}")
        for key in want:
            if key not in got:
                raise _Difference(f"{_where(path)}the key {show(key)} is missing")
        for key in got:
            if key not in want:
                raise _Difference(f"{_where(path)}the key {show(key)} should not be there")
        for key in want:
            _same(got[key], want[key], f"{path}[{show(key, 40)}]")
    elif isinstance(want, (list, tuple)):
        if not isinstance(got, type(want)) and not isinstance(want, type(got)):
            raise _Difference(f"{_where(path)}got {describe(got)}, expected {describe(want)}")
        items = list.copy(got) if isinstance(got, list) else tuple.__getitem__(got, slice(None))
        for i, (g, w) in enumerate(zip(items, want, strict=False)):
            _same(g, w, f"{path}[{i}]")
        if len(items) != len(want):
            raise _Difference(f"{_where(path)}got {len(items)} items, expected {len(want)}")
    elif isinstance(want, (int, float, complex, np.number)):
        numbers = (int, np.integer) if isinstance(want, (int, np.integer)) else (float, complex, np.inexact)
        if not isinstance(got, numbers):
            raise _Difference(
                f"{_where(path)}got {show(got)} ({describe(got)}), expected {show(want)} ({describe(want)})"
            )
        if not (got == want or (got != got and want != want)):
            raise _Difference(f"{_where(path)}got {show(got)}, expected {show(want)}")
    elif (
        type(got) is not type(want)
        and not isinstance(got, type(want))
        and isinstance(want, (str, bytes, set, frozenset))
    ):
        raise _Difference(
            f"{_where(path)}got {show(got)} ({describe(got)}), expected {show(want)} ({describe(want)})"
        )
    elif not bool(got == want):
        raise _Difference(f"{_where(path)}got {show(got)}, expected {show(want)}")


def _first_wrong(wrong: np.ndarray, got: np.ndarray, want: np.ndarray, path: str) -> str:
    """How many entries differ, and the first of them."""
    index = tuple(int(i) for i in np.argwhere(wrong)[0]) if wrong.ndim else ()
    a, b = got[index], want[index]
    # str gives a float32 its own few digits; the digits of its double would be noise.
    texts = (str(a), str(b)) if str(a) != str(b) else (repr(a.item()), repr(b.item()))
    pair = f"got {texts[0]}, expected {texts[1]}"
    if not wrong.ndim:
        return f"{_where(path)}{pair}"
    place = path + "[" + ", ".join(map(str, index)) + "]"
    count = f"{int(wrong.sum()):,} of {wrong.size:,} values differ; the first " if wrong.size > 1 else ""
    return f"{count}at {place}: {pair}"


def _close(got: Any, want: Any, dtype: Any, rtol: float | None, atol: float | None, path: str = "") -> None:
    if isinstance(want, Mapping) or (isinstance(want, (list, tuple)) and not _numeric(want)):
        if isinstance(want, Mapping):
            if not isinstance(got, Mapping) or set(got) != set(want):
                keys = _sorted(got) if isinstance(got, Mapping) else describe(got)
                raise _Difference(f"{_where(path)}got keys {show(keys)}, expected {show(_sorted(want))}")
            pairs = [(f"[{show(k, 40)}]", got[k], want[k]) for k in want]
        else:
            if not isinstance(got, (list, tuple)) or len(got) != len(want):
                raise _Difference(f"{_where(path)}got {describe(got)}, expected {describe(want)}")
            pairs = [(f"[{i}]", g, w) for i, (g, w) in enumerate(zip(got, want, strict=True))]
        for step, g, w in pairs:
            _close(g, w, dtype, rtol, atol, path + step)
        return

    typed = _family(want) != "python"
    got_name, want_name = _dtype_name(got), _dtype_name(want)
    if (typed and _family(got) not in (_family(want), "python")) or (
        typed and want.shape and _family(got) == "python"
    ):
        raise _Difference(f"{_where(path)}got {describe(got)}, expected {describe(want)}")
    try:
        a, b = _to_numpy(got), _to_numpy(want)
    except Exception:
        raise _Difference(f"{_where(path)}got {describe(got)}, expected {describe(want)}") from None
    got_name, want_name = got_name or a.dtype.name, want_name or b.dtype.name
    if not typed and _kind(want_name) in ("integer", "boolean"):
        want_name, b = "float64", b.astype(np.float64)  # close([0, 1]) means 0.0 and 1.0
    if a.shape != b.shape:
        raise _Difference(f"{_where(path)}got shape {a.shape}, expected {b.shape}")
    if _kind(got_name) != _kind(want_name):
        raise _Difference(f"{_where(path)}got dtype {got_name}, expected {want_name}")
    if dtype is not None:
        name = np.dtype(dtype).name if isinstance(dtype, (type, np.dtype)) else str(dtype).rpartition(".")[2]
        if got_name != name:
            raise _Difference(f"{_where(path)}got dtype {got_name}, expected {name}")
        want_name = name
    elif not typed:
        want_name = got_name if got_name in ("float32", "complex64") else want_name
    elif _coarseness(got_name) > _coarseness(want_name):
        raise _Difference(
            f"{_where(path)}got dtype {got_name}, expected {want_name}: precision was lost on the way"
        )

    table = TOLERANCES.get(want_name, Tolerance(0.0, 0.0))
    rtol, atol = table.rtol if rtol is None else rtol, table.atol if atol is None else atol
    kept = a, b
    a, b = (x.astype(np.complex128 if x.dtype.kind == "c" else np.float64) for x in (a, b))
    finite = np.abs(b[np.isfinite(b)])
    scale = min(1.0, float(finite.max())) if finite.size and finite.max() > 0 else 1.0
    with np.errstate(invalid="ignore"):
        near = np.abs(a - b) <= rtol * np.abs(b) + atol * scale
    wrong = ~((a == b) | (near & np.isfinite(a) & np.isfinite(b)) | (np.isnan(a) & np.isnan(b)))
    if wrong.any():
        raise _Difference(_first_wrong(wrong, *kept, path))


def _numeric(x: Any) -> bool:
    """Nested lists of plain numbers, which mean an array."""
    if isinstance(x, (list, tuple)):
        return all(_numeric(i) for i in x)
    return isinstance(x, (int, float, complex, np.number))


def _coarseness(name: str) -> float:
    return TOLERANCES[name].rtol if name in TOLERANCES else 0.0


_NOTHING = object()


def _given_text(given: Any) -> str:
    if given is None:
        return ""
    return ", ".join(show(g, 160) for g in given) if isinstance(given, tuple) else show(given)


def _fail(
    message: str, given: Any, want: Any = _NOTHING, got: Any = _NOTHING, kind: str = "value"
) -> NoReturn:
    # The input belongs to it: a check may call several times, and which call fails tells mistakes apart.
    mark = f"{kind}: {fingerprint(got) if got is not _NOTHING else message} {fingerprint(str(given))}"
    raise CheckFailure(
        message,
        given if isinstance(given, _Given) else _given_text(given),
        "" if want is _NOTHING else show(want),
        "" if got is _NOTHING else show(got),
        kind,
        mark,
    ) from None


class _Given(str):
    """A text that is already made to be shown."""


def same(got: Any, want: Any, given: Any = None) -> None:
    """Assert that two values are equal in type, shape and value (1 is not True, a tuple is not a list)."""
    try:
        _same(got, want)
    except _Difference as difference:
        _fail(str(difference), given, want, got)


def close(
    got: Any,
    want: Any,
    given: Any = None,
    dtype: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """Assert that floats agree to the tolerance of their dtype; shapes and dtypes are compared first.

    `want` may be an array, a tensor, a number, nested lists of numbers, or lists, tuples and dicts of those.
    With `dtype` the answer's dtype must be exactly that one; without it, the same kind and no less precise
    than `want`.
    """
    try:
        _close(got, want, dtype, rtol, atol)
    except _Difference as difference:
        _fail(str(difference), given, want, got)


def that(condition: Any, sentence: str, given: Any = None) -> None:
    """Assert a condition; `sentence` says what must hold ("each row sums to 1")."""
    if not bool(condition):
        _fail(f"this must hold: {sentence}", given, kind="property")


def rng(seed: int) -> np.random.Generator:
    """A generator of its own for every check: the same numbers on every machine."""
    return np.random.default_rng(seed)


# calling the learner's function


def cell_line(error: BaseException) -> str:
    """The last line of the learner's cell in a traceback, as "line 4: return ids[i + 1]", or ""."""
    import linecache

    found = ""
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(CELL_PREFIX):
            found = f"line {trace.tb_lineno}: {linecache.getline(name, trace.tb_lineno).strip()}"
        trace = trace.tb_next
    return found


def error_text(error: BaseException) -> str:
    """An exception as a sentence for the learner, with the line of their cell it came from."""
    if isinstance(error, SystemExit):
        text = "your code called sys.exit(), which would end the whole program"
    elif isinstance(error, RecursionError):
        text = "RecursionError: your function calls itself without end"
    elif isinstance(error, EOFError) and "reading a line" in str(error):
        text = "your code waits for input(), and a check has no keyboard"
    elif isinstance(error, NotImplementedError):
        text = f"not written yet ({error})" if str(error) else "not written yet (NotImplementedError)"
    else:
        text = f"{type(error).__name__}: {_one_line(str(error))}" if str(error) else type(error).__name__
    place = cell_line(error)
    if place and isinstance(error, NameError):
        place += "; a check runs this cell alone: helpers belong in it"
    return f"{text} ({place})" if place else text


def _one_line(text: str, limit: int = 240) -> str:
    """An error's words without their line breaks and addresses; long ones keep their ends."""
    text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(text.split()))
    if len(text) <= limit:
        return text
    return f"{text[: 2 * limit // 3]} … {text[-limit // 3 :]} ({len(text):,} characters)"


def error_mark(error: BaseException, given: str = "") -> str:
    """The fingerprint of an error: equal for equal errors on equal inputs, in whatever words of the
    learner's own.
    """
    text = "" if _own_words(error) else str(error)[:80]
    return f"error: {type(error).__name__}: {text} {fingerprint(given) if given else ''}"


def _own_words(error: BaseException) -> bool:
    """Whether a `raise` or `assert` of the learner's cell made the error, and not Python or a library."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not trace.tb_frame.f_code.co_filename.startswith(CELL_PREFIX):
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _snapshot(x: Any) -> Any:
    try:
        return copy.deepcopy(x)
    except Exception:  # generators, files, modules: nothing to compare
        return _NOTHING


_open: list["Expectation"] = []  # expectations of the running check that nobody has looked at yet


class Expectation:
    """The result of one call, waiting for what it is compared with. Made by `expect`."""

    def __init__(self, fn: Callable, args: tuple, kwargs: dict, mutating: bool):
        self.given = _Given(_call_text(fn, args, kwargs))
        self.error: BaseException | None = None
        self._result: Any = None
        _open.append(self)
        before = [(name, value, _snapshot(value)) for name, value in self._inputs(fn, args, kwargs)]
        try:
            self._result = fn(*args, **kwargs)
        except (MemoryError, KeyboardInterrupt):
            raise
        except BaseException as error:
            self.error = error
        if not mutating:
            for name, value, kept in before:
                if kept is not _NOTHING and _changed(value, kept):
                    self._seen()
                    _fail(
                        f"your code changed its input {name}; it must leave it as it was",
                        self.given,
                        kept,
                        value,
                        "mutation",
                    )

    @staticmethod
    def _inputs(fn: Callable, args: tuple, kwargs: dict) -> list[tuple[str, Any]]:
        code = getattr(fn, "__code__", None)
        names = list(code.co_varnames[: code.co_argcount]) if code is not None else []
        names += [f"argument {i + 1}" for i in range(len(names), len(args))]
        return [*zip(names, args, strict=False), *kwargs.items()]

    def _seen(self) -> None:
        if self in _open:
            _open.remove(self)

    @property
    def value(self) -> Any:
        """What the function returned; if it raised, the check fails with that error and the input."""
        self._seen()
        if self.error is not None:
            name = type(self.error).__name__
            if isinstance(self.error, CheckFailure):
                raise self.error
            raise CheckFailure(
                error_text(self.error), self.given, kind=name, fingerprint=error_mark(self.error, self.given)
            ) from self.error
        return self._result

    def equals(self, want: Any) -> "Expectation":
        """Equal in type, shape and value."""
        same(self.value, want, self.given)
        return self

    def close(
        self, want: Any, dtype: Any = None, rtol: float | None = None, atol: float | None = None
    ) -> "Expectation":
        """Equal within the tolerance of the dtype; see `close`."""
        close(self.value, want, self.given, dtype, rtol, atol)
        return self

    def satisfies(self, condition: Callable[[Any], Any], sentence: str) -> "Expectation":
        """`condition(result)` holds; `sentence` says it in words."""
        got = self.value
        try:
            holds = bool(condition(got))
        except Exception as error:
            _fail(
                f"this must hold: {sentence}; it cannot be judged ({type(error).__name__}: {error})",
                self.given,
                got=got,
            )
        if not holds:
            _fail(f"this must hold: {sentence}", self.given, got=got)
        return self

    def raises(self, error_type: type[BaseException] | tuple, match: str = "") -> "Expectation":
        """The call raised this error, with a message in which the pattern `match` is found."""
        self._seen()
        types = error_type if isinstance(error_type, tuple) else (error_type,)
        names = " or ".join(t.__name__ for t in types)
        if self.error is None:
            _fail(f"no error was raised, expected {names}", self.given, got=self._result)
        if not isinstance(self.error, types):
            name = type(self.error).__name__
            message = f"expected {names}, got {error_text(self.error)}"
            mark = error_mark(self.error, self.given)
            raise CheckFailure(message, self.given, kind=name, fingerprint=mark) from self.error
        if match and not re.search(match, str(self.error)):
            message = f"the message of the {names} should mention {match!r}"
            mark = f"message: {message} {fingerprint(str(self.given))}"
            raise CheckFailure(
                message, self.given, got=show(str(self.error)), kind="message", fingerprint=mark
            )
        return self


def _changed(now: Any, before: Any) -> bool:
    try:
        _same(now, before)
    except _Difference:
        return True
    except Exception:
        return False
    return bool(_dtype_name(before) and _dtype_name(now) != _dtype_name(before))


class _Expect:
    """`expect(fn, *args, **kwargs)` calls once and watches the inputs; `expect.mutating(…)` lets it change
    them.
    """

    def __call__(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Expectation:
        return Expectation(fn, args, kwargs, mutating=False)

    def mutating(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Expectation:
        return Expectation(fn, args, kwargs, mutating=True)


expect = _Expect()


def begin_check() -> None:
    """Forget expectations of an earlier check."""
    _open.clear()


def end_check() -> None:
    """Refuse a check that calls `expect(…)` and then asks nothing: it would pass whatever happened."""
    for expectation in _open:
        if expectation.error is not None:
            expectation.value  # noqa: B018  raises, with the input
    if _open:
        raise RuntimeError(
            f"the check calls {_open[0].given} and expects nothing of it: "
            "add .equals, .close, .raises, .satisfies or .value"
        )


NAMES: dict[str, Any] = {"expect": expect, "same": same, "close": close, "that": that, "rng": rng, "np": np}

__all__ = [
    "NAMES",
    "TOLERANCES",
    "CheckFailure",
    "close",
    "expect",
    "has_golden",
    "plain",
    "rng",
    "same",
    "that",
]
