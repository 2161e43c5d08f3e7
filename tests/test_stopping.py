"""hpo/stopping.py: cases worked out by hand, and properties that hold whatever the curves."""

import math
from dataclasses import replace

import numpy as np
import pytest

from experiments.simulated import simulate
from hpo.results import Results, load
from hpo.searchers import RandomSearch
from hpo.space import uniform
from hpo.stopping import RECENT, RULES, asha, halving, loss_at_rung, median, with_options
from hpo.trial import Trial


def trial(i, losses, epochs=None, status="running"):
    """A trial that has reported the losses at epochs 1, 2, ... or at the given ones."""
    curve = list(zip(epochs or range(1, len(losses) + 1), losses))
    return Trial(i, {}, "random", status=status, curve=curve)


def asked(rule, trials, max_epochs=81, **options):
    """The rule's answer for the last of the trials."""
    return rule(trials[-1], trials, max_epochs, **options)


# ---- Successive halving -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "losses, stop",  # at epoch 1, in the order of arrival; the last is asked; ceil(n / 3) of n go on
    [
        ([9], False),
        ([1, 9], False),  # two are too few to judge
        ([1, 2, 3], True),
        ([1, 3, 2], True),
        ([2, 3, 1], False),
        ([1, 3, 4, 2], False),  # the second of four
        ([1, 2, 4, 3], True),
        ([1, 1, 1], False),  # ties go on
        ([1, 2, 1], False),
        ([1, 2, 3, 4, 5, 6, 2.5], False),  # the third of seven
        ([1, 2, 3, 4, 5, 6, 3.5], True),
    ],
)
def test_asha_goes_on_with_the_best_third_at_a_rung(losses, stop):
    assert asked(asha, [trial(i, [loss]) for i, loss in enumerate(losses)]) is stop


def test_asha_agrees_with_the_quantile():
    rng = np.random.default_rng(0)
    for n in range(3, 40):
        for eta in (2, 3, 4):
            losses = rng.integers(0, 12, n).astype(float)
            stop = asked(asha, [trial(i, [loss]) for i, loss in enumerate(losses)], eta=eta)
            if n >= eta:
                assert stop == (losses[-1] > np.quantile(losses, 1 / eta) + 1e-12)


def test_asha_decides_at_the_rungs_alone():
    """1, 3, 9, 27 of 81, and never at the last epoch; the hopeless trial is always the last."""
    others = [trial(i, [0.1] * 81) for i in range(9)]
    stops = [n for n in range(1, 82) if asked(asha, [*others, trial(9, [1.0] * n)])]
    assert stops == [1, 3, 9, 27]
    stops = [n for n in range(1, 82) if asked(asha, [*others, trial(9, [1.0] * n)], first_rung=2, eta=4)]
    assert stops == [2, 8, 32]
    stops = [n for n in range(1, 10) if asked(asha, [*others, trial(9, [1.0] * n)], max_epochs=9)]
    assert stops == [1, 3]


def test_asha_compares_the_best_so_far():
    others = [trial(i, [0.5, 0.5, 0.5]) for i in range(3)]
    assert not asked(asha, [*others, trial(3, [0.9, 0.4, 0.9])])
    assert asked(asha, [*others, trial(3, [0.9, 0.6, 0.55])])
    improved_later = [trial(i, [0.5, 0.5, 0.5, 0.1]) for i in range(3)]
    assert not asked(asha, [*improved_later, trial(3, [0.9, 0.4, 0.9])])  # what came after the rung does not count


def test_asha_counts_a_skipped_rung_at_the_highest_that_was_passed():
    skipper = trial(0, [0.3, 0.2], epochs=[5, 30])
    found = [loss_at_rung(skipper, rung, 1, 3) for rung in (1, 3, 9, 27)]
    assert found == [None, 0.3, None, 0.2]
    others = [trial(i, [0.1] * 9) for i in range(3)]
    assert asked(asha, [*others, trial(3, [0.5], epochs=[5])])  # judged at rung 3, at epoch 5
    assert not asked(asha, [*others, trial(3, [0.05, 0.5], epochs=[5, 6])])  # no rung between 5 and 6


def test_asha_counts_a_failed_trial_as_worst_where_it_was_going():
    crashed = trial(0, [0.1, 0.1], status="failed")  # passed rung 1, died on its way to 3
    assert [loss_at_rung(crashed, rung, 1, 3) for rung in (1, 3, 9)] == [0.1, math.inf, None]
    at_once = trial(0, [], status="failed")
    assert [loss_at_rung(at_once, rung, 1, 3) for rung in (1, 3)] == [math.inf, None]
    late = trial(0, [0.1] * 30, status="failed")
    assert [loss_at_rung(late, rung, 1, 3) for rung in (9, 27)] == [0.1, 0.1]
    crashes = [trial(i, [], status="failed") for i in range(6)]
    # with six crashes below it, even the third best of nine goes on
    assert not asked(asha, [*crashes, trial(6, [0.1]), trial(7, [0.2]), trial(8, [0.3])])
    assert asked(asha, [trial(6, [0.1]), trial(7, [0.2]), trial(8, [0.3])])
    running = [trial(i, []) for i in range(6)]  # a running trial that has not come there does not count
    assert asked(asha, [*running, trial(6, [0.1]), trial(7, [0.2]), trial(8, [0.3])])


def test_halving_reconsiders_who_came_to_a_rung_first():
    """A poor trial that met nobody at its rungs is ended once better ones have come there; asha trains it to the end."""
    first, alone = trial(0, [0.9] * 12), [trial(i, [0.5] * 3, status="stopped") for i in (1, 2, 3)]
    better = [trial(i, [0.2] * 9) for i in (4, 5, 6)]
    for n in (1, 3, 9):  # as asha where it is the last to come
        early = [trial(i, [0.5] * n) for i in range(3)]
        for loss in (0.4, 0.6):
            newcomer = trial(3, [loss] * n)
            assert asked(halving, [*early, newcomer]) is asked(asha, [*early, newcomer]) is (loss == 0.6)
    assert not halving(first, [first, *alone], 81)  # at rung 9 there is nobody else
    assert halving(first, [first, *alone, *better], 81) and not asha(first, [first, *alone, *better], 81)
    good = trial(7, [0.2] * 8 + [0.1] * 3)
    assert not halving(good, [*better, good], 81)
    assert not halving(trial(8, [0.9] * 81), [first, *better], 81)  # after the last epoch nothing is left to save


def test_halving_of_a_trial_whose_epochs_go_backwards_decides_nothing():
    others = [trial(i, [0.1] * 9) for i in range(4)]
    back = replace(trial(4, []), curve=[(10, 0.9), (20, 0.9), (5, 0.9)])
    assert not halving(back, [*others, back], 81)


# ---- Median -------------------------------------------------------------------------------------------------------------
def test_median_compares_the_best_so_far_with_the_median_of_running_averages():
    others = [trial(i, [a, b]) for i, (a, b) in enumerate([(1, 0), (2, 1), (3, 2), (4, 3), (9, 4)])]
    # running averages at epoch 2: 0.5, 1.5, 2.5, 3.5, 6.5; at epoch 1: 1, 2, 3, 4, 9
    assert not asked(median, [*others, trial(5, [9, 2.5])])
    assert asked(median, [*others, trial(5, [9, 2.6])])
    assert not asked(median, [*others, trial(5, [2.4, 9])])
    assert asked(median, [*others, trial(5, [3.1])]) and not asked(median, [*others, trial(5, [3])])


def test_median_has_a_grace_period_and_wants_company():
    others = [trial(i, [0.1] * 9) for i in range(5)]
    stops = [n for n in range(1, 10) if asked(median, [*others, trial(5, [1.0] * n)], max_epochs=9, first_rung=4)]
    assert stops == [4, 5, 6, 7, 8]  # not the last
    assert not asked(median, [*others[:4], trial(5, [1.0])])
    short = [trial(i, [0.1]) for i in range(5)]
    assert not asked(median, [*short, trial(5, [1.0, 1.0])])  # no other has come to epoch 2


# ---- Properties ---------------------------------------------------------------------------------------------------------
def random_trials(rng, n):
    statuses = ["running", "done", "stopped", "failed", "timeout"]
    return [
        trial(i, (rng.integers(0, 9, rng.integers(1, 30)) / 9).tolist(), status=str(rng.choice(statuses)))
        for i in range(n)
    ]


@pytest.mark.parametrize("rule", [median, asha, halving])
def test_rule_is_a_function_of_order_and_curves_alone(rule):
    """The best is never stopped; a change of unit or of order changes nothing; arguments stay as they are."""
    rng, n_stopped = np.random.default_rng(1), 0
    for _ in range(300):
        trials = random_trials(rng, 12)
        this = trials[0]
        this.status = "running"
        before = repr(trials)
        answer = rule(this, trials, 81)
        n_stopped += answer
        assert repr(trials) == before and answer == rule(this, trials, 81) and isinstance(answer, bool)
        shuffled = [trials[i] for i in rng.permutation(12)]
        assert rule(this, shuffled, 81) == answer
        for other in trials:
            other.curve = [(epoch, 4 * loss) for epoch, loss in other.curve]
        assert rule(this, trials, 81) == answer
        this.curve = [(epoch, -99.0) for epoch, _ in this.curve]
        assert not rule(this, trials, 81)
    assert n_stopped >= 5  # or nothing was tested


@pytest.mark.parametrize("rule", [median, asha, halving])
def test_a_decision_looks_back_on_the_recent_trials_alone(rule):
    """So its time does not grow with the run; the trial itself may have started long before them."""
    losses = [0.5, *[0.9] * 3 * RECENT, *[0.1] * RECENT]
    trials = [trial(i, [loss] * 9) for i, loss in enumerate(losses)]
    assert rule(trials[0], trials, 81)  # three quarters of all are worse, the recent ones better
    assert not rule(trials[0], trials[:-RECENT], 81)


def test_options_go_to_the_rules_that_have_them():
    trials = [*[trial(i, [0.1] * 9) for i in range(5)], trial(5, [1.0, 1.0])]
    options = {"first_rung": 2, "eta": 4}
    assert with_options(asha, **options)(trials[-1], trials, 81)
    assert with_options(median, **options)(trials[-1], trials, 81)
    assert with_options(lambda trial, trials, max_epochs: True, **options)(trials[-1], trials, 81)
    assert set(RULES) == {"none", "median", "asha", "halving"} and RULES["none"] is None


# ---- In a run -----------------------------------------------------------------------------------------------------------
SPACE = {"x": uniform(0, 1), "epochs": 27}


def curve(config, rng):
    for epoch in range(1, 28):
        yield rng.lognormal(0, 0.5), {"epoch": epoch, "loss": config["x"] + 1 / epoch + 0.05 * rng.normal()}


def test_asha_trains_less_and_finds_the_same():
    def run(rule):
        return simulate(RandomSearch(SPACE), SPACE, curve, n_workers=4, n_trials=81, rule=rule, max_epochs=27)

    full, halved = run(None), run(asha)
    n_epochs = [sum(trial.n_epochs for trial in trials) for trials in (full, halved)]
    assert n_epochs[0] == 81 * 27 and n_epochs[1] < n_epochs[0] / 3
    assert {trial.status for trial in halved} == {"done", "stopped"}
    best = min(full, key=lambda trial: trial.value)
    assert min(trial.value for trial in halved) < best.value + 0.1
    assert {trial.n_epochs for trial in halved if trial.status == "stopped"} == {1, 3, 9}


@pytest.mark.parametrize("rule", [asha, halving, median])
def test_every_decision_can_be_recomputed_from_the_folder(tmp_path, rule):
    """Each report in its order, with what had been reported before it."""
    from experiments.simulated import SimulatedBackend
    from hpo.tuner import Tuner

    results = Results.create(tmp_path / "run", SPACE, "loss", "min", {})
    tuner = Tuner(
        SPACE, RandomSearch(SPACE), SimulatedBackend(curve), results, n_workers=4, n_trials=40, rule=rule, max_epochs=27
    )
    tuner.run()
    results.close()
    final = {trial.id: trial for trial in load(tmp_path / "run")}
    so_far = {i: Trial(i, other.config, other.origin) for i, other in final.items()}
    n_stops = 0
    for line in (tmp_path / "run" / "reports.csv").read_text().splitlines()[1:]:
        i, epoch, loss = (float(line.split(",")[k]) for k in (0, 2, 4))
        this = so_far[int(i)]
        this.curve.append((int(epoch), loss))
        stop = rule(this, list(so_far.values()), 27) and epoch < 27
        was_last = len(this.curve) == len(final[this.id].curve)
        assert stop == (was_last and final[this.id].status == "stopped")
        n_stops += stop
    assert n_stops > 10
