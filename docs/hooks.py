"""Make a site of the pages as they are: list the decisions, and take in the files they link to."""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".md": "markdown", ".ipynb": "json"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the decisions in the navigation."""
    records = sorted((DOCS / "decisions").glob("*.md"))
    config.nav = [*(config.nav or []), {"Decisions": [f"decisions/{one.name}" for one in records]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside `docs/` that a page links to."""
    for page in list(files.documentation_pages()):
        for target in LINK.findall(page.content_string):
            if source := outside(page.src_uri, target):
                name = f"source/{source.relative_to(ROOT)}.md"
                language = LANGUAGES.get(source.suffix, "text")
                text = (
                    f"# {source.relative_to(ROOT)}\n\n~~~~{language}\n{source.read_text()}\n~~~~\n"
                )
                if files.get_file_from_path(name) is None:
                    files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let links out of `docs/` lead to the pages that `on_files` added."""
    if page.file.src_uri.startswith("source/"):
        return markdown

    def inside(link: re.Match[str]) -> str:
        source = outside(page.file.src_uri, link[1])
        if source is None:
            return link[1]
        target = DOCS / "source" / f"{source.relative_to(ROOT)}.md"
        return os.path.relpath(target, (DOCS / page.file.src_uri).parent)

    return LINK.sub(inside, markdown)


def outside(src_uri: str, target: str) -> Path | None:
    """Return the file that a link leads to, if that is one of the repository outside `docs/`."""
    source = ((DOCS / src_uri).parent / target).resolve()
    return source if source.is_file() and not source.is_relative_to(DOCS) else None
