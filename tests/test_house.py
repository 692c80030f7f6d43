"""The rules of the house: which wing may import which, and who alone imports the heavy libraries."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WINGS = {"modeling": set(), "pipelines": set(), "training": {"modeling", "pipelines"}}
ONE_USER = {
    "nvidia.dali": {"pipelines/dali.py"},
    "accelerate": {"training/runtime.py"},
    "deepspeed": {"training/zero.py", "training/benchmarks/zero.py"},
    "fvcore": {"modeling/cost.py"},
    "matplotlib": {"training/reporting/canvas.py"},
}
FILES = sorted(file for wing in WINGS for file in (ROOT / wing).rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Names of all modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_there_is_something_to_check():
    assert len(FILES) > 20


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_arrows_point_one_way(file):
    wing = file.relative_to(ROOT).parts[0]
    forbidden = set(WINGS) - {wing} - WINGS[wing]
    assert not {name for name in imports(file) if name.partition(".")[0] in forbidden}


@pytest.mark.parametrize("library", ONE_USER)
def test_heavy_libraries_have_one_user(library):
    users = {
        str(file.relative_to(ROOT))
        for file in FILES
        if any(name == library or name.startswith(f"{library}.") for name in imports(file))
    }
    assert users <= ONE_USER[library]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(file):
    assert ast.get_docstring(ast.parse(file.read_text()))
