"""What the site shows from outside docs/: README.md as its front page, and every file that a page links to.

Links are written as the repository needs them and are turned into the site's here, so that a strict build checks them all.
"""

import re
from collections.abc import Iterator
from os.path import relpath
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
LINK = re.compile(r"(?<=\]\()[^)#\s:]+(?=[)#])")  # the path of a link within the repository


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the front page and, page by page, what is linked."""
    pages = [ROOT / "README.md", *(Path(str(file.abs_src_path)) for file in files.documentation_pages())]
    known = {*pages, *(Path(str(file.abs_src_path)) for file in files)}
    files.append(_file(pages[0], config))
    while pages:
        for target in _linked(pages.pop()):
            if target not in known:
                known.add(target)
                files.append(_file(target, config))
                pages += [target] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, **_) -> str:
    """The text with links from page to page of the site; one that leads nowhere stays, for the build to refuse."""
    source, here = Path(str(page.file.abs_src_path)), Path(page.file.src_uri).parent

    def site_link(match: re.Match[str]) -> str:
        target = (source.parent / match[0]).resolve()
        return Path(relpath(_place(target), here)).as_posix() if target.is_file() else match[0]

    return LINK.sub(site_link, markdown)


def _linked(page: Path) -> Iterator[Path]:
    for match in LINK.finditer(page.read_text("utf-8")):
        target = (page.parent / match[0]).resolve()
        if target.is_file() and target.is_relative_to(ROOT):
            yield target


def _place(path: Path) -> Path:
    """Where a file of the repository is in the site: docs/ is its root, and so is that of the repository."""
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT)


def _file(path: Path, config: MkDocsConfig) -> File:
    return File.generated(config, _place(path).as_posix(), abs_src_path=str(path))
