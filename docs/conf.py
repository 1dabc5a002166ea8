"""Sphinx configuration: ``python -m sphinx -W --keep-going -b html docs OUT``.

Nothing is fetched when the site is built or read: the site contains MathJax, and uses no inventory of another project.
"""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

_pyproject = tomllib.loads((HERE.parent / "pyproject.toml").read_text())
project = _pyproject["project"]["name"]
release = version = _pyproject["project"]["version"]
author = "the deblendrt developers"
project_copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "sphinxarg.ext",
              "sphinx.ext.mathjax", "sphinx-mathjax-offline", "results", "tables", "example"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 4
smartquotes = False  # "--shard" in the help of a command would become "–shard"

autodoc_typehints = "none"  # the docstrings have every type, with shape and unit
autodoc_member_order = "bysource"
autodoc_mock_imports = [name for name in ("torch", "zuko", "galsim", "galcheat", "speclite", "onnx", "onnxscript")
                        if importlib.util.find_spec(name) is None]
numpydoc_show_class_members = False  # autodoc lists the members
numpydoc_class_members_toctree = False
autosummary_context = {  # for extensions/templates/autosummary/module.rst: a folder is a page, its modules are sections
    "packages": _pyproject["tool"]["setuptools"]["packages"],
    "public_modules": [  # their classes are on the pages of the public interface
        "deblendrt.engine.deblender", "deblendrt.engine.result.result", "deblendrt.engine.scene.psf.field"],
}

# Single backticks in docstrings name objects with a page (functions, modules) and without (arguments, fields).
# References to this package's modules must resolve; other words are left as they are.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!deblendrt\.).*"),
    (r"py:.*", r"deblendrt\.cuda.*"),  # cuda/README.md describes the kernels
    (r"py:obj", r"deblendrt\..*\.[A-Z_]+"),  # constants have a comment, and no entry
]

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
templates_path = ["extensions/templates"]
exclude_patterns = ["extensions"]


def keep_plain_text(_app, what, _name, _obj, _options, lines):  # type: ignore[no-untyped-def]
    """Make a docstring valid reStructuredText: |x| is an absolute value, flux_ a name, indented lines an equation."""
    text = "\n".join(lines)
    if what == "module":
        text = re.sub(r"(?m)^(\S.*[^:\s]:?)\n\n(?=    )", r"\1\n\n.. code-block:: text\n\n", text)
    lines[:] = re.sub(r"(``.+?``|`[^`]*`)|(\||(?<=\w)_(?!\w))", lambda m: m[1] or "\\" + m[2], text).split("\n")


def setup(app):  # type: ignore[no-untyped-def]
    """Connect before numpydoc, whose priority is 500."""
    app.connect("autodoc-process-docstring", keep_plain_text, priority=400)
