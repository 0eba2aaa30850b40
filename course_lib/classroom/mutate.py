"""Small mistakes, made on purpose: the syntax tree of a reference with one thing changed.

Checks that let such a mutant pass prove less than they say. Annotations, docstrings, decorators and the texts of error
messages are left alone: no check should depend on them.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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

Edit = Callable[[ast.AST], None]


@dataclass(frozen=True)
class Mutant:
    """`name` says what was changed, as `statement => statement`, and is unique within its exercise; `source` is the cell."""

    name: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a cell, in a fixed order, without those that read the same as another or as the original."""
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
        if field in ("annotation", "returns", "decorator_list", "type_params", "type_comment", "keywords") and not (
            field == "keywords" and isinstance(node, ast.Call)
        ):
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


def _here(node: ast.AST, quiet: bool) -> Iterator[Edit]:
    if isinstance(node, ast.Compare) and not quiet:
        for i, op in enumerate(node.ops):
            for new in _COMPARE.get(type(op), ()):
                yield lambda n, i=i, new=new: n.ops.__setitem__(i, new())
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and not quiet:
        for new in _BINARY.get(type(node.op), ()):
            yield lambda n, new=new: setattr(n, "op", new())
    elif isinstance(node, ast.BoolOp) and not quiet:
        yield lambda n: setattr(n, "op", ast.Or() if isinstance(n.op, ast.And) else ast.And())
        for i in range(len(node.values)):
            if len(node.values) > 1:
                yield lambda n, i=i: n.values.__delitem__(i)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)) and not quiet:
        yield lambda n: setattr(n, "op", ast.UAdd()) if isinstance(n.op, ast.USub) else _double(n)
    elif isinstance(node, ast.Constant) and not quiet:
        yield from _constants(node.value)
    elif isinstance(node, ast.Slice) and not quiet:
        for part in ("lower", "upper", "step"):
            if getattr(node, part) is not None:
                yield lambda n, part=part: setattr(n, part, None)
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))
        if not isinstance(node, ast.While):
            yield lambda n: setattr(n, "test", ast.Constant(True))
            yield lambda n: setattr(n, "test", ast.Constant(False))
    elif isinstance(node, ast.comprehension):
        for i in range(len(node.ifs)):
            yield lambda n, i=i: n.ifs.__delitem__(i)
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield lambda n: setattr(n, "value", None)
    elif isinstance(node, ast.Break):
        yield lambda n: _become(n, ast.Continue())
    elif isinstance(node, ast.Continue):
        yield lambda n: _become(n, ast.Break())
    elif isinstance(node, (ast.Name, ast.Attribute)) and not quiet and isinstance(node.ctx, ast.Load):
        field = "id" if isinstance(node, ast.Name) else "attr"
        other = _NAMES.get(getattr(node, field))
        if other:
            yield lambda n, field=field, other=other: setattr(n, field, other)
    if isinstance(node, ast.Call) and not quiet:
        if len(node.args) >= 2 and not any(isinstance(a, ast.Starred) for a in node.args[:2]):
            yield lambda n: n.args.__setitem__(slice(0, 2), [n.args[1], n.args[0]])
        for i in range(len(node.keywords)):
            yield lambda n, i=i: n.keywords.__delitem__(i)
    if isinstance(node, (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Delete)):
        yield lambda n: _become(n, ast.Pass())


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
    for constant in new:
        yield lambda n, constant=constant: setattr(n, "value", constant)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _double(node: ast.UnaryOp) -> None:
    """`not x` becomes `bool(x)`: as `not not x`, which needs no name."""
    node.operand = ast.UnaryOp(ast.Not(), node.operand)


def _become(node: ast.AST, other: ast.AST) -> None:
    node.__class__ = other.__class__
    node.__dict__.clear()
    node.__dict__.update(other.__dict__)
