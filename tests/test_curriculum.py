"""The curriculum: which levels are drawn, by hand, by property and through the trainer."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import toy
from sasr import InputError
from sasr.curriculum import Curriculum, Levels, LevelStream, SuccessRates, harder_than_shown, level_of
from sasr.schedules import Grpo

rows_with_levels = st.dictionaries(st.integers(0, 200), st.integers(1, 5).map(float), min_size=1, max_size=60)
two_levels = rows_with_levels.filter(lambda rows: len(set(rows.values())) > 1)


def curriculum(mode: str, sizes: dict[int, int]) -> Curriculum:
    levels = [float(level) for level, size in sizes.items() for _ in range(size)]
    rows = dict(enumerate(levels))
    return Curriculum(mode, Levels(rows), rows, seed=3)


# ---- success rates ----


def test_success_rates_by_hand():
    rates = SuccessRates([1.0, 2.0])
    assert rates.rate(1.0) == rates.rate(2.0) == 0.5
    rates.observe(1.0, 1.0)
    rates.observe(1.0, 0.25)
    assert rates.rate(1.0) == pytest.approx((0.95 * 1 + 0.25 + 1) / (0.95 * 1 + 1 + 2))
    assert rates.rate(2.0) == 0.5


@given(st.lists(st.floats(0, 1), max_size=300))
def test_a_success_rate_is_never_certain(shares):
    rates = SuccessRates([0.0])
    for share in shares:
        rates.observe(0.0, share)
    assert 0.04 < rates.rate(0.0) < 0.96, "so that no level has weight 0"


def test_a_success_rate_follows_what_changes():
    rates = SuccessRates([0.0])
    for share in [0.0] * 100 + [1.0] * 60:
        rates.observe(0.0, share)
    assert rates.rate(0.0) > 0.9


def test_levels_go_on_from_another_run_that_knows_fewer():
    levels, others = Levels({0: 1.0, 1: 2.0}), Levels({0: 1.0, 1: 2.0}, [3.0])
    levels.observe(1, 1.0)
    levels.observe(7, 1.0)  # which has no level
    others.load_state_dict(json.loads(json.dumps(levels.state_dict())))
    assert others.success() == levels.success() | {3.0: 0.5} == {1.0: 0.5, 2.0: pytest.approx(2 / 3), 3.0: 0.5}
    assert Levels({}).success() == {} == Levels({i: float(i) for i in range(13)}).success(), "too many to look at"


def test_the_state_of_an_earlier_version():
    course = curriculum("adaptive", {1: 2, 2: 2})
    course.load_state_dict(course.state_dict() | {"rates": [[1.0, 2.0], [0.0, 3.0]]})
    assert course.levels.rates.sums == {1.0: (1.0, 2.0), 2.0: (0.0, 3.0)}


# ---- streams ----


@given(rows=rows_with_levels, takes=st.lists(st.integers(0, 20), max_size=6), seed=st.integers(0, 2**31))
def test_the_state_is_all_of_a_stream(rows, takes, seed):
    weights = {level: 1.0 + level for level in sorted(set(rows.values()))}
    whole = LevelStream(rows, seed).take(sum(takes), weights)
    stream, parts = LevelStream(rows, seed), []
    for count in takes:
        resumed = LevelStream(rows, seed)
        resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        part = stream.take(count, weights)
        assert resumed.take(count, weights) == part
        parts += part
    assert parts == whole and set(parts) <= set(rows)


def test_a_stream_draws_levels_in_proportion_and_passes_over_the_rows_of_each():
    stream = LevelStream({**{i: 1.0 for i in range(10)}, **{i: 2.0 for i in range(10, 50)}}, seed=5)
    drawn = stream.take(4000, {1.0: 0.75, 2.0: 0.25})
    easy = [i for i in drawn if i < 10]
    assert abs(len(easy) / 4000 - 0.75) < 0.03
    counts = Counter(easy)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_level_without_weight_is_not_drawn():
    stream = LevelStream({0: 1.0, 1: 2.0, 2: 3.0}, seed=0)
    assert set(stream.take(300, {1.0: 0.5, 2.0: 0.0, 3.0: 0.5})) == {0, 2}


def test_questions_and_demonstrations_are_drawn_apart():
    """With the same weights over the same rows SFT would follow the rollouts' questions."""
    course = curriculum("adaptive", {1: 10, 2: 30})
    assert course.questions.members == course.demonstrations.members
    assert course.take_questions(20, 0.0) != course.take_demonstrations(20, 0.0)


# ---- modes ----


def test_easy_to_hard_opens_one_level_in_each_equal_part():
    course = curriculum("easy_to_hard", {1: 10, 2: 30, 5: 60})
    shares = {p: course.weights(course.questions.sizes, p) for p in (0.0, 0.33, 0.34, 0.66, 0.67, 0.999)}
    assert shares[0.0] == shares[0.33] == {1.0: 1.0}
    assert shares[0.34] == shares[0.66] == {1.0: 0.25, 2.0: 0.75}
    assert shares[0.67] == shares[0.999] == pytest.approx({1.0: 0.1, 2.0: 0.3, 5.0: 0.6})


def test_adaptive_begins_with_all_rows_alike():
    course = curriculum("adaptive", {1: 10, 2: 30, 5: 60})
    assert course.weights(course.questions.sizes, 0.0) == pytest.approx({1.0: 0.1, 2.0: 0.3, 5.0: 0.6})


def test_adaptive_goes_where_half_succeed():
    course = curriculum("adaptive", {1: 50, 2: 50, 3: 50})
    for _ in range(400):
        for row, share in ((0, 1.0), (50, 0.5), (100, 0.0)):
            course.levels.observe(row, share)
    found = course.weights(course.questions.sizes, 0.0)
    assert found[2.0] > 0.6 and found[1.0] == pytest.approx(found[3.0])
    # s = 1 / 22 where nothing succeeds, since 20 questions count: 4 s (1 - s) = 0.1735
    learnable = 21 / 22 / 22 * 4
    assert found[3.0] == pytest.approx(0.8 * learnable / (1 + 2 * learnable) + 0.2 / 3, abs=1e-6)


@given(rows=two_levels, outcomes=st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1)), max_size=60),
       progress=st.floats(0, 1, exclude_max=True), mode=st.sampled_from(["easy_to_hard", "adaptive"]))  # fmt: skip
def test_weights_are_a_distribution_that_starves_no_open_level(rows, outcomes, progress, mode):
    course = Curriculum(mode, Levels(rows), rows, seed=1)
    for pick, share in outcomes:
        course.levels.observe(list(rows)[pick % len(rows)], share)
    sizes = course.questions.sizes
    found = course.weights(sizes, progress)
    assert math.isclose(sum(found.values()), 1)
    if mode == "adaptive":
        assert all(found[level] >= 0.2 * size / len(rows) for level, size in sizes.items())
    else:
        assert list(found) == sorted(sizes)[: len(found)] and min(found.values()) > 0


@settings(max_examples=30)
@given(rows=two_levels, outcomes=st.lists(st.floats(0, 1), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_a_curriculum_goes_on_from_its_state(rows, outcomes, seed):
    first = Curriculum("adaptive", Levels(rows), rows, seed)
    for share in outcomes:
        first.levels.observe(first.take_questions(1, 0.0)[0], share)
        first.take_demonstrations(2, 0.0)
    second = Curriculum("adaptive", Levels(rows), rows, seed)
    for part, other in ((second.levels, first.levels), (second, first)):
        part.load_state_dict(json.loads(json.dumps(other.state_dict())))
    assert first.take_questions(9, 0.5) == second.take_questions(9, 0.5)
    assert first.take_demonstrations(9, 0.5) == second.take_demonstrations(9, 0.5)


# ---- through the trainer ----


def test_easy_to_hard_in_a_run(tmp_path):
    """The warm-up takes rows as ever; then sums of one digit, then both."""
    trained = toy.trainer(tmp_path, schedule="alternate", curriculum="easy_to_hard", max_steps=14, sft_warmup_steps=4)
    plain = toy.trainer(tmp_path, schedule="alternate", max_steps=14, sft_warmup_steps=4)
    studied, asked = [], []
    take, questions = trained.take_demonstrations, trained.take_questions
    trained.take_demonstrations = lambda n: studied.append((trained.state.global_step, take(n))) or studied[-1][1]
    trained.take_questions = lambda n: asked.append((trained.state.global_step, questions(n))) or asked[-1][1]
    trained.train()
    assert [rows for step, rows in studied if step < 4] == [plain.sft_stream.take(8) for _ in range(4)]
    levels = trained.train_dataset["difficulty"]
    for found in (studied, asked):
        first, second = (
            {levels[row] for step, rows in found if step >= 4 and (step < 9) == early for row in rows}
            for early in (True, False)
        )
        assert first == {1} and 2 in second
    logged = toy.history(trained, "sasr/difficulty", "sasr/success/1", "sasr/success/2")[4:]
    assert logged[0] == (1.0, pytest.approx(1 / (1 + 0.95 + 2)), 0.5), "two questions that nobody solved"


def test_levels_open_in_parts_of_what_follows_the_warmup(tmp_path):
    trained = toy.trainer(tmp_path, schedule="alternate", curriculum="easy_to_hard", max_steps=14, sft_warmup_steps=10)
    trained.state.max_steps, found = 14, []  # as training sets it
    for step in (3, 10, 12, 13, 14):
        trained.state.global_step = step
        found.append(trained._progress)
    assert found[:4] == [0, 0, 0.5, 0.75] and 0.99 < found[4] < 1


@pytest.mark.parametrize(
    "settings", [{}, {"curriculum": "easy_to_hard"}, {"sft_questions": "failed"}, {"sft_norm_every": 1}]
)
def test_passes_count_what_was_studied_whatever_chose_it(tmp_path, settings):
    """And not what a probe looked at: 8 demonstrations of 24 a step."""
    trained = toy.trainer(tmp_path, schedule="random", sft_share=0.5, max_steps=14, sft_warmup_steps=4, **settings)
    signals, seen = trained.tracker.signals, []
    trained.tracker.signals = lambda *of, **more: seen.append(of[-1]) or signals(*of, **more)
    trained.train()
    kinds = [log["sasr/sft_weight"] for log in trained.state.log_history if "sasr/sft_weight" in log]
    assert 6 <= sum(kinds) <= 12, "SFT after the warm-up too, and GRPO"
    assert seen == pytest.approx([sum(kinds[:step]) / 3 for step in range(14)])


def test_adaptive_in_a_run_asks_what_half_of_the_rollouts_solve(tmp_path):
    """Half of the rollouts solve sums of one digit, a fifth of the rows; everybody solves those of two."""

    def rewards(completions, difficulty, **_):
        return [float(level == 2 or i % 2) for i, level in enumerate(difficulty)]

    trained = toy.trainer(
        tmp_path, schedule="grpo", sft_warmup_steps=0, curriculum="adaptive", rewards=rewards, max_steps=60,
        per_device_train_batch_size=16, max_completion_length=2,
    )  # fmt: skip
    plain = sum(level == 1 for level in trained.train_dataset["difficulty"]) / 24
    trained.train()
    log = toy.history(trained, "sasr/difficulty", "sasr/success/1", "sasr/success/2")
    assert log[-1][1] == pytest.approx(0.5) and log[-1][2] > 0.9
    late = [2 - difficulty for difficulty, _, _ in log[20:]]
    assert sum(late) / len(late) > plain + 0.2
    assert min(late) < 1, "the other level is asked too"


def only_easy_ones_shown() -> Dataset:
    return toy.rows().map(lambda row: {"completion": row["completion"] if row["difficulty"] == 1 else None})


def test_auto_is_adaptive_where_questions_are_harder_than_every_demonstration(tmp_path):
    def trajectory(curriculum: dict, data: Dataset) -> list[tuple]:
        number = len(list(tmp_path.iterdir()))
        trained = toy.trainer(tmp_path / str(number), data=data, schedule="alternate", **curriculum)
        trained.train()
        return toy.history(trained, "loss", "grad_norm", "reward", "sasr/difficulty")

    auto, adaptive, none = {}, {"curriculum": "adaptive"}, {"curriculum": "none"}
    harder, shown = only_easy_ones_shown(), toy.rows()
    assert trajectory(auto, harder) == trajectory(adaptive, harder) != trajectory(none, harder)
    assert trajectory(auto, shown) == trajectory(none, shown) != trajectory(adaptive, shown)


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"schedule": "grpo", "sft_warmup_steps": 0}, {}),  # nothing is studied
        ({"schedule": "alternate", "sft_warmup_steps": 0}, {"schedule": Grpo()}),  # nor by the rule itself
        ({"rollouts_ahead": 2}, {}),  # they cannot wait for the success of those before
        ({"curriculum": "none"}, {}),
        ({}, {"demonstration_dataset": toy.rows(6).remove_columns("difficulty")}),
    ],
    ids=["no SFT", "a rule without SFT", "rollouts ahead", "none", "demonstrations without difficulty"],
)
def test_auto_is_none_where_it_cannot_be_or_has_no_reason(tmp_path, change, more):
    assert toy.trainer(tmp_path, data=only_easy_ones_shown()).curriculum.mode == "adaptive"
    assert toy.trainer(tmp_path, data=only_easy_ones_shown(), **change, more=more).curriculum is None


@given(st.sets(st.integers(1, 9)), st.sets(st.integers(1, 9)))
def test_harder_than_shown(asked, shown):
    found = harder_than_shown(asked, shown)
    assert found == [level for level in range(1, 10) if level in asked and shown and all(level > s for s in shown)]


@given(st.integers(1, 400), st.integers(0, 400))
def test_a_rare_level_that_is_not_shown_is_no_reason(easy, hard):
    """As with 100 demonstrations of GSM8K, whose longest solutions are a few in a thousand."""
    found = harder_than_shown([8] * hard + [2] * easy, [2, 2])
    assert found == ([8] if hard and 9 * hard >= easy else [])


def test_success_by_difficulty_is_told_without_a_curriculum(tmp_path):
    def rewards(completions, difficulty, **_):
        return [float(level == 2) for level in difficulty]

    trained = toy.trainer(
        tmp_path / "levels", schedule="grpo", sft_warmup_steps=0, rewards=rewards, max_completion_length=2, max_steps=44
    )
    told = []
    trained.tell = told.append
    trained.train()
    log = toy.history(trained, "sasr/difficulty", "sasr/success/1", "sasr/success/2")
    assert log[-1][1] < 0.15 and log[-1][2] > 0.85
    (line,) = [line for line in told if "--curriculum adaptive" in line]
    assert "% of the rollouts are correct at difficulty 2, " in line and "% at 1, for 20 GRPO steps" in line
    plain = toy.trainer(tmp_path / "plain", data=toy.rows().remove_columns("difficulty"), max_steps=6)
    plain.train()
    assert not any("success" in key or key == "sasr/difficulty" for log in plain.state.log_history for key in log)


def test_rows_without_a_difficulty(tmp_path):
    with pytest.raises(InputError, match="row 1 has no difficulty: a curriculum needs one in every row"):
        toy.trainer(tmp_path, curriculum="adaptive", data=toy.rows().remove_columns("difficulty"))
    words = toy.rows().map(lambda row: {"difficulty": "hard"}, remove_columns="difficulty")
    with pytest.raises(InputError, match="row 1 has the difficulty 'hard', which is no number"):
        toy.trainer(tmp_path, curriculum="adaptive", data=words)
    alike = toy.rows().map(lambda row: {"difficulty": 3})
    with pytest.raises(InputError, match="all rows have difficulty 3: a curriculum needs two levels or more"):
        toy.trainer(tmp_path, curriculum="easy_to_hard", data=alike)
    separate = toy.rows(6).remove_columns("difficulty")
    with pytest.raises(InputError, match="row of the demonstrations 1 has no difficulty"):
        toy.trainer(tmp_path, curriculum="adaptive", more={"demonstration_dataset": separate})


def test_levels_may_be_written_as_text():
    assert [level_of(value, "row") for value in (2, 2.5, "3")] == [2.0, 2.5, 3.0]
    for value in (None, "", "nan", [], float("nan")):
        with pytest.raises(InputError):
            level_of(value, "row")
