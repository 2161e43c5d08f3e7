"""The examples of experiments/examples/, each by the command that stands in it."""

import importlib.util
import pathlib
import re
import shutil

import pytest

from hpo import load

ROOT = pathlib.Path(__file__).resolve().parent.parent
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


def test_all_examples_are_tested():
    names = {path.name for path in (ROOT / "experiments/examples").iterdir()}
    assert names == {*EXAMPLES, "anneal.json", "circle.json", "script.json"}
