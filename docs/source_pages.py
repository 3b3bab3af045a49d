"""Files of the repository as pages of the site, with an anchor at each definition. Imports nothing of mkdocs."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".md": "markdown"}


def source_page(path: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    language = _LANGUAGES.get(Path(path).suffix, "text")
    lines = definitions(text).values() if language == "python" else ()
    # Not searched: the settings and names would drown the pages that explain them.
    front = f"---\ntitle: {path}\nsearch: {{ exclude: true }}\nhide: [navigation, toc]\n---\n"
    anchors = "".join(f'<a id="line-{line}"></a>' for line in lines)
    return f'{front}\n# `{path}`\n\n{anchors}\n\n````{language} linenums="1"\n{text}````\n'


def definitions(text: str) -> dict[str, int]:
    """Qualified name to line, of a module's classes, functions, methods and constants."""
    found: dict[str, int] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found[prefix + node.name] = node.lineno
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update((prefix + t.id, node.lineno) for t in targets if isinstance(t, ast.Name))

    visit(ast.parse(text).body, "")
    return found
