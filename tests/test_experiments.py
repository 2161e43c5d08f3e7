"""experiments/: the problems and their optima, the comparison, the peers."""

import math
import zlib

import numpy as np
import pytest

from experiments import ablate, command, compare_searchers, peers, problems
from experiments.families import FAMILIES, generated
from experiments.problems import PROBLEMS
from experiments.simulated import simulate
from hpo.searchers import RandomSearch
from hpo.space import cast_config, choice, domains, middle, sample, uniform
from hpo.trial import Trial

SPACE = {"x": uniform(0, 1)}


# ---- The problems ----
ARGMINS = {  # textbook positions, or where every term of a formula vanishes
    "hartmann3": [0.11458885, 0.55564889, 0.85254698],
    "levy4": [-5.0, 2.0, 4.0, -3.0],
    "rosenbrock6": [1.0] * 6,
    "powell8": [1.0, -2.0, 2.5, -0.5, -1.5, 2.0, 0.5, -2.5],
    "warmup5": [1e-3, 100, 512, 8, "cosine"],
    "boosting8": [10**1.1 / 300, 300, 5, 0.75, 0.45, 5, 1.0, 1e-4],
    "kernels7": ["rbf", "standard", 10.0, 0.01, 3, 0.0, True],
    "agent6": [1e-3, 1 - 10**-1.9, 10**-2.2, 0.2, 512, 2],
}


@pytest.mark.parametrize("name", ARGMINS)
def test_optimum_is_the_closed_form(name):
    problem = PROBLEMS[name]
    config = dict(zip(problem.space, ARGMINS[name], strict=True))
    assert cast_config(problem.space, config) == config
    assert problem.true_loss(config) == pytest.approx(problem.optimum, abs=1e-5)


@pytest.mark.parametrize("name", PROBLEMS)
def test_problem_is_sound(name):
    problem, rng = PROBLEMS[name], np.random.default_rng(0)
    configs = [sample(problem.space, rng) for _ in range(20 if "kernel_" in name else 200)]
    losses = np.array([problem.true_loss(config) for config in configs])
    finite = losses[np.isfinite(losses)]
    assert len(finite) > 0.3 * len(losses) and finite.min() >= problem.optimum - 1e-12
    again = [problem.evaluate(configs[0], np.random.default_rng(1)) for _ in range(2)]
    assert np.array_equal(again[:1], again[1:], equal_nan=True)
    too_good = problem.optimum + 0.02 * (np.median(finite) - problem.optimum)
    assert not problem.true_loss(middle(problem.space)) < too_good, "the middle gives it away"


# ---- Families ----
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"sgd"}))  # its optimum is not known
def test_generated_problem_is_sound(family):
    rng = np.random.default_rng(0)
    for problem in (generated(family, number) for number in range(12)):
        configs = [sample(problem.space, rng) for _ in range(100)]
        losses = np.array([problem.true_loss(config) for config in configs])
        observed = [problem.evaluate(config, rng) for config in configs]
        assert (np.isnan(losses).mean() > 0.05) == (family == "fail")
        assert (max(observed) > 2.5 * max(losses)) == (family == "diverge")
        too_good = 0.005 * (np.nanmedian(losses) - problem.optimum)
        assert np.nanmin(losses) >= problem.optimum
        assert not problem.true_loss(middle(problem.space)) < too_good


def test_numbers_mean_the_same_problems_for_ever():
    """Or the rows of earlier comparisons, and the log, are of other problems."""
    # the loss of a configuration; of curves also the seconds and the loss of its first epoch
    expected = {"smooth": [4.27935], "fail": [0.559315], "diverge": [1.54969], "choices": [5.29363]}
    expected |= {"noisy": [2.82583], "agree": [2.0873, 6.66435, 5.42797]}
    expected |= {"cross": [0.29616, 0.643454, 0.364475], "boosting": [0.571728, 1.31836, 1.58142]}
    expected |= {"sgd": [0.712252, 5.34233, 1.02134]}
    for family in FAMILIES:
        problem, (rng, again) = generated(family, 2), map(np.random.default_rng, (0, 0))
        config = sample(problem.space, rng)
        curve = problem.curve(config, again) if problem.curve else [()]
        found = [problem.true_loss(config), *next(iter(curve))]
        assert found == pytest.approx(expected[family], rel=1e-5)


# ---- The comparison ----
@pytest.fixture
def compare(tmp_path, capsys, in_this_process):
    """Function that compares by a command line, and returns (stdout, stderr)."""

    def run(arguments, module=compare_searchers):
        module.main(["--results", str(tmp_path), "--trials", "12", *arguments.split()])
        return capsys.readouterr()

    return run


def rows(path):
    return command.read_rows(path, compare_searchers.COLUMNS)


def test_row_has_the_losses_after_each_third_of_the_trials(compare, tmp_path):
    compare("--searcher random --problems levy4 --seeds 1 --workers 1")
    (row,) = rows(tmp_path / "random.csv")
    problem, losses = PROBLEMS["levy4"], []

    def objective(config, rng):
        seconds = rng.lognormal(0, 0.5)
        losses.append((problem.evaluate(config, rng), problem.true_loss(config)))
        yield seconds, {"loss": losses[-1][0]}

    seed = zlib.crc32(b"levy4")
    simulate(RandomSearch(problem.space, 0), problem.space, objective, seed, n_trials=12)
    for third, n in ((1, 4), (2, 8), (3, 12)):
        assert row[f"best_{third}"] == min(true for _, true in losses[:n])
        assert row[f"chosen_{third}"] == min(losses[:n])[1]


def test_regret_of_a_training_starts_at_the_lowest_loss_that_was_found(monkeypatch):
    monkeypatch.setattr(compare_searchers, "random_losses", lambda name: [3.0, math.nan, 5.0])
    row = {"problem": "sgd:0", "best_1": 2.0, "chosen_1": 9.0}
    for lowest, regret in ((1.0, 1 / 3), (2.0, 0.0)):
        assert compare_searchers.regrets(row, lowest) == {"best_1": regret, "chosen_1": 1.0}


def test_curves_are_judged_by_the_last_loss_of_the_best_so_far():
    """Trials a and b of one worker; b is the better at epoch 1 alone."""
    last = {"a": 3.0, "b": 4.0}
    curves = {"a": [(1.0, 9.0), (1.0, 3.1)], "b": [(1.0, 2.0), (1.0, 4.1)]}

    class InTurn(RandomSearch):
        def suggest(self, trials):
            return {"x": "ab"[len(trials)]}, "random"

    space = {"x": choice(["a", "b"])}
    fields = space, 3.0, lambda x: last[x], None, lambda config, rng: curves[config["x"]]
    problem = problems.Problem("cross", *fields)
    # looks after 0.4, 1, 2 and 4 of 4 seconds: before the report at a time, not after
    found, trials = compare_searchers.run_curves(problem, InTurn(space), 4.0, n_workers=1)
    assert found == [math.inf, 3.0, 3.0, 4.0, 3.0] and len(trials) == 2


def test_comparison_of_curves(compare, tmp_path):
    out = compare("--searcher random --curves --problems agree:0 --seeds 2 --trials 3").out
    assert "agree: 1 problems" in out and out.count("\nrandom + none + 1") == 4
    assert (tmp_path / "curves" / "random.halving.1.csv").read_text().count("\n") == 3


def test_interrupted_comparison_continues(compare, tmp_path):
    arguments = "--searcher random --problems hartmann3 levy4 --seeds 3"
    out, err = compare(arguments)
    assert err.count("call") == 6 and "pooled: 2 problems" in out
    path = tmp_path / "random.csv"
    whole, before = path.read_text(), rows(path)
    path.write_text("".join(whole.splitlines(keepends=True)[:5]))
    assert compare(arguments).err.count("call") == 2
    for again, row in zip(rows(path), before, strict=True):
        assert again | {"seconds": 0} == row | {"seconds": 0}
    assert compare(arguments).err == ""  # nothing is left to run
    path.write_text(whole.replace(before[0]["version"], "another"))
    assert compare(arguments).err.count("call") == 6


def test_recorded_runs_of_a_peer_are_shown_and_not_run_again(compare, monkeypatch):
    monkeypatch.setattr(peers, "version", lambda name: "installed 1.0")
    out, err = compare("--half report --searcher ax --searcher hebo --trials 60")
    assert err == "" and "ax: ax-platform 1.3.1\n" in out
    pooled = " ".join(out.split("analytic:")[0].split())  # numbers of experiments/LOG.md
    assert " ax 0.1474 [0.1216 0.1740] 0.0540 [0.0424 0.0662] 0.0308 [0.0230 0.0388]" in pooled
    assert "hebo +0.0222 [-0.0099 +0.0530] +0.0304 [+0.0096 +0.0512] +0.0130 [-0.0050" in pooled


def test_bad_input_is_one_line(compare, capsys, tmp_path):
    (tmp_path / "random.csv").write_text(",".join(compare_searchers.COLUMNS) + "\nrandom,1,x,zero")
    for arguments, words in (
        (f"--results {tmp_path / 'random.csv'}", "random.csv"),
        ("--searcher random", "random.csv: expected columns searcher, version, problem, seed"),
        ("--searcher nobody", "nobody"),
        ("--seeds 0", "expected an integer >= 1"),
        ("--problems smooth:1-", "no problem smooth:1-; there are hart"),
        ("--searcher random --curves --problems smooth:1", "--curves: smooth:1 has none; agree"),
    ):
        with pytest.raises(SystemExit, match="2"):
            compare(arguments)
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1


def test_interval_is_that_of_the_mean_over_problems():
    rng = np.random.default_rng(0)
    values = {(p, seed): rng.normal(p, 0.1) for p in (0, 1, 2) for seed in range(20)}
    mean, low, high = compare_searchers.mean_and_interval(values)
    assert mean == pytest.approx(np.mean(list(values.values()))) and low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / math.sqrt(60), rel=0.25)  # as if normal
    one_each = {key: value for key, value in values.items() if key[1] == 0}
    _, low, high = compare_searchers.mean_and_interval(one_each)
    assert low < 0.3 and 1.7 < high  # over the three problems, at 0, 1 and 2


def test_ablation_compares_with_gp_without_each_ingredient(compare, monkeypatch):
    monkeypatch.setattr(ablate, "INGREDIENTS", {"the model": "random"})
    out = compare("--problems hartmann3 --seeds 1 --trials 3", ablate).out
    assert "difference to gp, paired" in out and out.endswith("\nrandom: without the model\n")


# ---- Peers ----
@pytest.mark.parametrize("name", PROBLEMS)
def test_parameter_maps_numbers_to_all_values(name):
    for domain in domains(PROBLEMS[name].space).values():
        _, low, high, _ = peers.parameter(domain)
        if domain.values is None:
            least, most = sorted(peers.decode(domain, number) for number in (low, high))
            assert [least, most] == pytest.approx(list(domain.arguments), rel=1e-12)
            assert domain.low <= least and most <= domain.high
        else:
            numbers = np.arange(low, high + 1) + 0.3
            assert [peers.decode(domain, n) for n in numbers] == list(domain.values)


def test_peer_is_told_each_ended_trial_once_and_failures_as_the_worst(monkeypatch):
    told, keys, config = [], iter("abcde"), {"x": 0.5}
    recorder = lambda parameters, seed: (lambda: (next(keys), config), told.extend)
    monkeypatch.setitem(peers.PEERS, "recorder", (recorder, "numpy no-such-package"))
    assert peers.version("recorder") is None and peers.version("hebo") is None
    peer, trials = peers.Peer("recorder", SPACE), []
    for i in range(3):
        assert peer.suggest(trials) == (config, "recorder")
        trials.append(Trial(i, config, ""))
    trials[0] = Trial(0, config, "", status="done", curve=[(1, 3.0)], ended=2.0)
    trials[2] = Trial(2, config, "", status="failed", ended=1.0)
    peer.suggest(trials)
    assert told == [("c", None, True), ("a", 3.0, False)]
    trials[1] = Trial(1, config, "", status="failed", ended=3.0)
    peer.suggest([*trials, Trial(3, config, "")])
    assert told[2:] == [("b", 3.0, True)]
