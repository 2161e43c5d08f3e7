"""What the commands of this folder share: one-line errors, work in processes that Ctrl-C ends, CSVs that it cannot tear."""

import argparse
import contextlib
import csv
import importlib
import io
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import hpo.space
from hpo.objective import environment, kill_session, one_line, own_session
from hpo.tuner import RunFailed
from run import ENDING_SIGNALS, Parser


class Failed(Exception):
    """The command cannot do what it was asked to; the message says why."""


# ---- Command line ----------------------------------------------------------------------------------------------------
def run(name, kept="no file was written but those named above"):
    """Exits with the code of main() of experiments.NAME; Ctrl-C is a line that says what is kept.

    The module is imported again, under its own name, by which the processes of `in_processes` find its functions.
    """

    def interrupt(number, frame):
        for ending in ENDING_SIGNALS:  # once is enough
            signal.signal(ending, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    for number in ENDING_SIGNALS:
        signal.signal(number, interrupt)
    warnings.showwarning = lambda message, *_: print(f"experiments.{name}: warning: {message}", file=sys.stderr)
    try:
        code = importlib.import_module(f"experiments.{name}").main()
        sys.stdout.flush()
        sys.exit(code)
    except KeyboardInterrupt as interrupted:
        print(f"interrupted: {kept}", file=sys.stderr)
        sys.exit(128 + interrupted.args[0])
    except BrokenPipeError:  # the reader, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Failed, OSError) as error:
        sys.exit(f"experiments.{name}: failed: {error}")


def parser(name, description):
    """Argument parser of experiments.NAME; its errors are one line."""
    kind = argparse.RawDescriptionHelpFormatter
    return Parser(prog=f"experiments.{name}", description=description, formatter_class=kind, allow_abbrev=False)


@contextlib.contextmanager
def checking(parser):
    """Context in which a ValueError is bad input: a line, and exit code 2."""
    try:
        yield
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def check_results(folder):
    """ValueError unless there can be such a folder to write to."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"--results {folder}: expected a folder to write to, but {place} is none; name another")


# ---- Work in processes -----------------------------------------------------------------------------------------------
@contextlib.contextmanager
def in_processes(function, calls, n_processes, n_threads=1, initializer=None, initargs=()):
    """Context with an iterator over (key, Future of function(*arguments)) of calls {key: arguments}, as they end.

    Shows progress. The processes hear no Ctrl-C and die with this one; an exception in the block, Ctrl-C too, ends them.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, context, _begin, (initializer, initargs)) as pool:
        try:
            with environment(n_threads):
                futures = {pool.submit(function, *arguments): key for key, arguments in calls.items()}
            yield as_they_end(futures)
        except BrokenProcessPool:
            raise Failed("a process has died, for want of memory perhaps: try fewer at a time") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                kill_session(process.pid)
            raise


def _begin(initializer, initargs):
    own_session()
    if initializer:
        initializer(*initargs)


def as_they_end(futures):
    """Yields (key, Future) of {Future: key}, and prints how far they are."""
    started = told = time.time()
    for n, future in enumerate(as_completed(futures), 1):
        yield futures[future], future
        if time.time() - told > 5 or n == len(futures):
            told, left = time.time(), (time.time() - started) / n * (len(futures) - n)
            print(f"{n}/{len(futures)} done, about {left / 60:.1f} min left", file=sys.stderr, flush=True)


@contextlib.contextmanager
def blaming(what):
    """Context in which a searcher or rule that raises is Failed: `what`, the error, and the traceback of its own code."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, RunFailed):  # its cause has the user's part of the traceback alone
            said, error = " ".join(str(error).split()), error.__cause__
            own = error and error.__traceback__
        else:  # without this frame and our caller's
            said, own = f"raised {one_line(error)}", error.__traceback__.tb_next.tb_next
        lines = [f"{what}: {said}"]
        if own and own.tb_frame.f_code.co_filename != hpo.space.__file__:  # which found that a suggestion does not fit
            lines += ["".join(traceback.format_exception(type(error), error, own)).rstrip()]
        raise Failed("\n".join(lines)) from None


# ---- CSVs ------------------------------------------------------------------------------------------------------------
def append_rows(path, columns, rows):
    """Appends the rows in one write; a last line that is torn is cut off, and an empty file gets its header."""
    with open(path, "ab") as file:
        data = path.read_bytes()
        n_whole = data.rfind(b"\n") + 1
        if n_whole < len(data):
            file.truncate(n_whole)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*([] if n_whole else [columns]), *rows])
        file.write(text.getvalue().encode())


def read_rows(path, columns):
    """[{column: value}] of a CSV that `append_rows` has written, but for a torn last line; none where there is no file.

    columns: {name: int, float or str}; ValueError names file and line of what is none.
    """
    rows, lines = [], path.read_bytes().decode(errors="replace").split("\n")[:-1] if path.exists() else []
    for i, line in enumerate(lines, 1):
        try:
            (cells,) = csv.reader([line], strict=True)
            kinds = columns.values() if i > 1 else [str] * len(columns)
            rows.append({name: kind(cell) for name, kind, cell in zip(columns, kinds, cells, strict=True)})
            if i == 1 and cells != list(columns):
                raise ValueError
        except (ValueError, csv.Error):
            expected = ", ".join(f"{name} ({kind.__name__})" if i > 1 else name for name, kind in columns.items())
            where = f"{path}, line {i}: expected {expected}, got"
            raise ValueError(f"{where} {line!r:.200}; mend the line, or move the file away") from None
    return rows[1:]
