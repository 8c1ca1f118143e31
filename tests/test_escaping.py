"""Texts of somebody else, in every place where they are shown."""

import sys
import unicodedata

import pytest

from fedkd.escaping import code, csv_cell, latex, markdown, plain


def test_control_codes_never_get_through():
    for number in range(sys.maxunicode + 1):
        kind = unicodedata.category(chr(number))
        if kind in ("Cc", "Cs") or chr(number) in "\u2028\u2029\u202e\u2066\u200f":
            assert plain(f"a{chr(number)}b") in ("ab", "a b"), hex(number)


def test_plain_text_is_one_line_unless_lines_are_asked_for():
    assert plain("a\r\n\tb\x1b[31mc") == "a   b[31mc"
    assert plain("a\nb\x00", lines=True) == "a\nb"
    assert plain("α ≥ 10 %, naïve 中") == "α ≥ 10 %, naïve 中"  # noqa: RUF001


@pytest.mark.parametrize(
    "text", ["=1", "+A1", "-A1", "@x", " =1", "\t=1", "\r@x", "\x00=1", "\uff1d1", "-2+3"]
)
def test_no_cell_is_a_formula(text):
    assert csv_cell(text).startswith("'")


@pytest.mark.parametrize("text", ["-1.5", "+3", "1e-5", "-inf", "a=b", "knfu", ""])
def test_numbers_and_words_are_cells_as_they_are(text):
    assert csv_cell(text) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("50 %", r"50 \%"),
        ("a_b & c#d$", r"a\_b \& c\#d\$"),
        ("{x}", r"\{x\}"),
        ("a\\b", r"a\textbackslash{}b"),
        ("~^", r"\textasciitilde{}\textasciicircum{}"),
        ("1 ± 2 ≥ 3 < 4 > 5", r"1 $\pm$ 2 $\ge$ 3 $<$ 4 $>$ 5"),
        ("3 × 4", r"3 $\times$ 4"),  # noqa: RUF001
        ("\N{GREEK SMALL LETTER ALPHA}\N{GREEK CAPITAL LETTER ALPHA}", r"$\alpha$A"),
        ("\N{GREEK CAPITAL LETTER LAMDA} ↓ †", r"$\Lambda$ $\downarrow$ \dag{}"),
        ("é ü ñ ç š å ő", r"\'{e} \"{u} \~{n} \c{c} \v{s} \r{a} \H{o}"),
        ("x² ½ ﬁ", r"x$^{2}$ 1/2 fi"),
        ("--flag [a] *", r"-{}-flag {[}a{]} {*}"),
        ("a\nb\x1b", "a b"),
        ("中", "U+4E2D"),
    ],
)
def test_latex_escapes(text, written):
    assert latex(text) == written


def test_latex_of_any_sign_is_ascii_and_closes_what_it_opens():
    for number in range(0x20000):
        written = latex(chr(number))
        assert written.isascii()
        assert written.count("{") - written.count(r"\{") == written.count("}") - written.count(
            r"\}"
        )
        assert (written.count("$") - written.count(r"\$")) % 2 == 0


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a|b", r"a\|b"),
        ("`x`", r"\`x\`"),
        ("<script>", "&lt;script&gt;"),
        ("&lt;", "&amp;lt;"),
        ("a & b", "a & b"),
        ("own_accuracy_mean", "own_accuracy_mean"),
        ("_x_ *y* $z$", r"\_x\_ \*y\* \$z\$"),
        ("[x](javascript:y)", r"\[x\](javascript:y)"),
        ("a\n# b", "a # b"),
    ],
)
def test_markdown_escapes(text, written):
    assert markdown(text) == written


def test_code_is_fenced_by_more_backticks_than_it_has():
    assert code("fedkd plot") == "`fedkd plot`"
    assert code("a`b``c\nd") == "```a`b``c d```"
    assert code("`") == "`` ` ``"
