"""Check the links of the built site: ``python docs/extensions/check_links.py OUT``.

Every link and anchor between the pages has to lead somewhere. Scripts, styles and images may not come from another
site, since the pages must be readable without a network. Links to other sites are not
followed.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

NEEDED = {"script": "src", "link": "href", "img": "src", "source": "src", "iframe": "src"}


class Page(HTMLParser):
    """The anchors, links and loaded files of a page.

    Attributes
    ----------
    anchors : set of str
    links, needed : list of str
        Targets of links; files that the page loads.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.needed: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take down anchors and links."""
        values = {name: value for name, value in attrs if value is not None}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in NEEDED and NEEDED[tag] in values:
            self.needed.append(values[NEEDED[tag]])


def problems(folder: Path) -> list[str]:
    """Return a line for each link that leads nowhere and each file that would be loaded from another site.

    Parameters
    ----------
    folder : Path
        The built HTML.
    """
    folder = folder.resolve()
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html"))}
    found = [] if pages else [f"no page in {folder}"]
    for path, page in pages.items():
        where = path.relative_to(folder)
        for link in (*page.links, *page.needed):
            url = urlsplit(link)
            if url.scheme or url.netloc:
                if link in page.needed and url.scheme != "data":
                    found.append(f"{where}: {link} is loaded from elsewhere")
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not target.is_relative_to(folder) or not target.is_file():
                found.append(f"{where}: {link} leads nowhere")
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].anchors:
                found.append(f"{where}: {link}: no such place on that page")
    return found


def main() -> int:
    """Print the problems, and return 1 if there are any."""
    if len(sys.argv) != 2:
        print("usage: python docs/extensions/check_links.py OUT", file=sys.stderr)
        return 2
    lines = problems(Path(sys.argv[1]))
    print("\n".join(lines) or "every link leads somewhere")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
