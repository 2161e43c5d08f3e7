"""A real run with four workers, every suggestion of which is recomputed from its folder in another process."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from hpo.results import load_before, load_run
from hpo.searchers import GPSearch

ROOT = pathlib.Path(__file__).resolve().parent.parent
OBJECTIVE = """
import random, time
from hpo import Reporter, choice, loguniform, randint, uniform

config_space = {"lr": loguniform(1e-4, 1), "n": randint(1, 9), "x": uniform(0, 1), "kind": choice(["a", "b"]), "epochs": 2}
metric, mode = "score", "max"


def objective(config):
    report = Reporter()
    if config["x"] > 0.9:
        raise ArithmeticError("too far")
    for epoch in range(1, 3):
        time.sleep(0.02 * random.random())
        report(epoch=epoch, score=epoch - (config["x"] - 0.8) ** 2 - config["lr"] - (config["kind"] == "a"))
"""


def python(*arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], check=False, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    (folder / "objective.py").write_text(OBJECTIVE)
    code, _, err = python("run.py", folder / "objective.py", "--trials", 24, "--seed", 4, "--results", folder / "run")
    assert code == 0, err
    return folder / "run"


def test_every_suggestion_of_a_real_run_is_recomputed_equal(folder):
    assert python("-m", "experiments.explain", folder) == (0, "23 of 23 suggestions are recomputed equal\n", "")


def copy_with(folder, other, **arguments):
    """A copy of a run with other arguments in its run.json."""
    shutil.copytree(folder, other)
    run = json.loads((other / "run.json").read_text())
    run["arguments"] |= arguments
    (other / "run.json").write_text(json.dumps(run))
    return other


def test_a_changed_row_is_noticed(folder, tmp_path):
    other = copy_with(folder, tmp_path / "run", seed=5)
    code, out, _ = python("-m", "experiments.explain", other)
    assert code == 1 and "trial 23: recorded" in out
    code, out, _ = python("-m", "experiments.explain", other, 23)
    assert code == 1 and "recomputed: DIFFERENT" in out


def test_explanation_shows_prediction_lengthscales_neighbours_and_pending_trials(folder):
    code, out, err = python("-m", "experiments.explain", folder, 20)
    assert (code, err) == (0, "")
    for part in (
        "origin model",
        "recomputed: equal",
        "lengthscales",
        "combination that matters",
        "additive share",
        "prediction there",
        "acquisition",
    ):
        assert part in out
    n_running = sum(trial.status == "running" for trial in load_before(folder, 20))
    assert out.count("correlation") == 5 + out.count("running  ") == 5 + n_running
    assert ("seconds per epoch: predicted" in out) == (n_running > 0) == ("pending: none" not in out)
    assert "the turn of" not in out  # which is every fourth
    out = python("-m", "experiments.explain", folder, 19)[1]
    kind = json.loads((folder / "configs.jsonl").read_text().splitlines()[19])["config"]["kind"]
    column = GPSearch(load_run(folder)["space"]).category_in_turn(load_before(folder, 19))
    assert (f"the turn of kind={kind!r}, tried least" in out) == (column is not None)  # None: each tried enough
    assert "a start configuration" in python("-m", "experiments.explain", folder, 0)[1]
    assert "not the model's choice" in python("-m", "experiments.explain", folder, 2)[1]


def test_wrong_folder_or_trial_is_one_line(folder, tmp_path):
    bare = copy_with(folder, tmp_path / "bare")
    run = json.loads((bare / "run.json").read_text())
    del run["arguments"]
    (bare / "run.json").write_text(json.dumps(run))
    for arguments, part in (
        ((tmp_path, 3), "run.json"),
        ((folder, 99), "no trial 99"),
        ((folder, "x"), "argument trial"),
        ((bare, 3), "run.json, column arguments: expected"),
        ((bare,), "run.json, column arguments: expected"),
    ):
        code, _, err = python("-m", "experiments.explain", *arguments)
        assert code == 2 and part in err and err.count("\n") == 1


SEARCHERS = """
from hpo.searchers import GPSearch

class Plain:
    def __init__(self, space, seed=0, max_epochs=None):
        self.searcher = GPSearch(space, seed, max_epochs)

    def suggest(self, trials):
        config, origin = self.searcher.suggest(trials)
        return {name: value for name, value in config.items() if name != "epochs"}, origin  # the tuner adds constants

class Raises(Plain):
    def suggest(self, trials):
        raise ArithmeticError("my mistake")
"""


def test_own_searcher_is_recomputed_without_its_model(folder, tmp_path):
    (tmp_path / "mine.py").write_text(SEARCHERS)
    other = copy_with(folder, tmp_path / "plain", searcher=f"{tmp_path / 'mine.py'}:Plain")
    code, out, err = python("-m", "experiments.explain", other, 20)
    assert (code, err) == (0, "") and "recomputed: equal" in out and "mine.py:Plain has no model to show" in out
    assert python("-m", "experiments.explain", other) == (0, "23 of 23 suggestions are recomputed equal\n", "")


def test_raising_searcher_is_named_with_the_traceback_of_its_own_file(folder, tmp_path):
    (tmp_path / "mine.py").write_text(SEARCHERS)
    other = copy_with(folder, tmp_path / "raises", searcher=f"{tmp_path / 'mine.py'}:Raises")
    for arguments in ((other, 20), (other,)):
        code, _, err = python("-m", "experiments.explain", *arguments)
        first, _, place, *_, last = err.splitlines()
        assert code == 1 and first.endswith("mine.py:Raises: Raises.suggest raised ArithmeticError: my mistake")
        assert f'"{tmp_path / "mine.py"}", line 14, in suggest' in place and last == "ArithmeticError: my mistake"
