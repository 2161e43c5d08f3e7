"""hpo/searchers.py: seeds, streams, finite spaces, bad input; GPSearch itself is in test_gp.py."""

import copy
import math
import random
import re

import numpy as np
import pytest

from hpo import choice, finrange, logordinal, lograndint, loguniform, ordinal, randint
from hpo.searchers import SEARCHERS, GPSearch, RandomSearch, Settings, find_searcher
from hpo.space import cast_config, config_key, reverseloguniform, uniform
from hpo.trial import Trial

SPACE = {
    "lr": loguniform(1e-6, 1), "epochs": 81, "momentum": reverseloguniform(0, 0.99),
    "n": randint(1, 9), "opt": choice(["adam", "sgd", None]), "options": {"a": [1, None]},
}  # fmt: skip
FINITE = {"n": randint(1, 3), "opt": choice(["a", 1, True, [1]]), "g": finrange(0, 1, 2), "c": {}}
LINE = {"x": uniform(0, 1)}


def run(searcher, n):
    """n suggestions in a row, each a trial's; fewer when the space is exhausted."""
    trials = []
    while len(trials) < n and (suggestion := searcher.suggest(trials)) is not None:
        trials.append(Trial(len(trials), *suggestion))
    return trials


def ended(*configs, status="done"):
    curves = [[(1, float(i))] for i in range(len(configs))]
    return [Trial(i, c, "a", 1, status, curves[i]) for i, c in enumerate(configs)]


def keys(trials):
    return {config_key(trial.config) for trial in trials}


# ---- A function of its arguments -----------------------------------------------------------------
@pytest.mark.parametrize("space", [SPACE, FINITE], ids=["infinite", "finite"])
def test_same_trials_and_seed_give_the_same_suggestion(space):
    """Whatever the global generators, what became of the trials, and when."""
    trials = run(RandomSearch(space, seed=7), 10)
    others = [Trial(t.id, t.config, "a", 2, "failed", [(1, 9.0)], "why", 5.0, 6.0) for t in trials]
    before = copy.deepcopy((space, trials))
    random.seed(1)
    np.random.seed(1)
    searcher = RandomSearch(space, seed=7, max_epochs=81)
    for n in (9, 0, 5, 5, 9):  # in any order, more than once
        assert searcher.suggest(trials[:n]) == (trials[n].config, "random")
        assert searcher.suggest(others[:n]) == (trials[n].config, "random")
    assert (space, trials) == before
    # other seeds, and other numbers of trials, give others
    trials = run(RandomSearch(SPACE), 3)
    searchers = [RandomSearch(SPACE, seed) for seed in (*range(19), 10**30)]
    suggested = [searcher.suggest(trials[:n])[0] for searcher in searchers for n in range(4)]
    assert len({config_key(config) for config in suggested}) == 80


# ---- What is suggested ---------------------------------------------------------------------------
def test_suggestions_have_the_distribution_of_the_space():
    """Through different streams, one for each suggestion: moments within four standard errors."""
    n, searcher = 2_000, RandomSearch({"u": uniform(0, 1), "v": uniform(0, 1)}, seed=1)
    trials, most = [Trial(i, {}, "random") for i in range(n)], 4 / math.sqrt(n)
    points = np.array([list(searcher.suggest(trials[:i])[0].values()) for i in range(n)])
    assert points.mean(axis=0) == pytest.approx([0.5, 0.5], abs=most / math.sqrt(12))
    assert points.var(axis=0) == pytest.approx([1 / 12] * 2, abs=most / math.sqrt(180))
    assert abs(np.corrcoef(points.T)[0, 1]) < most
    assert abs(np.corrcoef(points[1:, 0], points[:-1, 0])[0, 1]) < most  # of two streams


FINITE_SPACES = [
    (FINITE, 3 * 4 * 2),
    ({"a": choice(["x", "y"]), "b": uniform(0.5, 0.5)}, 2),
    ({"a": lograndint(1, 30), "b": logordinal([1, 1e3, 1e9])}, 90),  # some values are rare
    ({"b": ordinal([True, 1, 1.0, "1", None]), "a": choice([1, 1.0])}, 10),
]


@pytest.mark.parametrize("space, n", FINITE_SPACES)
def test_finite_space_gives_every_configuration_exactly_once(space, n):
    trials = run(RandomSearch(space, seed=5), n + 50)
    assert len(trials) == len(keys(trials)) == n
    assert all(cast_config(space, trial.config) == trial.config for trial in trials)
    left, *others = [trial.config for trial in trials]
    for status in ("running", "done", "failed", "stopped", "timeout", "interrupted"):
        assert RandomSearch(space).suggest(ended(*others, status=status)) == (left, "random")


@pytest.mark.parametrize("searcher", SEARCHERS.values())
def test_finite_space_is_drained_whatever_else_the_trials_have(searcher):
    """Such as a constant that has changed since, or a note."""
    searcher, trials = searcher({"n": randint(1, 3), "kind": choice(["a", "b"]), "epochs": 3}), []
    while (suggestion := searcher.suggest(trials)) is not None and len(trials) < 9:
        assert suggestion[0]["epochs"] == 3
        trials = ended(*(t.config for t in trials), {**suggestion[0], "epochs": 9, "note": "hi"})
    assert len(trials) == len(keys(trials)) == 6


def test_large_spaces_are_searched():
    """Without a duplicate, and without being listed: one has 2^1320 configurations."""
    integers = {f"x{i}": randint(0, 2**44) for i in range(30)}
    half_full = {"a": randint(1, 60), "b": choice([1, 2])}
    for space, n in ((half_full, 80), (SPACE, 99), (integers, 5), ({**integers, **LINE}, 5)):
        assert len(keys(run(RandomSearch(space), n))) == n


# ---- Bad input -----------------------------------------------------------------------------------
BAD = [
    (lambda: RandomSearch({"epochs": 81}), "nothing to tune"),
    (lambda: Settings(ridge=(0, 0)), "ridge: expected two numbers, a mean and a standard"),
    (lambda: Settings(clip=-1), "clip: expected a number, at least 0, got -1"),
    (lambda: find_searcher("bayes"), "expected random, gp, gp:SETTING=VALUE,... or FILE.py:CLASS"),
    (lambda: find_searcher("random:n=1"), "or FILE.py:CLASS, got 'random:n=1'"),
    (lambda: find_searcher("gp:n_initial=ten"), "gp:n_initial=ten: expected SETTING=VALUE"),
    (lambda: find_searcher("gp:n_intial=9"), "the settings of gp are n_initial, category_period"),
    (lambda: find_searcher("gp:n_initial=.5"), "n_initial: expected an integer, at least 1, got 0"),
]  # fmt: skip


@pytest.mark.parametrize("make, message", BAD, ids=[message for _, message in BAD])
def test_bad_argument_or_part_is_named_before_any_training(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_settings_are_part_of_a_name():
    kind = find_searcher("gp:n_initial=7,bowl=(0, 0.1)")
    assert issubclass(kind, GPSearch) and find_searcher("gp") is GPSearch
    assert kind.settings == Settings(n_initial=7, bowl=(0, 0.1)) != GPSearch.settings


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_losses_and_acquisitions_that_are_nan_are_errors():
    trials, searcher = ended(*({"x": i / 10} for i in range(9))), GPSearch(LINE)
    searcher.acquisition = lambda mu, sigma, best: mu * math.nan
    for words in ("scores: expected numbers, got NaN", "losses: expected finite numbers"):
        with pytest.raises(ValueError, match=words):
            searcher.suggest(trials)
        trials[3].curve = [(1, math.nan)]


@pytest.mark.parametrize("searcher", SEARCHERS.values())
@pytest.mark.parametrize("config", [{"n": 1}, {"n": 1, "kind": "c"}, {"n": 7, "kind": "a"}])
def test_trial_of_another_space_is_named(searcher, config):
    space = {"n": randint(1, 3), "kind": choice(["a", "b"])}
    bad = "n: expected a value of randint(1, 3), got 7" if config["n"] == 7 else "kind: expected"
    with pytest.raises(ValueError, match=re.escape(bad)):
        searcher(space).suggest(ended({"n": 1, "kind": "a"}, config))
