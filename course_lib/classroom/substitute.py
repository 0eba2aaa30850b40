"""While a part is checked, the library uses the learner's version of it, and its own version is out of reach.

The reference is patched *in place*: a function keeps its identity and gets a new `__code__` that calls the
learner's object, a class gets a new `__new__`. So every other reference to it follows: imports, partials,
tables, default arguments. Entered from the learner's own cell the same code raises `DelegationError`: calling
the answer is no answer. All of this happens in a child process that ends after one check.
"""

import ast
import builtins
import functools
import importlib
import importlib.util
import inspect
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

from course_lib import parts
from course_lib.classroom.expect import CELL_PREFIX, describe


class DelegationError(RuntimeError):
    """The learner's cell handed its work to the library's version of the same part, or to a forbidden
    function.
    """


class NotYours(Exception):
    """The object a cell leaves behind is missing, or isn't the learner's own."""


violations: list[str] = []  # kept even if the learner's code swallows the error


def refuse(sentence: str) -> DelegationError:
    violations.append(sentence)
    return DelegationError(sentence)


# parts


def find_part(name: str) -> parts.Part:
    """The registered part with this public name ("tokenizer.merge_pair"); its module is imported if need be.

    Raises LookupError if the object exists but carries no `@exercise` mark, SourceError if there is none.
    """
    from course_lib.classroom.sources import part_key

    key = part_key(name)
    importlib.import_module(key.partition(":")[0])
    if key not in parts.REGISTRY:
        raise LookupError(f"course_lib.{name} is not marked with @exercise")
    return parts.REGISTRY[key]


def _layers(obj: Any) -> Iterator[Any]:
    """An object and what it wraps: properties, static and class methods, functools.wraps."""
    while obj is not None:
        yield obj
        if isinstance(obj, property):
            obj = obj.fget
        elif isinstance(obj, (staticmethod, classmethod, types.MethodType)):
            obj = obj.__func__
        elif isinstance(obj, functools.cached_property):
            obj = obj.func
        else:
            obj = getattr(obj, "__wrapped__", None)


# the trampoline

_MARK = "the call stands here"


def _template(*args, **kwargs):  # type: ignore[no-untyped-def]
    call = "the call stands here"
    return call(*args, **kwargs)  # type: ignore[operator]


def _redirect(function: types.FunctionType, call: Callable) -> None:
    """Make a function object run `call`, whoever holds a reference to it."""
    template = _template.__code__
    function.__code__ = template.replace(
        co_consts=tuple(call if const == _MARK else const for const in template.co_consts),
        co_freevars=function.__code__.co_freevars,  # as many as before, or the closure wouldn't fit
        co_name=function.__code__.co_name,
        co_filename="<course_lib: replaced by yours>",
    )
    function.__defaults__ = function.__kwdefaults__ = None


def from_cell(filename: str) -> bool:
    """Whether a frame of that cell is on the stack."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == filename:
            return True
        frame = frame.f_back
    return False


class Substitution:
    """One part replaced by the learner's object: `install()`, run the cell, then `adopt(namespace)`."""

    def __init__(self, name: str, filename: str):
        self.name, self.filename = name, filename
        self.part = find_part(name)
        self.short = self.part.qualname.rpartition(".")[2]
        self.is_method = "." in self.part.qualname and "<locals>" not in self.part.qualname
        self.target: Any = None
        self.calls = 0

    def install(self) -> None:
        """Close the reference. Until `adopt`, whoever calls it gets a DelegationError."""
        reference = self.part.obj
        if isinstance(reference, type):
            self._close_class(reference)
            return
        for layer in _layers(reference):
            if hasattr(layer, "cache_clear"):
                layer.cache_clear()
            if isinstance(layer, types.FunctionType):
                _redirect(layer, self._dispatch)

    def _close_class(self, reference: type) -> None:
        for attribute, value in list(vars(reference).items()):
            for layer in _layers(value):
                if isinstance(layer, types.FunctionType):
                    _redirect(layer, functools.partial(self._dispatch_method, attribute))
        new: Any = staticmethod(lambda cls, *args, **kwargs: self._construct(reference, cls, args, kwargs))
        reference.__new__ = new  # type: ignore[method-assign]

    def _guard(self) -> None:
        if self.target is None:
            raise refuse(
                f"your cell calls course_lib's own {self.short} while it is read; "
                f"compare with it in a cell of its own, outside the exercise"
            )
        if from_cell(self.filename):
            raise refuse(
                f"your {self.short} calls course_lib's {self.short}, which is the answer; write it yourself"
            )
        self.calls += 1

    def _dispatch(self, *args: Any, **kwargs: Any) -> Any:
        self._guard()
        return self.target(*args, **kwargs)

    def _construct(self, reference: type, cls: type, args: tuple, kwargs: dict) -> Any:
        self._guard()
        # A subclass in the library keeps its own type; its inherited methods come here one by one.
        return self.target(*args, **kwargs) if cls is reference else object.__new__(cls)

    def _dispatch_method(self, attribute: str, *args: Any, **kwargs: Any) -> Any:
        self._guard()
        found = inspect.getattr_static(self.target, attribute, None)
        if isinstance(found, classmethod) and args and args[0] is self.part.obj:
            args = (self.target, *args[1:])
        for layer in _layers(found):
            if isinstance(layer, types.FunctionType):
                return layer(*args, **kwargs)
        raise AttributeError(f"your class {self.short} has no {attribute}")

    def adopt(self, namespace: dict[str, Any]) -> Any:
        """Take the learner's object from the namespace of their cell. Raises NotYours with a sentence if
        there is none.
        """
        found = namespace.get(self.short)
        if found is None:
            raise NotYours(f"your cell defines no {self.short}: keep the name that the exercise gives")
        if any(layer is self.part.obj for layer in _layers(found)):
            raise NotYours(f"{self.short} in your cell is course_lib's own; write it yourself")
        self._own(found)
        self.target = found
        return found

    def _own(self, found: Any) -> None:
        reference = self.part.obj
        if isinstance(reference, type):
            if not isinstance(found, type):
                raise NotYours(f"{self.short} must be a class, and yours is {describe(found)}")
            if reference in found.__mro__:
                raise NotYours(
                    f"your {self.short} inherits from course_lib's {self.short}, which is the answer"
                )
            if found.__module__ != "__main__":
                raise NotYours(
                    f"{self.short} is a class of {found.__module__}, not of your cell; write it yourself"
                )
            for attribute, value in vars(found).items():
                for layer in _layers(value):
                    if isinstance(layer, types.FunctionType) and layer.__code__.co_filename.startswith(
                        "<course_lib"
                    ):
                        raise NotYours(
                            f"{self.short}.{attribute} is course_lib's own method; write it yourself"
                        )
            return
        if isinstance(found, type) or not callable(found):
            raise NotYours(f"{self.short} must be a function, and yours is {describe(found)}")
        layers = [layer for layer in _layers(found) if isinstance(layer, types.FunctionType)]
        if not layers:
            raise NotYours(
                f"{self.short} is {describe(found)}, not a function of your own: write it with def"
            )
        filename = layers[-1].__code__.co_filename
        if filename != self.filename:
            source = "course_lib" if "course_lib" in filename else layers[-1].__module__ or filename
            raise NotYours(f"{self.short} is a function of {source}, not of your cell: write it with def")


# sources out of reach

_PROGRAMS = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec")


def _asked_by(filename: str) -> bool:
    """Whether the cell itself asked for what happens now: nothing but the standard library's own wrappers
    lies between.
    """
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") in ("subprocess", "os"):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename == filename


def hide_sources(files: set[str], folders: tuple[str, ...], filename: str) -> None:
    """From now on this process refuses to open the files of the answer while the learner's cell is on the
    stack, or in a thread, whose stack does not tell who began it. Nor may the cell start another program,
    which could open them.
    """
    main = threading.get_ident()
    hidden = {os.path.realpath(f) for f in files}
    hidden |= {os.path.realpath(importlib.util.cache_from_source(f)) for f in files if f.endswith(".py")}
    roots = tuple(os.path.realpath(folder) + os.sep for folder in folders)

    def hook(event: str, args: tuple) -> None:
        if event in _PROGRAMS and _asked_by(filename):
            raise PermissionError("your cell starts another program, and a check is about your own code")
        if event != "open" or not isinstance(args[0], str):
            return
        path = os.path.realpath(args[0])
        if (path in hidden or path.startswith(roots)) and (
            threading.get_ident() != main or from_cell(filename)
        ):
            raise PermissionError(
                f"{os.path.basename(path)} holds the answer, and is closed while your code is checked"
            )

    sys.addaudithook(hook)


# Modules that everybody shares

_SHARED: tuple[str, ...] = (
    "builtins",
    "math",
    "numpy",
    "numpy.linalg",
    "numpy.random",
    "torch",
    "torch.nn.functional",
)
_SHARED += ("scipy.special",)
_GRADER = "course_lib.classroom"


class Modules:
    """A picture of shared modules. A cell that patches NumPy would have its own answers judged by the
    patched NumPy. Of the grader itself private names, classes and tables belong to the picture, too.
    """

    def __init__(self) -> None:
        self.before: list[tuple[str, Any, dict[str, Any]]] = []
        self.tables: list[tuple[str, dict, dict]] = []
        for name in _SHARED:
            if name in sys.modules:
                self._remember(name, sys.modules[name])
        for name, module in list(sys.modules.items()):
            if name.startswith(_GRADER):
                self._remember(name, module)

    def _remember(self, name: str, owner: Any) -> None:
        self.before.append((name, owner, dict(vars(owner))))
        if not name.startswith(_GRADER) or isinstance(owner, type):
            return
        for attribute, value in list(vars(owner).items()):
            if isinstance(value, type) and value.__module__ == name:
                self._remember(f"{name}.{attribute}", value)
            elif attribute.isupper() and type(value) is dict:
                self.tables.append((f"{name}.{attribute}", value, dict(value)))

    def refuse_changes(self) -> None:
        """Raise NotYours if a name of a shared module has been replaced, after putting the old one back."""
        changed = []
        for place, owner, before in self.before:  # built-in functions first: what follows uses them
            private = "__" if place.startswith(_GRADER) else "_"
            now = vars(owner)
            for name, value in before.items():
                if not name.startswith(private) and now.get(name, value) is not value:
                    setattr(owner, name, value)
                    changed.append(f"{place}.{name}")
        for place, table, content in self.tables:
            if table != content:
                table.clear()
                table.update(content)
                changed.append(place)
        if changed:
            names = ", ".join(changed[:3])
            raise NotYours(f"your cell replaces {names} for the whole program; leave it as it is")


# forbidden functions


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Names bound by imports -> the dotted name behind them: {"np": "numpy", "norm": "numpy.linalg.norm"}."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                found[a.asname or a.name.split(".")[0]] = a.name if a.asname else a.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for a in node.names:
                found[a.asname or a.name] = f"{node.module}.{a.name}"
    return found


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def _full(name: str, aliases: dict[str, str]) -> str:
    head, dot, rest = name.partition(".")
    return aliases.get(head, head) + dot + rest


# Ways into the checker's own frames and objects; no exercise needs them.
INTROSPECTION = [
    "sys._getframe",
    "sys._current_frames",
    "sys.settrace",
    "sys.setprofile",
    "gc",
    "f_back",
    "f_locals",
]
INTROSPECTION += ["inspect.currentframe", "inspect.stack"]


def forbidden_use(source: str, setup: str, forbid: list[str], own: str = "") -> str:
    """A sentence about the first use of a forbidden name in a cell, or "".

    `forbid` holds dotted names as the lesson writes them ("np.linalg.norm", "scipy"), which cover what lies
    below them, and bare names ("sorted", "scaled_dot_product_attention"), which match a name or the last part
    of a dotted one.
    """
    tree = ast.parse(source)
    aliases = _aliases(ast.parse(setup)) | {"np": "numpy"} | _aliases(tree)
    for node in ast.walk(tree):  # `norm = np.linalg.norm` makes an alias, too
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            value = _dotted(node.value)
            if "." in value:
                aliases[node.targets[0].id] = _full(value, aliases)
    local = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    local |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    local |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Name, ast.Attribute)) or not isinstance(node.ctx, ast.Load):
            continue
        written = _dotted(node) or (f"….{node.attr}" if isinstance(node, ast.Attribute) else "")
        if not written or (written in local and written not in aliases):
            continue
        full = _full(written, aliases)
        for name in forbid:
            wanted = _full(name, {"np": "numpy"})
            bare = "." not in wanted
            if (
                full == wanted
                or full.startswith(wanted + ".")
                or (bare and full.rpartition(".")[2] == wanted)
            ):
                return f"line {node.lineno} of your cell uses {written}, which this exercise forbids ({name})"
    return ""


class _Guarded:
    """A forbidden function that works for everybody except the learner's cell."""

    def __init__(self, original: Any, name: str, filename: str):
        self.__dict__.update(original=original, name=name, filename=filename)
        functools.update_wrapper(self, original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if sys._getframe(1).f_code.co_filename == self.filename:
            raise refuse(f"your cell calls {self.name}, which this exercise forbids")
        return self.original(*args, **kwargs)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.__dict__["original"], attribute)


def guard_forbidden(forbid: list[str], filename: str) -> None:
    """Patch forbidden functions of modules that are loaded. The scan of the cell comes first; this catches
    getattr.
    """
    for name in forbid:
        owner_name, _, attribute = _full(name, {"np": "numpy"}).rpartition(".")
        owner: Any = builtins if not owner_name else sys.modules.get(owner_name)
        original = getattr(owner, attribute, None)
        # A class stays as it is: others ask isinstance of it.
        if callable(original) and not isinstance(original, (type, _Guarded)):
            setattr(owner, attribute, _Guarded(original, name, filename))


def cell_filename(exercise: str) -> str:
    return f"{CELL_PREFIX}{exercise.rpartition('.')[2]}>"
