"""Imports point right and down only: cli -> finetune -> extract | headtrain -> store."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "store": {"store"},
    "extract": {"extract", "store"},
    "headtrain": {"headtrain", "store"},
    "finetune": {"finetune", "extract", "headtrain", "store"},
}
FORBIDDEN_LIBRARIES = {
    "store": {"torch", "timm", "open_clip", "transformers", "torchvision", "PIL", "sklearn"},
    "extract": set(),
    "headtrain": {"timm", "open_clip", "transformers", "torchvision", "PIL", "huggingface_hub"},
    "finetune": set(),
}


def imported(source: str) -> Iterator[str]:
    """Dotted names of everything that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def faults(package: str, source: str) -> list[str]:
    """Imports that the layers do not allow."""
    found = []
    for name in imported(source):
        parts = name.split(".")
        if parts[0] in FORBIDDEN_LIBRARIES[package]:
            found.append(name)
        if parts[0] in MAY_IMPORT and parts[0] != "cspipe":
            found.append(f"{name}: import cspipe.{name}")
        inside = parts[0] == "cspipe" and len(parts) > 1 and parts[1] not in {"__version__"}
        if inside and parts[1] not in MAY_IMPORT[package]:
            found.append(name)
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it(package):
    modules = sorted((ROOT / package).glob("*.py"))
    assert len(modules) > 3
    assert {str(path): faults(package, path.read_text()) for path in modules} == {str(path): [] for path in modules}


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("store", "import torch"),
        ("store", "def f():\n    from cspipe.headtrain.heads import load_head"),
        ("headtrain", "from cspipe.extract import run"),
        ("headtrain", "import timm.models"),
        ("extract", "from cspipe.headtrain.model import ContentStyle"),
        ("extract", "import cspipe.config"),
        ("finetune", "from cspipe import config"),
        ("finetune", "import store"),
    ],
)
def test_the_layer_check_can_fail(package, source):
    assert faults(package, source)


def test_the_command_line_loads_no_torch_and_no_zarr():
    code = "import sys, cspipe.cli; print([m for m in ('torch', 'zarr', 'pydantic', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_store_loads_no_torch():
    code = "import sys, cspipe.store, cspipe.store.writer, cspipe.store.verify; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_top_level_folders_are_linked_into_the_package():
    for package in MAY_IMPORT:
        link = ROOT / "cspipe" / package
        assert link.is_symlink() and link.readlink() == Path("..") / package
