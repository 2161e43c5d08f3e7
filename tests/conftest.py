"""Pytest's settings, and the fixtures that several files use."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import warnings

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # as in the tuner; the number of threads changes sums in the last digits
# Started by `&` in a script, pytest ignores Ctrl-C, and so would the commands that it interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture
def in_this_process(monkeypatch):
    """experiments.command.in_processes then calls here, in turn, and prints the keys."""
    from experiments import command

    def here(function, calls, n_processes, initializer=None, initargs=()):
        if initializer:
            initializer(*initargs)
        for key, arguments in calls.items():
            print("call", key, file=sys.stderr)
            yield key, function(*arguments)

    monkeypatch.setattr(command, "in_processes", here)


@pytest.fixture
def start_py():
    """A function that starts Python in the root; what still runs when the test ends is killed."""
    with contextlib.ExitStack() as stack:

        def start(*words, **options):
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            words, options = [sys.executable, *map(str, words)], {**pipes, "cwd": ROOT, **options}
            process = stack.enter_context(subprocess.Popen(words, **options))
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def run_py(start_py):
    """A function that runs Python in the root: (exit code, stdout, stderr)."""

    def run(*words, **options):
        process = start_py(*words, **options)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    return run


@pytest.fixture
def main(capsys, monkeypatch):
    """A function that calls run.py's main in this process: (exit code, stdout, stderr)."""
    import run

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which main changes
    monkeypatch.setattr(sys, "path", [*sys.path])  # a searcher's file is loaded here

    def call(*words):
        capsys.readouterr()
        try:
            code = run.main([*map(str, words)])
        except SystemExit as ended:  # of argparse
            code = ended.code
        return code, *capsys.readouterr()

    return call
