"""Sphinx configuration: ``python -m sphinx -W --keep-going -b html docs OUT``.

Nothing is fetched, when the site is built or when it is read: no inventories of other projects, no scripts from
elsewhere, and equations are drawn into the pages.
"""

import importlib.util
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the extensions below

_project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
project = _project["name"]
release = version = _project["version"]
author = "the deblendrt developers"
project_copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "equations", "results", "reference",
              "docstrings", "example"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 4

# Signatures stay readable: the docstrings have every type, with shape and unit
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_mock_imports = [name for name in ("torch", "zuko", "galsim", "galcheat", "speclite", "onnx", "onnxscript")
                        if importlib.util.find_spec(name) is None]
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# Single backticks in docstrings name what may have a page (functions, modules) and what has none (arguments, fields).
# References to this package's modules must resolve; all other words are left as they are.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    # types are "float64 (n_source, 2) [pixel]", of which no word is a class of ours; other projects' classes would
    # need their inventories
    ("py:class", r"(?!deblendrt\.).*"),
    ("py:exc", r"(?!deblendrt\.).*"),
    ("py:obj", r"(?!deblendrt\.).*"),
    (r"py:.*", r"deblendrt\.cuda.*"),  # kernels are described where they lie, in cuda/
]

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
templates_path = []
