"""An objective: loading it, describing it, running it as a program."""

import json
import pathlib
import random
import re
import shlex
import sys
import types

import pytest

import hpo.objective
from hpo.objective import command_line, describe, load_module, run_as_program, source_of
from hpo.space import choice, uniform

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIRST = "from hpo import Reporter, uniform\nconfig_space = {'x': uniform(0, 1), 'n': 1, 'a': 'b'}\n"
WHOLE = f"{FIRST}metric, mode = 'y', 'max'\ndef objective(config): return config['x']\n"
PREPARE = f"{WHOLE}def prepare(given): "
GIVEN = {"space": None, "metric": None, "mode": None}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes an objective file and returns its path."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(text, name="mine.py"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


# ---- Loading -------------------------------------------------------------------------------------
def test_module_is_loaded_from_its_folder_and_as_it_was(write):
    write("value = 1", "neighbour.py")
    path = write("from neighbour import value\nimport train")
    assert load_module(path).value == 1 and sys.modules["mine"].value == 1
    assert load_module(path, b"value = 2").value == 2


def test_only_installed_libraries_are_imported_once_for_all_trials(write):
    write("", "near.py")
    for source, libraries in {
        "import numpy as np, re\nimport os.path\nfrom a.b import X": "numpy re os.path a.b",
        "import json  # it\nimport mine\nfrom near import x\nfrom . import y": "json",
        "import json\nimport hpo\nfrom train.mlp_fashion_mnist import mask": "json",
        "def f():\n    import json": "",
        "import os\nos.environ['A'] = '1'\nimport json": "",  # which may read it
        "import json, sys\nsys.path.insert(0, 'there')": "",
    }.items():
        assert source_of(write(source)) == (source.encode(), libraries.split())
    for objective in ("nowhere.py", ("no_such_module", "f"), ("no.such", "f"), lambda config: 0):
        assert source_of(objective) == (None, [])


# ---- Describing ----------------------------------------------------------------------------------
def test_description(write):
    path = write(f"{PREPARE}return {{'n': given['n'] + 1, 'note': 'small'}}\n")
    found = describe(path, None, **GIVEN, assignments=["n=4", "a=b=c"])
    assert isinstance(found.pop("gpus"), list) and "numpy" in found.pop("versions")
    space = {"x": {"uniform": [0.0, 1.0]}, "n": 5, "a": "b=c"}
    prepared = {"prepared": {"n": 5}, "note": "small"}
    assert found == {"space": space, "metric": "y", "mode": "max", **prepared}
    given = {"space": {"x": {"randint": [1, 3]}, "n": 7}, "metric": "loss", "mode": "min"}
    found = describe(path, None, **given, prepared={"n": 9})  # as when a run goes on
    given["space"]["n"] = 9
    assert found.items() >= {**given, "prepared": {"n": 9}, "note": ""}.items()


BAD = [  # the file, its assignments, and the error
    ("x = 1\n1 / 0", [], "FILE, line 2: ZeroDivisionError: division by zero"),
    ("x = 1\na syntax error", [], "FILE, line 2: SyntaxError: invalid syntax"),
    ("import sys\nsys.exit('no data')", [], "FILE, line 2: no data"),
    ("metric, mode = 'y', 'max'", [], "config_space: expected a dict of names, got None"),
    (f"{FIRST}def objective(config): pass", [], "metric: expected a name, got None"),
    (WHOLE.replace("max", "more"), [], 'mode: expected "max" or "min", got '),
    (f"{WHOLE}config_space['c'] = objective", [], "c: expected"),
    (WHOLE, ["n"], "--set n: expected NAME=VALUE"),
    (WHOLE, ["m=1"], "--set m=1: m: no such name in the space; it has x, n, a"),
    (f"{PREPARE}raise OSError('no disk')", [], "prepare: OSError: no disk"),
    (f"{PREPARE}return [1]", [], "prepare: TypeError: "),
]


def test_description_says_what_is_wrong(write):
    for text, assignments, error in BAD:
        path = write(text)
        with pytest.raises(ValueError, match=f"^{re.escape(error.replace('FILE', path))}"):
            describe(path, None, **GIVEN, assignments=assignments)


def test_each_visible_gpu_is_named(monkeypatch):
    torch = types.SimpleNamespace(cuda=types.SimpleNamespace(device_count=lambda: 2))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert hpo.objective.visible_gpus() == ["0", "1"]
    for given, names in {"5, 7,9": "5 7", "GPU-1,-1": "GPU-1", "": ""}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert hpo.objective.visible_gpus() == names.split()


# ---- As a program --------------------------------------------------------------------------------
SPACE = {"x": uniform(-1, 1), "kind": choice(["a b", 1, True]), "yes": True, "none": None, "n": 1}
HARD = {  # for a shell, and for the parser of the words
    "x": -1.2345678901234567e-05, "kind": 'it\'s $HOME "%"', "n": -3, "yes": False, "none": None,
    "list": [2.0, {"b": [True, None]}], "text": "None", "empty": "", "dash": "-a",
}  # fmt: skip


def test_program_takes_flags_or_a_file(tmp_path):
    path, seen = tmp_path / "config.json", []
    path.write_text(json.dumps(dict(zip(SPACE, [0.25, "a b", False, None, 4]))))
    unknown = ["--st_checkpoint_dir", "there", "--ki"]
    for flags, expected in {
        "--x=-0.5|--kind=a b|--yes=False|--none=None|--n=2": [-0.5, "a b", False, None, 3],
        "--x|-0.5|--kind|1|--yes|true|--none|null|--n|-3": [-0.5, 1, True, None, -2],
        "--x|1e-3|--kind|True|--yes|false|--none|a b|--n|2": [0.001, True, False, "a b", 3],
        f"--config_json|{path}": [0.25, "a b", False, None, 5],
        f"--config_json|{path}|--x|0.5": [0.5, "a b", False, None, 5],  # flags come first
    }.items():
        train = lambda config: seen.append((config, random.random()))
        prepare = lambda given: {"n": given["n"] + 1, "note": "for the tuner"}
        run_as_program(train, SPACE, prepare, [*flags.split("|"), *unknown, "--trial_seed=3"])
        assert repr(seen[-1][0]) == repr(dict(zip(SPACE, expected)))
    assert len({number for _, number in seen}) == 1


def test_program_says_what_is_wrong_in_a_line(capsys):
    for flags, error in {
        "--x=0.5 --n=1": "missing --kind, --yes, --none; every name of config_space is needed",
        "--x=2 --kind=1 --yes=1 --none=1 --n=1": "x: expected",
        "--x=0 --kind=1 --yes=2 --none=1 --n=1": "yes: expected",
        "--config_json nowhere.json": "nowhere.json",
    }.items():
        with pytest.raises(SystemExit) as ended:
            run_as_program(print, SPACE, arguments=flags.split())
        assert ended.value.code == 2 and error in capsys.readouterr().err.splitlines()[-1]


def test_command_line_gives_the_program_its_configuration():
    """By a shell. That it trains again with the same random numbers: tests/test_run.py."""
    space = {**HARD, "x": uniform(-1, 1), "kind": choice(["a", HARD["kind"]]), "list": [0]}
    command = command_line("an objective.py", HARD, trial_seed=5, n_threads=3)
    path, threads, *words = shlex.split(command)
    assert path == f"PYTHONPATH={ROOT}" and threads == "OMP_NUM_THREADS=3"
    assert words[:4] == ["python", "-m", "hpo.objective", "an objective.py"]
    seen = []
    run_as_program(seen.append, space, arguments=words[4:])
    assert repr(seen) == repr([HARD]) and "--trial_seed=5" in words
