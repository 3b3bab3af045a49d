"""Every command in README and docs/ would be taken by the program that it starts."""

from __future__ import annotations

import importlib.util
import re

import pytest

import docs_commands
import sasr.rows
from docs_commands import PAGES, commands, known_flags, make_place, run_check

# Commands that are not checked where a package is missing: it is optional, and the program says so.
NEEDS = {"reasoning_gym/": "reasoning_gym", "--figures": "matplotlib"}
# Commands that cannot be checked anywhere, with the reason.
NOT_CHECKED = {
    "hf upload you/model runs/gsm8k-1 . --exclude checkpoint-*/** --exclude .unfinished/** --exclude exams/** "
    "--exclude initial_model/** --exclude reference_model/**": "uploads"
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(sasr.rows, "generated_rows", each_once(sasr.rows.generated_rows))
        make_place()
        yield directory


def each_once(generate):
    """Dozens of commands ask for thousands of rows. Fewer do; and the same arguments, the same rows."""
    made = {}

    def generated_rows(task, count, *others):
        most = 64 if task.name == "reasoning_gym/countdown" else 300  # it makes forty in a second
        arguments = min(count or most, most), *others
        key = (type(task).__qualname__, repr(sorted(vars(task).items())), *arguments)
        if key not in made:
            made[key] = generate(task, *arguments)
        return [(where, dict(row)) for where, row in made[key]]

    return generated_rows


def failure(words: tuple[str, ...]) -> str | None:
    try:
        run_check(words)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return None


def test_every_command(place):
    seen = sorted(set(commands()), key=str)
    assert len({command.words for command in seen}) > 40
    wrong = {}
    for command in seen:
        line = " ".join(command.words)
        missing = [name for text, name in NEEDS.items() if text in line and importlib.util.find_spec(name) is None]
        if line not in NOT_CHECKED and not missing:
            found = failure(command.words)
            if found is not None:
                wrong[str(command)] = found
    assert not wrong, "\n".join(f"{command}\n  {error}" for command, error in wrong.items())
    shown = {" ".join(command.words) for command in seen}
    assert set(NOT_CHECKED) <= shown, "listed, but on no page"


@pytest.mark.parametrize(
    "mistake",
    [
        "sasr train --sft_warmup_step 50",
        "sasr train --schedule sasrr",
        "sasr train --gamma -1",
        "sasr train --gamma 2 --schedule static",
        "sasr train --task storys",
        "sasr train --task_options '{\"step\": 3}'",
        "sasr train --task jsonl --data rowz.jsonl --model_name_or_path owner/name --sft_warmup_steps 5",
        "sasr train --config gsm9k",
        "sasr exam --model runs/stories-1 --row 5",
        "sasr exam --model runs/stories-2",
        "sasr exam --model runs/stories-1 --perturb name",
        "sasr compare --methods static sassr",
        "sasr compare --budget minutes=3",
        "sasr compare --config compare-switches",
        "sasr report runs/stories-1 --figure figures",
        "sasr report runs/stories-2",
        "sasr repot runs/stories-1",
        "make demos",
        "make demo ARGS='--sed 7'",
        "pip install 'sasr[gymn]'",
        "python docs/results/comparisons.py",
        "torchrun --nproc_per_nodes 2 -m sasr train --output_dir runs/two",
        "torchrun --nproc_per_node 2 -m sasr train",
        "torchrun --nproc_per_node 2 -m sasr train --output_dir runs/two --gama 1",
        "curl https://example.org",
    ],
)
def test_a_mistake_is_found(place, mistake, monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"```bash\n{mistake}   # as it might stand on a page\n```\n")
    monkeypatch.setattr(docs_commands, "PAGES", [page])
    monkeypatch.setattr(docs_commands, "ROOT", tmp_path)
    (command,) = commands()
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert failure(command.words) is not None


def test_any_mistyped_flag_is_found(place):
    """Each flag of each command, with a letter too many."""
    for command in set(commands()):
        for i, word in enumerate(command.words):
            if re.fullmatch(r"--\w+", word) and command.words[0] in ("sasr", "torchrun"):
                mistyped = (*command.words[:i], word + "x", *command.words[i + 1 :])
                assert failure(mistyped) is not None, mistyped


def test_recipes_on_the_pages_work(place):
    recipes = [(path, block) for path in PAGES for block in docs_commands.blocks(path, "yaml")]
    assert recipes
    for path, block in recipes:
        (place / "recipe.yaml").write_text(block)
        assert failure(("sasr", "compare", "--config", "recipe.yaml")) is None, f"{path.name}: {block}"


def test_flags_in_the_text_exist():
    known = known_flags()
    for path in PAGES:
        prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for code in re.findall(r"`([^`]+)`", prose):
            for flag in re.findall(r"(?<![\w-])--[a-z]\w+", code):
                assert flag in known, f"{path.name}: {flag}"
