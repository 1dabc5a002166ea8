"""The checker of the site's links finds what it is there to find."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "docs" / "extensions" / "check_links.py"


@pytest.fixture(scope="module")
def problems() -> Callable[[Path], list[str]]:
    found: Callable[[Path], list[str]] = runpy.run_path(str(PATH))["problems"]
    return found


def site(folder: Path, body: str) -> Path:
    (folder / "sub").mkdir()
    (folder / "picture.png").write_bytes(b"")
    (folder / "sub" / "other.html").write_text('<h1 id="top">Other</h1><a href="../index.html#here">back</a>')
    (folder / "index.html").write_text(f'<h1 id="here">Index</h1>{body}')
    return folder


@pytest.mark.parametrize("body", [
    '<a href="sub/other.html#top">other</a><a href="#here">here</a><img src="picture.png">',
    '<a href="https://example.org/nowhere">elsewhere</a><a href="mailto:a@example.org">mail</a>',
    '<img src="data:image/png;base64,AAAA">',
])
def test_whole(body: str, tmp_path: Path, problems: Callable[[Path], list[str]]) -> None:
    assert problems(site(tmp_path, body)) == []


@pytest.mark.parametrize(("body", "message"), [
    ('<a href="sub/none.html">none</a>', "sub/none.html leads nowhere"),
    ('<a href="sub/other.html#bottom">none</a>', "sub/other.html#bottom: no such place"),
    ('<a href="#there">none</a>', "#there: no such place"),
    ('<img src="none.png">', "none.png leads nowhere"),
    ('<a href="../outside.html">none</a>', "outside.html leads nowhere"),
    ('<script src="https://example.org/x.js"></script>', "is loaded from elsewhere"),
    ('<link href="//example.org/x.css">', "is loaded from elsewhere"),
])
def test_broken(body: str, message: str, tmp_path: Path, problems: Callable[[Path], list[str]]) -> None:
    (tmp_path.parent / "outside.html").write_text("")
    (line,) = problems(site(tmp_path, body))
    assert line.startswith("index.html: ")
    assert message in line


def test_nothing_built(tmp_path: Path, problems: Callable[[Path], list[str]]) -> None:
    assert len(problems(tmp_path)) == 1
