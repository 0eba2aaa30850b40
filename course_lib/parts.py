"""Parts: the functions, classes and methods of course_lib that a learner re-creates, and whose version is in
use.

With PARTS=reference (the default) the mark `@exercise` only registers its object: no wrapper, no cost. With
PARTS=mine, set before course_lib is imported and inherited by worker processes, the mark returns the
learner's object in its place *at definition*, so that whatever refers to it later (partials, tables,
subclasses, default arguments) gets the learner's too. Rebinding names after import would miss those. Changing
parts takes a fresh process.

The learner's sources lie in `course_lib/mine/`: an index and one file a part, which `save_mine` writes after
the part has passed its checks. A file that does not load never breaks the engine: the reference stays, one
line says why.
"""

import __future__

import ast
import hashlib
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import sys
import textwrap
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Owner = Literal["reference", "yours"]

# Statements of the set-up cell that serve the notebook only: the engine does not load the classroom.
_NOTEBOOK_ONLY = ("course_lib.classroom", "course_lib.parts")


@dataclass(frozen=True)
class Part:
    """A registered part. `key` is `module:qualname`; `obj` is the object in use, `reference` the library's
    own.
    """

    key: str
    module: str
    qualname: str
    day: int
    obj: Any
    name: str | None = None
    reference: Any = None


REGISTRY: dict[str, Part] = {}
_OWNERS: dict[str, Owner] = {}


def parts_mode() -> Literal["reference", "mine"]:
    """Whose parts this process runs, from the environment variable PARTS. ValueError on anything but the
    two.
    """
    mode = os.environ.get("PARTS") or "reference"
    if mode not in ("reference", "mine"):
        raise ValueError(
            f"PARTS={mode}: expected PARTS=reference (the library's) or PARTS=mine (yours where it passed)"
        )
    return mode  # type: ignore[return-value]


def owner(key: str) -> Owner:
    """Whose version of the part `module:qualname` is in use in this process. KeyError if no such part is
    registered.
    """
    if key not in REGISTRY:
        raise KeyError(f"{key} is no registered part; is its module imported?")
    return _OWNERS[key]


def mine_folder() -> Path:
    """Where the learner's parts are kept: COURSE_MINE, or course_lib/mine."""
    return Path(os.environ.get("COURSE_MINE") or Path(__file__).resolve().parent / "mine")


def exercise(day: int, name: str | None = None) -> Callable[[T], T]:
    """Mark a function, class or method as the part that day `day` asks for. Innermost decorator.

    Decorators above the mark are the library's and apply to the learner's object as well; those below it
    belong to the exercise. `name` overrides the public name, which otherwise is the dotted path from
    course_lib through re-exports.
    """

    def mark(reference: T) -> T:
        module, qualname = reference.__module__, reference.__qualname__  # type: ignore[attr-defined]
        key = f"{module}:{qualname}"
        used: Any = reference
        if parts_mode() == "mine":
            used = _substitute(key, reference, sys._getframe(1))
        _OWNERS[key] = "reference" if used is reference else "yours"
        REGISTRY[key] = Part(key, module, qualname, day, used, name, reference)
        return used

    return mark


def method_of(cls: type) -> Callable[[T], T]:
    """Attach the function below to `cls`, in place of the method of that name.

    An exercise shows a method as a bare function that takes `self`. If it uses `super()` or a private
    `self.__name`, it is compiled again inside a shell of the class, since both get their meaning from the
    class around them. A property, staticmethod or classmethod of that name stays one.
    """

    def attach(function: T) -> T:
        plain: Any = function
        if _needs_class(plain.__code__):
            source = textwrap.dedent(inspect.getsource(plain))
            node = ast.parse(source).body[0]
            assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            node.decorator_list = [d for d in node.decorator_list if not _is_method_of(d)]
            ast.increment_lineno(node, plain.__code__.co_firstlineno - 1)
            plain, cell = _compile_in_class(node, cls.__name__, plain.__globals__, plain.__code__.co_filename)
            if cell is not None:
                cell.cell_contents = cls
        plain.__qualname__ = f"{cls.__qualname__}.{plain.__name__}"
        old = cls.__dict__.get(plain.__name__)
        if isinstance(old, property):
            setattr(cls, plain.__name__, property(plain, old.fset, old.fdel))
        elif isinstance(old, staticmethod | classmethod):
            setattr(cls, plain.__name__, type(old)(plain))
        else:
            setattr(cls, plain.__name__, plain)
        return plain

    return attach


def _is_method_of(decorator: ast.expr) -> bool:
    if not isinstance(decorator, ast.Call):
        return False
    name = decorator.func
    return (isinstance(name, ast.Name) and name.id == "method_of") or (
        isinstance(name, ast.Attribute) and name.attr == "method_of"
    )


def _needs_class(code: types.CodeType) -> bool:
    names = set(code.co_names) | set(code.co_freevars) | set(code.co_varnames)
    if (
        "super" in names
        or any(n.startswith("__") and not n.endswith("__") for n in names)
        or "__class__" in names
    ):
        return True
    return any(_needs_class(inner) for inner in code.co_consts if isinstance(inner, types.CodeType))


def _compile_in_class(
    node: ast.stmt, class_name: str, namespace: dict[str, Any], filename: str, flags: int = 0
) -> tuple[types.FunctionType, types.CellType | None]:
    """The function `node` compiled as a method of a class of that name, and its `__class__` cell if it has
    one.
    """
    shell = ast.parse(f"class {class_name}: pass").body[0]
    assert isinstance(shell, ast.ClassDef)
    ast.copy_location(shell, node)
    shell.body = [node]
    tree = ast.fix_missing_locations(ast.Module([shell], []))
    missing = object()
    before = namespace.get(class_name, missing)
    exec(compile(tree, filename, "exec", flags=flags, dont_inherit=True), namespace)
    function = namespace[class_name].__dict__[node.name]  # type: ignore[attr-defined]
    if before is missing:
        del namespace[class_name]
    else:
        namespace[class_name] = before
    bare = function.__func__ if isinstance(function, staticmethod | classmethod) else function
    cells = (
        dict(zip(bare.__code__.co_freevars, bare.__closure__ or (), strict=True))
        if _is_function(bare)
        else {}
    )
    return function, cells.get("__class__")


def _is_function(obj: Any) -> bool:
    return isinstance(obj, types.FunctionType)


@dataclass
class _Pending:
    """What can only be settled when the module is complete."""

    namespace: dict[str, Any]
    imports: list[ast.stmt]
    used: set[str]
    cell: types.CellType | None
    qualname: str
    path: Path


_PENDING: dict[str, list[_Pending]] = {}


class _OwnerCell:
    """Learns which class is being built around it, fills the method's `__class__` cell and goes away."""

    def __init__(self, cell: types.CellType):
        self.cell = cell

    def __set_name__(self, owner: type, name: str) -> None:
        self.cell.cell_contents = owner
        delattr(owner, name)


def _warn(message: str) -> None:
    print(f"course_lib: {message}", file=sys.stderr)


def _index() -> dict[str, dict[str, Any]]:
    """The learner's parts by key, read anew: a process reads it once a part, and it is small."""
    path = mine_folder() / "index.json"
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {entry["key"]: entry | {"name": name} for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        _warn(f"cannot read {path} ({problem!r}); the reference is used for every part")
        return {}


_INDEX: dict[str, dict[str, Any]] | None = None


def _substitute(key: str, reference: Any, frame: types.FrameType) -> Any:
    """The learner's object for this part, or the reference where there is none or it does not load."""
    global _INDEX
    if _INDEX is None:
        _INDEX = _index()
    entry = _INDEX.get(key)
    if entry is None:
        return reference
    path = mine_folder() / str(entry.get("file"))
    try:
        return _load_mine(path, entry, reference, frame)
    except (Exception, SystemExit) as problem:
        line = problem.lineno if isinstance(problem, SyntaxError) else _line_in(path, problem)
        where = f", line {line}" if line else ""
        reason = problem.msg if isinstance(problem, SyntaxError) else str(problem)
        reason = " ".join(f"{type(problem).__name__}: {reason}".split())
        _warn(f"your {entry['name']} does not load ({path}{where}: {reason}); the reference is used instead")
        return reference


def _line_in(path: Path, problem: BaseException) -> int | None:
    line, trace = None, problem.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _load_mine(path: Path, entry: dict[str, Any], reference: Any, frame: types.FrameType) -> Any:
    module_globals = frame.f_globals
    name = reference.__name__
    # A copy of the module so far: the learner's code sees the same neighbors and can overwrite none of them.
    namespace = dict(module_globals)
    namespace.pop(name, None)
    flags = 0
    for feature in __future__.all_feature_names:
        if namespace.get(feature) is getattr(__future__, feature):
            flags |= getattr(__future__, feature).compiler_flag
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    later: list[ast.stmt] = []
    target: Any = None
    cell: types.CellType | None = None
    parent = reference.__qualname__.rpartition(".")[0]
    for node in tree.body:
        if _notebook_only(node):
            continue
        method = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and any(
            _is_method_of(d) for d in node.decorator_list
        )
        if method:
            assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if not parent:
                raise TypeError(f"{name} is not a method, but the cell says @method_of")
            node.decorator_list = [d for d in node.decorator_list if not _is_method_of(d)]
            found, own = _compile_in_class(node, parent.rpartition(".")[2], namespace, str(path), flags)
            if node.name == name:
                target, cell = found, own
            continue
        code = compile(ast.Module([node], []), str(path), "exec", flags=flags, dont_inherit=True)
        try:
            exec(code, namespace)
        except ImportError:
            # The library is half imported here; what it does not offer yet is asked for again at its end.
            if not _imports_library(node):
                raise
            later.append(node)
    if not parent:
        target = namespace.get(name)
    if target is None or target is reference:
        raise NameError(f"the cell defines no {name}")
    if isinstance(reference, type) != isinstance(target, type) or not callable(target):
        raise TypeError(f"{name} is a {type(target).__name__}, the library's is a {type(reference).__name__}")
    target.__module__ = reference.__module__
    target.__qualname__ = reference.__qualname__
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    _PENDING.setdefault(reference.__module__, []).append(_Pending(namespace, later, used, cell, parent, path))
    if cell is not None:
        frame.f_locals[f"_owner_of_{name}"] = _OwnerCell(cell)
    return target


def _notebook_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_NOTEBOOK_ONLY)


def _imports_library(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] == "course_lib"
    return isinstance(node, ast.Import) and any(a.name.split(".")[0] == "course_lib" for a in node.names)


def _bound(node: ast.stmt) -> set[str]:
    """The names that an import statement binds."""
    aliases = node.names if isinstance(node, ast.Import | ast.ImportFrom) else []
    return {(alias.asname or alias.name).split(".")[0] for alias in aliases}


def _finish(module: types.ModuleType) -> None:
    """Give the learner's functions what their module defined after them."""
    for pending in _PENDING.pop(module.__name__, []):
        for node in pending.imports:
            try:
                exec(compile(ast.Module([node], []), str(pending.path), "exec"), pending.namespace)
            except ImportError as problem:
                # A set-up cell serves a whole day: what this part does not use need not be there.
                if _bound(node) & pending.used:
                    _warn(f"{pending.path}, line {node.lineno}: {problem}")
        for name, value in vars(module).items():
            pending.namespace.setdefault(name, value)
        if pending.cell is not None:
            found: Any = module
            for step in pending.qualname.split("."):
                found = getattr(found, step, None)
            if isinstance(found, type):
                pending.cell.cell_contents = found


class _FinishingLoader(importlib.abc.Loader):
    """Runs a module like its own loader, then settles what the learner's parts in it still miss."""

    def __init__(self, loader: Any):
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        self.loader.exec_module(module)
        _finish(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("course_lib."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None and spec.origin and spec.origin.endswith(".py"):
            spec.loader = _FinishingLoader(spec.loader)
        return spec


def install_substitution() -> None:
    """Watch imports of course_lib for parts to finish. Called by course_lib/__init__ with PARTS=mine, before
    any module that holds parts is imported.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def save_mine(name: str, cell: str, *, key: str, day: int, setup: str = "") -> Path:
    """Keep the learner's exercise cell of the part `name` as theirs, and return its file.

    `key` is the part's `module:qualname`, `setup` the lesson's set-up cell. What is overwritten with
    something else is copied to `.course/backups/` first. Raises SyntaxError, and keeps nothing, if the two
    cells are no Python.
    """
    folder = mine_folder()
    text = f"# Your {name}, from day {day}. Written by `make check-day {day}` when it passed.\n"
    text += (setup.strip() + "\n\n\n" if setup.strip() else "") + cell.strip() + "\n"
    compile(text, f"{name}.py", "exec", dont_inherit=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        back_up(path)
    _write(path, text)
    index_path = folder / "index.json"
    index: Any = {}
    if index_path.is_file():
        try:
            index = json.loads(index_path.read_text(encoding="utf-8"))
        except ValueError:
            index = None
        if not isinstance(index, dict):
            back_up(index_path)
            index = {}
    digest = hashlib.sha256(text.encode()).hexdigest()
    index[name] = {"key": key, "day": day, "file": path.name, "sha256": digest}
    _write(index_path, json.dumps(dict(sorted(index.items())), indent=1) + "\n")
    return path


def back_up(path: Path) -> Path:
    """Copy a file to `.course/backups/` under a name with the time and a counter; returns the copy."""
    base = Path(os.environ.get("COURSE_ROOT") or Path(__file__).resolve().parents[1])
    folder = base / ".course" / "backups"
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    for number in range(1_000_000):
        copy = folder / f"{stamp}-{number}-{path.name}"
        try:
            # Exclusive creation: two processes that save at once never share a name.
            with copy.open("xb") as out:
                out.write(path.read_bytes())
            return copy
        except FileExistsError:
            continue
    raise FileExistsError(f"no free name for a copy of {path} in {folder}")


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
