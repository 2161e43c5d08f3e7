"""experiments.repeat: methods compared on an objective, through the real tuner."""

import pytest

from experiments import repeat
from hpo import load

OBJECTIVE = """
from hpo import uniform

config_space = {"x": uniform(0, 1)}
metric, mode = "loss", "min"


def objective(config):
    return config["x"] ** 2
"""


def test_repeat_compares_methods_and_goes_on(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "square.py").write_text(OBJECTIVE)
    words = [str(tmp_path / "square.py"), "--workers", "1", "--results", str(tmp_path / "all")]
    words += ["--searcher", "random", "--searcher", "gp", "--seeds", "2"]
    repeat.main([*words, "--trials", "6"])
    out = capsys.readouterr().out
    folders = {f"{path.parent.name} {path.name}" for path in (tmp_path / "all").glob("*/*")}
    assert folders == {"random auto 0", "random auto 1", "gp auto 0", "gp auto 1"}
    assert "lowest loss of loss so far" in out and "2 runs in common" in out
    assert (tmp_path / "all/compared.png").stat().st_size > 5000
    for n in (6, 7):  # what has ended is not run again
        repeat.main([*words, "--trials", str(n)])
        assert len(load(tmp_path / "all/gp auto/1")) == n


def test_repeat_refuses_flags_of_its_own(capsys):
    with pytest.raises(SystemExit) as ended:
        repeat.main(["--seed", "3"])
    assert ended.value.code == 2 and "--seeds" in capsys.readouterr().err
