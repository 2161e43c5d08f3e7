"""The run's folder: the whole state of a run, append-only, readable by any tool.

    run.json       space, arguments, seed, versions, machine
    configs.jsonl  a line before each start: trial, attempt, config with exact types, origin, time, and `seen`, the number
                   of rows of the two CSVs when it was suggested: that prefix is what the searcher saw
    trials.csv     a row for each ended trial
    reports.csv    a row for each report
    logs/          what each trial printed

A row is a line: backslashes, line breaks and other control characters inside a cell are written as escapes. Values are
in the user's own sign; this module alone knows the mode: everywhere else a loss is lower-is-better.
"""

import contextlib
import csv
import io
import json
import math
import os
import pathlib
import platform
import re
import shutil
import sys
import time
from importlib import metadata

from filelock import FileLock, Timeout

from hpo.space import Domain, space_from_json, space_to_json
from hpo.trial import Trial

REPORT_COLUMNS = ["trial", "attempt", "epoch", "time"]
TRIAL_COLUMNS = ["trial", "attempt", "status", "value", "last_value", "best_epoch", "n_epochs", "origin"]
LAST_COLUMNS = ["started", "ended", "seconds", "suggest_seconds", "error"]
csv.field_size_limit(2**31 - 1)  # of one cell: an error message may be long
STATUSES = ("done", "stopped", "failed", "timeout")
SYNC_SECONDS = 1.0  # between two fsyncs of reports.csv; one takes about 4 ms


class ResultsError(ValueError):
    """A results folder that cannot be used or read; the message names the file and the reason."""


class WriteError(Exception):
    """A row cannot be appended to a run under way."""


# ---- Cells --------------------------------------------------------------------------------------------------------------
_UNSAFE = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPE = re.compile(r"\\(\\|n|r|t|u[0-9a-f]{4})")


def escape(text):
    """Text without line breaks or control characters; `unescape` gives the exact text back."""
    return _UNSAFE.sub(lambda m: _SHORT.get(m[0], f"\\u{ord(m[0]):04x}"), text)


def unescape(text):
    long = {written: character for character, written in _SHORT.items()}
    return _ESCAPE.sub(lambda m: long[m[0]] if m[0] in long else chr(int(m[1][1:], 16)), text)


def to_cell(value):
    """Text of a value in a CSV: numbers in full precision, NaN and Inf as R and pandas read them, lists as JSON."""
    if value is None:
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Inf" if value > 0 else "-Inf"
    if isinstance(value, (list, dict)):
        value = json.dumps(value)
    return escape(str(value))


def to_line(cells):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([to_cell(cell) for cell in cells])
    return text.getvalue()


def report_column(metric):
    """Name of a metric's column in reports.csv."""
    return f"metric_{metric}" if metric in (*REPORT_COLUMNS, "extra") else metric


# ---- Writing ------------------------------------------------------------------------------------------------------------
class Results:
    """Appends to a run's folder. Every row is one unbuffered write, so that a killed run loses nothing written."""

    def __init__(self, folder, space, metric, mode):
        self.folder = pathlib.Path(folder)
        self.space, self.metric, self.mode = space, metric, mode
        self.sign = -1.0 if mode == "max" else 1.0
        self.n_rows = {"trials": 0, "reports": 0}
        self.report_metrics = None  # the metrics that have a column of their own
        self.synced = -math.inf
        self.files = {}
        self.made = None  # the folders that `create` made, deepest first
        self.lock = FileLock(self.folder / ".lock", timeout=0)

    @classmethod
    def create(cls, folder, space, metric, mode, settings):
        """Makes the folder of a new run; ResultsError when it holds something or cannot be written."""
        check_new(folder)
        results = cls(folder, space, metric, mode)
        missing = [path for path in (results.folder, *results.folder.parents) if not path.exists()]
        try:
            results.folder.mkdir(parents=True, exist_ok=True)
            results.lock.acquire()
            check_new(folder)  # another run may have made it meanwhile
            results.made = missing  # from here on the folder is ours
            (results.folder / "logs").mkdir()
            run = {
                "space": space_to_json(space),
                "metric": metric,
                "mode": mode,
                **settings,
                "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "versions": _versions(),
                "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
            }
            partial = results.folder / "run.json.partial"
            partial.write_text(json.dumps(run, indent=1) + "\n")
            os.replace(partial, results.folder / "run.json")
            for name in ("configs.jsonl", "trials.csv", "reports.csv"):
                results.files[name] = os.open(results.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            names = [f"config_{name}" for name in space]
            results._append("trials.csv", to_line(TRIAL_COLUMNS + names + LAST_COLUMNS), sync=True)
        except Timeout:
            raise ResultsError(f"{folder}: another run is using it; choose another folder with --results") from None
        except (OSError, WriteError) as error:
            results.remove()
            raise ResultsError(
                f"{folder}: cannot make the results folder: {error}; choose another with --results"
            ) from None
        return results

    def append_config(self, trial, seen):
        """The line of a trial that is about to start; seen: {"trials": rows, "reports": rows} when it was suggested."""
        line = {"trial": trial.id, "attempt": trial.attempt, "config": trial.config, "origin": trial.origin}
        line |= {"time": round(trial.started, 3), "seen": seen}
        self._append("configs.jsonl", json.dumps(line) + "\n", sync=True)

    def append_report(self, trial, metrics, now):
        """Appends a report's row; returns (epoch, loss), or None when the metric is not in it."""
        metrics = dict(metrics)
        epoch = metrics.pop("epoch")
        if self.report_metrics is None:
            columns = {report_column(self.metric): self.metric}
            for name in metrics:
                columns.setdefault(report_column(name), name)
            self._append("reports.csv", to_line([*REPORT_COLUMNS, *columns, "extra"]), sync=False)
            self.report_metrics = list(columns.values())
        point = (epoch, self.to_loss(metrics[self.metric])) if self.metric in metrics else None
        own = {name: metrics.pop(name, None) for name in self.report_metrics}
        if point and not isinstance(own[self.metric], float) and math.isnan(point[1]):
            metrics[self.metric], own[self.metric] = own[self.metric], math.nan  # this column holds numbers alone
        extra = json.dumps(metrics) if metrics else None
        sync = now - self.synced >= SYNC_SECONDS
        row = [trial.id, trial.attempt, epoch, round(now, 3), *own.values(), extra]
        self._append("reports.csv", to_line(row), sync)
        self.synced = now if sync else self.synced
        self.n_rows["reports"] += 1
        return point

    def append_trial(self, trial):
        """The row of an ended trial."""
        value, last_value = self.to_metric(trial.value), self.to_metric(trial.last_value)
        row = [trial.id, trial.attempt, trial.status, value, last_value, trial.best_epoch, trial.n_epochs, trial.origin]
        row += [trial.config[name] for name in self.space]
        seconds = trial.ended - trial.started
        row += [
            *(round(t, 3) for t in (trial.started, trial.ended, seconds)),
            round(trial.suggest_seconds, 6),
            trial.error,
        ]
        self._append("trials.csv", to_line(row), sync=True)
        self.n_rows["trials"] += 1

    def to_loss(self, value):
        """Lower is better; NaN where the metric is no finite number."""
        is_finite = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        return self.sign * value if is_finite else math.nan

    def to_metric(self, loss):
        """The user's own sign."""
        return None if loss is None else self.sign * loss + 0.0

    def close(self):
        for file in self.files.values():
            os.close(file)
        self.files = {}
        self.lock.release()

    def remove(self):
        """Takes back the folder of a run that has come to nothing, and the empty folders made on the way to it."""
        self.close()
        if self.made is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            for path in self.made:
                with contextlib.suppress(OSError):  # somebody else's files are in it
                    path.rmdir()

    def _append(self, name, line, sync):
        file = self.files[name]
        try:
            status = os.fstat(file)
            if status.st_nlink == 0:
                raise OSError("the file was deleted")
            data = line.encode()
            try:
                if os.write(file, data) < len(data):
                    raise OSError("no space left for the whole row")
                if sync:
                    os.fsync(file)
            except OSError:
                os.ftruncate(file, status.st_size)
                raise
        except OSError as error:
            raise WriteError(f"{self.folder / name}: cannot append a row: {error}") from error


def check_new(folder):
    """ResultsError when a new run cannot have this folder: it holds something, or is no folder."""
    folder = pathlib.Path(folder)
    try:
        if (folder / "run.json").exists():
            raise ResultsError(f"{folder}: holds a run already; choose a new folder with --results")
        if folder.exists() and (not folder.is_dir() or any(path.name != ".lock" for path in folder.iterdir())):
            raise ResultsError(f"{folder}: is not an empty folder; choose a new one with --results")
        parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise ResultsError(
                f"{folder}: cannot be written, {parent} is no writable folder; choose another with --results"
            )
    except OSError as error:
        raise ResultsError(f"{folder}: cannot be used: {error}; choose another with --results") from None


def _versions():
    versions = {"python": platform.python_version()}
    for name in ("numpy", "torch", "torchvision", "filelock"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


# ---- Reading ------------------------------------------------------------------------------------------------------------
def load_run(folder):
    """run.json as a dict, its space made of domains again."""
    path = pathlib.Path(folder) / "run.json"
    try:
        run = json.loads(path.read_text())
        if run["mode"] not in ("max", "min") or not isinstance(run["metric"], str):
            raise ValueError(f"metric {run['metric']!r}, mode {run['mode']!r}")
        return {**run, "space": space_from_json(run["space"])}
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}; expected the folder of a run") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path}: not the record of a run: {error!r}") from None


def load(folder):
    """The trials of a run, sorted by id, as the searcher sees them: losses, lower is better."""
    folder, run = pathlib.Path(folder), load_run(folder)
    sign = -1.0 if run["mode"] == "max" else 1.0
    column, trials = report_column(run["metric"]), {}
    for where, line in _lines(folder / "configs.jsonl"):
        with _located(where):
            start = json.loads(line)
            config = {name: _exact(entry, start["config"][name]) for name, entry in run["space"].items()}
            trial = Trial(int(start["trial"]), config, str(start["origin"]), int(start["attempt"]))
            trial.started = float(start["time"])
            trials[trial.id] = trial  # a later attempt replaces an earlier one
    for where, row in _rows(folder / "reports.csv", [*REPORT_COLUMNS, column, "extra"]):
        with _located(where):
            trial = trials[int(row["trial"])]
            if row["extra"] and not isinstance(json.loads(row["extra"]), dict):
                raise ValueError(f"extra: expected a JSON object, got {row['extra']}")
            if int(row["attempt"]) == trial.attempt and row[column]:
                loss = sign * float(row[column])
                if math.isfinite(loss):
                    trial.curve.append((int(row["epoch"]), loss))
    for where, row in _rows(folder / "trials.csv", TRIAL_COLUMNS + LAST_COLUMNS):
        with _located(where):
            trial = trials[int(row["trial"])]
            if int(row["attempt"]) == trial.attempt:
                if row["status"] not in STATUSES:
                    raise ValueError(f"status: expected one of {', '.join(STATUSES)}, got {row['status']!r}")
                trial.status, trial.error = row["status"], row["error"]
                trial.ended, trial.suggest_seconds = float(row["ended"]), float(row["suggest_seconds"])
    return [trials[i] for i in sorted(trials)]


class _located(contextlib.AbstractContextManager):
    """Context in which whatever is wrong with a line becomes a ResultsError that says where."""

    def __init__(self, where):
        self.where = where

    def __exit__(self, kind, error, tb):
        if isinstance(error, (ValueError, KeyError, TypeError, OverflowError, csv.Error)):
            raise ResultsError(f"{self.where}: {kind.__name__}: {error}") from None


def _exact(entry, value):
    return entry.cast(value) if isinstance(entry, Domain) else value


def _lines(path):
    """(place, line) of each complete line; a last one without its line end was being written when the run died."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from None
    for i, line in enumerate(lines, 1):
        with _located(f"{path}, line {i}"):
            text = line.decode()
        yield f"{path}, line {i}", text


def _rows(path, required):
    """(place, {column: unescaped cell}) of each row of a CSV file whose header has the required columns."""
    header = None
    for where, line in _lines(path):
        with _located(where):
            cells = [unescape(cell) for cell in next(csv.reader([line]))]
            if header is None:
                header = cells
                if missing := [column for column in required if column not in header]:
                    raise ValueError(f"column {missing[0]} is missing, got {', '.join(header)}")
                continue
            if len(cells) != len(header):
                raise ValueError(f"expected {len(header)} cells, got {len(cells)}")
        yield where, dict(zip(header, cells))
