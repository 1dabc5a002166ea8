"""Reference pages made from the program itself: flags, command lines, modules. Markers in a page, each a line:

    <!-- flags -->                               the table of flags
    <!-- command-line: MODULE:FUNCTION -->       the commands of the parser that the function returns
    <!-- modules: FOLDER GROUP -->               every module of a folder; of the engine those of a group
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.autodoc.mock import mock
from sphinx.util import logging

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[1]
OWN_PAGES = ("deblender", "result", "flags")
FILES = ("bundle", "catalog", "detect", "doctor", "fits", "fits_header", "job", "manifest", "output", "plot",
         "result_file", "table")
MARKER = re.compile(r"^<!-- (flags|command-line|modules)(?:: (.*?))? -->$", re.MULTILINE)


def flags_table(_: str) -> str:
    """Bit, value, name and meaning of every flag, and whose errors it makes doubtful."""
    from deblendrt.engine.scene.flags import DESCRIPTIONS, NOT_FITTED, SUSPECT, Flag

    rows = ["| bit | value | name | meaning | |", "|---:|---:|---|---|---|"]
    for flag in Flag:
        group = "not fitted" if flag & NOT_FITTED else "suspect" if flag & SUSPECT else ""
        bit = flag.value.bit_length() - 1
        rows.append(f"| {bit} | {flag.value} | `{flag.name}` | {DESCRIPTIONS[flag]} | {group} |")
    return "\n".join(rows)


def command_line(where: str) -> str:
    """Sections of a parser and of its subcommands."""
    module, _, function = where.partition(":")
    parser = getattr(importlib.import_module(module), function)()
    return "\n".join(_sections(parser, _subcommands(parser)))


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


def _sections(parser: argparse.ArgumentParser, commands: dict[str, argparse.ArgumentParser]) -> Iterator[str]:
    yield f"## {parser.prog}\n"
    if parser.description:
        yield _prose(parser.description, parser) + "\n"
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if not isinstance(a, argparse._SubParsersAction)
                   and a.help != argparse.SUPPRESS and a.dest != "help"]
        if not actions:
            continue
        title = {"positional arguments": "Arguments", "options": "Options"}.get(group.title or "", group.title or "")
        yield f"**{title[:1].upper()}{title[1:]}**\n"
        for action in actions:
            yield f"{_names(action)}\n: {_prose(_said(action), parser) or '–'}\n"
    if parser.epilog:
        yield _prose(parser.epilog, parser) + "\n"
    for command in commands.values():
        yield from _sections(command, _subcommands(command))


def _names(action: argparse.Action) -> str:
    value = ""
    if action.nargs != 0:
        choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
        value = str(action.metavar or choices or action.dest.upper())
    if not action.option_strings:
        return f"`{value}`"
    return ", ".join(f"`{name} {value}`" if value else f"`{name}`" for name in action.option_strings)


def _said(action: argparse.Action) -> str:
    """The help, with the default where the help does not say it."""
    text = action.help or ""
    default = action.default
    # A default that is the machine's is none of this page
    tells = action.nargs == 0 or default in (None, argparse.SUPPRESS) or "default" in text or type(default) is int
    if action.required and action.option_strings:
        text += "; required" if text else "required"
    elif not tells:
        text += f"{'; ' if text else ''}default `{default}`"
    return text


def _prose(text: str, parser: argparse.ArgumentParser) -> str:
    """Help as Markdown: what argparse fills in filled in, and nothing taken for markup."""
    text = " ".join(text.replace("%(prog)s", parser.prog).replace("%%", "%").split())
    return re.sub(r"([*_<\[])(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)", r"\\\1", text)


def module_pages(where: str) -> str:
    """A section for every module: its docstring, and its public functions and classes."""
    folder, _, group = where.partition(" ")
    names = sorted(path.stem for path in (ROOT / folder).glob("*.py") if path.stem != "__init__")
    if folder == "engine":
        names = [name for name in names if _group(name) == group]
    package = folder.replace("/", ".")
    return "\n".join(f"## {name}\n\n```{{eval-rst}}\n.. automodule:: deblendrt.{package}.{name}\n   :members:\n```\n"
                     for name in names)


def _group(name: str) -> str:
    """Where in the reference a module of the engine belongs."""
    if name in OWN_PAGES:
        return "own pages"
    if name in FILES:
        return "files"
    recipes = "".join(path.read_text() for path in (ROOT / "docs" / "embedding").glob("*.md"))
    return "adapters" if re.search(rf"deblendrt\.engine(\.|/| import ){name}\b", recipes) else "internals"


def without_empty_globs(text: str, docname: str, srcdir: Path) -> str:
    """The text without those toctree patterns that no page matches, about which Sphinx would warn."""
    page = srcdir / f"{docname}.md"
    named = {page, *(page.parent / f"{line}.md" for line in text.split("\n") if re.fullmatch(r"[\w/-]+", line))}

    def kept(line: re.Match[str]) -> str:
        return line[0] if set(page.parent.glob(f"{line[1]}.md")) - named else ""

    return re.sub(r"^([\w/-]*\*)$\n", kept, text, flags=re.MULTILINE)


def fill_in(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the markers of a page."""
    makers = {"flags": flags_table, "command-line": command_line, "modules": module_pages}
    with mock(app.config.autodoc_mock_imports):
        text = MARKER.sub(lambda m: makers[m[1]](m[2] or ""), source[0])
    source[0] = without_empty_globs(text, docname, Path(app.srcdir))


def nothing_public_is_missing(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of a name that the engine offers and no page describes."""
    from deblendrt import engine

    described = {name for name, *_ in env.domains.python_domain.get_objects()}
    for name in engine.__all__:
        found = getattr(engine, name)
        if not {f"deblendrt.engine.{name}", f"{found.__module__}.{found.__qualname__}"} & described:
            logger.warning("deblendrt.engine.%s: public, and on no page", name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect."""
    app.connect("source-read", fill_in)
    app.connect("env-check-consistency", nothing_public_is_missing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
