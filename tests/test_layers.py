"""The layout: imports point down, there is no circle, and no file or package is too large to read."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from support.paths import SOURCE

LAYER = {
    "utils": 0, "tokenization": 1, "models": 2, "data": 2, "objective": 3, "sampling": 3, "training": 4, "evals": 4,
    "filling": 4, "cli": 5, "__main__": 6,
}  # fmt: skip
EVALUATIONS = ("decoding", "stories", "code", "language")
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
    if path != SOURCE / "__init__.py"
}


def imports_of(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, anywhere in it, without the package's own name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["asarm", *path.relative_to(SOURCE).parts[: -node.level]] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("asarm."):
                name = name.removeprefix("asarm.")
                yield name if name in MODULES else name.rpartition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    package = module.split(".")[0]
    for name in imports_of(MODULES[module]):
        other = name.split(".")[0]
        assert other == package or LAYER[other] < LAYER[package], f"{module} imports {name}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("evals.")])
def test_evaluations_do_not_import_each_other(module):
    allowed = [module.split(".")[1]]
    if allowed[0] in ("stories", "code"):
        allowed.append("infilling")
    for name in imports_of(MODULES[module]):
        parts = name.split(".")
        if parts[0] == "evals" and len(parts) > 2:
            assert parts[1] in allowed, f"{module} imports {name}"


def test_there_is_no_circle():
    graph = {module: {name for name in imports_of(path) if name in MODULES} for module, path in MODULES.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("module", MODULES)
def test_no_private_name_is_imported(module):
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asarm"):
            assert not [alias.name for alias in node.names if alias.name.startswith("_")], module


@pytest.mark.parametrize("path", MODULES.values(), ids=str)
def test_files_can_be_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


def test_packages_are_small():
    for folder in {path.parent for path in MODULES.values()}:
        assert len(list(folder.glob("[!_]*.py"))) <= 12, folder
