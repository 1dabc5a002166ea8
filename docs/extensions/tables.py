"""Tables that the program holds, as parts of pages. A page takes one in by a line

    <!-- table: flags -->           the flags of `deblendrt.engine.scene.flags`
    <!-- table: quantities -->      the quantities of `deblendrt.engine.result.fields`
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

logger = logging.getLogger(__name__)
MARKER = re.compile(r"^<!-- table: (\w+) -->$", re.MULTILINE)


def flags() -> str:
    """Return bit, name, meaning and group of every flag."""
    from deblendrt.engine.scene.flags import DESCRIPTIONS, NOT_FITTED, UNTRUSTED, Flag

    rows = ["| bit | name | meaning | group |", "|---:|---|---|---|"]
    for flag in Flag:
        group = "not fitted" if flag & NOT_FITTED else "untrusted" if flag & UNTRUSTED else ""
        rows.append(f"| {flag.bit_length() - 1} | `{flag.name}` | {DESCRIPTIONS[flag]} | {group} |")
    return "\n".join(rows)


def quantities() -> str:
    """Return name, type, shape, unit and meaning of every reported quantity, with links to modules."""
    from deblendrt.engine.result.fields import QUANTITIES

    rows = ["| `result.` | type | shape | unit | meaning |", "|---|---|---|---|---|"]
    for q in QUANTITIES.values():
        shape = ", ".join(q.axes) + ("," if len(q.axes) == 1 else "")
        text = f"{q.meaning}; {q.note}" if q.note else q.meaning
        text = re.sub(r"`(deblendrt\.[\w.]+)`", r"{py:obj}`~\1`", text)
        rows.append(f"| `{q.name}` | {q.dtype} | ({shape}) | {q.unit.replace('2', '²')} | {text} |")
    return "\n".join(rows)


def fill_in(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the markers of a page by their tables."""
    makers = {"flags": flags, "quantities": quantities}
    source[0] = MARKER.sub(lambda marker: makers[marker[1]](), source[0])


def warn_of_missing_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of every package of ``pyproject.toml`` and every public name of the engine that no page describes."""
    from deblendrt import engine

    for name in set(app.config.autosummary_context["packages"]) - env.domains.python_domain.modules.keys():
        if not name.startswith("deblendrt.cuda"):
            logger.warning("%s: its folder is not in api/modules.md", name)
    described = {name for name, *_ in env.domains.python_domain.get_objects()}
    for name in engine.__all__:
        found = getattr(engine, name)
        if not {f"deblendrt.engine.{name}", f"{found.__module__}.{found.__qualname__}"} & described:
            logger.warning("deblendrt.engine.%s: public, and on no page", name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the functions above to Sphinx' events."""
    app.connect("source-read", fill_in)
    app.connect("env-check-consistency", warn_of_missing_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
