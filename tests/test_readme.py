"""The README's examples, run as they stand there."""

import csv
import pathlib
import re
import subprocess
import sys

from hpo import RandomSearch, load
from hpo.results import load_run
from hpo.space import domains

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", README, re.DOTALL))


def test_examples_run_with_the_real_command(tmp_path):
    (tmp_path / "my_objective.py").write_text(EXAMPLES["objective"])
    (tmp_path / "my_searcher.py").write_text(EXAMPLES["searcher"])
    class_name = re.search(r"^class (\w+)", EXAMPLES["searcher"], re.MULTILINE)[1]
    searcher = f"{tmp_path / 'my_searcher.py'}:{class_name}"
    command = [sys.executable, "run.py", tmp_path / "my_objective.py", "--searcher", searcher, "--trials", "12"]
    subprocess.run([*command, "--results", tmp_path / "run"], check=True, cwd=ROOT, timeout=60, capture_output=True)
    with open(tmp_path / "run" / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done"] * 12
    assert {row["origin"] for row in rows} >= {"start", "step"}

    trials, run = load(tmp_path / "run"), load_run(tmp_path / "run")
    config, origin = RandomSearch(run["space"], seed=0).suggest(trials)  # the README's REPL example
    assert origin == "random" and set(domains(run["space"])) <= set(config)
    assert [len(trial.curve) for trial in trials] == [9] * 12


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
