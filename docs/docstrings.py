"""Docstrings of this package as pages: they are written to be read in the source, as plain text.

Indented lines of a module's docstring are equations or code; |x| is an absolute value and a word may end in an
underscore; type slots hold a dtype, a shape and a unit; single backticks mark whatever is a name.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
from functools import partial
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx

PUBLIC = re.compile(r"deblendrt\.engine\.(?:deblender|result|psf_field|flags)"
                    r"\.(Deblender|DeblendResult|CellPsf|Flag)\b")
# What reStructuredText would take for markup; before that, so that they stay, text in backticks and emphasis
PLAIN = re.compile(r"``.+?``|`[^`]*`|\*\*?\w[^*]*?\w\*\*?|\||(?<=\w)_(?!\w)|\*(?=\S)")
QUALIFIED = re.compile(r"(?<!`)`(deblendrt(?:\.\w+)+)`(?!`)")
WORD = re.compile(r"(?<!`)`(\w+)`(?!`)")
TYPE = re.compile(r"(\s*:(?:var)?type [^:]+: )(.+)$")


def as_restructured_text(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A docstring as reStructuredText that shows what a reader of the source sees."""
    text = QUALIFIED.sub(_qualified, "\n".join(lines))
    if what == "module":
        joined = re.sub(r"(\n    [^\n]*)\n\n(?=    )", r"\1\n    \n", text)  # one block, whatever is blank in it
        text = re.sub(r"([^:\s])(:?)\n\n(?=    )", r"\1\2\n\n.. code-block:: text\n\n", joined)
    literal = False
    lines.clear()
    for line in text.split("\n"):
        literal = (line.startswith("    ") and (literal or what == "module")) or (literal and not line.strip())
        lines.append(line if literal else WORD.sub(partial(_word, name, obj), PLAIN.sub(_escaped, line)))


def _qualified(path: re.Match[str]) -> str:
    """A full path in backticks by where the object is defined, which is where the reference has it; data are text."""
    parts = path[1].split(".")
    found: Any = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        with contextlib.suppress(ImportError):
            importlib.import_module(".".join(parts[:i]))
        if (found := getattr(found, part, None)) is None:
            return f"`{_public(path[1])}`"  # a warning, if it is on no page of the reference either
    if inspect.ismodule(found) or isinstance(found, property):
        return f"`{_public(path[1])}`"
    if inspect.isroutine(found) or inspect.isclass(found):
        return f"`{_public(f'{found.__module__}.{found.__qualname__}')}`"
    return f"`{path[0]}`"


def _escaped(found: re.Match[str]) -> str:
    return f"\\{found[0]}" if len(found[0]) == 1 else found[0]


def _public(text: str) -> str:
    """Paths of the classes that `deblendrt.engine` itself offers, by which the reference lists them."""
    return PUBLIC.sub(lambda m: f"deblendrt.engine.{m[1]}", text)


def _module(obj: Any) -> Any:
    """The module that an object was defined in; None if it does not say."""
    return inspect.getmodule(obj.fget if isinstance(obj, property) else obj)


def _word(name: str, obj: Any, word: re.Match[str]) -> str:
    """A single word in backticks: a link if it names a function, class or property of the same module or class.

    Left to Sphinx, `window` would link to whichever class has such an attribute.
    """
    module = _module(obj)
    for owner in (obj, *(vars(module).get(part) for part in name.split(".") if module), module):
        if isinstance(owner, ModuleType):
            found = vars(owner).get(word[1])  # not what a module would import to answer
        else:
            found = getattr(owner, word[1], None) if isinstance(owner, type) else None
        found = found.fget if isinstance(found, property) else found
        if inspect.ismodule(found):
            path = found.__name__
        elif inspect.isroutine(found) or inspect.isclass(found):
            path = f"{found.__module__}.{found.__qualname__}"
        else:
            continue
        if path.startswith("deblendrt.") and not word[1].startswith("_"):
            return f":py:obj:`{word[1]} <{_public(path)}>`"
    return f"`{word[0]}`"


def types_as_text(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The type slots of parameters and attributes: a class of ours is linked, "float64 (n_source,) [nJy]" is text.

    Attributes become a list under "Fields": of two names that share a line, Sphinx would take one for a type.
    """
    module = _module(obj)
    written: list[str] = []
    for line in lines:
        if slot := TYPE.match(line):
            line = f"{slot[1]}{_type(module, slot[2])}"
        if field := re.match(r":ivar ([^:]+): ?(.*)", line):
            if ":Fields:" not in written:
                written += [":Fields:", ""]
            names = ", ".join(f"**{word}**" for word in field[1].split(", "))
            written.append(f"   * {names} -- {field[2]}" if field[2] else f"   * {names}")
        elif line.startswith(":vartype "):
            at = max(i for i, earlier in enumerate(written) if earlier.startswith("   * "))
            names, dash, text = written[at].partition(" -- ")
            written[at] = f"{names} ({line.split(': ', 1)[1]}){dash}{text}"
        elif ":Fields:" in written and line.startswith("    "):
            written.append("     " + line.strip())
        else:
            written.append(line)
    lines[:] = written


def _type(module: Any, text: str) -> str:
    """A type slot's text."""
    found = vars(module).get(text) if module and text.isidentifier() else None
    if isinstance(found, type) and found.__module__.startswith("deblendrt."):
        return f":py:class:`~{_public(f'{found.__module__}.{found.__qualname__}')}`"
    return "*" + text.replace("*", r"\*") + "*"


def without_own_words(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples that say nothing of their own."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def without_fields(app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returned: str) -> Any:
    """The result's signature would be its fifty fields, and nobody makes one by hand."""
    return ("", "") if name == "deblendrt.engine.DeblendResult" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect."""
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", types_as_text, priority=600)  # after it
    app.connect("autodoc-skip-member", without_own_words)
    app.connect("autodoc-process-signature", without_fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
