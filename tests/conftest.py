"""Pytest's settings: the repository's root on the path, every warning an error; and what several files use."""

import contextlib
import pathlib
import sys
from concurrent.futures import Future

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


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
