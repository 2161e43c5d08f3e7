"""Pytest's settings: the repository's root on the path, every warning an error; and what several files use."""

import contextlib
import os
import pathlib
import sys
from concurrent.futures import Future

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
# as in the tuner: in which order threads add numbers up would show in the last digits, and they would crowd each other out
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")


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
