"""The rooms: what is installed, which door an import takes, and that no two rooms need each other.

The layers are the business of import-linter (`pyproject.toml`); here are the rules that it cannot state.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import microdiffusion
from microdiffusion import drivers, engines

ROOT = Path(__file__).parents[2]
FOLDERS = {"api": "microdiffusion"} | {
    folder: f"microdiffusion.{folder}" for folder in ("configs", "daemon", "drivers", "engines")
}
FLOORS = set(FOLDERS.values())

SIDE_DOORS = {
    "microdiffusion.daemon.cli.options",
    "microdiffusion.drivers.micromanager.acquisition",
    "microdiffusion.drivers.passive.watch",
    "microdiffusion.engines.diffusion.denoiser",
}
"""Modules that another room imports as modules, mostly because they are heavy. Shrink, don't extend."""

PUBLIC = {
    microdiffusion: "open_run list_runs Run RunEntry Status GapError DamagedError load_config Config Sender "
    "RunHeader Frame FrameInfo StagePosition open_projections to_dask to_pandas to_xarray traces_of export "
    "__version__",
    drivers: "attach",
    engines: "Denoiser Reconstructor lazy_projections map_sweeps open_engine register_denoiser save_denoiser",
}


@cache
def sources() -> dict[str, Path]:
    """Return the file of each module of the product by its name; a package's is its ``__init__.py``."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def is_package(module: str) -> bool:
    return sources()[module].name == "__init__.py"


def room(module: str) -> str:
    """Return the package that holds a module; a module at the root of a floor is a room of its own."""
    if is_package(module):
        return module
    package = module.rpartition(".")[0]
    return module if package in FLOORS else package


@cache
def imports() -> list[tuple[str, int, str]]:
    """Return (importing module, line, imported module) of every import within the product."""
    return [
        (module, node.lineno, target)
        for module, path in sources().items()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for target in targets(node)
    ]


def targets(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "") in sources():
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            is_module = full in sources() and alias.name not in exported(str(node.module))
            yield full if is_module else str(node.module)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in sources())


@cache
def exported(package: str) -> set[str]:
    """Return what the door of a package exports: `attach` is a module of its room and a function."""
    tree = ast.parse(sources()[package].read_text("utf-8"))
    return {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_every_folder_with_python_in_it_is_installed():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    assert setuptools["package-dir"] == {package: folder for folder, package in FOLDERS.items()}
    assert sorted(setuptools["packages"]) == sorted(module for module in sources() if is_package(module))


def test_a_room_is_entered_through_its_door():
    past_the_door = [
        f"{module}, line {line}: {target}"
        for module, line, target in imports()
        if not is_package(target) and room(module) != room(target) != target and target not in SIDE_DOORS
    ]
    assert not past_the_door


def test_a_docstring_begins_with_a_verb_or_a_noun():
    asking = {"What", "Whether", "How", "When", "Where", "Which", "Who", "Why"}
    assert not [
        f"{path.relative_to(ROOT)}, line {node.lineno}: {text}"
        for path in sources().values()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for text in [str(node.value.value).strip()]
        if text.split(" ")[0] in asking
    ]


def test_no_two_rooms_need_each_other():
    needs: dict[str, set[str]] = {}
    for module, _, target in imports():
        needs.setdefault(room(module), set()).add(room(target))
    rooms = {
        name: {other for other in found if other not in FLOORS} - {name} for name, found in needs.items()
    }
    tuple(graphlib.TopologicalSorter(rooms).static_order())  # a CycleError names them


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_the_public_surface(module):
    assert sorted(module.__all__) == sorted(PUBLIC[module].split())
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="nowhere"):
        _ = module.nowhere


def test_what_everybody_imports_is_light():
    code = (
        "import sys, microdiffusion, microdiffusion.drivers\n"
        "heavy = {'numpy', 'pydantic', 'h5py', 'zmq', 'torch', 'pycromanager', 'rich'} & set(sys.modules)\n"
        "print(*sorted(heavy))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert printed.stdout.split() == []
