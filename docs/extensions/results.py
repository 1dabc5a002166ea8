"""Pages of the site that are made from ``perf/results`` when it is built, so that no figure is kept twice.

Every ``perf/results/NAME.md`` becomes a page ``generated/NAME`` with its images. In the other pages a line

    <!-- results: list accuracy -->     lists these pages, here those about accuracy
    <!-- results: first NAME -->        takes in the first section of one of them
    <!-- results: faults -->            takes in the faults that ``perf/results/embedding/*.json`` record

and links to ``perf/results/NAME.md``, which serve readers of the repository, lead to the page.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "perf" / "results"
GROUPS = {
    "accuracy": ("accuracy", "peers", "beyond", "stars", "shear", "robustness", "real", "sky", "sky_tried", "ablation"),
    "performance": ("cpu", "gpu", "patch"),
    "embedding": ("embedding",),
}
MARKER = re.compile(r"^<!-- results: (\w+) ?(\w*) -->$", re.MULTILINE)
PAGE_LINK = re.compile(r"\]\((?:\.\./)*perf/results/(\w+)\.md(#[\w-]+)?\)")
PAGE_NAME = re.compile(r"(?<!\[)`perf/results/(\w+)\.md`")


def pages() -> dict[str, str]:
    """Return the Markdown of every result page by name. Files without a title are parts of pages, and left out."""
    texts = {path.stem: path.read_text() for path in sorted(RESULTS.glob("*.md"))}
    return {name: text for name, text in texts.items() if text.startswith("# ")}


def write_pages(app: Sphinx, _config: Any) -> None:
    """Write the pages ``generated/NAME.md`` that have changed, and remove pages whose source is gone."""
    folder = Path(app.srcdir) / "generated"
    folder.mkdir(exist_ok=True)
    texts = pages()
    for old in folder.glob("*.md"):
        if old.stem not in texts:
            old.unlink()
    for name, text in texts.items():
        path, text = folder / f"{name}.md", as_page(text, texts)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def as_page(text: str, texts: dict[str, str]) -> str:
    """Return a result's Markdown with paths relative to ``generated/``, and links to the pages that it names."""
    images = os.path.relpath(RESULTS, ROOT / "docs" / "generated")
    text = re.sub(r"(!\[[^\]]*\]\()(?!\w+:)([^)/]+)\)", rf"\g<1>{images}/\g<2>)", text)
    return PAGE_NAME.sub(lambda m: f"[{m[0]}]({m[1]}.md)" if m[1] in texts else m[0], text)


def listed(group: str) -> str:
    """Return the pages of a group, each with its title and its first sentences, and their toctree."""
    texts = pages()
    named = {name for names in GROUPS.values() for name in names}
    names = [name for name in GROUPS[group] if name in texts]
    if group == "performance":  # pages of no group are listed here
        names += sorted(set(texts) - named)
    if not names:
        return ""
    lines = []
    for name in names:
        title, _, rest = texts[name].partition("\n")
        first = next((p for p in rest.split("\n\n") if p.strip() and p.lstrip()[0].isalnum()), "")
        lines += [f"[{title[2:]}](/generated/{name}.md)", f": {' '.join(first.split())}", ""]
    toctree = ["```{toctree}", ":hidden:", *(f"/generated/{name}" for name in names), "```"]
    return "\n".join([*lines, *toctree])


def first_section(name: str) -> str:
    """Return the first section of a result page, without its heading."""
    text = as_page(pages()[name], pages()).replace("../../perf", "../perf")
    sections = re.split(r"^## .*$", text, flags=re.MULTILINE)
    return re.sub(r"\]\((\w+)\.md\)", r"](/generated/\1.md)", sections[1].strip())


def faults() -> str:
    """Return for each path a table of the faults that its demonstration injected, and of the losses."""
    sections = []
    for path in sorted((RESULTS / "embedding").glob("*.json")):
        rows = [f"### {path.stem}", "", "| fault | inputs | lost | repeated | |", "|---|---:|---:|---:|---|"]
        for fault in json.loads(path.read_text()).get("faults", []):
            cells = [f"{fault['fault']}: {fault['how']}", *(fault[key] for key in ("inputs", "lost", "repeated")),
                     fault.get("note", "")]
            rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
        sections.append("\n".join(rows))
    return "\n\n".join(sections) or "No demonstration has stored its figures yet."


def fill_in(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the markers of a page, and its links to result pages."""
    makers = {"list": listed, "first": first_section, "faults": lambda _: faults()}
    text = MARKER.sub(lambda m: makers[m[1]](m[2]), source[0])
    if text != source[0]:
        for path in (*RESULTS.glob("*.md"), *RESULTS.glob("embedding/*.json")):
            app.env.note_dependency(path)
    source[0] = PAGE_LINK.sub(r"](/generated/\1.md\2)", text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect."""
    app.connect("config-inited", write_pages)
    app.connect("source-read", fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
