"""Equations as drawings in the page, made when the site is built.

Sphinx's own renderers load MathJax from the network or need LaTeX, and MathML needs a font for mathematics, which many
readers lack. ziamath draws with STIX, which it brings along.
"""

from __future__ import annotations

import html
from typing import Any
from xml.etree import ElementTree

import ziamath
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

SIZE = 16.0  # that it is drawn at; lengths become multiples of the page's own letter size
logger = logging.getLogger(__name__)
ziamath.config.svg2 = False  # symbols that pages would share by name differ in size


def _drawn(node: nodes.math | nodes.math_block, inline: bool) -> str:
    """An equation as SVG; one that is not understood as its source, with a warning."""
    source = node.astext()
    try:
        drawing = ziamath.Latex(source, size=SIZE, color="currentColor", inline=inline)
        image = drawing.svgxml()
    except Exception as error:
        logger.warning("equation not understood: %s", error, location=node)
        return html.escape(source)
    width, height = (float(image.attrib.pop(name)) / SIZE for name in ("width", "height"))
    low = drawing.getyofst() / SIZE
    image.attrib |= {"role": "img", "aria-label": source,
                     "style": f"width:{width:.3f}em;height:{height:.3f}em;vertical-align:{low:.3f}em"}
    return str(ElementTree.tostring(image, encoding="unicode"))


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(f'<span class="math">{_drawn(node, True)}</span>')
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(writer.starttag(node, "div", CLASS="math"))
    writer.body.append(f'<div class="drawn">{_drawn(node, False)}</div>')
    if node["number"]:
        writer.body.append(f'<span class="eqno">({get_node_equation_number(writer, node)})</span>')
    writer.body.append("</div>\n")
    raise nodes.SkipNode


def _choose(app: Sphinx, config: Any) -> None:
    config.html_math_renderer = "drawn"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer and choose it."""
    app.add_html_math_renderer("drawn", (_inline, None), (_block, None))
    app.connect("config-inited", _choose)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
