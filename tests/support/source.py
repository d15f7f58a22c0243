"""Facts about the source code, found without running it: imports, log events and lines of code."""

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "binance_funding"
PROGRAMS = (ROOT / "binance_funding_ws_daemon.py", ROOT / "funding_api_server.py")

_LOGGED = re.compile(r"""(?:\.(?:info|warning|error|warn)\(|\.log\([\w.]+, |\blog_as=)"([^"]+)\"""")
_TOKENS_WITHOUT_CODE = {
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
    coded = (range(token.start[0], token.end[0] + 1) for token in tokens if token.type not in _TOKENS_WITHOUT_CODE)
    return len({line for lines in coded for line in lines} - docstrings)


def imports(path: Path, root: Path = ROOT) -> set[str]:
    """Return the absolute names of all modules that a file imports, also inside functions.

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


def log_events(source: str) -> set[str]:
    """Return the events that the source passes to loggers as plain texts."""
    return set(_LOGGED.findall(source))
