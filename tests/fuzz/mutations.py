"""Strategies that mutate what is valid: bytes, lines, and values inside JSON."""

import json
from copy import deepcopy

from hypothesis import strategies as st

WORDS = (
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n\n",
        b"\\u0000",
        b"\xed\xa0\x80",
        b"'",
        b'"',
    ),
    *(b"[", b"]", b"[[", b"{", b"}", b"=", b".", b",", b"#", b'"""', b"1e999", b"-1", b"nan"),
    *(b"inf", b"true", b"null", b"9" * 5000, b"0x" + b"f" * 30, b"[" * 2000, b"{a=" * 500),
    *(b"2020-01-01", b"data", b"a.b.c", b"../../outside", b"{}", b"[]", b"NaN", b"Infinity"),
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 100),
    st.sampled_from([2**31, 2**63, -(2**63), 10**30, 10**12]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "/etc/passwd", "../../outside", "x" * 5000, "\x1b[2J", "a\nb", "\0"]),
    st.lists(st.integers(-2, 2), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@st.composite
def mutated(draw, valid):
    """``valid`` bytes with up to four pieces cut, doubled, moved or put in."""
    content = draw(valid if isinstance(valid, st.SearchStrategy) else st.just(valid))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        piece = content[start:end]
        new = draw(
            st.one_of(
                st.just(b""),
                st.just(piece * 2),
                st.sampled_from(WORDS),
                st.binary(max_size=8),
                st.just(bytes(byte ^ 1 for byte in piece)),
            )
        )
        content = content[:start] + new + content[end:]
    return draw(st.sampled_from([content, content[: len(content) // 2], content * 2, content]))


@st.composite
def remade(draw, document):
    """A JSON document with up to three values changed, keys gone, or items doubled."""
    document = deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            return draw(VALUES)
        holder, key = draw(st.sampled_from(places))
        act = draw(st.sampled_from(["change", "change", "remove", "double", "add"]))
        if act == "change":
            holder[key] = draw(VALUES)
        elif act == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, deepcopy(holder[key]) if act == "double" else draw(VALUES))
        else:
            holder[draw(st.text(max_size=4))] = draw(VALUES)
    return document


def _places(document):
    items = enumerate(document) if isinstance(document, list) else document.items()
    for key, value in list(items):
        yield document, key
        if isinstance(value, list | dict):
            yield from _places(value)


def written(document):
    """A document as JSON, with what JSON does not have as Python writes it."""
    return json.dumps(document).encode()


@st.composite
def lines_mutated(draw, content):
    """Lines of JSON: some removed, doubled, swapped or changed inside, the last one torn."""
    lines = content.splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 3))):
        if not lines:
            break
        place = draw(st.integers(0, len(lines) - 1))
        act = draw(
            st.sampled_from(["remove", "double", "swap", "inside", "tear", "empty", "bytes"])
        )
        if act == "remove":
            del lines[place]
        elif act == "double":
            lines.insert(place, lines[place])
        elif act == "swap":
            lines[0], lines[place] = lines[place], lines[0]
        elif act == "tear":
            lines[-1] = lines[-1][: draw(st.integers(0, len(lines[-1])))]
        elif act == "empty":
            lines.insert(place, b"\n")
        elif act == "bytes":
            lines[place] = draw(mutated(lines[place]))
        else:
            try:
                lines[place] = written(draw(remade(json.loads(lines[place])))) + b"\n"
            except (ValueError, AttributeError):  # it was changed before
                continue
    return b"".join(lines)
