"""Imports point one way."""

import ast
import re
import tomllib
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
        *("results", "summaries", "labels", "nesting", "frames", "statistics", "errors"),
        *("experiment", "caveats", "headline", "escaping", "privacy.guarantees"),
    )
}
MEASURED_BY = {"fedkd.engine.remembered", "fedkd.rounds.intake", "fedkd.rounds.method"}
"""What may import ``fedkd.lab``: the rounds, and what remembers what ``Expose`` has measured."""
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def imported(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
    return found


def name_of(file: Path) -> str:
    """The name of a module; that of a package is its folder's."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "fedkd" else ("fedkd", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(module: str) -> str:
    """The top-level folder in which a module lies; empty for what is not ours."""
    first, _, rest = module.partition(".")
    inner = rest.partition(".")[0]
    return "" if first != "fedkd" else inner if inner in PACKAGES else first


def imported_modules(file: Path, known: set[str]) -> set[str]:
    """Which of the modules that are ``known`` a file imports, inside functions or not.

    ``from package import module`` imports the module, and the package only where it takes anything
    else from it.
    """
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}": node.module or "" for alias in node.names}
            found |= {name if name in known else package for name, package in names.items()}
    return found & known


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file):
    package = file.relative_to(ROOT).parts[0]
    known = {name_of(other) for other in FILES}
    for module in {*imported(file), *imported_modules(file, known)}:
        assert folder_of(module) in {"", *ALLOWED[package]}, f"{file.name} imports {module}"


def test_packages_are_imported_by_the_names_that_they_have_where_they_are_installed():
    """A folder ``plots/`` of one's own must never be taken for fedkd's."""
    for file in (*FILES, *sorted((ROOT / "tests").rglob("*.py"))):
        first = {name.partition(".")[0] for name in imported(file)}
        assert not first & {*PACKAGES[1:]}, file


def test_all_packages_are_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name_of(file) for file in FILES if file.name == "__init__.py"}
    assert packages == {*project["tool"]["setuptools"]["packages"]}


def circles(imports: dict[str, set[str]]) -> set[str]:
    """The modules that a way of imports leads back to."""
    reached: dict[str, set[str]] = {name: {*others} for name, others in imports.items()}
    for middle in imports:
        for others in reached.values():
            if middle in others:
                others |= reached[middle]
    return {name for name, others in reached.items() if name in others}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package):
    files = {name_of(file): file for file in sorted((ROOT / package).rglob("*.py"))}
    imports = {name: imported_modules(file, {*files}) for name, file in files.items()}
    assert circles(imports) == set()


def test_a_circle_is_found_and_what_leads_to_it_or_from_it_is_not():
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == set()
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == {"b", "c"}


def in_lab(module: str) -> bool:
    return module == "fedkd.lab" or module.startswith("fedkd.lab.")


def test_nothing_in_the_library_needs_what_measures():
    known = {name_of(file) for file in FILES}
    for file in sorted((ROOT / "fedkd").rglob("*.py")):
        name = name_of(file)
        if not in_lab(name) and name not in MEASURED_BY:
            found = {*imported(file), *imported_modules(file, known)}
            ours = {module for module in found if in_lab(module)}
            assert not ours, f"{name} imports {ours}"


def test_plots_read_run_folders_and_nothing_else():
    for file in sorted((ROOT / "plots").rglob("*.py")):
        ours = {name for name in imported(file) if folder_of(name) == "fedkd"}
        assert ours <= READERS, file.name


def test_nothing_private_of_flower_or_ray_is_used():
    public = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
    public |= {"ray", "ray.util.scheduling_strategies"}
    for file in FILES:
        for name in imported(file):
            if name.split(".")[0] in ("flwr", "ray"):
                assert name in public, f"{file.name} imports {name}"


def test_the_library_knows_no_method_by_name():
    methods = {file.stem for file in (ROOT / "strategies").glob("*.py")} - {"base", "__init__"}
    methods |= {name.replace("_", "-") for name in methods}
    # Words of everyday English stand for themselves.
    methods -= {"dense", "local", "uniform"}
    for file in sorted((ROOT / "fedkd").rglob("*.py")):
        code = ast.parse(file.read_text())
        names = {node.id for node in ast.walk(code) if isinstance(node, ast.Name)}
        texts = {
            node.value
            for node in ast.walk(code)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not methods & {name.lower() for name in names}, file.name
        if file.name != "sections.py":  # where the default strategy's name stands
            assert not methods & texts, file.name


def test_there_is_one_training_loop():
    loops = [file for file in FILES if ".backward(" in file.read_text()]
    assert loops == [ROOT / "fedkd" / "training" / "descent.py"]


@pytest.mark.parametrize("folder", ["fedkd", "simulations"])
def test_the_map_of_the_rooms_is_whole(folder):
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = text[text.index("## The rooms") : text.index("**Imports point one way**")]
    named = set(re.findall(r"\w+", rooms))
    assert {file.stem for file in (ROOT / folder).glob("*.py")} - {"__init__"} <= named
