"""Docstrings out of Python source, with `ast`: nothing is imported, nothing is run.

Kept free of heavy imports, since the work is spread over processes.
"""

import ast
import sysconfig
import warnings
from pathlib import Path

SKIP = {"test", "tests", "testing", "_vendor", "externals", "idlelib", "lib2to3", "site-packages", "turtledemo"}
STDLIB = "stdlib"


def root(package: str) -> Path:
    """The folder of an installed package, or of the standard library."""
    scheme = sysconfig.get_paths()
    return Path(scheme["stdlib"]) if package == STDLIB else Path(scheme["purelib"]) / package


def files(package: str) -> list[str]:
    """Its Python files but for tests, sorted."""
    top = root(package)
    return sorted(str(f) for f in top.rglob("*.py") if not SKIP.intersection(f.relative_to(top).parts))


def docstrings(file: str) -> list[tuple[str, str]]:
    """(summary, rest) of every docstring in a file that has both: a summary of 15 to 200 characters up to the first
    blank line, and 40 characters or more behind it. White space is folded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(Path(file).read_bytes())
    except (SyntaxError, ValueError):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            summary, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
            summary, rest = " ".join(summary.split()), " ".join(rest.split())
            if 15 <= len(summary) <= 200 and len(rest) >= 40:
                found.append((summary, rest))
    return found
