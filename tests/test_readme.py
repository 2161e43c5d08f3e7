"""The examples of both READMEs and of experiments/examples/, and what the READMEs promise."""

import importlib.util
import math
import os
import pathlib
import re
import runpy
import shutil

import pytest

from hpo import GPSearch, choice, load, uniform
from hpo.trial import Trial

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = README + (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
INDENTED = re.findall(r"^    (import pandas|trials(?: =|\.plot).*)$", TEXT, re.MULTILINE)
PYTHON = [*re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL), "\n".join(INDENTED)]


def example(word):
    return next(code for code in PYTHON if word in code)


def run_example(word, folder):
    (folder / "example.py").write_text(example(word))
    return runpy.run_path(str(folder / "example.py"))  # the names that it defines


def test_objective_and_searcher_by_their_command(tmp_path, monkeypatch, capsys, main):
    (tmp_path / "my_objective.py").write_text(example("Reporter"))
    (tmp_path / "my_searcher.py").write_text(example("Local"))
    monkeypatch.chdir(tmp_path)
    flags = "--searcher my_searcher.py:Local --trials 12 --stopping none --results results/DIR"
    assert main("my_objective.py", *flags.split())[0] == 0
    found = load(tmp_path / "results" / "DIR")
    assert [(trial.status, len(trial.curve)) for trial in found] == [("done", 9)] * 12
    assert {trial.origin for trial in found} == {"start", "step"}
    pytest.importorskip("pandas")
    table = run_example("print(trials", tmp_path)["trials"]
    best = min(found, key=lambda trial: trial.value)
    assert len(table) == 12 and re.search(rf"\n\d+ +{best.id} +done", capsys.readouterr().out)
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    run_example("scatter", tmp_path)
    assert (tmp_path / "rate.png").stat().st_size > 1000


def test_tune_from_python(tmp_path, run_py):
    (tmp_path / "script.py").write_text(example("hpo.tune"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code, out, err = run_py("script.py", cwd=tmp_path, env=environment)
    path = next((tmp_path / "results").iterdir())
    best = min(load(path), key=lambda trial: trial.value)
    last = f"{best.config} {best.value} results/{path.name}"
    assert (code, out.splitlines()[-1], err) == (0, last, "") and best.value < 0.1


@pytest.mark.parametrize("word", ["Thompson", "WithoutTurns"])
def test_searchers_with_other_parts_suggest_something_else(tmp_path, word):
    space, trials = {"x": uniform(0, 1), "kind": choice(["a", "b", "c"])}, []
    for i, kind in enumerate("abacaaaaaaa"):  # "a" is best, but it is the turn of another
        trials.append(Trial(i, {"x": i * 7 % 11 / 10, "kind": kind}, "random", status="done"))
        noise = 0.2 * math.sin(7 * i)
        trials[i].curve = [(1, (trials[i].config["x"] - 0.4) ** 2 + noise + (kind != "a"))]
    found = [x for x in run_example(word, tmp_path).values() if isinstance(x, type)]
    classes = [x for x in found if issubclass(x, GPSearch) and x is not GPSearch]
    suggested = [kind(space).suggest(trials)[0] for kind in classes]
    assert classes and GPSearch(space).suggest(trials)[0] not in suggested


def test_searcher_alone(tmp_path):
    assert run_example("own loop", tmp_path)["best"].curve[0][1] < 0.01


EXAMPLES = {  # name -> (the reports of a trial, what it needs, flags that make it quick)
    "forest.py": (1, "sklearn", "--set n_estimators=10"),
    "spiral.py": (3, "torch", "--set epochs=3"),
    "anneal.sh": (9, "awk", ""),
    "circle.js": (1, "node", ""),
    "script.py": (9, "argparse", ""),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_tuned_by_its_command(tmp_path, main, monkeypatch, name):
    n_reports, need, flags = EXAMPLES[name]
    if not (importlib.util.find_spec(need) or shutil.which(need)):
        pytest.skip(f"no {need}")
    text = (ROOT / "experiments/examples" / name).read_text()
    text = re.sub(r"(?m)^(# |//) ?", "", text).replace("\\\n", "")
    (command,) = re.findall(r"^python run\.py (.*)", text, re.MULTILINE)
    flags += f" --trials 1 --hours 1 --stopping none --results {tmp_path / 'run'}"
    monkeypatch.chdir(ROOT)
    code, out, err = main(*command.split(), *flags.split())
    assert (code, err) == (0, ""), out
    (trial,) = load(tmp_path / "run")
    assert (trial.status, len(trial.curve)) == ("done", n_reports)


def test_commands_flags_and_files_exist_and_all_examples_are_run(main):
    code, help_text, _ = main("--help")
    assert code == 0 and "\nExit codes: 0 finished, 1 failed, 2 bad input" in help_text
    commands = re.findall(r"python (?:-m )?([\w.]+)((?: [^\s`#]+)*)", TEXT)
    for name, words in commands:
        path = ROOT / (name if name.endswith(".py") else name.replace(".", "/") + ".py")
        flags = re.findall(r"--(\w+)", words)
        assert name in ("pytest", "venv") or path.exists(), name
        takes_all = name in ("run.py", "experiments.repeat")
        assert all(f'"--{flag}"' in path.read_text() or takes_all for flag in flags), words
    flags = set(re.findall(r"(?:`|run\.py [^\n`]*)--(\w+)", README)) - {"help"}
    assert len(commands) > 20 and all(f"--{flag} " in help_text for flag in flags)
    words = ["Reporter", "Local", "print(trials", "scatter", "hpo.tune", "Thompson", "own loop"]
    assert {example(word) for word in [*words, "WithoutTurns"]} == set(PYTHON)
    names = {path.name for path in (ROOT / "experiments/examples").iterdir()}
    assert names == {*EXAMPLES, "anneal.json", "circle.json", "script.json"}
    tree = set(re.findall(r"^hpo/(\w+)\.py  ", README, re.MULTILINE))
    assert tree == {path.stem for path in ROOT.glob("hpo/*.py")} - {"__init__"}


def test_size_is_as_promised():
    promised = re.search(r"`hpo/` has ([\d,]+) lines[^.]*file of (\d+)", README).groups()
    paths = [*ROOT.glob("hpo/*.py")], [ROOT / "hpo/searchers.py"]
    found = [sum(path.read_text().count("\n") for path in part) for part in paths]
    assert [int(n.replace(",", "")) for n in promised] == pytest.approx(found, rel=0.05)
    assert README.count("\n") <= 200 and len(README.encode()) <= 12_000
    assert max(map(len, README.splitlines())) <= 100
