"""The rooms: who may import whom, and what the pure ones pull in."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = ("proxy", "matching", "datasets", "launch", "configs")
MAY_IMPORT = {
    "proxy": {"proxy"},
    "matching": {"matching", "proxy"},
    "datasets": {"datasets", "proxy"},
    "launch": {"launch", "configs", "datasets", "matching", "proxy"},
    "configs": {"configs"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        ours = set(imports(path)) & set(ROOMS)
        assert ours <= MAY_IMPORT[room], path


@pytest.mark.parametrize("room", ["proxy", "matching"])
def test_pure_rooms_use_five_packages_and_open_no_files(room):
    allowed = {"jax", "flax", "optax", "numpy", "jaxtyping", *MAY_IMPORT[room]}
    for path in sorted((ROOT / room).rglob("*.py")):
        used = set(imports(path)) - set(sys.stdlib_module_names)
        assert used <= allowed, path
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"open", "print", "input"}, path


def test_importing_them_needs_none_of_the_extras():
    # orbax and absl are not among them: flax and optax bring them.
    extras = "ml_collections tensorflow_datasets array_record"
    extras += " pedalboard dexed matplotlib tqdm tabulate tensorboardX"
    extras += " h5py torch transformers"
    code = f"""
import sys
for name in {extras.split()!r}:
    sys.modules[name] = None  # importing it fails
import importlib, pathlib
for room in ("proxy", "matching"):
    for path in pathlib.Path(room).rglob("*.py"):
        name = ".".join(path.with_suffix("").parts)
        importlib.import_module(name.removesuffix(".__init__"))
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
