"""TOML files: what an editor may write is read, and what is no TOML is one line that names it."""

import pytest

from fedkd.errors import FedkdError
from fedkd.toml import LARGEST_FILE, check_values, parse, read_text

DEEP = 50_000


def read(folder, content):
    file = folder / "mine.toml"
    file.write_bytes(content)
    return parse(read_text(file, "experiment 'mine.toml'"), "experiment 'mine.toml'")


@pytest.mark.parametrize(
    "content",
    [
        b"rounds = 3\n",
        b"\xef\xbb\xbfrounds = 3\n",
        b"rounds = 3\r\n",
        b"rounds = 3",
        "# größer\nrounds = 3".encode(),
    ],
)
def test_a_byte_order_mark_and_any_line_feed_are_read(tmp_path, content):
    assert read(tmp_path, content) == {"rounds": 3}


def test_an_empty_file_is_an_empty_table(tmp_path):
    assert read(tmp_path, b"") == {}
    assert read(tmp_path, b"\xef\xbb\xbf") == {}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("rounds = 3".encode("utf-16"), "cannot be read: it is UTF-16; save it as UTF-8"),
        ("rounds = 3".encode("utf-16-be"), "not valid TOML"),
        ("# größer".encode("latin-1"), r"cannot be read: it is not UTF-8 text \(byte 5\)"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
        (b"rounds = 3\x00", "not valid TOML"),
        (b"name = 'a\x00b'", "not valid TOML"),
        (b"rounds = 3\rseed = 1\r", "not valid TOML"),
        (b"# only a comment\rrounds = 3\r", "a carriage return alone does not end a line"),
        (b"rounds = 3\nrounds = 4", "not valid TOML: Cannot overwrite a value"),
        (b"[data]\n[data]", "not valid TOML: Cannot declare"),
        (b"[[data]]\n[data]", "not valid TOML"),
        (b"data = 3\n[data.test]", "not valid TOML"),
        (b"rounds = " + b"1" * 5000, "a whole number has at most 64 bits"),
        (b"rounds = 0x" + b"f" * 5000, "rounds = .* a whole number has at most 64 bits"),
        (b"rounds = [1, " + b"9" * 20 + b"]", "rounds = 9+ .* a whole number has at most 64 bits"),
        (b"x = " + b"[" * DEEP + b"]" * DEEP, "more than 32 deep"),
        (b"x = " + b"{a = " * DEEP + b"1" + b"}" * DEEP, "more than 32 deep"),
        (b"a." * 500 + b"a = 1", "more than 32 deep"),
        (b"\n" + b"a." * DEEP + b"a = 1", r"more than 32 deep inside one another \(line 2\)"),
        (b"11." * DEEP + b"11 = 1", "more than 32 deep"),
        (b'"a" . ' * DEEP + b"a = 1", "more than 32 deep"),
        (b"[" + b"a." * DEEP + b"a]", "more than 32 deep"),
        (b"day = 2020-01-01", "day = .* is not allowed: texts, numbers, true, false"),
        (b"name = '" + b"x" * LARGEST_FILE + b"'", "has more than 1,048,576 bytes"),
        (b"name = '" + b"x" * 1001 + b"'", "a text has at most 1,000 characters"),
        (b'name = "\\u0000"', "null character"),
        (b'"\\u0000" = 1', "null character"),
    ],
)
def test_what_is_no_toml_is_one_line_that_names_the_file(tmp_path, content, line):
    with pytest.raises(FedkdError, match=line) as failure:
        read(tmp_path, content)
    assert str(failure.value).startswith("experiment 'mine.toml'")
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 400


def test_many_numbers_in_a_line_are_read(tmp_path):
    numbers = [index / 8 for index in range(2000)]
    assert read(tmp_path, f"axis = {numbers}".encode()) == {"axis": numbers}


def test_a_folder_and_a_file_that_is_not_there_are_named(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / ("x" * 5000)):
        with pytest.raises(FedkdError, match="claim x cannot be read: "):
            read_text(place, "claim x")


def test_a_list_that_holds_itself_is_too_deep():
    loop = []
    loop.append(loop)
    with pytest.raises(FedkdError, match="more than 32 deep"):
        check_values({"x": loop})
