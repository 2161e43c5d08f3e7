"""A run with four workers, killed and resumed: each suggestion is recomputed from its folder."""

import pathlib
import re
import subprocess
import sys
import time

import pytest

from experiments import explain
from hpo.journal import load

ROOT = pathlib.Path(__file__).resolve().parent.parent
OBJECTIVE = """
import random, time
from hpo import Reporter, choice, loguniform, uniform

kinds = choice(["a", "b"])
config_space = {"lr": loguniform(1e-4, 1), "x": uniform(0, 1), "kind": kinds, "epochs": 2}
metric, mode = "score", "max"

def objective(config):
    report = Reporter()
    if config["x"] > 0.9:
        raise ArithmeticError("too far")
    for epoch in (1, 2):
        time.sleep(0.02 * random.random())
        report(epoch=epoch, score=epoch - (config["x"] - 0.8) ** 2 - (config["kind"] == "a"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain") / "run"
    objective, journal = folder.with_name("objective.py"), folder / "journal.jsonl"
    objective.write_text(OBJECTIVE)
    words = ["run.py", objective, "--trials", "24", "--seed", "4", "--results", folder]
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while not journal.exists() or journal.read_text().count('"start":') < 12:
            time.sleep(0.01)
            assert process.poll() is None
        process.kill()
    subprocess.run([sys.executable, "run.py", "--resume", folder], cwd=ROOT, check=True)
    assert any(trial.attempt == 2 for trial in load(folder))
    return folder


def test_every_suggestion_is_recomputed_equal(folder, run_py):
    expected = 0, "23 of 23 suggestions are recomputed equal\n", ""
    assert run_py("-m", "experiments.explain", folder) == expected


def test_other_seed_is_noticed(folder, tmp_path, capsys):
    text = (folder / "journal.jsonl").read_text()
    (tmp_path / "journal.jsonl").write_text(text.replace('"seed": 4', '"seed": 5'))
    assert explain.main([str(tmp_path)]) == 1 and "trial 1: {" in capsys.readouterr().out
    assert explain.main([str(tmp_path), "1"]) == 1
    assert "recomputed: DIFFERENT" in capsys.readouterr().out


def test_explanation_shows_prediction_lengthscales_neighbours_and_pending_trials(folder, capsys):
    def out(trial):
        assert explain.main([str(folder), str(trial)]) == 0
        return capsys.readouterr().out

    text = out(20)
    for part in "origin model", "recomputed: equal", "lengthscales", "combination", "seconds per":
        assert part in text
    (numbers,) = re.findall(r"acquisition (\S+); .* median (\S+),", text)
    assert float(numbers[0]) > float(numbers[1])
    n_running = sum(trial.status == "running" for trial in load(folder, before=20))
    assert text.count("  running ") == n_running > 0
    neighbours = [float(x) for x in re.findall(r"correlation (\S+)  (?!running)", text)]
    assert len(neighbours) == 5 and neighbours == sorted(neighbours, reverse=True)
    assert "a start configuration" in out(0) and "lengthscales" not in out(2)


def test_what_cannot_be_explained_is_named(folder, tmp_path, capsys):
    for words, part in ([tmp_path, 3], "journal.jsonl"), ([folder, 99], "no trial 99"):
        with pytest.raises(SystemExit, match="2"):
            explain.main(list(map(str, words)))
        assert part in capsys.readouterr().err
