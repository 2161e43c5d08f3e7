"""Pytest's settings, and the fixtures that several files use."""

import contextlib
import os
import pathlib
import signal
import sys
from concurrent.futures import Future

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # as in the tuner; the number of threads changes sums in the last digits
# Started by `&` in a script, pytest ignores Ctrl-C, and so would the commands that it interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture
def in_this_process(monkeypatch):
    """experiments.command.in_processes then calls here, one after the other: nothing to start."""
    from experiments import command

    @contextlib.contextmanager
    def here(function, calls, n_processes, n_threads=1, initializer=None, initargs=()):
        if initializer:
            initializer(*initargs)

        def results():
            for key, arguments in calls.items():
                future = Future()
                try:
                    future.set_result(function(*arguments))
                except command.Failed as error:
                    future.set_exception(error)
                yield from command.as_they_end({future: key})

        yield results()

    monkeypatch.setattr(command, "in_processes", here)
