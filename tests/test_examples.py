"""The examples of experiments/examples/, each by the command that stands in it."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from hpo import load

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "experiments" / "examples"


@pytest.mark.parametrize(
    ("name", "changes", "n_reports"),
    [
        ("forest.py", ["--set", "n_estimators=10"], 1),
        ("spiral.py", ["--set", "epochs=3"], 3),
        ("anneal.sh", [], 9),
        ("circle.js", [], 1),
        ("script.py", [], 9),
        ("script.py", ["--set", "report_each_epoch=0"], 1),
    ],
)
def test_example_is_tuned_by_its_command(tmp_path, name, changes, n_reports):
    if name == "forest.py":
        pytest.importorskip("sklearn")
    needs = {"anneal.sh": "awk", "circle.js": "node"}
    if name in needs and not shutil.which(needs[name]):
        pytest.skip(f"no {needs[name]}")
    text = (EXAMPLES / name).read_text()
    text = re.sub(r"(?m)^(# |//) ?", "", text).replace("\\\n", "")
    (command,) = re.findall(r"^python (run\.py .*)", text, re.MULTILINE)
    words = [*command.split(), "--trials", "3", "--hours", "1", "--stopping", "none", *changes]
    words += ["--results", str(tmp_path / "run")]
    ended = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    trials = load(tmp_path / "run")
    assert [(trial.status, len(trial.curve)) for trial in trials] == [("done", n_reports)] * 3


def test_all_examples_are_tested():
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix != ".json"}
    assert names == {"forest.py", "spiral.py", "anneal.sh", "circle.js", "script.py"}
