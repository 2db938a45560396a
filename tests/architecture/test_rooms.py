"""Every room says what it promises, and shows exactly what it means to show."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

from tests.architecture.sources import PACKAGE, package_sources, rooms

PACKAGES = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))


def module_name(package: Path) -> str:
    return ".".join(package.relative_to(PACKAGE.parent).parts)


def exporting() -> list[str]:
    """The packages that name what they export."""
    return [
        module_name(source.path.parent)
        for source in package_sources()
        if source.path.name == "__init__.py" and "__all__" in source.text
    ]


@pytest.mark.parametrize("room", [PACKAGE, *rooms()], ids=lambda room: room.name)
def test_a_room_says_what_it_promises_and_never_does(room: Path) -> None:
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    assert "Promises:" in text
    assert "Never:" in text


@pytest.mark.parametrize("package", PACKAGES, ids=module_name)
def test_no_package_is_empty_or_silent(package: Path) -> None:
    tree = ast.parse((package / "__init__.py").read_text())
    assert ast.get_docstring(tree)
    assert len(list(package.rglob("*.py"))) > 1 or len(tree.body) > 1


def test_every_directory_of_modules_is_a_package() -> None:
    directories = {source.path.parent for source in package_sources()}
    assert sorted(directories) == PACKAGES


@pytest.mark.parametrize("name", exporting())
def test_exports_are_whole_and_exact(name: str) -> None:
    module = importlib.import_module(name)
    exported = module.__all__
    assert len(set(exported)) == len(exported)
    assert not [name for name in exported if name.startswith("_")]
    assert sorted(exported) == sorted(shown(module) | constants(module))


def shown(module: ModuleType) -> set[str]:
    """The public classes and functions that the package holds, whoever wrote them in the room."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith(module.__name__)
    }


def constants(module: ModuleType) -> set[str]:
    """Exported values that cannot say where they come from."""
    return {name for name in module.__all__ if name not in shown(module) and hasattr(module, name)}
