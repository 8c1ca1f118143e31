"""Errors in other people's code: one line with class, message and the place in their file."""

import importlib
import json
import pickle

import pytest

from fedkd.errors import FedkdError, MissingData, blamed, place_of, summary_of


def raised(call, *arguments):
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        call(*arguments)
    return caught.value


@pytest.fixture
def author(tmp_path, monkeypatch):
    """A function that writes a module of somebody else's and imports it."""
    monkeypatch.syspath_prepend(tmp_path)

    def module(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    return module


def test_the_place_is_the_innermost_line_of_the_author(author):
    mine = author("mine_one", "def f():\n    return 1 / 0\n")
    assert place_of(raised(mine.f)) == "mine_one.py:2"


def test_lines_of_the_standard_library_and_of_installed_packages_are_not_the_authors(author):
    mine = author(
        "mine_two",
        "import json\nimport torch\n\ndef parse():\n    json.loads('{')\n"
        "def multiply():\n    return torch.nn.Linear(2, 2)(torch.zeros(3))\n",
    )
    assert place_of(raised(mine.parse)) == "mine_two.py:5"
    assert place_of(raised(mine.multiply)) == "mine_two.py:7"


def test_an_author_who_calls_fedkd_wrongly_is_shown_their_own_line(author):
    mine = author("mine_three", "from fedkd.work import Fit\n\ndef f():\n    Fit(colour=1)\n")
    assert place_of(raised(mine.f)) == "mine_three.py:4"


def test_without_an_author_the_place_is_the_innermost_line():
    error = raised(json.loads, "{")
    while error.__traceback__.tb_next:
        error.__traceback__ = error.__traceback__.tb_next
    assert place_of(error).startswith("decoder.py:")
    assert place_of(ValueError("never raised")) == "place unknown"


def test_a_syntax_error_is_placed_in_the_file_that_has_it(author):
    error = raised(author, "mine_four", "def f(:\n")
    assert summary_of(error) == "SyntaxError: invalid syntax (mine_four.py:1)"


def test_a_package_is_named_with_its_init_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_pack").mkdir()
    (tmp_path / "mine_pack" / "__init__.py").write_text("\n1 / 0\n")
    assert place_of(raised(importlib.import_module, "mine_pack")) == "mine_pack/__init__.py:2"


def test_what_is_blamed_is_one_line_with_its_cause(author):
    mine = author("mine_five", "def f():\n    raise ValueError('two\\nlines')\n")

    def call():
        with blamed("student.models = 'mine'"):
            mine.f()

    error = raised(call)
    assert isinstance(error, FedkdError)
    line = "student.models = 'mine' failed: ValueError: two lines (mine_five.py:2)"
    assert str(error) == line
    assert isinstance(error.__cause__, ValueError)


def test_wrong_input_and_an_interruption_go_through_as_they_are():
    for error in (FedkdError("data.alpha = 0"), KeyboardInterrupt()):

        def call(error=error):
            with blamed("it"):
                raise error

        assert raised(call) is error


def test_code_that_exits_is_blamed_too():
    def call():
        with blamed("data.dataset = 'mine'"):
            raise SystemExit(3)

    assert str(raised(call)).startswith("data.dataset = 'mine' failed: SystemExit: 3 (")


def test_an_endless_message_is_cut():
    assert len(summary_of(ValueError("x" * 10_000))) < 500


def test_whatever_it_repeats_an_error_is_one_line_of_a_bearable_length():
    assert str(FedkdError("two\nlines\u2028or three")) == "two lines or three"
    assert len(str(FedkdError("x" * 100_000))) < 2000
    assert str(FedkdError("a  b")) == "a  b"
    error = pickle.loads(pickle.dumps(MissingData("not there")))
    assert (type(error), str(error)) == (MissingData, "not there")
