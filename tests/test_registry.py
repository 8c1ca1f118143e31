"""What other packages add: found by name, and one line where it cannot be used."""

import importlib
from importlib.metadata import EntryPoint

import pytest

from fedkd import FedkdError, registry, run
from fedkd.strategies.local import Local


@pytest.fixture
def added(tmp_path, monkeypatch):
    """A function that writes a module and offers what it has under the name ``mine``."""
    monkeypatch.syspath_prepend(tmp_path)
    usual = registry._points

    def add(group, text, attribute="mine", module="somebodys"):
        if text is not None:
            (tmp_path / f"{module}.py").write_text(text)
        importlib.invalidate_caches()
        monkeypatch.delitem(importlib.sys.modules, module, raising=False)
        point = EntryPoint("mine", f"{module}:{attribute}", f"fedkd.{group}")
        points = {**usual(group), "mine": point}
        monkeypatch.setattr(registry, "_points", lambda of: points if of == group else usual(of))

    return add


@pytest.mark.parametrize("group", registry.GROUPS)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, r"ModuleNotFoundError: No module named 'somebodys'"),
        ("import nowhere_to_be_found\n", r"ModuleNotFoundError: .* \(somebodys\.py:1\)"),
        ("\ndef mine(:\n", r"SyntaxError: invalid syntax \(somebodys\.py:2\)"),
        ("x = 1\nx / 0\n", r"ZeroDivisionError: division by zero \(somebodys\.py:2\)"),
        ("raise SystemExit(3)\n", r"SystemExit: 3 \(somebodys\.py:1\)"),
        ("x = 1\n", r"AttributeError: .* has no attribute 'mine'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line_with_its_place(added, group, text, reason):
    added(group, text)
    line = rf"^{registry.GROUPS[group]} = 'mine': the import of somebodys:mine failed: {reason}"
    with pytest.raises(FedkdError, match=line) as failure:
        registry.load(group, "mine")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("group", registry.GROUPS)
def test_what_is_not_of_its_group_is_one_line(added, group):
    added(group, "mine = 3\n")
    line = (
        f"{registry.GROUPS[group]} = 'mine' is of type int; it must be {registry.KINDS[group][:9]}"
    )
    with pytest.raises(FedkdError, match=line):
        registry.load(group, "mine")


def test_a_strategy_must_be_a_class_of_strategies():
    for wrong in (lambda *given: None, 3, dict, object()):
        registry.register("strategies", "mine")(wrong)
        with pytest.raises(FedkdError, match="it must be a subclass of fedkd.strategies"):
            registry.load("strategies", "mine")
    registry.register("strategies", "mine")(Local)
    assert registry.load("strategies", "mine") is Local


def test_one_that_cannot_be_loaded_is_listed_with_the_reason_among_the_others(added):
    added("students", "1 / 0\n")
    described = registry.described("students")
    assert described["mine"].startswith("cannot be loaded: ")
    assert "ZeroDivisionError" in described["mine"]
    assert described["mlp"].startswith("Fully connected")


def test_an_exception_in_the_check_of_a_strategy_is_one_line_with_its_place(small, tmp_path):
    @registry.register("strategies", "mine")
    class Mine(Local):
        @classmethod
        def check(cls, experiment):
            raise KeyError("beta")

    line = r"^strategy 'mine', check\(\) failed: KeyError: 'beta' \(test_registry.py:\d+\)$"
    with pytest.raises(FedkdError, match=line):
        run(small("strategy.name=mine"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
