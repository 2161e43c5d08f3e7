"""The README's examples, run as they stand there."""

import csv
import math
import pathlib
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest

from hpo import GPSearch, load, uniform
from hpo.space import sample
from hpo.trial import Trial

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", README, re.DOTALL))


def run_example(name, folder, replace=("", "")):
    """The names that an example defines."""
    path = folder / "example.py"
    path.write_text(EXAMPLES[name].replace(*replace) if replace[0] else EXAMPLES[name])
    return runpy.run_path(str(path))


def test_examples_run_with_the_real_command(tmp_path):
    (tmp_path / "my_objective.py").write_text(EXAMPLES["objective"])
    (tmp_path / "my_searcher.py").write_text(EXAMPLES["searcher"])
    class_name = re.search(r"^class (\w+)", EXAMPLES["searcher"], re.MULTILINE)[1]
    searcher = f"{tmp_path / 'my_searcher.py'}:{class_name}"
    command = [sys.executable, "run.py", tmp_path / "my_objective.py", "--searcher", searcher, "--trials", "12"]
    command += ["--stopping", "none", "--results", tmp_path / "run"]
    subprocess.run(command, check=True, cwd=ROOT, timeout=60, capture_output=True)
    with open(tmp_path / "run" / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done"] * 12
    assert {row["origin"] for row in rows} >= {"start", "step"}

    assert [len(trial.curve) for trial in load(tmp_path / "run")] == [9] * 12


def test_loop_by_hand_suggests_from_a_run(tmp_path):
    objective = tmp_path / "quick.py"
    source = (ROOT / "train" / "mlp_fashion_mnist.py").read_text(encoding="utf-8")
    space = re.search(r"^config_space = {\n.*?^}\n", source, re.DOTALL | re.MULTILINE)[
        0
    ]  # without torch, which takes seconds
    objective.write_text(
        f"from hpo import *\nmetric, mode = 'accuracy', 'max'\n{space}"
        "def objective(config):\n    Reporter()(epoch=1, accuracy=config['dropout_1'])\n"
    )
    command = [sys.executable, "run.py", objective, "--trials", "8", "--results", tmp_path / "run"]
    subprocess.run(command, check=True, cwd=ROOT, timeout=60, capture_output=True)
    names = run_example("loop", tmp_path, replace=("results/DIR", str(tmp_path / "run")))
    assert set(names["config"]) == set(names["config_space"]) and names["origin"] == "model"


def test_loop_of_ones_own_finds_the_optimum(tmp_path):
    trials = run_example("own", tmp_path)["trials"]
    assert len(trials) == 20 and min(trial.value for trial in trials) < 0.01  # the optimum is 0


def test_replaced_parts_are_used_and_their_gradient_fits(tmp_path):
    names = run_example("parts", tmp_path)
    space, rng = {"x": uniform(0, 1), "y": uniform(0, 1)}, np.random.default_rng(0)
    trials = [Trial(i, sample(space, rng), "random", status="done") for i in range(12)]
    for trial in trials:
        trial.curve = [(1, trial.config["x"] + rng.normal())]
    mine = names["Mine"](space)
    assert mine.suggest(trials)[0] != GPSearch(space).suggest(trials)[0]
    process = mine.model(trials, rng).losses.process
    assert process.kernel(np.zeros(7), np.zeros((1, 2)), np.ones((1, 2)))[0, 0] == pytest.approx(
        (math.exp(-1) + math.exp(-0.5)) / 2  # joint and additive half, at distance sqrt 2
        + mine.prior.constant[1] ** 2
        + 2 * mine.prior.bowl[1] ** 2
    )
    theta, step = process.prior_mean + 0.1, 1e-5 * np.eye(7)
    slopes = [(process.log_posterior(theta + s)[0] - process.log_posterior(theta - s)[0]) / 2e-5 for s in step]
    assert process.log_posterior(theta)[1] == pytest.approx(slopes, rel=1e-5, abs=1e-5)


def test_rule_example_stops_trials(tmp_path):
    objective = EXAMPLES["objective"].replace('config["learning_rate"] * (1 - accuracy)', "(epoch < 3) * 0.1")
    (tmp_path / "my_objective.py").write_text(objective)
    (tmp_path / "my_rule.py").write_text(EXAMPLES["rule"])
    rule = f"{tmp_path / 'my_rule.py'}:" + re.search(r"^def (\w+)", EXAMPLES["rule"])[1]
    command = [sys.executable, "run.py", tmp_path / "my_objective.py", "--stopping", rule, "--trials", "3"]
    subprocess.run([*command, "--results", tmp_path / "run"], check=True, cwd=ROOT, timeout=60, capture_output=True)
    assert [(trial.status, trial.n_epochs) for trial in load(tmp_path / "run")] == [("stopped", 4)] * 3


def test_searcher_example_is_short():
    assert len(EXAMPLES["searcher"].strip().splitlines()) <= 30


def test_every_file_of_the_tree_exists_and_every_module_is_in_it():
    named = set(re.findall(r"^((?:hpo|train)/\w+\.py|run\.py) ", README, re.MULTILINE))
    there = {str(path.relative_to(ROOT)) for folder in ("hpo", "train") for path in (ROOT / folder).glob("*.py")}
    assert named == there - {"hpo/__init__.py"} | {"run.py"}


def test_every_flag_that_the_readme_names_exists():
    help_text = subprocess.run(
        [sys.executable, "run.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    flags = set(re.findall(r"`(?:python run\.py )?(--\w+)", README)) | set(
        re.findall(r"run\.py [^\n`]*?(--\w+)", README)
    )
    assert len(flags) >= 6
    assert all(flag in help_text.stdout for flag in flags - {"--help"}), flags
