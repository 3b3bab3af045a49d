"""The site of docs/: it builds without a warning, its generated parts say what the code says, it fetches nothing."""

from __future__ import annotations

import dataclasses
import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sasr import SCHEDULES, SASRConfig, TaskConfig

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import settings_tables  # noqa: E402
from source_pages import definitions  # noqa: E402

needs_mkdocs = pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="needs sasr[docs]")


def build(source: Path, site: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(source / "mkdocs.yml"), "-d", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    # Seconds on a free machine; a shared one may take minutes.
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    directory = tmp_path_factory.mktemp("site")
    done = build(ROOT, directory)
    assert done.returncode == 0, done.stderr
    return directory


def own_settings():
    """Of both classes, but not TRL's: (name, default as it is, None where it is made from other settings)."""
    for cls in (SASRConfig, TaskConfig):
        for name in cls.__annotations__:
            field = cls.__dataclass_fields__[name]
            made = field.default_factory
            yield name, field.default if made is dataclasses.MISSING else made()


def test_docstrings_know_every_setting_and_its_default():
    described = settings_tables.all_settings()
    for name, default in own_settings():
        assert name in described, f"{name} is not under Args in the docstring of its class"
        written = described[name].default
        assert (None if written is None else eval(written)) == default, name
        assert len(described[name].text) > 20, name
    assert set(described) == {name for name, _ in own_settings()}


def test_the_page_in_the_repository_has_the_lists_of_today():
    page = (ROOT / "docs" / "settings.md").read_text()
    assert settings_tables.written(page) == page, "run: python docs/settings_tables.py"
    assert all(f"- **`{name}`**" in page for name, _ in own_settings())


def test_every_setting_has_one_group():
    grouped = [name for names in settings_tables.GROUPS.values() for name in names.split()]
    assert sorted(grouped) == sorted(name for name, _ in own_settings())


def test_every_name_of_the_map_exists():
    named = re.findall(r"\[([\w/.]+): ([\w.]+)\]\(([^)]+)\)", (ROOT / "docs" / "map.md").read_text())
    assert len(named) > 40
    for file, name, link in named:
        path = (ROOT / "docs" / link).resolve()
        assert link.endswith(file), link
        assert name in definitions(path.read_text()), f"{file} does not define {name}"


def test_every_file_has_one_place_on_the_map():
    links = re.findall(r"\[(\w+)\]\(\.\./src/sasr/(\w+)\.py\)", (ROOT / "docs" / "map.md").read_text())
    assert all(text == file for text, file in links)
    own = {path.stem for path in (ROOT / "src" / "sasr").glob("*.py")} - {"__init__", "__main__"}
    assert sorted(file for _, file in links) == sorted(own)


def test_every_schedule_is_on_the_map_and_in_the_table():
    for cls, _ in SCHEDULES.values():
        if cls.__name__ not in ("Sft", "Grpo"):
            assert f": {cls.__name__}." in (ROOT / "docs" / "map.md").read_text(), cls
    table = (ROOT / "docs" / "schedules.md").read_text()
    assert all(f"`{name}`" in table for name in SCHEDULES)


@needs_mkdocs
def test_settings_page_has_every_setting_with_its_default(site):
    page = (site / "settings.html").read_text()
    for name, default in own_settings():
        (found,) = re.findall(rf'<code id="{name}">{name}</code> <span class="setting">(.*?)</span>', page)
        shown = re.search("default <code>(.*?)</code>", found)
        assert (eval(html.unescape(shown.group(1))) if shown else None) == default, name
    assert 'id="max_grad_norm"' in page and "<!-- settings" not in page


@needs_mkdocs
def test_nothing_is_fetched_from_elsewhere(site):
    fetched = re.compile(r"<(?:link|script|img|iframe|source)\b[^>]*?(?:href|src)=[\"']?(?:https?:)?//([^\"' >]*)")
    for page in site.rglob("*.html"):
        assert not fetched.findall(page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )[\"']?https?://", style.read_text()), style


@needs_mkdocs
def test_links_to_code_lead_to_its_lines(site):
    pages = {page: page.read_text() for page in site.rglob("*.html")}
    found = [
        (page, link, line)
        for page, text in pages.items()
        for link, line in re.findall(r'href="([^"]*source/[^"#]*)#line-(\d+)"', text)
    ]
    assert found
    for page, link, line in found:
        target = (page.parent / link).resolve()
        code = re.search(rf'<a id="line-{line}".*', pages[target])
        assert code and re.search(r'class="(kn?|nc|nf|fm|n)"', code.group()), (page, link, line)


@needs_mkdocs
def test_broken_links_fail_the_build(tmp_path):
    links = ["[1](gone.md)", "[2](rule.md#gone)", "![3](gone.svg)", "[4](../gone.py)"]
    for path in ROOT.iterdir():
        if path.name not in (".git", "docs", "mkdocs.yml", "site"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "docs").mkdir()
    for path in (ROOT / "docs").iterdir():
        if path.name != "index.md":
            (tmp_path / "docs" / path.name).symlink_to(path)
    (tmp_path / "docs" / "index.md").write_text((ROOT / "docs" / "index.md").read_text() + "\n" + " ".join(links))
    (tmp_path / "mkdocs.yml").write_text((ROOT / "mkdocs.yml").read_text())
    done = build(tmp_path, tmp_path / "site")
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert done.returncode != 0 and len(warnings) == len(links) and all("gone" in line for line in warnings)
