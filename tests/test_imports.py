"""Imports point one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("fedkd", "strategies", "simulations", "plots")
ALLOWED = {
    "fedkd": {"fedkd"},
    "strategies": {"strategies", "fedkd"},
    "plots": {"plots", "fedkd"},
    "simulations": set(PACKAGES),
}
READERS = {
    f"fedkd.{name}"
    for name in (
        *("results", "frames", "statistics", "errors", "experiment"),
        *("caveats", "escaping", "privacy.guarantees"),
    )
}
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def imported(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
    return found


def modules(file: Path) -> set[str]:
    """What a file imports, also as ``from package import module``."""
    named = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return named | {*imported(file)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file):
    package = file.relative_to(ROOT).parts[0]
    for module in imported(file):
        if (top := module.split(".")[0]) in PACKAGES:
            assert top in ALLOWED[package], f"{file.name} imports {module}"


@pytest.mark.parametrize("package", ["strategies", "simulations", "plots"])
def test_no_modules_import_each_other_in_a_circle(package):
    def named(file):
        return ".".join(file.relative_to(ROOT).with_suffix("").parts)

    files = {named(file): file for file in sorted((ROOT / package).rglob("*.py"))}
    left = {name: modules(file) & {*files} for name, file in files.items()}
    while ends := {name for name, others in left.items() if not others}:
        left = {name: others - ends for name, others in left.items() if name not in ends}
    assert not left


def test_plots_read_run_folders_and_nothing_else():
    for file in sorted((ROOT / "plots").rglob("*.py")):
        ours = [name for name in imported(file) if name.startswith("fedkd")]
        assert set(ours) <= READERS, file.name


def test_nothing_private_of_flower_or_ray_is_used():
    public = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
    public |= {"ray", "ray.util.scheduling_strategies"}
    for file in FILES:
        for name in imported(file):
            if name.split(".")[0] in ("flwr", "ray"):
                assert name in public, f"{file.name} imports {name}"


def test_the_library_knows_no_method_by_name():
    methods = {file.stem for file in (ROOT / "strategies").glob("*.py")} - {"base", "__init__"}
    # Words of everyday English stand for themselves.
    methods -= {"local", "uniform"}
    for file in sorted((ROOT / "fedkd").rglob("*.py")):
        code = ast.parse(file.read_text())
        names = {node.id for node in ast.walk(code) if isinstance(node, ast.Name)}
        texts = {
            node.value
            for node in ast.walk(code)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not methods & {name.lower() for name in names}, file.name
        if file.name != "experiment.py":  # where the default strategy's name stands
            assert not methods & texts, file.name


def test_there_is_one_training_loop():
    loops = [file for file in FILES if ".backward(" in file.read_text()]
    assert loops == [ROOT / "fedkd" / "training" / "loop.py"]
