"""hpo/searchers.py: a suggestion is a function of the trials and the seed alone; a finite space is listed exactly once."""

import copy
import itertools
import math
import random
import re

import numpy as np
import pytest

from hpo.searchers import SEARCHERS, GPSearch, Prior, RandomSearch, Settings
from hpo.space import (
    cast_config,
    choice,
    config_key,
    finrange,
    logordinal,
    lograndint,
    loguniform,
    ordinal,
    randint,
    reverseloguniform,
    uniform,
)
from hpo.trial import Trial

SPACE = {
    "lr": loguniform(1e-6, 1),
    "epochs": 81,
    "momentum": reverseloguniform(0, 0.99),
    "n": randint(1, 9),
    "opt": choice(["adam", "sgd", None]),
    "options": {"a": [1, None]},
}
FINITE = {
    "n": randint(1, 3),
    "opt": choice(["a", 1, True, [1]]),
    "constant": {"a": 1},
    "grid": finrange(0, 1, 2),
    "fixed": uniform(0.5, 0.5),
}


def trials_of(*configs, status="done"):
    return [Trial(i, config, "random", status=status, curve=[(1, 0.5)]) for i, config in enumerate(configs)]


def run(searcher, n, trials=()):
    """n suggestions in a row, each as the configuration of a trial; fewer when the space is exhausted."""
    trials = list(trials)
    for _ in range(n):
        suggestion = searcher.suggest(trials)
        if suggestion is None:
            break
        trials.append(Trial(len(trials), *suggestion))
    return trials


# ---- A function of its arguments ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("space", [SPACE, FINITE], ids=["infinite", "finite"])
def test_same_trials_and_seed_give_the_same_suggestion(space):
    trials = run(RandomSearch(space, seed=7), 10)
    assert len(trials) == 10
    searcher = RandomSearch(space, seed=7)
    for n in (9, 0, 5, 5, 9):  # in any order, more than once
        assert searcher.suggest(trials[:n]) == (trials[n].config, trials[n].origin)


def test_different_seeds_and_trials_give_different_suggestions():
    trials = run(RandomSearch(SPACE), 3)
    keys = {
        config_key(RandomSearch(SPACE, seed).suggest(trials[:n])[0])
        for seed, n in itertools.product(range(20), range(4))
    }
    assert len(keys) == 80


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 + 1])
def test_any_natural_seed_is_taken(seed):
    assert RandomSearch(SPACE, seed).suggest([]) == RandomSearch(SPACE, seed).suggest([])


def test_suggestion_depends_on_nothing_global():
    expected = RandomSearch(SPACE, 3).suggest([])
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]
    assert RandomSearch(SPACE, 3).suggest([]) == expected
    assert (random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]) == before


def test_times_and_outcomes_do_not_matter_to_random_search():
    trials = run(RandomSearch(FINITE), 5)
    others = [
        Trial(t.id, t.config, "model", 2, "failed", [(1, 9.0)], "why", started=5.0, ended=6.0, suggest_seconds=1.0)
        for t in trials
    ]
    assert RandomSearch(FINITE).suggest(trials) == RandomSearch(FINITE).suggest(others)


def test_suggest_leaves_its_arguments_alone():
    trials = run(RandomSearch(FINITE), 8)
    before, space = copy.deepcopy(trials), copy.deepcopy(FINITE)
    for n in range(len(trials) + 1):
        RandomSearch(FINITE).suggest(trials[:n])
    RandomSearch(FINITE).suggest(trials)
    assert trials == before and space == FINITE


def test_max_epochs_is_taken_and_ignored():
    assert RandomSearch(SPACE, seed=0, max_epochs=81).suggest([]) == RandomSearch(SPACE).suggest([])


# ---- What is suggested --------------------------------------------------------------------------------------------------
def test_suggestion_is_a_whole_configuration_of_exact_types():
    for trial in run(RandomSearch(SPACE), 200):
        assert trial.origin == "random" and list(trial.config) == list(SPACE)
        assert trial.config["epochs"] == 81 and trial.config["options"] == {"a": [1, None]}
        assert cast_config(SPACE, trial.config) == trial.config
        assert [type(v) for v in trial.config.values()][:4] == [float, int, float, int]


def test_suggestions_have_the_distribution_of_the_space():
    """Through different streams, one for each suggestion: moments within four standard errors."""
    n = 4_000
    searcher = RandomSearch({"u": uniform(0, 1), "v": uniform(0, 1)}, seed=1)
    trials, points = [], []
    for i in range(n):
        points.append(list(searcher.suggest(trials)[0].values()))
        trials.append(Trial(i, {}, "random"))
    points = np.array(points)
    assert points.shape == (n, 2)
    assert points.mean(axis=0) == pytest.approx([0.5, 0.5], abs=4 / math.sqrt(12 * n))
    assert points.var(axis=0) == pytest.approx([1 / 12] * 2, abs=4 / math.sqrt(180 * n))
    assert abs(np.corrcoef(points.T)[0, 1]) < 4 / math.sqrt(n)
    assert abs(np.corrcoef(points[1:, 0], points[:-1, 0])[0, 1]) < 4 / math.sqrt(n)  # from one stream to the next


@pytest.mark.parametrize(
    "space, n",
    [
        (FINITE, 3 * 4 * 2),
        ({"a": choice(["x"])}, 1),
        ({"a": randint(0, 99)}, 100),
        ({"a": lograndint(1, 60), "b": logordinal([1, 1e3, 1e9])}, 180),  # some values are rare
        ({"b": ordinal([True, 1, 1.0, "1", None]), "a": choice([1, 1.0])}, 10),
        ({"a": choice([[1], {"b": 1}]), "b": randint(0, 4), "c": None}, 10),
    ],
    ids=lambda value: str(value)[:40],
)
def test_finite_space_gives_every_configuration_exactly_once(space, n):
    trials = run(RandomSearch(space, seed=5), n + 50)
    assert len(trials) == n and len({config_key(trial.config) for trial in trials}) == n
    assert RandomSearch(space, seed=5).suggest(trials) is None
    for trial in trials:
        assert list(trial.config) == list(space) and cast_config(space, trial.config) == trial.config
        assert trial.origin == "random"


def test_configurations_of_every_origin_and_status_count_as_seen():
    (left, *others) = [trial.config for trial in run(RandomSearch(FINITE, seed=9), 99)]
    for status in ("running", "done", "failed", "stopped", "timeout"):
        assert RandomSearch(FINITE).suggest(trials_of(*others, status=status)) == (left, "random")
    assert RandomSearch(FINITE).suggest(trials_of(left, *others)) is None


def test_order_of_names_does_not_make_a_configuration_new():
    configs = [trial.config for trial in run(RandomSearch(FINITE), 99)]
    turned = [dict(reversed(config.items())) for config in configs]
    assert RandomSearch(FINITE).suggest(trials_of(*turned)) is None


def test_no_duplicates_in_a_large_space():
    trials = run(RandomSearch({"a": randint(0, 300), "b": choice([1, 2])}), 400)
    assert len({config_key(trial.config) for trial in trials}) == 400
    assert len({config_key(trial.config) for trial in run(RandomSearch(SPACE), 300)}) == 300


def test_last_configurations_are_drawn_evenly():
    """The list of what is left is drawn from at random, not read from its top: the last but one value of a long range."""
    space = {"a": randint(1, 2_000)}
    trials = [Trial(i, {"a": i + 1}, "random") for i in range(1_998)]
    drawn = [RandomSearch(space, seed).suggest(trials)[0]["a"] for seed in range(60)]
    assert set(drawn) == {1_999, 2_000} and 15 < drawn.count(1_999) < 45  # 30 expected, standard deviation 3.9


def test_many_integers_beside_a_float_are_searched():
    space = {**{f"x{i}": randint(0, 2**44) for i in range(30)}, "y": uniform(0, 1)}
    assert len(RandomSearch(space).suggest([])[0]) == 31


def test_large_finite_space_is_not_listed():
    """2^1320 configurations: it answers at once."""
    space = {f"x{i}": randint(0, 2**44) for i in range(30)}
    assert len(run(RandomSearch(space), 5)) == 5


def test_space_is_checked_at_construction():
    with pytest.raises(ValueError, match="nothing to tune"):
        RandomSearch({"epochs": 81})


def test_registry_names_the_searchers():
    assert SEARCHERS["random"] is RandomSearch
    for searcher_class in SEARCHERS.values():
        config, origin = searcher_class(SPACE, seed=0, max_epochs=81).suggest([])
        assert list(config) == list(SPACE) and isinstance(origin, str)


@pytest.mark.parametrize("searcher", [RandomSearch, GPSearch])
@pytest.mark.parametrize(
    "name, value", [("seed", -1), ("seed", "a"), ("seed", None), ("max_epochs", 0), ("max_epochs", 2.5)]
)
def test_bad_argument_is_named(searcher, name, value):
    with pytest.raises(ValueError, match=f"{name}: expected an integer, at least [01], got {value!r}"):
        searcher({"x": uniform(0, 1)}, **{name: value})


@pytest.mark.parametrize(
    "settings, message",
    [
        (lambda: Prior(bowl=0), "Prior.bowl: expected two numbers, mean and standard deviation, got 0"),
        (lambda: Prior(bowl=(0, -1)), "Prior.bowl: expected a standard deviation at least 0, got -1"),
        (lambda: Prior(ridge=(0, 0)), "Prior.ridge: expected a standard deviation above 0, got 0"),
        (lambda: Prior(additive=(math.nan, 1)), "Prior.additive: expected two numbers"),
        (lambda: Prior(lengthscale=("a", 1)), "Prior.lengthscale: expected two numbers"),
        (lambda: Settings(least=-1), "Settings.least: expected a number, at least 0, got -1"),
        (lambda: Settings(n_initial=0), "Settings.n_initial: expected an integer, at least 1, got 0"),
        (lambda: Settings(n_random=10.5), "Settings.n_random: expected an integer, at least 1, got 10.5"),
        (lambda: Settings(cost_power="a"), "Settings.cost_power: expected a number, at least 0, got 'a'"),
    ],
)
def test_bad_number_of_the_searcher_is_named(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        settings()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"settings": Settings}, "Mine.settings: expected Settings(...), got <class"),
        ({"prior": (0, 1)}, "Mine.prior: expected Prior(...), got (0, 1)"),
        (
            {"acquisition": staticmethod(lambda mu, sigma, best, noise: -mu.mean(axis=1))},
            "Mine.acquisition: expected shape (3, 2) or (3, 1) from arguments of shapes (3, 2), (3, 1), (2,), (), got (3,)",
        ),
        ({"acquisition": staticmethod(lambda mu, sigma, best, noise: None)}, "or (3, 1) from"),
        ({"acquisition": lambda mu, sigma, best, noise: -mu}, "5 were given (staticmethod forgotten?)"),
        ({"correlation": staticmethod(lambda a, decay: decay)}, "Mine.correlation: expected shape (2, 3, 2)"),
        ({"correlation": staticmethod(lambda a, decay: (decay.T, decay.T))}, "got (2, 2, 3)"),
    ],
)
def test_bad_part_of_a_subclass_is_named_before_any_training(part, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        type("Mine", (GPSearch,), part)({"x": uniform(0, 1)})


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 10**400, np.float32("inf"), "0.3", [0.3]])
def test_loss_that_is_no_number_is_an_error(loss):
    trials = [Trial(i, {"x": i / 10}, "random", status="done", curve=[(1, float(i))]) for i in range(9)]
    trials[6].curve = [(1, loss)]
    with pytest.raises(ValueError, match="trial 6: expected a curve .* of finite losses, or the status 'failed', got"):
        GPSearch({"x": uniform(0, 1)}).suggest(trials)
    trials[6].status = "failed"
    assert GPSearch({"x": uniform(0, 1)}).suggest(trials)[1] == "model"


@pytest.mark.parametrize("one", [10**30, np.float32(1), np.float16(1), np.int8(1)])
def test_losses_may_be_huge_integers_and_numbers_of_numpy(one):
    trials = [Trial(i, {"x": i / 10}, "random", status="done", curve=[(1, one * type(one)(i))]) for i in range(9)]
    assert GPSearch({"x": uniform(0, 1)}).suggest(trials)[1] == "model"


def test_an_id_that_comes_twice_is_an_error():
    trials = [Trial(i % 8, {"x": i / 10}, "random", status="done", curve=[(1, float(i))]) for i in range(9)]
    with pytest.raises(ValueError, match="trials: expected each with an id of its own"):
        GPSearch({"x": uniform(0, 1)}).suggest(trials)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_acquisition_that_is_nan_is_an_error():
    searcher = GPSearch({"x": uniform(0, 1)})
    searcher.acquisition = lambda mu, sigma, best, noise: mu * math.nan
    trials = [Trial(i, {"x": i / 10}, "random", status="done", curve=[(1, float(i))]) for i in range(9)]
    with pytest.raises(ValueError, match="scores: expected numbers, got NaN"):
        searcher.suggest(trials)


@pytest.mark.parametrize("searcher", [RandomSearch, GPSearch])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n": 1}, "trial 1: kind: expected"),
        ({"n": 1, "kind": "c"}, "trial 1: kind: expected"),
        ({"n": 7, "kind": "a"}, "trial 1: n: expected an integer in randint(1, 3), got 7"),
    ],
)
def test_trial_of_another_space_is_named(searcher, config, message):
    space = {"n": randint(1, 3), "kind": choice(["a", "b"])}
    trials = [
        Trial(i, c, "random", status="done", curve=[(1, 1.0)]) for i, c in enumerate([{"n": 1, "kind": "a"}, config])
    ]
    with pytest.raises(ValueError, match=re.escape(message)):
        searcher(space).suggest(trials)


@pytest.mark.parametrize("searcher", [RandomSearch, GPSearch])
def test_a_finite_space_is_drained_whatever_else_the_trials_have(searcher):
    """Such as a constant that has changed since, or a note."""
    searcher, trials = searcher({"n": randint(1, 3), "kind": choice(["a", "b"]), "epochs": 3}), []
    while (suggestion := searcher.suggest(trials)) is not None:
        assert suggestion[0]["epochs"] == 3
        config = {**suggestion[0], "epochs": 9, "note": "hi"}
        trials.append(Trial(len(trials), config, "random", status="done", curve=[(1, config["n"] ** 2.0)]))
        assert len(trials) <= 6
    assert len({(trial.config["n"], trial.config["kind"]) for trial in trials}) == 6
