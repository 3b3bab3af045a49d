"""What mkdocs does beyond its own: the settings page is made from docstrings, and links to code lead to code.

A link to code (`../src/sasr/config.py`) works in a view of the repository; on the site there is no such file. Each file
that a page links to so becomes a page under source/, and a link whose text ends in a name that the file defines
(`sasr.py: Sasr.plan`) leads to its line.
"""

from __future__ import annotations

import os
import re
from typing import Any

from mkdocs.structure.files import File
from settings_tables import fill
from source_pages import ROOT, definitions, source_page

CODE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+|[^):#\s]+\.py)\)")


def target_of(page: str, link: str) -> str | None:
    """The file of the repository that a link of a page leads to, if the site does not have it: one outside docs/, or a
    script."""
    path = os.path.normpath(os.path.join("docs", os.path.dirname(page), link))
    there = path.startswith("docs/") and not path.endswith(".py")
    return None if there or not (ROOT / path).is_file() else path


def on_files(files: Any, config: Any) -> Any:
    wanted: set[str] = set()
    for file in list(files.documentation_pages()):
        for _, link in CODE.findall(file.content_string):
            if target := target_of(file.src_uri, link):
                wanted.add(target)
    for path in sorted(wanted):
        files.append(File.generated(config, f"source/{path}.md", content=source_page(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    def replaced(match: re.Match[str]) -> str:
        text, link = match.groups()
        path = target_of(page.file.src_uri, link)
        if path is None:
            return match.group()
        up = "../" * page.file.src_uri.count("/")
        name = text.strip("`").rpartition(": ")[2]
        line = definitions((ROOT / path).read_text(encoding="utf-8")).get(name) if path.endswith(".py") else None
        return f"[{text}]({up}source/{path}.md{f'#line-{line}' if line else ''})"

    markdown = CODE.sub(replaced, markdown)
    return fill(markdown) if page.file.src_uri == "settings.md" else markdown


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Put the anchors of a source page at their lines: markdown has no anchors inside a block of code."""
    if not page.file.src_uri.startswith("source/"):
        return html
    lines = re.findall(r'<a id="line-(\d+)"></a>', html)
    html = re.sub(r'<a id="line-\d+"></a>', "", html)
    for line in lines:
        html = re.sub(rf'(id="__codelineno-\d+-{line}")', rf'id="line-{line}"', html, count=1)
    return html
