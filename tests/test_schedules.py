"""The rules, by hand-computed numbers and by property; no torch."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy
from sasr.schedules import (
    R3,
    SCHEDULES,
    Alternate,
    ChordMu,
    ChordPhi,
    Cosine,
    Grpo,
    Hpt,
    Luffy,
    Random,
    Relift,
    Sasr,
    Sft,
    Signals,
    Srft,
    Static,
    StepPlan,
    Uft,
    coin,
    decide,
    draw,
)  # fmt: skip
from sasr.schedules.cosine import cosine_share
from sasr.signals import SignalTracker

norms = st.floats(0, 1e6, allow_nan=False)
positive = st.floats(1e-6, 1e6)


paper = partial(Sasr, gamma_schedule="constant")


def signals(step=10, u=0.5, last=1.0, warmup=1.0, divergence=None, warmup_steps=5) -> Signals:
    return Signals(step, 100, warmup_steps, u, last, warmup, divergence)


@pytest.mark.parametrize(
    ("rule", "last", "warmup", "divergence", "expected"),
    [
        (paper(), 1.0, 1.0, None, 0.5),
        (paper(gamma=3.0), 1.0, 1.0, None, 0.25),  # 1 / (1 + gamma)
        (paper(), 0.5, 2.0, None, 0.2),  # 0.5 / (0.5 + 2)
        (paper(gamma=0.5), 3.0, 2.0, None, 0.75),  # 3 / (3 + 0.5 * 2)
        (paper(divergence_weight=0.5, divergence_target=0.1), 1.0, 2.0, 0.3, 1.75 / 2.75),  # s = .5 * .5 + .5 * 3
        (paper(divergence_weight=1.0, divergence_target=0.2), 9.0, 1.0, 0.1, 0.5 / 1.5),  # the norm has no weight
        (paper(divergence_weight=1.0, divergence_target=0.2), None, None, 0.2, 0.5),
        (paper(divergence_weight=0.5), 1.0, 1.0, -0.01, 0.5 / 1.5),  # a noisy estimate below 0 counts as 0
        (paper(), 0.0, 1.0, None, 0.0),
        (paper(), 1.0, 0.0, None, 1.0),  # the limit of a vanishing warm-up norm
        (paper(), 0.0, 0.0, None, 0.0),
    ],
)
def test_sasr_probability_by_hand(rule, last, warmup, divergence, expected):
    plan = rule.plan(signals(last=last, warmup=warmup, divergence=divergence))
    assert plan.sft_probability == pytest.approx(expected, rel=1e-12)


@given(last=norms, warmup=positive, gamma=positive)
def test_zero_divergence_weight_is_the_gradient_norm_rule(last, warmup, gamma):
    """s / (s + gamma) with s = g / g_w is g / (g + gamma * g_w)."""
    p = paper(gamma).probability(signals(last=last, warmup=warmup, divergence=7.0))
    assert p == pytest.approx(last / (last + gamma * warmup), rel=1e-9)
    assert 0 <= p <= 1


@given(low=norms, high=norms, warmup=positive, gamma=positive, d=st.floats(0, 10), w=st.floats(0, 0.99))
def test_probability_grows_with_the_norm_and_with_the_divergence(low, high, warmup, gamma, d, w):
    low, high = sorted((low, high))
    rule = paper(gamma, divergence_weight=w)
    assert rule.probability(signals(last=low, warmup=warmup, divergence=d)) <= rule.probability(
        signals(last=high, warmup=warmup, divergence=d)
    )
    assert rule.probability(signals(last=low, warmup=warmup, divergence=d)) <= rule.probability(
        signals(last=low, warmup=warmup, divergence=d + 1)
    )


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(0.1, 10), st.integers(10, 109))
def test_the_cosine_multiplies_the_odds(last, warmup, gamma, step):
    """p / (1 - p) is that of the constant rule times that of the cosine schedule."""
    signals = Signals(step, 110, 10, 0.5, sft_grad_norm=last, warmup_grad_norm=warmup)
    rule = Sasr(gamma=gamma)
    c, p = Cosine().plan(signals).sft_probability, paper(gamma=gamma).probability(signals)
    assert rule.probability(signals) == pytest.approx(p * c / (p * c + (1 - p) * (1 - c)), rel=1e-9)


def test_the_cosine_begins_with_sft_and_ends_with_grpo():
    rule = Sasr()
    shares = [
        rule.probability(Signals(step, 110, 10, 0.5, sft_grad_norm=1.0, warmup_grad_norm=1.0))
        for step in range(10, 110)
    ]
    assert shares[0] == 1.0 and shares[-1] < 1e-3 and shares == sorted(shares, reverse=True)
    assert sum(shares) / 100 == pytest.approx(0.5, abs=0.01)
    done = Signals(10, 110, 10, 0.5, sft_grad_norm=0.0, warmup_grad_norm=1.0)
    assert rule.probability(done) == 0.0, "SFT has nothing more to give"
    assert rule.needs_progress and not paper().needs_progress


@given(st.floats(1e-3, 1e3), st.floats(0, 100), st.floats(0.1, 100))
def test_repeated_demonstrations_wear_out(last, passes, useful):
    """The odds fall to 1/e with so many passes, whatever they were; without the setting they stay."""
    fresh = Signals(20, 110, 10, 0.5, sft_grad_norm=last, warmup_grad_norm=1.0)
    worn = replace(fresh, passes=passes)
    for pull in ("cosine", "constant"):
        before = Sasr(gamma_schedule=pull, useful_passes=useful).probability(fresh)
        after = Sasr(gamma_schedule=pull, useful_passes=useful).probability(worn)
        odds = before / (1 - before) * math.exp(-passes / useful)
        assert after == pytest.approx(odds / (1 + odds), rel=1e-6)
        assert Sasr(gamma_schedule=pull, useful_passes=0).probability(worn) == before


@given(st.integers(10, 200), st.floats(0, 1))
def test_progress_is_that_of_what_ends_the_run_first(step, spent):
    progress = Signals(step, 110, 10, 0.5, spent=spent).progress
    assert progress == min(max((step - 10) / 100, spent), 1.0)


def test_a_norm_that_was_never_measured_is_an_error_not_pure_grpo():
    with pytest.raises(ValueError, match="no SFT gradient norm was measured"):
        paper().plan(signals(last=None, warmup=None))
    with pytest.raises(ValueError, match="no divergence was measured"):
        paper(divergence_weight=0.5).plan(signals(divergence=None))


def test_draws_are_uniform_and_a_function_of_seed_and_step():
    draws = [draw(1, step) for step in range(4000)]
    assert draws == [draw(1, step) for step in range(4000)]
    assert draws[:20] != [draw(2, step) for step in range(20)]
    assert abs(sum(draws) / len(draws) - 0.5) < 0.02
    for p in (0.1, 0.35, 0.9):
        share = sum(coin(p, signals(u=u)).sft_weight for u in draws) / len(draws)
        assert abs(share - p) < 0.03


@given(seed=st.integers(0, 2**32), step=st.integers(0, 10**6))
def test_draw_is_in_the_unit_interval(seed, step):
    assert 0 <= draw(seed, step) < 1


@given(step=st.integers(0, 99), u=st.floats(0, 0.999), warmup_steps=st.integers(1, 50))
def test_every_schedule_begins_with_the_warmup(step, u, warmup_steps):
    for name, (cls, _) in SCHEDULES.items():
        rule = cls(switch_step=60) if name == "static" else cls()
        plan = decide(rule, signals(step, u, warmup_steps=warmup_steps))
        if step < warmup_steps:
            assert plan == StepPlan(1.0, 0.0, 1.0)
        sft, grpo = rule.uses(warmup_steps, 100)
        assert not (plan.sft_weight and not sft) and not (plan.grpo_weight and not grpo)


def test_static_switches_once():
    kinds = [decide(Static(switch_step=8), signals(step)).kind for step in range(12)]
    assert kinds == ["sft"] * 8 + ["grpo"] * 4
    assert {decide(Sft(), signals(step)).kind for step in range(12)} == {"sft"}
    assert [decide(Grpo(), signals(step)).kind for step in range(12)] == ["sft"] * 5 + ["grpo"] * 7


def test_alternate_takes_turns():
    kinds = [decide(Alternate(), signals(step)).kind for step in range(10)]
    assert kinds == ["sft"] * 5 + ["grpo", "sft", "grpo", "sft", "grpo"]


@pytest.mark.parametrize(
    ("step", "expected"),
    [(20, 1.0), (40, (1 + math.cos(math.pi / 4)) / 2), (60, 0.5), (80, (1 - math.cos(math.pi / 4)) / 2)],
)
def test_cosine_by_hand(step, expected):
    """80 steps after a warm-up of 20: a quarter, half and three quarters of the way."""
    plan = Cosine().plan(signals(step, warmup_steps=20))
    assert plan.sft_probability == pytest.approx(expected, rel=1e-12)


def test_cosine_is_half_sft():
    plans = [Cosine().plan(signals(step, draw(3, step), warmup_steps=20)) for step in range(20, 100)]
    assert sum(plan.sft_probability for plan in plans) / 80 == pytest.approx(0.5, abs=0.01)
    assert [plan.sft_weight for plan in plans] == [
        float(draw(3, 20 + i) < p.sft_probability) for i, p in enumerate(plans)
    ]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_random_looks_at_no_signal(share):
    plans = {Random(share).plan(signals(u=0.2, last=last)) for last in (0.0, 1.0, 100.0)}
    assert plans == {StepPlan(float(share > 0.2), float(share <= 0.2), share)}
    assert Random(share).uses(0, 10) == (share > 0, share < 1)


@pytest.mark.parametrize(
    ("step", "mu"), [(5, 0.9), (105, 0.475), (55, 0.05 + 0.85 * 0.8535533905932737), (205, 0.05), (5000, 0.05)]
)
def test_chord_mu_by_hand(step, mu):
    """peak .9 to valley .05 over 200 steps after a warm-up of 5; halfway (.9 + .05) / 2; the weights sum to 1."""
    plan = ChordMu().plan(signals(step))
    assert (plan.sft_weight, plan.grpo_weight) == (pytest.approx(mu), pytest.approx(1 - mu))
    assert plan.kind == "both"


def test_chord_phi_is_a_constant_mixture_with_weighted_tokens():
    assert ChordPhi().plan(signals(step=5)) == ChordPhi().plan(signals(step=90))
    assert ChordPhi(0.2).plan(signals()) == StepPlan(0.2, 0.8, 0.2, token_weight="phi")


def test_hpt_asks_for_both_losses_and_hands_its_gate_on():
    assert Hpt().plan(signals()) == StepPlan(1.0, 1.0, 0.5, demonstrations="gated", gate=0)
    assert Hpt(2).plan(signals(step=90)) == StepPlan(1.0, 1.0, 0.5, demonstrations="gated", gate=2)


@pytest.mark.parametrize(("waiting", "kind"), [(0.0, "grpo"), (0.99, "grpo"), (1.0, "sft"), (3.5, "sft")])
def test_relift_studies_as_soon_as_a_batch_is_full(waiting, kind):
    plan = Relift().plan(Signals(10, 100, 5, 0.5, failed_batches=waiting))
    assert plan.kind == kind
    assert plan.sft_probability == float(kind == "sft")
    assert plan.demonstrations == ("failed" if kind == "sft" else "all")


def test_luffy_pools_the_tokens_and_shapes_the_ratio():
    plan = Luffy(0.3).plan(signals())
    assert (plan.sft_weight, plan.grpo_weight, plan.demonstrations, plan.pooled) == (1.0, 1.0, "group", True)
    assert (plan.token_weight, plan.token_parameter, plan.positive_weight) == ("shaped_ratio", 0.3, 1.0)
    assert Luffy().plan(signals()).token_parameter == 0.1


@pytest.mark.parametrize(
    ("entropy", "sft", "positive"),
    [(0.0, 0.5, 0.1), (math.log(2), 0.25, 0.2), (math.log(10), 0.05, 1.0), (None, 0.5, 0.1)],
)
def test_srft_weights_by_hand(entropy, sft, positive):
    """exp(-H) / 2 and exp(H) / 10; the share of SFT is w / (1 + w)."""
    plan = Srft().plan(Signals(10, 100, 5, 0.5, entropy=entropy))
    assert (plan.sft_weight, plan.grpo_weight, plan.demonstrations, plan.pooled) == (1.0, 1.0, "group", False)
    assert plan.token_weight == "sft_and_ratio"
    assert plan.token_parameter == pytest.approx(sft, rel=1e-12)
    assert plan.positive_weight == pytest.approx(positive, rel=1e-12)
    assert plan.sft_probability == pytest.approx(sft / (1 + sft), rel=1e-12)


def test_r3_leaves_the_stage_to_each_question():
    assert R3().plan(signals(u=0.3)) == StepPlan(0.0, 1.0, 0.0, demonstrations="hints", hint=None)


@pytest.mark.parametrize(
    ("t", "p"),
    [
        (0, 0.05 + 0.45 * (1 + math.sqrt(3) / 2)),  # cos(pi / 6)
        (1, 0.725),  # cos(pi / 3) = 1/2
        (2, 0.5),
        (3, 0.275),
        (5, 0.05),  # the last step with hints
    ],
)
def test_uft_hints_by_hand(t, p):
    """T = 6 steps from the end of a warm-up of 5: p = .05 + .9 (1 + cos(pi (t + 1) / 6)) / 2."""
    plan = Uft(hint_steps=6, hint_weight=0.25).plan(signals(step=5 + t))
    assert plan.hint == pytest.approx(p, rel=1e-12)
    assert plan == StepPlan(0.25, 1.0, 0.2, demonstrations="hints", hint=plan.hint)


@pytest.mark.parametrize("t", [6, 7, 90])
def test_uft_ends_as_grpo(t):
    assert Uft(hint_steps=6).plan(signals(step=5 + t)) == StepPlan(0.0, 1.0, 0.0)


def test_uft_without_likelihood_keeps_the_hints():
    plan = Uft(hint_steps=6, hint_weight=0.0).plan(signals())
    assert (plan.kind, plan.demonstrations) == ("grpo", "hints")


@pytest.mark.parametrize("rule", [Hpt(), Relift(), Luffy(), Srft(), Uft()])
def test_methods_need_both_kinds_of_data_unless_all_is_warmup(rule):
    assert [rule.uses(*steps) for steps in ((0, 10), (4, 10), (10, 10))] == [(True, True), (True, True), (True, False)]


def test_sasr_in_expectation_is_the_mixture_with_mu_equal_p():
    """E[step gradient] = p g_SFT + (1 - p) g_GRPO, over the draws, for any two gradients."""
    rule, g_sft, g_grpo = paper(gamma=0.7), 3.0, -1.0
    plans = [rule.plan(signals(u=draw(0, step), last=1.3, warmup=1.0)) for step in range(20_000)]
    mean = sum(plan.sft_weight * g_sft + plan.grpo_weight * g_grpo for plan in plans) / len(plans)
    p = plans[0].sft_probability
    assert mean == pytest.approx(p * g_sft + (1 - p) * g_grpo, abs=0.05)


def observed(*values, **settings) -> SignalTracker:
    tracker = SignalTracker(warmup_steps=4, **settings)
    for step, value in enumerate(values):
        tracker.observe_sft_norm(step, value)
    return tracker


def test_warmup_norm_is_the_mean_over_its_last_half():
    tracker = observed(9.0, 8.0, 3.0, 5.0)
    assert tracker.warmup_grad_norm == 4.0
    assert observed(9.0, 8.0, 3.0, 5.0, warmup_norm="last").warmup_grad_norm == 5.0
    tracker.observe_sft_norm(7, 100.0)  # after the warm-up: only g_last moves
    assert (tracker.warmup_grad_norm, tracker.sft_grad_norm) == (4.0, 100.0)


@pytest.mark.parametrize("open_end", [False, True])
def test_the_first_norms_are_a_scale_that_does_not_depend_on_the_warmup(open_end):
    norms = [float(n) for n in range(40, 0, -1)]
    scales = set()
    for length in (10, 20, 40):
        tracker = SignalTracker(60 if open_end else length, "first", open_end=open_end)
        for step, norm in enumerate(norms[:length]):
            tracker.observe_sft_norm(step, norm)
        if open_end:
            assert tracker.warmup_grad_norm == sum(norms[:10]) / 10
            tracker.end_warmup(length)
        tracker.observe_sft_norm(length, 1e6)
        scales.add(tracker.warmup_grad_norm)
    assert scales == {sum(norms[:10]) / 10}
    assert observed(9.0, 8.0, math.nan, 4.0, warmup_norm="first").warmup_grad_norm == 7.0


def test_a_repeatable_part_below_0_leaves_a_pull(tmp_path):
    """Only another SFT step measures it again, so a pull of 0 would last for ever."""
    settings = {"sft_norm": "repeatable", "separate_optimizer_states": True}
    args = toy.settings(tmp_path, sft_warmup_steps=4, max_steps=50, **settings)
    tracker = args.build_tracker(args.build_warmup())
    for step, norm in enumerate((1.0, 1.0, -0.5, 1.0)):
        tracker.observe_sft_norm(step, norm)
        assert tracker.current_norm == max(norm, 0.0)
    for norm in (-0.1, 0.001):
        tracker.observe_sft_norm(5, norm)
        assert tracker.current_norm == 0.05 * tracker.warmup_grad_norm > 0
        assert Sasr().probability(tracker.signals(1, 10, 50)) > 0.01
    tracker.observe_sft_norm(6, 0.8)
    assert tracker.current_norm == 0.8
    args = toy.settings(tmp_path, sft_warmup_steps=4, max_steps=50)
    assert args.build_tracker(args.build_warmup()).least == 0, "of the batch's norm as the paper has it"


def test_a_warm_up_that_ended_at_no_gradient_leaves_the_cosine():
    late = Signals(step=109, total_steps=110, warmup_steps=10, draw=0.5, sft_grad_norm=1.0, warmup_grad_norm=0.0)
    assert Sasr().probability(late) == cosine_share(late) < 0.01
    assert Sasr(gamma_schedule="constant").probability(late) == 1.0
    none = replace(late, sft_grad_norm=0.0)
    assert Sasr().probability(none) == cosine_share(none) > 0 == Sasr(gamma_schedule="constant").probability(none)


def test_exponential_mean():
    assert observed(1.0, 2.0, 4.0, ema=0.5).sft_grad_norm == pytest.approx(0.5 * 1.5 + 0.5 * 4)


def test_non_finite_norms_are_ignored():
    tracker = observed(2.0, math.inf, math.nan, None)
    assert (tracker.sft_grad_norm, tracker.warmup_grad_norm) == (2.0, 2.0)  # an earlier one, if the last half had none
    assert observed(2.0, math.inf, math.nan, None, warmup_norm="last").warmup_grad_norm == 2.0
    assert observed(math.nan, math.nan).sft_grad_norm is None
    tracker.observe_divergence(math.nan)
    assert tracker.divergence is None


def test_signals_hide_the_warmup_norm_during_the_warmup():
    tracker = observed(2.0, 3.0)
    assert tracker.signals(0, 2, 10).warmup_grad_norm is None
    assert tracker.signals(0, 4, 10).warmup_grad_norm == 3.0


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=20), st.floats(0, 0.99))
def test_tracker_state_round_trip(values, ema):
    tracker = SignalTracker(8, ema=ema)
    for step, value in enumerate(values):
        tracker.observe_sft_norm(step, value)
    other = SignalTracker(8, ema=ema)
    other.load_state_dict(tracker.state_dict())
    assert other == tracker


def test_schedules_need_no_torch():
    """They are to run by the thousand, and inside other frameworks."""
    code = "import sys, sasr.schedules, sasr.signals; sys.exit('torch' in sys.modules or 'trl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
