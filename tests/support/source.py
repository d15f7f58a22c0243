"""What the source shows without being run: log events, imports, lines of code. Does no more than read files."""

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "binance_funding"
PROGRAMS = (ROOT / "binance_funding_ws_daemon.py", ROOT / "funding_api_server.py")

_LEVELS = {"debug", "info", "warning", "error"}
_OTHER_TOKENS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def product_files() -> list[Path]:
    """Return every Python file of the product: both programs and the package."""
    return [*PROGRAMS, *sorted((ROOT / PACKAGE).rglob("*.py"))]


def code_lines(source: str) -> int:
    """Count the lines that hold code: no blank lines, comments, docstrings."""
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    coded = (range(token.start[0], token.end[0] + 1) for token in tokens if token.type not in _OTHER_TOKENS)
    return len({line for lines in coded for line in lines} - docstrings)


def imports(path: Path, root: Path = ROOT) -> set[str]:
    """Return the dotted names of all modules that a file imports, relative ones resolved, wherever the import stands.

    `from a import b` gives a and a.b, since b may be a module.
    """
    package = path.relative_to(root).with_suffix("").parts[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *filter(None, [node.module])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def log_events(sources: Iterable[str]) -> set[str]:
    """Return the names of all events that these modules log: what is given to the loggers as a plain text.

    Names are followed to their values within a module, attributes to fields and arguments of the same name anywhere;
    of a condition both sides count. A sentence that is put together when the program runs has no name.
    """
    trees = [ast.parse(source) for source in sources]
    attributes = _Texts(node for tree in trees for node in _attribute_values(tree))
    return {event for tree in trees for event in _events_of(tree, attributes)}


class _Texts(dict[str, list[ast.expr]]):
    """Expressions by the name that they are given to."""

    def __init__(self, pairs: Iterable[tuple[str, ast.expr]]) -> None:
        for name, value in pairs:
            self.setdefault(name, []).append(value)

    def without(self, name: str) -> "_Texts":
        """Return the others."""
        return _Texts((other, value) for other, values in self.items() if other != name for value in values)


def _attribute_values(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield what attributes may hold: the defaults of fields, and arguments given by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg:
            yield node.arg, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, node.value


def _assigned_values(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            yield from ((name.id, value) for name, value in pairs if isinstance(name, ast.Name))


def _events_of(tree: ast.AST, attributes: _Texts) -> Iterator[str]:
    names = _Texts(_assigned_values(tree))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        event = _event_argument(node, names)
        if event is not None:
            yield from _texts(event, names, attributes)
        for keyword in node.keywords:
            if keyword.arg == "log_as":
                yield from _texts(keyword.value, names, attributes)


def _event_argument(call: ast.Call, names: _Texts) -> ast.expr | None:
    """Return the argument that names the event, if the call is one of a logger."""
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if method == "log":
        return call.args[1] if len(call.args) > 1 else None
    is_alias = isinstance(call.func, ast.Name) and any(map(_is_logger, names.get(call.func.id, [])))
    return call.args[0] if call.args and (method in {*_LEVELS, "warn"} or is_alias) else None


def _is_logger(value: ast.expr) -> bool:
    """Tell whether a value is a method of a logger, one of two maybe: `_log.info if data else _log.debug`."""
    if isinstance(value, ast.IfExp):
        return _is_logger(value.body) or _is_logger(value.orelse)
    return isinstance(value, ast.Attribute) and value.attr in _LEVELS


def _texts(node: ast.expr, names: _Texts, attributes: _Texts) -> set[str]:
    """Return every plain text that an expression may be; none for what is only known when the program runs."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, ast.IfExp):
        return _texts(node.body, names, attributes) | _texts(node.orelse, names, attributes)
    if isinstance(node, ast.JoinedStr):
        parts = [_texts(part, names, attributes) for part in node.values]
        return {"".join(chosen) for chosen in product(*parts)}
    if isinstance(node, ast.FormattedValue):
        return _texts(node.value, names, attributes)
    # What is looked up is left out of the next look-up, since it may be made of itself.
    if isinstance(node, ast.Name):
        found, names = names.get(node.id, []), names.without(node.id)
    elif isinstance(node, ast.Attribute):
        found, attributes = attributes.get(node.attr, []), attributes.without(node.attr)
    else:
        found = []
    return {text for value in found for text in _texts(value, names, attributes)}
