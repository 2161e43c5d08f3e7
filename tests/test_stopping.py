"""hpo/stopping.py: cases worked out by hand, and properties that hold whatever the curves."""

from functools import partial

import numpy as np
import pytest

from hpo.stopping import asha, halving, median, with_options
from hpo.trial import Trial


def trial(i, losses, epochs=None, status="running"):
    """A trial that has reported the losses at epochs 1, 2, ... or at the given ones."""
    curve = list(zip(epochs or range(1, len(losses) + 1), losses))
    return Trial(i, {}, "random", status=status, curve=curve)


def asked(rule, *curves, max_epochs=81, **options):
    """The rule's answer for the last of the curves, each a list of losses or a trial."""
    trials = [c if isinstance(c, Trial) else trial(i, c) for i, c in enumerate(curves)]
    return rule(trials[-1], trials, max_epochs, **options)


# ---- Successive halving --------------------------------------------------------------------------
def test_asha_goes_on_up_to_the_quantile():
    """At epoch 1, in the order of arrival. Of two the worse one ends, and ties go on."""
    rng = np.random.default_rng(0)
    for n in range(1, 40):
        for eta in (2, 3, 4):
            losses = rng.integers(0, 12, n).astype(float)
            is_worse = losses[-1] > np.quantile(losses, 1 / eta) + 1e-12
            assert asked(asha, *([loss] for loss in losses), eta=eta) == is_worse


@pytest.mark.parametrize(
    ("options", "rungs"),
    [({}, [1, 3, 9, 27]), ({"first_rung": 2, "eta": 4}, [2, 8, 32]), ({"max_epochs": 9}, [1, 3])],
)
def test_asha_decides_at_the_rungs_alone_and_never_at_the_last_epoch(options, rungs):
    poor = [(n, [[0.1] * 81] * 9 + [[1.0] * n]) for n in range(1, 82)]
    assert [n for n, curves in poor if asked(asha, *curves, **options)] == rungs


def test_asha_in_cases_worked_out_by_hand():
    others = [[0.5, 0.5, 0.5, 0.1]] * 3  # what came after rung 3 does not count
    assert not asked(asha, *others, [0.9, 0.4, 0.9]) and asked(asha, *others, [0.9, 0.6, 0.55])
    assert asked(asha, *others, trial(3, [0.6], [5]))  # at rung 3
    assert not asked(asha, *others, trial(3, [0.05, 0.6], [5, 6]))  # no rung between 5 and 6
    skipped = [trial(i, [0.1], [5]) for i in range(3)]  # these count at rung 3 alone
    assert not asked(asha, *skipped, [0.9]) and asked(asha, *skipped, [0.9] * 3)
    # trials that crash count as the worst at the rung that they were on their way to
    for n, losses, is_worse in ((1, [], False), (3, [0.1], False), (9, [0.1], True)):
        crashes = [trial(i, losses, status="failed") for i in range(6)]
        three = [trial(i, [loss] * n) for i, loss in zip((6, 7, 8), (0.1, 0.2, 0.3))]
        assert asked(asha, *three) and asked(asha, *crashes, *three) == is_worse  # third of nine


def test_halving_reconsiders_who_came_to_a_rung_first():
    first, better = [0.9] * 12, [[0.2] * 9] * 3
    for n in (1, 3, 9):  # as asha for the last to come
        for loss in (0.4, 0.6):
            curves = [[0.5] * n] * 3 + [[loss] * n]
            assert asked(halving, *curves) is asked(asha, *curves) is (loss == 0.6)
    assert not asked(halving, *[[0.5] * 3] * 3, first)  # nobody else is at rung 9
    assert asked(halving, *better, first) and not asked(asha, *better, first)
    assert not asked(halving, *better, [0.2] * 8 + [0.1] * 3)
    assert not asked(halving, *better, [0.9] * 81)  # nothing is left to save
    assert not asked(halving, *better, trial(4, [0.9] * 3, [10, 20, 5]))  # backwards


@pytest.mark.parametrize("rule", [asha, halving])
def test_one_trial_in_as_many_as_there_are_epochs_is_never_stopped(rule):
    others = [trial(i, [0.1] * 9) for i in range(200, 206)]
    for options, free in (({}, [80, 161]), ({"max_epochs": 9, "first_rung": 2}, range(4, 162, 5))):
        for i in range(162):
            poor = trial(i, [0.9] * options.get("first_rung", 1))
            assert asked(rule, *others, poor, **options) == (i not in free)
    two = [others[0], trial(8, [0.5])]  # of two the worse one ends, but a free one counts
    assert asked(rule, *two, eta=2) and not asked(rule, trial(80, [0.9]), *two, eta=2)


# ---- Median --------------------------------------------------------------------------------------
def test_median_compares_the_best_loss_with_the_median_of_running_means():
    others = [[1, 0], [2, 1], [3, 2], [4, 3], [9, 4]]
    # means at epoch 2: 0.5, 1.5, 2.5, 3.5, 6.5; at epoch 1: 1, 2, 3, 4, 9
    for losses, stop in (([9, 2.5], 0), ([9, 2.6], 1), ([2.4, 9], 0), ([3.1], 1), ([3], 0)):
        assert asked(median, *others, losses) == stop
    assert not asked(median, *others[:4], [9.0])  # four are too few
    assert not asked(median, *others, [9.0] * 3)  # none has come to epoch 3
    for n in range(1, 10):  # not before epoch 4, nor after the last
        curves = [[0.1] * 9] * 5 + [[1.0] * n]
        assert asked(median, *curves, max_epochs=9, first_rung=4) == (4 <= n <= 8)


# ---- Properties ----------------------------------------------------------------------------------
@pytest.mark.parametrize("rule", [median, asha, halving])
def test_rule_is_a_function_of_the_curves_alone(rule):
    """The best is never stopped; units and order change nothing; arguments stay as they are."""
    rng, n_stopped = np.random.default_rng(1), 0
    for _ in range(150):
        curves = [(rng.integers(0, 9, rng.integers(1, 30)) / 9).tolist() for _ in range(12)]
        statuses = rng.choice(["running", "done", "stopped", "failed", "interrupted"], 12)
        trials = [trial(i, c, status=s) for i, (c, s) in enumerate(zip(curves, statuses))]
        before = repr(trials)
        answer = rule(trials[0], trials, 81)
        n_stopped += answer
        assert repr(trials) == before and isinstance(answer, bool)
        assert rule(trials[0], [trials[i] for i in rng.permutation(12)], 81) == answer
        others = [trial(t.id, [4 * y for _, y in t.curve], status=t.status) for t in trials]
        assert rule(others[0], others, 81) == answer
        others[0] = trial(0, [-99.0] * len(curves[0]))
        assert not rule(others[0], others, 81)
    assert n_stopped >= 5  # or nothing was tested


def test_options_go_to_the_rules_that_have_them():
    for rule in (asha, median, lambda trial, trials, max_epochs: True):
        assert asked(with_options(rule, first_rung=2, eta=4), *[[0.1] * 9] * 5, [1.0, 1.0])
    assert not asked(with_options(median, first_rung=3, eta=4), *[[0.1] * 9] * 5, [1.0, 1.0])
    own = with_options(partial(halving, eta=9), first_rung=2, eta=4)
    assert own.keywords == {"eta": 9, "first_rung": 2}
