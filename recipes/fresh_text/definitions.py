"""What a Python source file defines, read by `ast`: functions, classes, parameters, fields. Nothing is run.

Looked at are the definitions of a module and of its classes, at the top level and within classes, for
these have one name that everybody can look up; what is defined within a function or under a condition
is left alone.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

MOST_CHARACTERS = 3_000  # of what is shown of a definition
SYNTAX = (3, 11)  # of Python: a newer interpreter reads no more files than the oldest that runs this

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Stated:
    """One thing that a definition states, in the letters it is stated in."""

    kind: str  # default, returns, raises or base
    detail: str  # the parameter's name, "" of the whole
    answer: str
    value: str = ""  # the same however it is laid out: two that are equal mean the same


@dataclass(frozen=True, slots=True)
class Definition:
    """A function or a class by its dotted name within its module, what it states, and its source.

    `source` begins where the definition does and ends where it does, or where MOST_CHARACTERS end; what a
    class's methods are is left out of the class's own.
    """

    name: str
    is_class: bool
    line: int
    source: str
    parameters: tuple[str, ...] = ()
    stated: tuple[Stated, ...] = field(default=())
    body: str = ""  # what it does, whatever it is called; "" for a class

    @property
    def leaf(self) -> str:
        """The last part of its name."""
        return self.name.rpartition(".")[2]


def definitions(text: str) -> list[Definition]:
    """Return the definitions of a source file, in order; none of one that does not parse."""
    try:
        tree = ast.parse(text, feature_version=SYNTAX)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return list(_within(tree.body, "", text.splitlines(keepends=True)))


def parses(text: str) -> bool:
    """Return whether a source file can be read at all."""
    try:
        ast.parse(text, feature_version=SYNTAX)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _within(body: list[ast.stmt], prefix: str, lines: list[str]) -> Iterator[Definition]:
    for node in body:
        if isinstance(node, Function) and not _decorated(node, "overload", "setter", "deleter"):
            yield _function(node, prefix, lines)
        elif isinstance(node, ast.ClassDef):
            yield _class(node, prefix, lines)
            yield from _within(node.body, f"{prefix}{node.name}.", lines)


def _function(node: Function, prefix: str, lines: list[str]) -> Definition:
    # Whoever calls a class passes what its __init__ takes.
    name = prefix.rstrip(".") if node.name == "__init__" and prefix else prefix + node.name
    parameters = [*node.args.posonlyargs, *node.args.args]
    if prefix and not _decorated(node, "staticmethod"):
        parameters = parameters[1:]
    stated = [*_defaults(node.args, lines)]
    if node.returns is not None:
        stated += _said("returns", "", node.returns, lines)
    raised = {_called(each.exc) for each in _own(node) if isinstance(each, ast.Raise)}
    # What begins with a small letter is a variable, or a function that makes the exception.
    if len(raised) == 1 and (only := raised.pop()).rpartition(".")[2][:1].isupper():
        stated.append(Stated("raises", "", only, only))
    names = tuple(parameter.arg for parameter in [*parameters, *node.args.kwonlyargs])
    does = "".join(ast.dump(each) for each in _without_docstring(node.body))
    return Definition(
        name, False, node.lineno, _source(node, node.body[-1], lines), names, tuple(stated), does
    )


def _class(node: ast.ClassDef, prefix: str, lines: list[str]) -> Definition:
    stated = []
    if len(node.bases) == 1 and isinstance(node.bases[0], ast.Name | ast.Attribute):
        stated += _said("base", "", node.bases[0], lines)
    end: ast.stmt = node.body[0]
    for each in node.body:
        if isinstance(each, Function | ast.ClassDef):
            break
        end = each
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            value = each.value
            if isinstance(value, ast.Call) and _called(value).rpartition(".")[2] in ("field", "Field"):
                given = {named.arg: named.value for named in value.keywords}
                value = given.get("default") or (value.args[0] if value.args else None)
            if value is not None:
                stated += _said("default", each.target.id, value, lines)
    source = _source(node, None if isinstance(end, Function | ast.ClassDef) else end, lines)
    return Definition(prefix + node.name, True, node.lineno, source, (), tuple(stated))


def _defaults(arguments: ast.arguments, lines: list[str]) -> Iterator[Stated]:
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(reversed(positional), reversed(arguments.defaults), strict=False)][::-1]
    for parameter, default in [*pairs, *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]:
        if default is not None:
            yield from _said("default", parameter.arg, default, lines)


def _said(kind: str, detail: str, node: ast.expr, lines: list[str]) -> list[Stated]:
    """Return what a value states: a text by its own letters, other literals, names and types as written.

    Nothing for what is computed, goes over several lines, or begins or ends with white space.
    """
    text = node.value if isinstance(node, ast.Constant) else None
    if isinstance(text, str):
        answer, value = text, _meaning(node) if kind == "returns" else repr(text)
    else:
        if kind == "default" and not isinstance(node, ast.Name | ast.Attribute) and not _literal(node):
            return []
        value = _meaning(node)
        line = lines[node.lineno - 1].encode() if node.lineno == node.end_lineno else b""
        answer = line[node.col_offset : node.end_col_offset].decode() or value
    usable = answer and answer.isprintable() and answer.strip() == answer
    return [Stated(kind, detail, answer, value)] if usable else []


def _meaning(node: ast.expr) -> str:
    """Return an expression as all ways to write it are: no modules, Optional and Union as |, in an order."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):  # a type in quotes
        try:
            return _meaning(ast.parse(node.value, mode="eval").body)
        except (SyntaxError, ValueError, RecursionError):
            return node.value
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return repr(float(node.value)) if abs(node.value) < 2**53 else repr(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Name):
        return {"List": "list", "Dict": "dict", "Tuple": "tuple", "Set": "set", "Type": "type"}.get(
            node.id, node.id
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return " | ".join(sorted({*_meaning(node.left).split(" | "), *_meaning(node.right).split(" | ")}))
    if isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        parts, outer = [_meaning(each) for each in inner], _meaning(node.value)
        if outer in ("Optional", "Union"):
            parts = [each for part in parts for each in part.split(" | ")]
            return " | ".join(sorted({*parts, "None"} if outer == "Optional" else {*parts}))
        return f"{outer}[{', '.join(parts)}]"
    if isinstance(node, ast.List):  # of a callable's parameters
        return f"[{', '.join(map(_meaning, node.elts))}]"
    return ast.unparse(node)


def _literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _called(node: ast.expr | None) -> str:
    """Return the dotted name of what is called or named, "" where it has none."""
    target = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(target) if isinstance(target, ast.Name | ast.Attribute) else ""


def _decorated(node: Function, *names: str) -> bool:
    return any(_called(each).rpartition(".")[2] in names for each in node.decorator_list)


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what stands within a function, but not within functions and classes in it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function | ast.ClassDef | ast.Lambda):
            yield child
            yield from _own(child)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    says = (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
    return body[1:] if says else body


def _source(node: Function | ast.ClassDef, end: ast.stmt | None, lines: list[str]) -> str:
    """Return whole lines from the first decorator to the end of `end`, at most MOST_CHARACTERS."""
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    # A class that begins with a method shows its head alone.
    last = (end.end_lineno or end.lineno) if end else _head_end(node)
    shown, size = [], 0
    for line in lines[first - 1 : last]:
        size += len(line)
        if size > MOST_CHARACTERS:
            break
        shown.append(line)
    return "".join(shown)


def _head_end(node: Function | ast.ClassDef) -> int:
    """Return the last line before the first statement of a body, at least the first of the definition."""
    first = node.body[0]
    decorators = first.decorator_list if isinstance(first, Function | ast.ClassDef) else []
    return max(node.lineno, min([first.lineno, *(each.lineno for each in decorators)]) - 1)
