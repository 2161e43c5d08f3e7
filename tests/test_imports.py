"""What a process loads: numpy and filelock alone, and no more than it needs."""

import sys

import pytest


@pytest.fixture
def loaded(run_py):
    """A function: what a program in the root has in sys.modules that it had not at its start."""

    def loaded(program):
        program = f"import sys\nbefore = set(sys.modules)\n{program}\n"
        program += "print('loaded', *set(sys.modules) - before)"
        code, out, err = run_py("-c", program)
        assert (code, err) == (0, "")
        return set(out.splitlines()[-1].split()[1:])

    return loaded


EVERY_NAME = "import hpo, run\nfor name in hpo.__all__: assert getattr(hpo, name), name"
HELP = "import run\ntry: run.main(['--help'])\nexcept SystemExit as end: assert not end.code"
HEAVY = {"numpy", "filelock", "hpo.space", "multiprocessing"}


def test_processes_load_what_they_need_alone(loaded):
    assert loaded("import hpo") & {*HEAVY, "hpo.report"} == set()
    assert not loaded("from hpo import Reporter; Reporter()") & HEAVY
    assert not loaded(HELP) & HEAVY
    found = loaded(EVERY_NAME)
    assert "hpo.tuner" in found and "hpo.dask_backend" not in found
    packages = {name.partition(".")[0] for name in found} - sys.stdlib_module_names
    assert packages - {"__mp_main__"} == {"hpo", "run", "numpy", "filelock"}


def test_tuner_process_loads_nothing_of_the_objective_file(tmp_path, loaded):
    """Such as torch, which takes seconds and memory; pytest is sooner there."""
    text = "import hpo, pytest\nconfig_space = {'x': hpo.uniform(0, 1)}\nmetric = mode = 'min'\n"
    (tmp_path / "mine.py").write_text(text + "def objective(config): return len(pytest.__name__)")
    words = [f"{tmp_path}/mine.py", "--trials", "1", "--results", f"{tmp_path}/run"]
    found = loaded(f"import run\nassert run.main({words}) == 0")
    assert "numpy" in found and not found & {"pytest", "mine"}
