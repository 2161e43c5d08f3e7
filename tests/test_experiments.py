"""experiments/: the simulated clock, the problems and their optima, the comparison's bookkeeping."""

import csv
import itertools
import math
import re
import time

import numpy as np
import pytest

from experiments import compare_searchers, peers, problems
from experiments.problems import PROBLEMS, search_optimum
from experiments.simulated import simulate
from hpo.searchers import RandomSearch
from hpo.space import cast_config, check_space, middle, sample, uniform
from hpo.tuner import RunFailed

SPACE = {"x": uniform(0, 1)}


# ---- The simulated clock ---------------------------------------------------------------------------------------------
def curve(config, rng):
    """Three epochs, a log-normal time each."""
    for epoch in range(1, 4):
        yield rng.lognormal(0, 0.5), {"epoch": epoch, "loss": config["x"] / epoch}


def run(objective, n_trials=40, seed=0, **settings):
    return simulate(RandomSearch(SPACE), SPACE, objective, seed, n_trials=n_trials, **settings)


def test_simulated_run_is_deterministic_and_depends_on_the_seed():
    first, again, other = (run(curve, seed=seed, n_workers=4) for seed in (0, 0, 1))
    history = [
        [(trial.config, trial.curve, trial.started, trial.ended) for trial in run] for run in (first, again, other)
    ]
    assert history[0] == history[1] != history[2]


def test_simulated_run_ends_when_a_rule_raises_beside_another_report_of_the_same_time():
    def in_step(config, rng):
        for epoch in range(1, 4):
            yield 1.0, {"epoch": epoch, "loss": config["x"]}

    def rule(trial, trials, max_epochs):
        raise ZeroDivisionError("mine")

    with pytest.raises(RunFailed, match="ZeroDivisionError: mine"):
        run(in_step, n_workers=2, rule=rule, max_epochs=3)


def test_simulated_workers_overlap_and_end_out_of_order():
    trials = run(curve, n_workers=4)
    assert all(trial.status == "done" and len(trial.curve) == 3 for trial in trials)
    running = [sum(other.started <= trial.started < other.ended for other in trials) for trial in trials]
    assert max(running) == 4 and np.mean(running) > 3
    ends = [trial.ended for trial in trials]
    assert ends != sorted(ends)
    assert max(ends) < sum(trial.ended - trial.started for trial in trials) / 3


def test_simulated_single_worker_runs_one_after_the_other():
    trials = run(curve, n_workers=1)
    assert all(before.ended == after.started for before, after in itertools.pairwise(trials))


def test_simulated_failures_nan_stops_and_deadline():
    def objective(config, rng):
        if config["x"] < 0.3:
            raise MemoryError("too large")
        yield 1.0, {"loss": math.nan if config["x"] < 0.5 else config["x"]}
        yield 1.0, {"loss": 0.0}

    def rule(trial, trials, max_epochs):
        return trial.config["x"] > 0.8

    trials = run(objective, n_trials=200, n_workers=3, rule=rule, seconds=40.5)
    assert {"failed", "stopped", "done", "timeout"} == {trial.status for trial in trials}
    for trial in trials:
        x, status = trial.config["x"], trial.status
        assert status == "timeout" or status == ("failed" if x < 0.5 else "stopped" if x > 0.8 else "done")
        assert trial.ended <= 40.5
    assert "MemoryError: too large" in {trial.error for trial in trials}


def test_simulated_trials_are_fast():
    before = time.process_time()  # whatever else the machine does
    run(curve, n_trials=500, n_workers=4)
    assert time.process_time() - before < 2


# ---- The problems ----------------------------------------------------------------------------------------------------
def at(name, values):
    return dict(zip(PROBLEMS[name].space, values))


ARGMINS = {  # textbook positions, or where every term of a formula vanishes
    "branin2": [math.pi, 2.275],
    "ackley5": problems.ACKLEY_SHIFT,
    "hartmann6": [0.20168952, 0.15001069, 0.47687398, 0.27533243, 0.31165162, 0.65730054],
    "hartmann3": [0.11458885, 0.55564889, 0.85254698],
    "ellipsoid10": problems.ELLIPSOID_CENTRE,
    "levy4": problems.LEVY_SHIFT,
    "rosenbrock6": np.ones(6),
    "powell8": problems.POWELL_SHIFT,
    "sgd_cliff": [0.02, 0.9, 16, 1e-4],
    "optimizers8": ["adam", 10**-3.15, 0.5, 1 - 10**-2.5, "gelu", 3, 128, 50],
    "warmup5": [1e-3, 100, 512, 8, "cosine"],
    "boosting8": [10**1.1 / 300, 300, 5, 0.75, 0.45, 5, 1.0, 1e-4],
    "kernels7": ["rbf", "standard", 10.0, 0.01, 3, 0.0, True],
    "agent6": [1e-3, 1 - 10**-1.9, 10**-2.2, 0.2, 512, 2],
}


@pytest.mark.parametrize("name", ARGMINS)
def test_optimum_is_the_closed_form(name):
    config = at(name, np.array(ARGMINS[name]).tolist() if PROBLEMS[name].group == "analytic" else ARGMINS[name])
    assert cast_config(PROBLEMS[name].space, config) == config
    assert PROBLEMS[name].true_loss(config) == pytest.approx(PROBLEMS[name].optimum, abs=1e-5)


@pytest.mark.parametrize("name", PROBLEMS)
def test_problem_is_sound(name):
    problem = PROBLEMS[name]
    check_space(problem.space)
    rng = np.random.default_rng(0)
    n = 20 if name.startswith("kernel_") else 200
    losses = np.array([problem.true_loss(sample(problem.space, rng)) for _ in range(n)])
    finite = losses[np.isfinite(losses)]
    assert len(finite) > 0.3 * n and finite.min() >= problem.optimum - 1e-12
    config = sample(problem.space, rng)
    assert problem.true_loss(config) == problem.true_loss(config) or math.isnan(problem.true_loss(config))
    same = [problem.evaluate(config, np.random.default_rng(1)) for _ in range(2)]
    assert same[0] == same[1] or np.isnan(same).all()
    centre = problem.true_loss(middle(problem.space))
    assert not centre < problem.optimum + 0.02 * (np.median(finite) - problem.optimum), "the middle gives it away"


def test_noise_has_the_true_loss_in_the_middle():
    rng = np.random.default_rng(0)
    for name in ("ackley5", "mlp7", "levy4"):
        problem = PROBLEMS[name]
        config = sample(problem.space, rng)
        observed = [problem.evaluate(config, rng) for _ in range(500)]
        error = np.std(observed) / math.sqrt(500)
        assert abs(np.mean(observed) - problem.true_loss(config)) < 4 * error and error > 0


def test_grid_reports_its_repetitions():
    problem, rng = PROBLEMS["fashion4"], np.random.default_rng(0)
    config = sample(problem.space, rng)
    recorded = problems.repetitions("fashion4", config)
    assert {problem.evaluate(config, rng) for _ in range(50)} == set(recorded)
    assert problem.true_loss(config) == pytest.approx(recorded.mean())
    assert len(set(problems.TABLE_SPACES) - set(PROBLEMS)) == 0, (
        "python -m experiments.record_tables makes what is missing"
    )


def test_halves_are_alike():
    halves = {half: [p for p in PROBLEMS.values() if p.half == half] for half in ("tune", "report")}
    counts = {half: sorted(p.group for p in part) for half, part in halves.items()}
    assert counts["tune"] == counts["report"] and len(PROBLEMS) >= 20
    dims = {half: np.mean([len(p.space) for p in part]) for half, part in halves.items()}
    assert abs(dims["tune"] - dims["report"]) < 0.5


def test_search_optimum_finds_a_known_one():
    loss, config = search_optimum(PROBLEMS["branin2"], 200, n_starts=3, n_steps=300)
    assert loss == pytest.approx(PROBLEMS["branin2"].optimum, abs=1e-4)
    assert PROBLEMS["branin2"].true_loss(config) == loss


# ---- The comparison --------------------------------------------------------------------------------------------------
def compare(tmp_path, capsys, *arguments):
    """(exit code, stdout, stderr) of a comparison with results in tmp_path."""
    code = compare_searchers.main(["--results", str(tmp_path), "--processes", "1", "--trials", "12", *arguments])
    return code, *capsys.readouterr()


@pytest.fixture
def without_plot(in_this_process, monkeypatch):
    monkeypatch.setattr(compare_searchers, "plot", lambda curves, path: None)


def test_interrupted_comparison_continues(tmp_path, capsys, without_plot):
    arguments = ["--searcher", "random", "--problems", "branin2", "ackley5", "--seeds", "3"]
    code, out, err = compare(tmp_path, capsys, *arguments)
    assert code == 0 and err.count("done, about") == 6 and "pooled: 2 problems" in out
    assert "mean normalised regret [95% bootstrap interval]: 0 the best known loss, 1 the median of random" in out
    path = tmp_path / "random.csv"
    whole, before = path.read_text(), compare_searchers.read_runs(tmp_path, "random")
    assert len(list(csv.DictReader(whole.splitlines()))) == 6 * 12

    path.write_text("\n".join(whole.splitlines()[: 1 + 4 * 12 + 5]) + "\nrandom,12")  # cut in the middle of a row
    assert compare(tmp_path, capsys, *arguments)[2].count("done, about") == 2
    runs = compare_searchers.read_runs(tmp_path, "random")
    assert len(runs) == 6 and len(list(csv.DictReader(path.read_text().splitlines()))) == 6 * 12 + 5

    def without_times(rows):
        return [{k: v for k, v in row.items() if k != "suggest_seconds"} for row in rows]

    for key, again in runs.items():
        assert without_times(again) == without_times(before[key])
    assert compare(tmp_path, capsys, *arguments)[2] == ""  # nothing left to run


SEARCHERS = """
from hpo.searchers import RandomSearch

class Raises(RandomSearch):
    def suggest(self, trials):
        if len(trials) > 3:
            raise ArithmeticError("my mistake")
        return super().suggest(trials)

class Refuses(RandomSearch):
    def __init__(self, space, seed=0, max_epochs=None):
        raise SystemExit("not today")

class Ends(RandomSearch):
    def suggest(self, trials):
        return super().suggest(trials) if len(trials) < 5 else None
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SEARCHERS)
    return path


def test_raising_searcher_is_named_once_and_the_others_keep_their_rows(tmp_path, mine, capsys, without_plot):
    raising, refusing = f"{mine}:Raises", f"{mine}:Refuses"
    settings = ["--problems", "branin2", "ackley5", "--seeds", "2", "--searcher", "random"]
    code, out, err = compare(tmp_path, capsys, *settings, "--searcher", raising, "--searcher", refusing)
    assert code == 1 and f"no runs yet: {raising}, {refusing}" in out and "random  " in out
    where, frames = r" on (branin2|ackley5), seed [01]: ", r"\nTraceback .*\n  File \"{}\", line {}, in {}\n"
    for name, words, frame in (
        (raising, "Raises.suggest raised ArithmeticError: my mistake", (mine, 7, "suggest")),
        (refusing, "raised SystemExit: not today", (mine, 12, "__init__")),
    ):
        assert re.search(name + where + words + frames.format(*frame), err), err
    assert err.count("Traceback") == 2 and "hpo/tuner.py" not in err and "compare_searchers.py" not in err
    assert f"{raising} failed in 4 of its 4 runs" in err
    assert len(compare_searchers.read_runs(tmp_path, "random")) == 4
    assert compare(tmp_path, capsys, *settings)[0] == 0


def test_searcher_that_ends_early_keeps_its_best(tmp_path, mine, capsys, without_plot):
    arguments = ["--problems", "branin2", "--seeds", "2", "--searcher", f"{mine}:Ends"]
    code, out, _ = compare(tmp_path, capsys, *arguments)
    assert code == 0 and "12 trials" in out and compare(tmp_path, capsys, *arguments)[2] == ""  # nothing left to run
    runs = compare_searchers.read_runs(tmp_path, "mine.py:Ends")
    assert len(runs) == 2
    for rows in runs.values():
        assert [row["status"] for row in rows] == ["done"] * 5 + [compare_searchers.ENDED] * 7
        assert {row["best"] for row in rows[4:]} == {rows[4]["best"]}
        assert len(compare_searchers.thought(rows)) == 4  # the start configuration is not its own


def test_results_that_cannot_be_used_are_one_line(tmp_path, capsys, without_plot):
    (tmp_path / "file").touch()
    arguments = ["--searcher", "random", "--problems", "branin2", "--seeds", "1"]
    compare(tmp_path, capsys, *arguments)
    whole = (tmp_path / "random.csv").read_text()
    (tmp_path / "random.csv").write_text(whole.replace(",branin2,0,", ",branin2,zero,", 1))
    for extra, words in (
        (["--results", str(tmp_path / "file")], "expected a folder to write to"),
        ([], "random.csv, line 2: expected searcher (str), version (str), problem (str), seed (int), "),
        (["--seeds", "0"], "argument --seeds: expected an integer >= 1, got '0'"),
    ):
        with pytest.raises(SystemExit) as leave:
            compare(tmp_path, capsys, *arguments, *extra)
        err = capsys.readouterr().err
        assert leave.value.code == 2 and words in err and err.count("\n") == 1


def test_regret_is_monotone_and_clipped(tmp_path, capsys, without_plot):
    assert compare(tmp_path, capsys, "--searcher", "random", "--problems", "out_of_memory5", "--seeds", "2")[0] == 0
    runs = compare_searchers.read_runs(tmp_path, "random")
    assert len(runs) == 2
    for key, rows in runs.items():
        curve = compare_searchers.regrets(rows, key[2], "best")
        assert np.all(np.diff(curve) <= 0) and curve.max() <= 1 and curve.min() >= 0
        assert np.all(curve <= compare_searchers.regrets(rows, key[2], "chosen"))


def test_better_searcher_has_a_positive_difference(tmp_path):
    rng = np.random.default_rng(0)
    keys = [(problem, seed) for problem in ("a", "b") for seed in range(10)]
    values = {key: 0.1 + 0.05 * rng.standard_normal() for key in keys}
    mean, low, high = compare_searchers.mean_and_interval(values)
    assert low < mean < high and low > 0
    assert mean == pytest.approx(np.mean(list(values.values())))
    curves = {"first": {key: np.array([0.1]) for key in keys}, "second": {key: np.array([0.2]) for key in keys}}
    assert compare_searchers.ranks(curves, keys, 1) == {"first": 1, "second": 2}


# ---- Peers -----------------------------------------------------------------------------------------------------------
def test_parameter_maps_every_value_back():
    for problem in PROBLEMS.values():
        rng = np.random.default_rng(0)
        for name, domain in problems.domains(problem.space).items():
            parameter = peers.parameter(name, domain)
            for _ in range(5):
                value = domain.sample(rng)
                assert parameter.low <= parameter.number(value) <= parameter.high
                back = parameter.decode(parameter.number(value))
                assert back == pytest.approx(value, rel=1e-12) if isinstance(value, float) else back == value
                domain.cast(back)


def test_missing_peer_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    for name in peers.PEERS:
        why = peers.missing(name)
        assert f"{name} is left out" in why and "pip install" in why
