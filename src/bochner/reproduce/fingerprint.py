"""The source that determines an experiment's rows: what `cells` and `run` use, and nothing else.

Pictures, the summary and the claims can be reworked on finished rows, and comments or the format
change nothing. What is followed: names at the top level of the script, and modules of the same
folder of experiments, whole. The libraries below, bochner included, are not looked at.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from bochner.reproduce.discovery import PACKAGE

_DETERMINING = ("cells", "run")
_EXPERIMENT = "EXPERIMENT"


def fingerprint(script: Path) -> str:
    """SHA-256 of the code on which the rows of a script's EXPERIMENT depend."""
    trees = {script: ast.Module(_determining(_parsed(script).body), [])}
    pending = list(_siblings(trees[script], script))
    while pending:
        if (file := pending.pop()) not in trees:
            trees[file] = _parsed(file)
            pending += _siblings(trees[file], file)
    texts = [ast.unparse(_without_docstrings(trees[file])) for file in sorted(trees)]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _determining(body: list[ast.stmt]) -> list[ast.stmt]:
    """The top-level statements that `cells` and `run` of EXPERIMENT reach; all if that is unclear."""
    roots = _arguments(body)
    if roots is None:
        return body
    reached: set[int] = set()
    wanted = _names(roots)
    while True:
        new = {
            i
            for i, statement in enumerate(body)
            if i not in reached
            and not _is_text(statement)
            and ((names := _defined(statement)) is None or names & wanted)
        }
        if not new:
            return [*(body[i] for i in sorted(reached)), *map(ast.Expr, roots)]
        reached |= new
        # EXPERIMENT names the pictures too; what a run needs of it has been followed
        wanted |= _names(body[i] for i in new) - {_EXPERIMENT}


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    return {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}


def _arguments(body: list[ast.stmt]) -> list[ast.expr] | None:
    """The arguments `cells` and `run` of the call EXPERIMENT = Experiment(...)."""
    for statement in body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and _EXPERIMENT in (
            _defined(statement) or ()
        ):
            if not isinstance(call := statement.value, ast.Call):
                return None
            given = {k.arg: k.value for k in call.keywords}
            found = [given[name] for name in _DETERMINING if name in given]
            return found if len(found) == len(_DETERMINING) else None
    return None


def _defined(statement: ast.stmt) -> set[str] | None:
    """The names that a statement binds; None for one that does something else (if, for, a call)."""
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {(a.asname or a.name).partition(".")[0] for a in names}
        case ast.Assign(targets=targets):
            nodes: list[ast.expr] = targets
        case ast.AnnAssign(target=target):
            nodes = [target]
        case _:
            return None
    plain = all(isinstance(node, ast.Name | ast.Tuple) for node in nodes)
    return _names(nodes) if plain else None


def _siblings(tree: ast.Module, file: Path) -> Iterator[Path]:
    """Files of the same folder of experiments that are imported anywhere in a tree."""
    root = file.parents[1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:  # relative to the paper's package
                module = ".".join(filter(None, [PACKAGE, file.parent.name, module]))
            dotted = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in dotted:
            package, _, rest = name.partition(".")
            candidate = root.joinpath(*rest.split(".")).with_suffix(".py")
            if package == PACKAGE and rest and candidate.is_file():
                yield candidate


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not _is_text(s)] or [ast.Pass()]  # type: ignore[attr-defined]
    return tree
