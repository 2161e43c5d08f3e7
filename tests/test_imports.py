"""The house's rules: who may import whom, read from the source, and what a process has then loaded."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
HPO = sorted((ROOT / "hpo").glob("**/*.py"))
ALLOWED = set(sys.stdlib_module_names) | {"numpy", "filelock", "hpo"}


def imported(path):
    """Dotted names of all the modules that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" if node.module == "hpo" else node.module for alias in node.names}
    return names


def top_level(names):
    return {name.partition(".")[0] for name in names}


def python(*arguments):
    """What a new Python says, started in the root."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(statement, names):
    """Those of the names that are in sys.modules after the statement."""
    program = f"import sys\n{statement}\nprint(*sorted(set({sorted(names)!r}) & set(sys.modules)))"
    return set(python("-c", program).split("\n")[-2].split())


def test_import_walk_sees_every_form(tmp_path):
    """The case that must fail: a forbidden import is found wherever it hides."""
    path = tmp_path / "bad.py"
    path.write_text("def f():\n    import torch.nn as nn\n    from train.mlp import x\nfrom hpo import space, trial\n")
    assert imported(path) == {"torch.nn", "train.mlp", "hpo.space", "hpo.trial"}
    assert not top_level(imported(path)) <= ALLOWED


@pytest.mark.parametrize("path", [*HPO, ROOT / "run.py"], ids=lambda path: path.name)
def test_tuner_imports_stdlib_numpy_filelock_and_itself_only(path):
    assert len(HPO) >= 8
    assert top_level(imported(path)) <= ALLOWED


def test_searchers_import_numpy_the_library_and_the_space_only():
    names = imported(ROOT / "hpo" / "searchers.py")
    assert {name for name in names if name.startswith("hpo")} == {"hpo.space"}
    assert top_level(names) <= set(sys.stdlib_module_names) | {"numpy", "hpo"}


def test_space_imports_none_of_hpo():
    assert "hpo" not in top_level(imported(ROOT / "hpo" / "space.py"))


def test_report_imports_the_standard_library_only():
    assert top_level(imported(ROOT / "hpo" / "report.py")) <= set(sys.stdlib_module_names)


def test_training_files_import_the_space_and_the_reporter_only():
    """What an objective needs of hpo, and no more; the packages are those of requirements.txt."""
    for path in sorted((ROOT / "train").glob("*.py")):
        names = imported(path)
        allowed = {"numpy", "torch", "torchvision", "filelock", "hpo", "train"}
        assert top_level(names) <= set(sys.stdlib_module_names) | allowed, path
        forbidden = {"hpo.tuner", "hpo.trial", "hpo.results", "hpo.searchers", "hpo.status"}
        assert not names & forbidden, path


def test_tuners_process_loads_no_torch():
    modules = ", ".join(f"hpo.{path.stem}" for path in HPO if path.stem != "__init__")
    everything = f"import run, {modules}\nimport hpo\nfor name in hpo.__all__: getattr(hpo, name)"
    assert loaded(everything, {"torch", "torchvision", "train", "numpy", "hpo.tuner"}) == {"numpy", "hpo.tuner"}


def test_hpo_itself_loads_nothing():
    assert loaded("import hpo", {"numpy", "filelock", "torch", "hpo.space", "hpo.report", "hpo.results"}) == set()


def test_every_name_of_hpo_is_there():
    assert python("-c", "import hpo\nfor name in hpo.__all__: assert getattr(hpo, name) is not None, name") == ""
    program = "import hpo\ntry: hpo.unifrom\nexcept AttributeError as error: print(error)"
    assert "unifrom" in python("-c", program) and "uniform" in python("-c", program)


def test_help_loads_no_numpy():
    program = "import runpy\nsys.argv = ['run.py', '--help']\n"
    program += "try: runpy.run_path('run.py', run_name='__main__')\nexcept SystemExit as end: assert not end.code"
    assert loaded(program, {"numpy", "torch", "filelock", "multiprocessing", "hpo.space", "argparse"}) == {"argparse"}


def test_help_shows_the_flags():
    text = python("run.py", "--help")
    for flag in ("--hours", "--workers", "--trials", "--searcher", "--seed", "--set", "--metric", "--results"):
        assert flag in text
