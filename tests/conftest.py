"""Pytest's settings: the repository's root on the path, warnings are errors, two processes; and what several files use."""

import contextlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from concurrent.futures import Future

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
# as in the tuner: in which order threads add numbers up would show in the last digits, and they would crowd each other out
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
SHARED = "HPO_TESTS_SHARED"  # the folder of two pytest processes: the files of tests that are taken, and reports


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")


def pytest_runtestloop(session):
    """All tests by two processes, each of which takes the next file: what most tests do is wait for a command of theirs."""
    files = [list(items) for _, items in itertools.groupby(session.items, key=lambda item: item.path)]
    files.reverse()  # test_run and test_resume, which take longest, are not the last to begin
    config, options = session.config, session.config.option
    if len(files) < 4 or options.collectonly or options.usepdb or options.maxfail or hasattr(config, "workerinput"):
        return None  # as pytest, or a worker of pytest-xdist, does by itself
    if SHARED in os.environ:
        run_untaken(config, files, pathlib.Path(os.environ[SHARED]))
        return True
    with tempfile.TemporaryDirectory() as shared:
        reports = pathlib.Path(shared) / "reports"
        reports.touch()
        command = [sys.executable, "-m", "pytest", *config.invocation_params.args]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = {**os.environ, SHARED: shared}
        with subprocess.Popen(command, cwd=config.invocation_params.dir, env=environment, **pipes) as other:
            run_untaken(config, files, pathlib.Path(shared))
            output = other.communicate()[0]
        if other.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            pytest.exit(f"the other pytest process has exited with code {other.returncode}:\n{output}", returncode=1)
        for line in reports.read_text(encoding="utf-8").splitlines():
            report = config.hook.pytest_report_from_serializable(config=config, data=json.loads(line))
            config.hook.pytest_runtest_logreport(report=report)
    return True


def run_untaken(config, files, shared):
    """Runs the tests of each file (a list of them) that no other process has taken; the other process keeps its reports."""

    class Reports:
        def pytest_runtest_logreport(self, report):
            data = config.hook.pytest_report_to_serializable(config=config, report=report)
            with open(shared / "reports", "a", encoding="utf-8") as file:
                file.write(json.dumps(data) + "\n")

    if SHARED in os.environ:
        config.pluginmanager.register(Reports())
    for items in files:
        try:
            (shared / items[0].path.name).mkdir()
        except FileExistsError:
            continue
        for item, next_item in zip(items, [*items[1:], None]):
            config.hook.pytest_runtest_protocol(item=item, nextitem=next_item)


@pytest.fixture
def in_this_process(monkeypatch):
    """What experiments.command.in_processes is asked to do is done here: no processes to start."""
    from experiments import command

    @contextlib.contextmanager
    def here(function, calls, n_processes, n_threads=1, initializer=None, initargs=()):
        if initializer:
            initializer(*initargs)

        def ended():
            for key, arguments in calls.items():
                future = Future()
                try:
                    future.set_result(function(*arguments))
                except command.Failed as error:
                    future.set_exception(error)
                yield from command.as_they_end({future: key})

        yield ended()

    monkeypatch.setattr(command, "in_processes", here)
