"""Small mistakes, made on purpose: the syntax tree of a reference with one thing changed.

Checks that let such a mutant pass prove less than they say. Annotations, docstrings, decorators and the texts
of error messages are left alone: no check should depend on them.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_COMPARE: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_BINARY: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitXor: (ast.BitAnd,),
}
_NAMES = {"min": "max", "max": "min", "argmin": "argmax", "argmax": "argmin", "any": "all", "all": "any"}
_NAMES |= {"maximum": "minimum", "minimum": "maximum", "floor": "ceil", "ceil": "floor"}

_SYMMETRIC = (
    "min",
    "max",
    "minimum",
    "maximum",
    "gcd",
    "array_equal",
)  # the order of their arguments is nothing

Edit = Callable[[Any], None]


@dataclass(frozen=True)
class Mutant:
    """`name` says what was changed, as `statement => statement`, and is unique within its exercise;
    `source` is the cell.
    """

    name: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a cell, in a fixed order, without those that read the same as another or as the
    original.
    """
    tree = ast.parse(source)
    seen = {ast.unparse(tree)}
    names: dict[str, int] = {}
    found = []
    for path, edit in _edits(tree):
        changed = copy.deepcopy(tree)
        before = _statement(tree, path)
        _apply(changed, path, edit)
        ast.fix_missing_locations(changed)
        text = ast.unparse(changed)
        if text in seen:
            continue
        seen.add(text)
        name = f"{before} => {_statement(changed, path)}"
        names[name] = names.get(name, 0) + 1
        found.append(Mutant(name if names[name] == 1 else f"{name} #{names[name]}", text))
    return found


# A path leads from the root to a node: (field, index or None) a step.
Path = tuple[tuple[str, int | None], ...]


def _follow(tree: ast.AST, path: Path) -> ast.AST:
    node = tree
    for field, index in path:
        value = getattr(node, field)
        node = value if index is None else value[index]
    return node


def _apply(tree: ast.AST, path: Path, edit: Edit) -> None:
    edit(_follow(tree, path))


def _statement(tree: ast.AST, path: Path) -> str:
    """The first line of the innermost statement around a node."""
    node: ast.AST = tree
    statement: ast.AST = tree
    for field, index in path:
        value = getattr(node, field)
        node = value if index is None else value[index]
        if isinstance(node, ast.stmt):
            statement = node
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        statement = copy.deepcopy(statement)
        statement.body = [ast.Expr(ast.Constant(...))]
        statement.decorator_list = []
    return ast.unparse(statement).partition("\n")[0]


def _edits(node: ast.AST, path: Path = (), quiet: bool = False) -> Iterator[tuple[Path, Edit]]:
    """All edits in and below a node. `quiet`: inside a raise, where texts and numbers are only words."""
    yield from ((path, edit) for edit in _here(node, quiet))
    quiet = quiet or isinstance(node, (ast.Raise, ast.Assert))
    for field, value in ast.iter_fields(node):
        if field in (
            "annotation",
            "returns",
            "decorator_list",
            "type_params",
            "type_comment",
            "keywords",
        ) and not (field == "keywords" and isinstance(node, ast.Call)):
            continue
        if isinstance(value, ast.AST):
            yield from _edits(value, (*path, (field, None)), quiet)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, ast.AST) and not _is_docstring(node, field, index):
                    yield from _edits(item, (*path, (field, index)), quiet)


def _is_docstring(node: ast.AST, field: str, index: int) -> bool:
    holder = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module))
    first = getattr(node, "body", [None])[0] if holder else None
    return (
        holder
        and field == "body"
        and index == 0
        and isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )


def _set(field: str, value: Any) -> Edit:
    return lambda node: setattr(node, field, value)


def _put(field: str, index: int, value: Any) -> Edit:
    return lambda node: getattr(node, field).__setitem__(index, value)


def _drop(field: str, index: int) -> Edit:
    return lambda node: getattr(node, field).__delitem__(index)


def _become(other: ast.AST) -> Edit:
    def edit(node: Any) -> None:
        node.__class__ = other.__class__
        node.__dict__.clear()
        node.__dict__.update(other.__dict__)

    return edit


def _swap_arguments(node: Any) -> None:
    node.args[:2] = node.args[1], node.args[0]


def _negate(node: Any) -> None:
    node.test = ast.UnaryOp(ast.Not(), node.test)


def _double(node: Any) -> None:
    """`not x` becomes `not not x`: a bool, as before, and the other one."""
    node.operand = ast.UnaryOp(ast.Not(), node.operand)


def _here(node: Any, quiet: bool) -> Iterator[Edit]:
    """The edits of one node, not of those below it."""
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield _negate
        if not isinstance(node, ast.While):
            yield _set("test", ast.Constant(True))
            yield _set("test", ast.Constant(False))
    elif isinstance(node, ast.comprehension):
        yield from (_drop("ifs", i) for i in range(len(node.ifs)))
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield _set("value", None)
    elif isinstance(node, ast.Break):
        yield _become(ast.Continue())
    elif isinstance(node, ast.Continue):
        yield _become(ast.Break())
    elif isinstance(node, ast.Expr | ast.Assign | ast.AugAssign | ast.Raise | ast.Delete):
        yield _become(ast.Pass())
    if not quiet:
        yield from _in_expression(node)


def _in_expression(node: Any) -> Iterator[Edit]:
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            yield from (_put("ops", i, new()) for new in _COMPARE.get(type(op), ()))
    elif isinstance(node, ast.BinOp | ast.AugAssign):
        yield from (_set("op", new()) for new in _BINARY.get(type(node.op), ()))
    elif isinstance(node, ast.BoolOp):
        yield _set("op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
        yield from (_drop("values", i) for i in range(len(node.values)))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield _set("op", ast.UAdd())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield _double
    elif isinstance(node, ast.Constant):
        yield from _constants(node.value)
    elif isinstance(node, ast.Slice):
        yield from (
            _set(part, None) for part in ("lower", "upper", "step") if getattr(node, part) is not None
        )
    elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
        field = "id" if isinstance(node, ast.Name) else "attr"
        other = _NAMES.get(getattr(node, field))
        if other:
            yield _set(field, other)
    elif isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        starred = any(isinstance(a, ast.Starred) for a in node.args[:2])
        if len(node.args) >= 2 and not starred and name not in _SYMMETRIC:
            yield _swap_arguments
        yield from (_drop("keywords", i) for i in range(len(node.keywords)))


def _constants(value: object) -> Iterator[Edit]:
    new: list[object] = []
    if isinstance(value, bool):
        new = [not value]
    elif isinstance(value, int):
        new = [value + 1, value - 1]
    elif isinstance(value, float):
        new = [value + 1.0, value * 1.5] if value else [1.0]
    elif isinstance(value, str):
        new = [value + "x" if value else "x"]
    elif isinstance(value, bytes):
        new = [value + b"x"]
    yield from (_set("value", constant) for constant in new)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
