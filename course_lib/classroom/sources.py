"""From a lesson and the library to the text of cells: solutions, stubs and the set-up cell.

The solved cell of an exercise is the part's own source, read from its file and not from the live object:
comments stay, and nothing has to be imported to build a notebook. Answer and library cannot drift apart,
since they are one text.
"""

import ast
import builtins
import functools
import importlib
import re
import symtable
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from course_lib.classroom import kernels
from course_lib.classroom.lesson import Exercise, Lesson, LessonError

LIBRARY = Path(__file__).resolve().parents[1]
CLASSROOM_LINE = "from course_lib.classroom import answer, check, drill, hint, measured, predict, solution"

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class SourceError(Exception):
    """A part that cannot be turned into cells; the builder adds the lesson's file and line."""


@dataclass(frozen=True)
class Module:
    """A module of the library, parsed but not imported."""

    name: str
    path: Path
    text: str
    tree: ast.Module
    is_package: bool


@dataclass(frozen=True)
class Located:
    """Where a public name is defined: `key` is `module:qualname`, as in the registry of parts."""

    name: str
    module: Module
    qualname: str
    node: Definition

    @property
    def key(self) -> str:
        return f"{self.module.name}:{self.qualname}"

    @property
    def is_method(self) -> bool:
        return "." in self.qualname


def read_module(name: str) -> Module | None:
    """The module `course_lib.….name` from its file, or None if the library has none of that name."""
    steps = name.split(".")
    if steps[0] != "course_lib":
        return None
    base = LIBRARY.joinpath(*steps[1:])
    for path, is_package in ((base / "__init__.py", True), (base.with_suffix(".py"), False)):
        if path.is_file():
            return _parse(name, path, is_package, path.stat().st_mtime_ns)
    return None


@functools.lru_cache(maxsize=256)
def _parse(name: str, path: Path, is_package: bool, _mtime: int) -> Module:
    text = path.read_text(encoding="utf-8")
    return Module(name, path, text, ast.parse(text, filename=str(path)), is_package)


def locate(name: str) -> Located:
    """Find the definition behind a part's public name, through re-exports. SourceError if there is none."""
    found = _locate("course_lib", name.split("."), seen=set())
    if found is None:
        found = _locate_live(name)
    if found is None:
        raise SourceError(f"course_lib has no {name}: no function, class or method of that name")
    module, qualname, node = found
    return Located(name, module, qualname, node)


def _locate(
    module_name: str, steps: list[str], seen: set[tuple[str, str]]
) -> tuple[Module, str, Definition] | None:
    module = read_module(module_name)
    if module is None or not steps or (module_name, ".".join(steps)) in seen:
        return None
    seen.add((module_name, ".".join(steps)))
    head, rest = steps[0], steps[1:]
    for node in _statements(module.tree):
        if isinstance(node, Definition) and node.name == head:
            return _member(module, [head], node, rest)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == head:
                    source = _absolute(module, node)
                    found = _locate(source, [alias.name, *rest], seen)
                    if found is not None:
                        return found
    return _locate(f"{module_name}.{head}", rest, seen)


def _member(
    module: Module, path: list[str], node: Definition, rest: list[str]
) -> tuple[Module, str, Definition] | None:
    for step in rest:
        inner = [n for n in node.body if isinstance(n, Definition) and n.name == step]
        if not isinstance(node, ast.ClassDef) or not inner:
            return None
        # A property has getter and setter of one name: the marked one is meant, else the first.
        node = next((n for n in inner if _mark(n) is not None), inner[0])
        path = [*path, step]
    return module, ".".join(path), node


def _locate_live(name: str) -> tuple[Module, str, Definition] | None:
    """For packages that export lazily through `__getattr__`: import, and look where the object comes from."""
    steps = name.split(".")
    for cut in range(len(steps) - 1, 0, -1):
        try:
            found: object = importlib.import_module(".".join(["course_lib", *steps[:cut]]))
            for at in range(cut, len(steps)):
                found = getattr(found, steps[at])
                if isinstance(found, type):  # a notebook's own method may stand in it: look no further
                    break
        except (ImportError, AttributeError):
            continue
        module, qualname = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
        if module and qualname and module.startswith("course_lib"):
            return _locate(module, [*qualname.split("."), *steps[at + 1 :]], seen=set())
    return None


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".")
    package = package[: len(package) - node.level + (1 if module.is_package else 0)]
    return ".".join([*package, *([node.module] if node.module else [])])


def _statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a module, also those inside its top-level `if` and `try`."""
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node)
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler)
            yield from _statements(ast.Module(getattr(node, "orelse", []), []))
        else:
            yield node


def part_key(name: str) -> str:
    """`module:qualname` of a part's public name, the key of `course_lib.parts.REGISTRY`."""
    return locate(name).key


def public_name(key: str) -> str:
    """A part's name in lessons: the shortest dotted path from course_lib that leads to `module:qualname`."""
    module, _, qualname = key.partition(":")
    steps = module.split(".")[1:]
    for cut in range(len(steps) + 1):
        name = ".".join([*steps[:cut], qualname])
        found = _locate("course_lib", name.split("."), seen=set())
        if cut and found is not None and f"{found[0].name}:{found[1]}" == key:
            return name
    return ".".join([*steps, qualname])


def _mark(node: Definition) -> ast.Call | None:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call):
            name = decorator.func
            if (isinstance(name, ast.Name) and name.id == "exercise") or (
                isinstance(name, ast.Attribute) and name.attr == "exercise"
            ):
                return decorator
    return None


def marked_day(located: Located) -> int | None:
    """The day that a part's mark names, None if it carries no mark."""
    mark = _mark(located.node)
    if mark is None:
        return None
    values = [*mark.args[:1], *(k.value for k in mark.keywords if k.arg == "day")]
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, int):
            return value.value
    return None


def part_source(name: str) -> str:
    """The exercise cell of a part, as the library has it.

    The mark and the decorators above it, which are the library's, are left out; those below it belong to the
    exercise. A method becomes a bare function under `@method_of(Class)`.
    """
    located = locate(name)
    node, lines = located.node, located.module.text.splitlines()
    mark = _mark(node)
    decorators = node.decorator_list
    if mark is not None:
        decorators = decorators[decorators.index(mark) + 1 :]
    start = min([node.lineno, *(d.lineno for d in decorators)])
    assert node.end_lineno is not None
    text = textwrap.dedent("\n".join(lines[start - 1 : node.end_lineno]))
    if located.is_method:
        text = f"@method_of({located.qualname.split('.')[-2]})\n" + text
    return text


def solved_source(exercise: Exercise) -> str:
    """The solved cell of an exercise. LessonError, at the exercise's line, if the library does not have the
    part.
    """
    if exercise.kind == "quiz":
        return wrap_answer(exercise.name, exercise.body)
    if exercise.kind == "kernel":
        return kernels.cell(exercise, _kernel_text(exercise))
    assert exercise.part is not None
    try:
        source = part_source(exercise.part)
    except SourceError as problem:
        raise LessonError(exercise.path, exercise.line, str(problem)) from None
    if exercise.kind == "repair":
        return source + "\n\n\n" + exercise.body
    return source


def _kernel_text(exercise: Exercise) -> str:
    """The file of a kernel exercise. LessonError, at the exercise's line, if it is not there."""
    try:
        return kernels.kernel_file(exercise.file).read_text(encoding="utf-8")
    except OSError:
        raise LessonError(exercise.path, exercise.line, f"there is no {exercise.file}") from None


def wrap_answer(name: str, body: str) -> str:
    """The body of a quiz with its last expression wrapped in `answer(name, …)`."""
    last = ast.parse(body).body[-1]
    assert isinstance(last, ast.Expr)
    assert last.end_lineno is not None
    assert last.end_col_offset is not None
    lines = body.split("\n")
    start = lines[last.lineno - 1].encode()[: last.col_offset].decode()  # ast counts columns in bytes
    before = "\n".join([*lines[: last.lineno - 1], start])
    expression = ast.get_source_segment(body, last) or ""
    tail = lines[last.end_lineno - 1].encode()[last.end_col_offset :].decode()
    after = "\n".join([tail, *lines[last.end_lineno :]])
    return f'{before}answer("{name}", {expression}){after}'


def stub_source(exercise: Exercise) -> str:
    """The learner's cell: the lesson's own skeleton, or the library's source without the bodies."""
    if exercise.kind == "quiz":
        return f'answer("{exercise.name}", ...)'
    if exercise.kind == "kernel":
        text = exercise.skeleton
        if text is None:
            message = todo_message(exercise, "your code here")
            text = kernels.stub(_kernel_text(exercise), message)
        return kernels.cell(exercise, text)
    try:
        if exercise.skeleton is None:
            assert exercise.part is not None
            return _hollow(part_source(exercise.part), exercise)
        _check_skeleton(exercise)
    except SourceError as problem:
        raise LessonError(exercise.path, exercise.line, str(problem)) from None
    return exercise.skeleton


def todo_message(exercise: Exercise, what: str) -> str:
    """What the stub's NotImplementedError says: `day 5, exercise 2: merge_pair`."""
    place = "warm-up" if exercise.kind == "warmup" else f"exercise {exercise.number}"
    return f"day {exercise.day}, {place}: {what}"


def _hollow(source: str, exercise: Exercise) -> str:
    """The source with the body of each function replaced by its docstring and a NotImplementedError."""
    lines = source.split("\n")
    (node,) = ast.parse(source).body
    assert isinstance(node, Definition)
    functions = [node] if not isinstance(node, ast.ClassDef) else _methods(node)
    for function in reversed(functions):
        what = function.name if function is node else f"{node.name}.{function.name}"
        first, last = function.body[0], function.body[-1]
        documented = _is_docstring(first)
        keep_to = first.end_lineno if documented else first.lineno - 1
        assert keep_to is not None
        if not documented and first.lineno == function.lineno:
            raise SourceError(f"{what} is written on one line: put its body on a line of its own")
        # A comment between the signature and the body belongs to the body.
        while not documented and lines[keep_to - 1].lstrip().startswith("#"):
            keep_to -= 1
        indent = " " * (function.col_offset + 4)
        hollow = f'{indent}raise NotImplementedError("{todo_message(exercise, what)}")'
        lines[keep_to : last.end_lineno] = [hollow]
    return "\n".join(lines)


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    found: list[ast.FunctionDef | ast.AsyncFunctionDef] = []
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(inner)
        elif isinstance(inner, ast.ClassDef):
            found += _methods(inner)
    return found


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _check_skeleton(exercise: Exercise) -> None:
    """A lesson's own stub offers what the library's part offers: same names, same signatures."""
    assert exercise.part is not None
    assert exercise.skeleton is not None
    (wanted,) = ast.parse(part_source(exercise.part)).body
    assert isinstance(wanted, Definition)
    tree = ast.parse(exercise.skeleton)
    found = [node for node in tree.body if isinstance(node, Definition) and node.name == wanted.name]
    if not found:
        raise SourceError(f"the skeleton of {exercise.name} does not define {wanted.name}")
    given = found[-1]
    if type(given) is not type(wanted):
        raise SourceError(f"the skeleton's {wanted.name} is of another kind than the library's")
    _same_signature(wanted, given, wanted.name)
    if isinstance(wanted, ast.ClassDef) and isinstance(given, ast.ClassDef):
        methods = {method.name: method for method in _methods(given)}
        for method in _methods(wanted):
            if method.name.startswith("_") and not method.name.endswith("__"):
                continue
            if method.name not in methods:
                raise SourceError(f"the skeleton's {wanted.name} lacks the method {method.name}")
            _same_signature(method, methods[method.name], f"{wanted.name}.{method.name}")
    if exercise.kind == "repair" and not any(
        isinstance(node, ast.FunctionDef) and node.name == "failing_input" for node in tree.body
    ):
        raise SourceError(f"the skeleton of {exercise.name} does not define failing_input()")


def _same_signature(wanted: Definition, given: Definition, what: str) -> None:
    def signature(node: Definition) -> str:
        if isinstance(node, ast.ClassDef):
            return f"class {node.name}({', '.join(map(ast.unparse, node.bases))})"
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        decorators = "".join(f"@{ast.unparse(d)} " for d in node.decorator_list)
        return f"{decorators}def {node.name}({ast.unparse(node.args)}){returns}"

    if signature(wanted) != signature(given):
        raise SourceError(
            f"the skeleton of {what} reads `{signature(given)}`, the library's `{signature(wanted)}`"
        )


def free_names(source: str) -> set[str]:
    """Names that a cell uses and neither defines nor gets from Python itself."""
    table = symtable.symtable(source, "cell", "exec")
    defined = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    used = {s.get_name() for s in table.get_symbols() if s.is_referenced()}

    def visit(inner: symtable.SymbolTable) -> None:
        for symbol in inner.get_symbols():
            if symbol.is_global() and symbol.is_referenced():
                used.add(symbol.get_name())
            if symbol.is_declared_global() and symbol.is_assigned():
                defined.add(symbol.get_name())
        for child in inner.get_children():
            visit(child)

    for child in table.get_children():
        visit(child)
    # Where annotations are lazy (a future import, Python 3.14), the symbol table may not show their names.
    used |= {name.id for note in _annotations(ast.parse(source)) for name in _names(note)} - _locals(source)
    return {n for n in used - defined if not hasattr(builtins, n) and n not in ("__name__", "__file__")}


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            yield node.annotation
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
            yield node.returns


def _names(node: ast.AST) -> Iterator[ast.Name]:
    return (inner for inner in ast.walk(node) if isinstance(inner, ast.Name))


def _locals(source: str) -> set[str]:
    """Names bound anywhere inside the cell: an annotation that uses one of these is the cell's own affair."""
    bound: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, Definition):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(a.asname or a.name).split(".")[0] for a in node.names}
    return bound


def defined_names(source: str) -> set[str]:
    """Names that a cell binds at its top level."""
    table = symtable.symtable(source, "cell", "exec")
    return {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}


@dataclass(frozen=True, order=True)
class Import:
    """One imported name: `from module import name as alias`; without a name `import module as alias`."""

    module: str
    name: str
    alias: str

    @property
    def binds(self) -> str:
        return self.alias or self.name or self.module.split(".")[0]


def provide(name: str, module: Module) -> list[Import]:
    """The imports that give a cell the name which `module` has at its top level; empty if it has none."""
    found: list[Import] = []
    for node in _statements(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                imported = Import(alias.name, "", alias.asname or "")
                if imported.binds == name:
                    found.append(imported)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    found.append(Import(_absolute(module, node), alias.name, alias.asname or ""))
        elif name in _bound_by(node):
            found.append(Import(module.name, name, ""))
    # A name bound twice (try: … except ImportError: …) comes from the module itself, which made the choice.
    if len({(i.module, i.name) for i in found}) > 1 and any(i.name for i in found):
        return [Import(module.name, name, "")]
    return sorted(set(found))


def _bound_by(node: ast.stmt) -> set[str]:
    if isinstance(node, Definition):
        return {node.name}
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.With | ast.For):
        return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    if sys.version_info >= (3, 12) and isinstance(node, ast.TypeAlias):
        return {node.name.id}
    return set()


def _needs(lesson: Lesson) -> dict[str, tuple[Exercise, list[Import]]]:
    """What the day's exercise cells need from outside: name -> (an exercise that needs it, its imports)."""
    exercises = [e for e in lesson.exercises.values() if e.kind != "quiz" and e.part]
    modules = list({locate(e.part).module.name: locate(e.part).module for e in exercises if e.part}.values())
    needs: dict[str, tuple[Exercise, list[Import]]] = {}
    owned: set[str] = (
        set()
    )  # names that an exercise above has defined; a repair's redefine what the library has
    for exercise in exercises:
        assert exercise.part is not None
        home = locate(exercise.part).module
        solved = solved_source(exercise)
        for cell in (solved, stub_source(exercise)):
            for name in sorted(free_names(cell) - owned - {"method_of"}):
                # The part's own module says what a name means; a failing input may use the day's others.
                for module in [home, *(m for m in modules if m is not home)]:
                    imports = provide(name, module)
                    if imports:
                        break
                else:
                    raise LessonError(
                        exercise.path,
                        exercise.line,
                        f"{exercise.name} uses the name {name!r}, which is defined nowhere: not in its cell, "
                        f"not in {home.name}, not by another exercise of the day",
                    )
                other, known = needs.setdefault(name, (exercise, imports))
                if known != imports:
                    raise LessonError(
                        exercise.path,
                        exercise.line,
                        f"{name!r} means {_show(imports)} in {exercise.name} and {_show(known)} in "
                        f"{other.name}: one name, one meaning in a day",
                    )
        if exercise.kind != "repair":
            owned |= defined_names(solved)
    return needs


def _show(imports: Iterable[Import]) -> str:
    return ", ".join(f"{i.module}.{i.name}".rstrip(".") for i in imports)


def _render(imports: Iterable[Import]) -> str:
    """Import statements in the usual order: standard library, packages, ours."""
    groups: dict[int, set[Import]] = {0: set(), 1: set(), 2: set(), 3: set()}
    for item in imports:
        top = item.module.split(".")[0]
        known = (top == "__future__", top in sys.stdlib_module_names, top != "course_lib", True)
        groups[known.index(True)].add(item)
    blocks = []
    for group in groups.values():
        plain = sorted(i for i in group if not i.name)
        lines = [f"import {i.module}" + (f" as {i.alias}" if i.alias else "") for i in plain]
        for module in sorted({i.module for i in group if i.name}):
            names = sorted(
                (i.name + (f" as {i.alias}" if i.alias and i.alias != i.name else ""))
                for i in group
                if i.module == module and i.name
            )
            line = f"from {module} import {', '.join(names)}"
            if len(line) > 100:
                line = f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"
            lines.append(line)
        if lines:
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _future(lesson: Lesson) -> set[Import]:
    found = set()
    for exercise in lesson.exercises.values():
        if exercise.part:
            for node in locate(exercise.part).module.tree.body:
                if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                    found |= {Import("__future__", alias.name, "") for alias in node.names}
    return found


def _setup_imports(lesson: Lesson) -> set[Import]:
    imports = {item for _, items in _needs(lesson).values() for item in items} | _future(lesson)
    for exercise in lesson.exercises.values():
        if exercise.part and locate(exercise.part).is_method:
            imports.add(Import("course_lib.parts", "method_of", ""))
        if exercise.kind == "kernel":
            imports |= {Import(module, name, "") for module, name in kernels.IMPORTS}
    return imports


def setup_source(lesson: Lesson) -> str:
    """The first code cell of the day's notebooks: what the stubs and solutions need, and the notebook's own
    helpers.
    """
    body = _render(_setup_imports(lesson))
    # The helpers stand in the last block, with the library's own names.
    joint = "\n" if body.split("\n\n")[-1].startswith("from course_lib") else "\n\n"
    text = f"{body}{joint}{CLASSROOM_LINE}" if body else CLASSROOM_LINE
    blocks = text.split("\n\n")
    if blocks[-1].startswith("from course_lib") and "(" not in blocks[-1]:
        blocks[-1] = "\n".join(sorted(blocks[-1].split("\n")))
    return "\n\n".join(blocks)


def check_setup_source(lesson: Lesson, exercise: Exercise | str) -> str:
    """The set-up for grading one exercise: as in the notebook, plus the library's version of the day's other
    parts.
    """
    if isinstance(exercise, str):
        exercise = lesson.exercises[exercise]
    return _check_setup(exercise, _setup_imports(lesson) | other_parts(lesson))


def check_setup_sources(lesson: Lesson) -> dict[str, str]:
    """The set-ups for grading a day's exercises, by name, and under "together" the one with every part."""
    imports = _setup_imports(lesson) | other_parts(lesson)
    setups = {name: _check_setup(exercise, imports) for name, exercise in lesson.exercises.items()}
    return setups | {"together": _render(imports)}


def _check_setup(exercise: Exercise, imports: set[Import]) -> str:
    own = set() if exercise.kind in ("quiz", "kernel") else defined_names(solved_source(exercise))
    return _render(item for item in imports if item.binds not in own)


def other_parts(lesson: Lesson) -> set[Import]:
    """Imports of all parts of the day by their public names; of a method, its class."""
    imports = set()
    for exercise in lesson.exercises.values():
        if exercise.kind in ("part", "warmup") and exercise.part:
            located = locate(exercise.part)
            outer = exercise.part.split(".")[: -len(located.qualname.split("."))]
            imports.add(Import(".".join(["course_lib", *outer]), located.qualname.split(".")[0], ""))
    return imports


def strip_magics(source: str) -> str:
    """A cell without IPython's `%` and `!` lines, for reading it as Python."""
    return re.sub(r"^[ \t]*[%!].*$", "", source, flags=re.MULTILINE)
