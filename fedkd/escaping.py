"""Texts of somebody else (labels, names, warnings) in a terminal, CSV, Markdown and LaTeX.

HTML is escaped by Jinja, and figures draw texts as they stand. Everywhere :func:`plain` comes
first, so that no control code gets through.
"""

from __future__ import annotations

import re
import unicodedata

FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
"""What spreadsheets begin a formula with; the last four are the same in full width."""


def plain(text: object, lines: bool = False) -> str:
    """``text`` in one line, or several with ``lines``, without control codes.

    White space other than a blank becomes one. Control codes, marks that turn the direction of
    writing and lone surrogates, which cannot be written in UTF-8, are left out.
    """
    parts = str(text).split("\n") if lines else [str(text)]
    return "\n".join("".join(map(_plain, part)) for part in parts)


def _plain(sign: str) -> str:
    if sign in "\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029":
        return " "
    kind = unicodedata.category(sign)
    joins = sign in "\u200c\u200d"  # parts of words and signs, not marks
    return "" if kind in ("Cc", "Cs") or (kind == "Cf" and not joins) else sign


def csv_cell(text: object) -> str:
    """``text`` as a cell that no spreadsheet takes for a formula; a number stays a number."""
    cell = plain(text)
    if not cell.lstrip().startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


# --- Markdown -----------------------------------------------------------------------------------


def markdown(text: object) -> str:
    """``text`` as Markdown shows it, in a table too: no code, emphasis, link, HTML or formula."""
    found = re.sub(r"[\\`*|\[\]$~]", r"\\\g<0>", plain(text))
    # Inside a word an underscore is one.
    found = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", found)
    found = re.sub(r"&(?=#?\w+;)", "&amp;", found)
    return found.replace("<", "&lt;").replace(">", "&gt;")


def code(text: object) -> str:
    """``text`` as code inside a line of Markdown, whatever backticks it has."""
    found = plain(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", found)), default=0))
    room = " " if found.startswith("`") or found.endswith("`") else ""
    return f"{fence}{room}{found}{room}{fence}"


# --- LaTeX --------------------------------------------------------------------------------------


def _pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


SPECIAL = {sign: rf"\{sign}" for sign in "&%$#_{}"} | _pairs(
    r"""
    \ \textbackslash{}  ~ \textasciitilde{}  ^ \textasciicircum{}  ` \textasciigrave{}
    | \textbar{}  " ''  < $<$  > $>$  [ {[}  ] {]}  * {*}
    ± $\pm$  × $\times$  ÷ $\div$  · $\cdot$  − $-$  ≤ $\le$  ≥ $\ge$  ≠ $\ne$  ≈ $\approx$
    ≡ $\equiv$  ∞ $\infty$  ∈ $\in$  ∑ $\sum$  ∏ $\prod$  √ $\surd$  ∂ $\partial$  ∇ $\nabla$
    ∥ $\|$  ∝ $\propto$  ∼ $\sim$  ← $\leftarrow$  → $\rightarrow$  ↔ $\leftrightarrow$
    ↑ $\uparrow$  ↓ $\downarrow$  « $\ll$  » $\gg$  † \dag{}  ‡ \ddag{}  § \S{}  ¶ \P{}
    • $\bullet$  – \textendash{}  — \textemdash{}  ‐ -  ⁄ /  ‘ `  ’ '  “ ``  ” ''  ° $^\circ$
    ς $\varsigma$  ℓ $\ell$  ß \ss{}  æ \ae{}  Æ \AE{}  œ \oe{}  Œ \OE{}  ø \o{}  Ø \O{}
    ł \l{}  Ł \L{}  ı \i{}  € \texteuro{}  £ \pounds{}  © \copyright{}
    """
)
"""Brackets and stars are in braces, as after a line's end they would be the end's own argument."""
ACCENTS = _pairs(
    r"""
    GRAVE `  ACUTE '  CIRCUMFLEX ^  TILDE ~  MACRON =  BREVE u  DIAERESIS "  CARON v  CEDILLA c
    OGONEK k  RING-ABOVE r  DOT-ABOVE .  DOT-BELOW d  DOUBLE-ACUTE H
    """
)
"""By their names in Unicode, without COMBINING and ACCENT."""
LIKE_LATIN = _pairs(
    "alpha A beta B epsilon E zeta Z eta H iota I kappa K mu M nu N rho P tau T chi X"
)
"""Greek capitals for which LaTeX has no name of their own."""
GREEK = {
    *("gamma", "delta", "theta", "lambda", "xi", "pi", "sigma", "upsilon", "phi", "psi", "omega"),
    *LIKE_LATIN,
}


def latex(text: object) -> str:
    """``text`` as pdflatex prints it, in ASCII; a sign that it lacks by its number, as U+4E2D."""
    # With nothing between them, two hyphens would become a dash.
    return re.sub("-(?=-)", "-{}", "".join(map(_latex, plain(text))))


def _latex(sign: str) -> str:
    if sign in SPECIAL:
        return SPECIAL[sign]
    if sign.isascii():
        return sign
    words = unicodedata.name(sign, "").replace("LAMDA", "LAMBDA").split()
    if "LETTER" in words and words[0] == "GREEK" and words[-1].lower() in GREEK:
        return _greek(words[-1].lower(), "CAPITAL" in words)
    parts, how = unicodedata.normalize("NFKD", sign), unicodedata.decomposition(sign)
    if how.startswith(("<super>", "<sub>")):
        written = "".join(map(_latex, parts)).replace("$", "")
        return f"${'^' if how.startswith('<super>') else '_'}{{{written}}}$"
    if how.startswith("<") and parts != sign:
        return "".join(map(_latex, parts))
    mark = unicodedata.name(parts[-1], "").removeprefix("COMBINING ").removesuffix(" ACCENT")
    mark = mark.replace(" ", "-")
    if len(parts) == 2 and parts[0].isascii() and mark in ACCENTS:
        return rf"\{ACCENTS[mark]}{{{parts[0]}}}"
    return f"U+{ord(sign):04X}"


def _greek(letter: str, capital: bool) -> str:
    if capital:
        return LIKE_LATIN.get(letter) or rf"$\{letter.capitalize()}$"
    return rf"$\{letter}$"
