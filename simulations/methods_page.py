"""All methods, from the code: ``python -m fedkd.simulations.methods_page``."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator

from fedkd import registry
from fedkd.fields import STEPS
from fedkd.simulations.reference import options_table
from fedkd.strategies.base import KnowledgeStrategy

HEAD = """# Methods

Made by `python -m fedkd.simulations.methods_page > docs/methods.md`; a test holds it to the code.

Of each method: its paper, what clients and server do, where it departs from the paper, the steps
that its hooks ask of clients ([architecture.md](architecture.md) says what these are), what its
paper scores, and its options, keys of `[strategy]`. *Scored by* is the column `headline_accuracy`
of tables: the stage of a round and the student that the paper's numbers are of. Students under
names of their own are columns too, `own_NAME_accuracy_mean` and so on, measured beside the client's
own student at no cost to the method. [extend.md](extend.md) says how to add a method.
"""
HOOKS = ("learn", "measure", "receive", "deploy", "score")
STAGES = {"local": "after local training", "fused": "after fusion"}
DEPARTURES = re.compile(r"Departures?: ")
ARXIV = re.compile(r"(?<![\d.])(?:arXiv )?(\d{4}\.\d{5})")


def page() -> str:
    """Every method that comes with fedkd, as Markdown."""
    names = registry.shipped("strategies")
    links = "\n".join(
        f"- [`{name}`](#{name}): {_first_line(registry.load('strategies', name))}" for name in names
    )
    return "\n".join([HEAD, links, "", *map(_section, names)])


def _section(name: str) -> str:
    method = registry.load("strategies", name)
    title, *paragraphs = explained(method)
    paper = "**Paper.** " * ("arxiv.org" in title)
    parts = [f"## {name}", _first_line(method), f"{paper}{title}", *paragraphs]
    parts += ["**Departures.** " + text for text in departures(method)]
    parts.append(f"**Steps.** {_steps(method)}")
    parts.append(f"**Scored by** {scored_by(method)}.")
    if own := method.server_training.model_dump(exclude_none=True):
        said = ", ".join(f"`{name} = {value!r}`" for name, value in own.items())
        parts.append(f"**Server.** {said}, where `[server]` says nothing.".replace("True", "true"))
    parts.append(options_table(method.Options) or "No options.")
    return "\n\n".join(parts) + "\n"


def _first_line(method: type[KnowledgeStrategy]) -> str:
    return _markdown(_paragraphs(inspect.getdoc(method) or "")[0])


def explained(method: type[KnowledgeStrategy]) -> list[str]:
    """The paragraphs on a method in its module and its class, without departures."""
    return [
        _markdown(paragraph)
        for paragraph in (*_of_module(method), *_of_class(method))
        if not DEPARTURES.match(paragraph)
    ]


def departures(method: type[KnowledgeStrategy]) -> list[str]:
    """The paragraphs that say where a method departs from its paper."""
    found = [
        paragraph
        for paragraph in (*_of_module(method), *_of_class(method))
        if DEPARTURES.match(paragraph)
    ]
    return [_capital(_markdown(DEPARTURES.sub("", paragraph, count=1))) for paragraph in found]


def scored_by(method: type[KnowledgeStrategy]) -> str:
    """The stage and the student that a method's paper scores, and what else is tested."""
    headline = method.headline
    whose = f"`{headline.evaluation}`" if headline.evaluation else "the client's own student"
    others = [f"`{name}`" for name in evaluations(method) if name != headline.evaluation]
    also = f"; also tested: {', '.join(others)}" if others else ""
    return f"{whose}, {STAGES[headline.stage]}{also}"


def evaluations(method: type[KnowledgeStrategy]) -> list[str]:
    """The names of the students that ``score`` has tested."""
    keys = [
        keyword.value.value
        for tree in _trees(method, "score", set())
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Evaluate"
        for keyword in node.keywords
        if keyword.arg == "key" and isinstance(keyword.value, ast.Constant)
    ]
    return list(dict.fromkeys(map(str, keys)))


def _steps(method: type[KnowledgeStrategy]) -> str:
    said = []
    for hook in HOOKS:
        if steps := steps_of(method, hook):
            said.append(f"`{hook}`: {', '.join(f'`{step}`' for step in steps)}")
    return "; ".join(said) + "."


def steps_of(method: type[KnowledgeStrategy], hook: str) -> list[str]:
    """The kinds of steps in a hook and in what it calls, in the order of the waist."""
    named = {
        node.id
        for tree in _trees(method, hook, set())
        for node in ast.walk(tree)
        if isinstance(node, ast.Name)
    }
    return [kind.__name__ for kind in STEPS if kind.__name__ in named]


def _trees(method: type, name: str, seen: set[str], above: int = 0) -> Iterator[ast.AST]:
    """The source of a method's function ``name``, and of those that it calls on ``self``."""
    classes = [kind for kind in method.__mro__[above:] if name in vars(kind)]
    function = inspect.unwrap(vars(classes[0])[name]) if classes else None
    if not inspect.isfunction(function) or function.__qualname__ in seen:
        return
    seen.add(function.__qualname__)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    # Not its signature, whose types name steps too.
    body = ast.Module(body=getattr(tree.body[0], "body", []), type_ignores=[])
    yield body
    place = method.__mro__.index(classes[0])
    for node in ast.walk(body):
        if not isinstance(node, ast.Attribute):
            continue
        if getattr(node.value, "id", "") == "self":
            yield from _trees(method, node.attr, seen)
        elif isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super":
            yield from _trees(method, node.attr, seen, place + 1)


# --- docstrings -----------------------------------------------------------------------------------


def _of_module(method: type) -> list[str]:
    return _paragraphs(inspect.getdoc(sys.modules[method.__module__]) or "")


def _of_class(method: type) -> list[str]:
    return _paragraphs(inspect.getdoc(method) or "")[1:]


def _paragraphs(text: str) -> list[str]:
    """Paragraphs of a docstring; an indented block belongs to the one that leads to it."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if paragraph.startswith(" ") and found:
            found[-1] += f"\n\n{paragraph}"
        elif paragraph.strip():
            found.append(paragraph)
    return found


def _markdown(paragraph: str) -> str:
    """A paragraph with its indented blocks fenced."""
    parts = []
    for part in paragraph.split("\n\n"):
        if part.startswith(" "):
            parts.append(f"```text\n{textwrap.dedent(part).rstrip()}\n```")
            continue
        text = re.sub(r":(?:meth|class|func|mod|data|attr):", "", part)
        text = text.replace("``", "`")
        text = ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)
        parts.append(re.sub(r"::$", ":", text))
    return "\n\n".join(parts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    print(page(), end="")
