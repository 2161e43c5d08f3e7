"""What the commands of this folder share: one-line errors, work in processes, CSVs."""

import argparse
import contextlib
import csv
import io
import math
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from hpo.stopping import with_options
from hpo.tuner import find
from run import ROOT, Parser  # noqa: F401 (others take ROOT from here)


class Failed(Exception):
    """The command cannot do what it was asked to; the message says why."""


# ---- Command line ----
def parser(name, description):
    """Argument parser of experiments.NAME, whose errors are one line."""
    layout = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    return Parser(prog=f"experiments.{name}", description=description, **layout)


def number(kind, is_valid, expected):
    """Argparse type: kind(text), if that is valid."""

    def convert(text):
        with contextlib.suppress(ValueError):
            if is_valid(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")

    return convert


positive = number(float, lambda x: 0 < x < math.inf, "a number > 0")
positive_int = number(int, lambda n: n >= 1, "an integer >= 1")
natural = number(int, lambda n: n >= 0, "an integer >= 0")


@contextlib.contextmanager
def checking(parser):
    """Context in which a ValueError, or a file that cannot be used, is bad input: exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def run(name, kept="no file was written but those named above"):
    """Exits with the code of experiments.NAME's main(). Ctrl-C is a line that says what is kept."""
    try:
        code = sys.modules["__main__"].main()
        sys.stdout.flush()
        sys.exit(code)
    except KeyboardInterrupt:
        print(f"interrupted: {kept}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Failed, ModuleNotFoundError, OSError, BrokenProcessPool) as error:
        sys.exit(f"experiments.{name}: failed: {error}")


# ---- Work in processes ----
def in_processes(function, calls, n_processes, initializer=None, initargs=()):
    """Yields (key, function(*arguments)) of calls, {key: arguments}, as they end.

    It prints how far they are. Whatever ends the loop, Ctrl-C too, ends the processes.
    """
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n_processes, spawn, _begin, (initializer, initargs))
    try:
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by the processes
        futures = {pool.submit(function, *values): key for key, values in calls.items()}
        signal.signal(signal.SIGINT, handler)
        started = told = time.time()
        for n, future in enumerate(as_completed(futures), 1):
            yield futures[future], future.result()
            if time.time() - told > 5:
                told = time.time()
                minutes = (told - started) / n * (len(calls) - n) / 60
                print(f"{n}/{len(calls)} done, about {minutes:.1f} min left", file=sys.stderr)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.kill()
        raise
    pool.shutdown()


def _begin(initializer, initargs):
    """In each process: it ends as soon as the command does, however that ends."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if initializer:
        initializer(*initargs)


# ---- Other processes ----
def children_of(pid):
    """The process ids of all descendants. Each thread has children of its own."""
    direct = []
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended
            direct += map(int, path.read_text().split())
    return [*direct, *(pid for child in direct for pid in children_of(child))]


def is_alive(pid, word=""):
    """Whether there is such a process, with a word in its command line."""
    try:
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()  # empty once it has ended
    except OSError:
        return False
    return bool(words) and word.encode() in words


def end_tree(process):
    """Kills a process and its descendants."""
    for pid in [process.pid, *children_of(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


# ---- CSVs ----
def append_rows(path, columns, rows):
    """Appends rows in one write, which no kill can tear; a new file gets its header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows if path.exists() else [columns, *rows])
    with open(path, "ab", buffering=0) as file:
        file.write(text.getvalue().encode())


def read_rows(path, columns):
    """[{name: value}] of a CSV with columns {name: type}; [] where there is no file."""
    rows = csv.DictReader(path.read_text().splitlines()) if path.exists() else ()
    try:
        return [{name: kind(row[name]) for name, kind in columns.items()} for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected columns {', '.join(columns)}: {error!r}") from None


# ---- Searchers and rules by name ----
def find_searcher(name):
    """The searcher class of gp, gp:NAME=VALUE,NAME=VALUE or FILE.py:CLASS; or ValueError."""
    return find("searcher", name)


def find_rule(name, first_rung=1, eta=3):
    """The stopping rule of a known name or of FILE.py:FUNCTION, with its options; or ValueError."""
    return with_options(find("stopping", name), first_rung=first_rung, eta=eta)
