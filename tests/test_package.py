"""What is installed is what is in the repository, also by way of the source distribution."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="needs sasr[test]")
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent


def in_git(*paths: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git repository")
    # Not what was deleted a moment ago, nor links, which become what they point to.
    return {name for name in listed.stdout.split("\0") if (ROOT / name).is_file()}


def test_a_wheel_from_the_sdist_has_every_file(tmp_path):
    """recipes/ is a link to src/sasr/recipes: in one walk over everything hatchling drops the second."""
    (sdist,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    (wheel,) = WheelBuilder(str(source)).build(directory=str(tmp_path), versions=["standard"])
    package = in_git("src/sasr")
    assert "src/sasr/recipes/stories.yaml" in package
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.removeprefix("src/") for name in package} <= packed
    # What is not in git yet may be a module that is being written; what git ignores may not be there.
    assert not [name for name in packed if "__pycache__" in name or Path(name).suffix in (".pyc", ".so")]
    # make, the tests and the documents' links need these.
    for name in in_git("tests", "docs", "examples", "benchmarks", "*.txt", "Makefile", "*.md", "mkdocs.yml"):
        assert (source / name).is_file(), name
