"""The house's rules: who may import whom, read from the source, and what a process has loaded."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
STDLIB = set(sys.stdlib_module_names)
ORDER = ["report", "space", "objective", "trial", "journal", "searchers", "stopping", "status"]
ORDER += ["dask_backend", "tuner"]  # each of hpo/ imports of the others only those before it
OBJECTIVE = {"hpo.Reporter", "hpo.run_as_program", "hpo.uniform", "hpo.loguniform", "hpo.randint"}
ALLOWED = {"report": set(), "stopping": set(), "searchers": {"numpy", "hpo.space"}}
ALLOWED |= {"dask_backend": {"distributed", "hpo.objective", "hpo.report", "hpo.trial"}}
ALLOWED |= {"fashion_mnist": {"numpy", "torchvision", "filelock"}}
ALLOWED |= {"mlp_fashion_mnist": {"torch", "train", *OBJECTIVE}}


def imported(path):
    """Names of all the modules that a file imports, inside functions too: numpy, hpo.space."""
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "hpo":
            names |= {f"hpo.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name if name.startswith("hpo.") else name.partition(".")[0] for name in names}


@pytest.fixture
def loaded(run_py):
    """A function: those of the names that are in sys.modules after a program in the root."""

    def loaded(program, names):
        program = f"import sys\n{program}\nprint(*set({sorted(names)!r}) & set(sys.modules))"
        code, out, err = run_py("-c", program)
        assert (code, err) == (0, "")
        return set(out.splitlines()[-1].split())

    return loaded


def test_data_flows_one_way_and_few_packages_are_needed(tmp_path):
    for path in [ROOT / "run.py", *ROOT.glob("hpo/*.py"), *ROOT.glob("train/*.py")]:
        before = ORDER[: ORDER.index(path.stem)] if path.stem in ORDER else ORDER
        allowed = {"numpy", "filelock", *(f"hpo.{module}" for module in before)}
        assert imported(path) - STDLIB <= ALLOWED.get(path.stem, allowed), path
    (tmp_path / "bad.py").write_text("if 1:\n    import torch.nn as nn\n    from hpo import a, b")
    assert imported(tmp_path / "bad.py") == {"torch", "hpo.a", "hpo.b"}


def test_processes_load_what_they_need_alone(loaded):
    heavy = {"numpy", "filelock", "torch", "hpo.space", "multiprocessing"}
    assert loaded("import hpo", heavy | {"hpo.report"}) == set()
    assert loaded("from hpo import Reporter; Reporter()", heavy) == set()
    every_name = "import hpo, run\nfor name in hpo.__all__: assert getattr(hpo, name), name"
    assert loaded(every_name, {"torch", "train", "hpo.tuner"}) == {"hpo.tuner"}
    program = "import run\ntry: run.main(['--help'])\nexcept SystemExit as end: assert not end.code"
    assert loaded(program, {*heavy, "argparse"}) == {"argparse"}


def test_tuner_process_loads_nothing_of_the_objective_file(tmp_path, loaded):
    """Such as torch, which takes seconds and memory; pytest is sooner there."""
    text = "import hpo, pytest\nconfig_space = {'x': hpo.uniform(0, 1)}\nmetric = mode = 'min'\n"
    (tmp_path / "mine.py").write_text(text + "def objective(config): return len(pytest.__name__)")
    words = [f"{tmp_path}/mine.py", "--trials", "1", "--results", f"{tmp_path}/run"]
    program = f"import run\nassert run.main({words}) == 0"
    assert loaded(program, {"pytest", "mine", "numpy"}) == {"numpy"}
