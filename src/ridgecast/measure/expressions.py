"""Constraints that people write in a sweep file: "tile_m * tile_n <= 16384 and tile <= m".

Owns a small language: numbers, text in quotes, column names, + - * / // %, comparisons (chained,
`in`), and, or, not. It is parsed with Python's own parser and walked here; nothing is handed to
the interpreter, and calls, attributes, subscripts and powers are refused.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SpecError, unknown_name

__all__ = ["Expression", "parse"]

_LONGEST = 500  # characters

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_ALLOWED = "numbers, quoted text, columns, + - * / // %, comparisons, in, and, or, not"


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression; `names` are the columns that it reads."""

    text: str
    names: frozenset[str]
    tree: ast.expr

    def value(self, columns: Mapping[str, Any]) -> Any:
        """Value for one point. Raises SpecError where it has none (a column missing, x / 0)."""
        try:
            return _value(self.tree, columns)
        except KeyError as error:
            raise SpecError(f"{self.text!r}: this point has no column {error.args[0]}") from None
        except (ArithmeticError, TypeError) as error:
            shown = {name: columns.get(name) for name in sorted(self.names)}
            raise SpecError(f"{self.text!r} has no value at {shown}: {error}") from None


def parse(text: str, known: Collection[str], *, field: str) -> Expression:
    """Parse an expression over the columns `known`.

    Raises SpecError, naming `field`, for what is not of the language or not a known column.

    >>> parse("tile * 2 <= m", ["tile", "m"], field="where").value({"tile": 16, "m": 32})
    True
    """
    if len(text) > _LONGEST:
        raise SpecError(f"{field}: {len(text)} characters, at most {_LONGEST} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise SpecError(f"{field}: {text!r} is no expression: {error}") from None
    names: set[str] = set()
    _check(tree, text, names, field)
    for name in sorted(names - set(known)):
        raise SpecError(f"{field}: {text!r}: {unknown_name('column', name, known)}")
    return Expression(text, frozenset(names), tree)


def _check(node: ast.AST, text: str, names: set[str], field: str) -> None:
    """Raise SpecError at the first node that is not of the language."""
    children: list[ast.AST]
    match node:
        case ast.BoolOp():
            children = list(node.values)
        case ast.BinOp() if type(node.op) in _BINARY:
            children = [node.left, node.right]
        case ast.UnaryOp() if type(node.op) in _UNARY:
            children = [node.operand]
        case ast.Compare() if all(type(op) in _COMPARE for op in node.ops):
            children = [node.left, *node.comparators]
        case ast.Tuple() | ast.List():
            children = list(node.elts)
        case ast.Constant() if isinstance(node.value, bool | int | float | str):
            children = []
        case ast.Name():
            names.add(node.id)
            children = []
        case _:
            kind = type(node.op if isinstance(node, ast.BinOp) else node).__name__
            raise SpecError(f"{field}: {text!r}: {kind} is not allowed; allowed: {_ALLOWED}")
    for child in children:
        _check(child, text, names, field)


def _value(node: ast.expr, columns: Mapping[str, Any]) -> Any:  # noqa: PLR0911 - one a node kind
    """Value of a checked node."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return columns[node.id]
        case ast.BoolOp():
            values = (bool(_value(child, columns)) for child in node.values)
            return all(values) if isinstance(node.op, ast.And) else any(values)
        case ast.UnaryOp():
            return _UNARY[type(node.op)](_value(node.operand, columns))
        case ast.BinOp():
            left, right = _value(node.left, columns), _value(node.right, columns)
            if isinstance(left, str | list) or isinstance(right, str | list):
                raise TypeError("text is compared, not computed with")
            return _BINARY[type(node.op)](left, right)
        case ast.Compare():
            left = _value(node.left, columns)
            for op, child in zip(node.ops, node.comparators, strict=True):
                right = _value(child, columns)
                if not _COMPARE[type(op)](left, right):
                    return False
                left = right
            return True
        case ast.Tuple() | ast.List():
            return [_value(child, columns) for child in node.elts]
        case _:  # _check let nothing else through
            raise TypeError(f"{type(node).__name__} has no value")
