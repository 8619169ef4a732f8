"""The rooms: who may import whom, and what the pure ones pull in."""

import ast
import graphlib
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


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_of(path): path
    for room in (*ROOMS, "tests")
    for path in sorted((ROOT / room).rglob("*.py"))
}


def imported(tree):
    """Modules that a tree of a file imports, ours by their full names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FILES else node.module


def imports(path):
    """The rooms and packages that a file imports."""
    for name in imported(ast.parse(path.read_text())):
        yield name.split(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        ours = set(imports(path)) & set(ROOMS)
        assert ours <= MAY_IMPORT[room], path


def test_nothing_imports_in_a_circle():
    """Not inside functions either, but for a package that loads its own."""
    graph = {}
    for name, path in FILES.items():
        tree = ast.parse(path.read_text())
        found = set(imported(tree))
        if path.name == "__init__.py":
            tree.body = [n for n in tree.body if hasattr(n, "names")]
            own = {n for n in found if n.startswith(f"{name}.")}
            found = found - own | set(imported(tree))
        graph[name] = found & FILES.keys() - {name}
    graphlib.TopologicalSorter(graph).prepare()


def test_nothing_imports_a_command():
    """Tests run them by name, see `tests.commands`."""
    commands = {
        name
        for name, path in FILES.items()
        if name.startswith("launch.") and "cli.run(main" in path.read_text()
    }
    assert {"launch.presets", "launch.train.__main__"} <= commands
    for name, path in FILES.items():
        found = set(imported(ast.parse(path.read_text())))
        assert not found & commands, name


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
