"""The run's folder: the whole state of a run, append-only, readable by any tool.

    run.json       space, arguments, seed, versions, machine; the sessions, when the run was resumed
    configs.jsonl  a line before each start: trial, attempt, config with exact types, origin, time, and `seen`, the number
                   of rows of the two CSVs when it was suggested: that prefix is what the searcher saw (`load_before`).
                   A trial that is started again has another line, attempt one higher, seen null: nothing was suggested
    trials.csv     a row for each ended trial
    reports.csv    a row for each report
    logs/          what each trial printed

Of a trial's attempts the last one counts; the rows of earlier ones stay in the files, which only grow.
A row is a line: backslashes, line breaks and other control characters inside a cell are written as escapes. Values are
in the user's own sign; this module alone knows the mode: everywhere else a loss is lower-is-better.
"""

import contextlib
import csv
import errno
import io
import itertools
import json
import math
import os
import pathlib
import platform
import re
import shutil
import sys
import time
import warnings
from dataclasses import dataclass
from importlib import metadata

from filelock import FileLock, Timeout

from hpo.space import config_key, constants, domains, space_from_json, space_to_json
from hpo.trial import Trial

REPORT_COLUMNS = ["trial", "attempt", "epoch", "time"]
TRIAL_COLUMNS = ["trial", "attempt", "status", "value", "last_value", "best_epoch", "n_epochs", "origin"]
LAST_COLUMNS = ["started", "ended", "seconds", "suggest_seconds", "error"]
csv.field_size_limit(2**31 - 1)  # of one cell: an error message may be long
APPENDED = ("configs.jsonl", "trials.csv", "reports.csv")
SEEN = ("trials", "reports")  # what `seen` counts
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


def trial_columns(space):
    """The columns of trials.csv."""
    return [*TRIAL_COLUMNS, *(f"config_{name}" for name in space), *LAST_COLUMNS]


# ---- Writing ------------------------------------------------------------------------------------------------------------
class Results:
    """Appends to a run's folder. Every row is one unbuffered write, so that a killed run loses nothing written."""

    def __init__(self, folder, space, metric, mode):
        self.folder = pathlib.Path(folder)
        self.space, self.metric, self.mode = space, metric, mode
        self.sign = -1.0 if mode == "max" else 1.0
        self.n_rows = {"trials": 0, "reports": 0}
        self.run = {}  # run.json of earlier sessions
        self.trials, self.clock = [], 0.0  # of earlier sessions, and the seconds that they took
        self.report_columns = None  # names of the metrics' columns, once there is a header
        self.column_owners = {report_column(metric): metric}
        self.synced, self.unsynced = -math.inf, False  # reports.csv: time of its last fsync, rows written since
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
            results._open_files()
            results._append("trials.csv", to_line(trial_columns(space)), sync=True)
            run = {
                "space": space_to_json(space),
                "metric": metric,
                "mode": mode,
                **settings,
                "created": _now(),
                "versions": _versions(),
                "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
            }
            results._write_run(run)  # the last: a folder with a run.json is a whole one
        except Timeout:
            raise ResultsError(f"{folder}: another run is using it; choose another folder with --results") from None
        except (OSError, WriteError) as error:
            results.remove()
            raise ResultsError(
                f"{folder}: cannot make the results folder: {error}; choose another with --results"
            ) from None
        return results

    @classmethod
    def open(cls, folder):
        """Takes up the folder of a run that is to go on: locked, torn last lines cut, what it holds in `trials`.

        ResultsError when another run is using it, when it cannot be written, or when a row is wrong.
        """
        run = load_run(folder)
        results = cls(folder, run["space"], run["metric"], run["mode"])
        try:
            results.lock.acquire()
            results.run = run = load_run(folder)  # another session may have ended meanwhile
            if not os.access(results.folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "is read-only")
            for name in APPENDED:
                _cut_torn(results.folder / name)
            (results.folder / "logs").mkdir(exist_ok=True)
            results._open_files()
            found = _read(results.folder, run)
            results.trials, results.n_rows, results.clock = found.trials, found.n_rows, found.seconds
            results.report_columns = found.report_columns
            if not os.path.getsize(results.folder / "trials.csv"):  # its header was torn
                results._append("trials.csv", to_line(trial_columns(results.space)), sync=True)
        except Timeout:
            raise ResultsError(f"{folder}: another run is using it; wait for its end, or end it") from None
        except (OSError, WriteError) as error:
            results.close()
            raise ResultsError(f"{folder}: cannot go on in it: {error}") from None
        except ResultsError:
            results.close()
            raise
        return results

    def begin_session(self, arguments):
        """Notes in run.json that the run goes on, with which arguments; ResultsError when it cannot be written."""
        try:
            session = {"began": _now(), "clock": self.clock, "arguments": arguments}
            run = {**self.run, "space": space_to_json(self.space), "arguments": arguments}
            self._write_run({**run, "sessions": [*run.get("sessions", []), session]})
        except OSError as error:
            raise ResultsError(f"{self.folder / 'run.json'}: cannot be written: {error}") from None

    def append_config(self, trial, seen):
        """The line of a trial that is about to start.

        seen: {"trials": rows, "reports": rows} when it was suggested; None for a trial that is started again.
        """
        self._sync_reports()  # what the suggestion saw must be there as long as the suggestion is
        line = {"trial": trial.id, "attempt": trial.attempt, "config": trial.config, "origin": trial.origin}
        line |= {"time": round(trial.started, 3), "seen": seen}
        self._append("configs.jsonl", json.dumps(line) + "\n", sync=True)

    def append_report(self, trial, metrics, now):
        """Appends a report's row; returns (epoch, loss), or None when the metric is not in it."""
        metrics = dict(metrics)
        epoch = metrics.pop("epoch")
        if self.report_columns is None:
            columns = list(dict.fromkeys(map(report_column, [self.metric, *metrics])))
            self._append("reports.csv", to_line([*REPORT_COLUMNS, *columns, "extra"]), sync=False)
            self.report_columns = columns
        point = (epoch, self.to_loss(metrics[self.metric])) if self.metric in metrics else None
        own = dict.fromkeys(self.report_columns)
        for name in list(metrics):
            column = report_column(name)
            if column in own and self.column_owners.setdefault(column, name) == name:
                own[column] = metrics.pop(name)
        column = report_column(self.metric)
        if point and not isinstance(own[column], float) and math.isnan(point[1]):
            metrics[self.metric], own[column] = own[column], math.nan  # this column holds numbers alone
        extra = json.dumps(metrics) if metrics else None
        sync = now - self.synced >= SYNC_SECONDS
        row = [trial.id, trial.attempt, epoch, round(now, 3), *own.values(), extra]
        self._append("reports.csv", to_line(row), sync)
        self.synced, self.unsynced = (now, False) if sync else (self.synced, True)
        self.n_rows["reports"] += 1
        return point

    def append_trial(self, trial):
        """The row of an ended trial."""
        self._sync_reports()
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

    def _open_files(self):
        for name in APPENDED:
            self.files[name] = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def _write_run(self, run):
        partial = self.folder / "run.json.partial"
        with open(partial, "w") as file:
            file.write(json.dumps(run, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.folder / "run.json")

    def _sync_reports(self):
        """Makes the reports durable before a row that rests on them is."""
        if self.unsynced:
            try:
                os.fsync(self.files["reports.csv"])
            except OSError as error:
                raise WriteError(f"{self.folder / 'reports.csv'}: cannot be synced: {error}") from error
            self.unsynced = False

    def _append(self, name, line, sync):
        file = self.files[name]
        try:
            status = os.fstat(file)
            if status.st_nlink == 0:
                raise OSError("the file was deleted")
            if not status.st_mode & os.stat(self.folder).st_mode & 0o222:  # an open file could still be written
                raise OSError("it was made read-only")
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


def _now():
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


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
        for name, kind in {"arguments": dict, "prepared": dict, "sessions": list}.items():
            if not isinstance(run.get(name, kind()), kind):
                raise ValueError(f"{name}: expected a JSON {kind.__name__}, got {run[name]!r:.80}")
        return {**run, "space": space_from_json(run["space"])}
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}; expected the folder of a run") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ResultsError(f"{path}: not the record of a run: {error!r:.500}") from None


def load(folder):
    """The trials of a run, sorted by id, as the searcher sees them: losses, lower is better.

    ResultsError names file, line and column of whatever is wrong; a torn last line is left out, with a warning.
    """
    return _read(folder, load_run(folder)).trials


def load_before(folder, trial_id):
    """The trials exactly as they were when the searcher was asked for the configuration of trial `trial_id`."""
    return _read(folder, load_run(folder), trial_id).trials


@dataclass
class _Contents:
    trials: list
    n_rows: dict
    seconds: float  # the latest time in the three files
    report_columns: list | None  # None while reports.csv has no header


def _read(folder, run, before=None):
    folder, space = pathlib.Path(folder), run["space"]
    trials, seen = _read_starts(folder / "configs.jsonl", space, before)
    found = _Contents(trials, {"trials": 0, "reports": 0}, max([0.0, *(trial.started for trial in trials)]), None)
    _read_reports(folder / "reports.csv", run, found, seen["reports"])
    _read_ends(folder / "trials.csv", space, found, seen["trials"])
    return found


def _read_starts(path, space, before):
    """(trials as they were started, rows of the two CSVs to read) from configs.jsonl."""
    trials = []
    for where, line in _lines(path):
        trial, seen = _parse_start(where, line, space)
        if trial.id == before and seen:
            return trials, seen
        if trial.id < len(trials):
            _expect(where, "attempt", trial.attempt, trials[trial.id].attempt + 1)
            trials[trial.id] = trial  # a later attempt replaces an earlier one
        else:
            _expect(where, "trial", trial.id, len(trials))
            _expect(where, "attempt", trial.attempt, 1)
            trials.append(trial)
    if before is not None:
        raise ResultsError(f"{path}: has no trial {before}, but {len(trials)} trials, counted from 0")
    return trials, {"trials": math.inf, "reports": math.inf}


def _parse_start(where, line, space):
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{where}: is not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise ResultsError(f"{where}: expected a JSON object, got {line:.80}")
    for name, (is_right, expected) in START_FIELDS.items():
        if name not in entry or not is_right(entry[name]):
            raise ResultsError(f"{where}, column {name}: expected {expected}, got {entry.get(name)!r:.80}")
    given = entry["config"]
    for name in [*space, *given]:
        if name not in given or name not in space:
            raise ResultsError(f"{where}, column config, {name}: expected the names of the space, {', '.join(space)}")
    for name, value in domains(space).items():
        try:
            _expect(where, f"config, {name}", given[name], value.cast(given[name]))
        except ResultsError:
            raise
        except (ValueError, OverflowError) as error:
            raise ResultsError(f"{where}, column config, {name}: {error}") from None
    for name, value in constants(space).items():
        _expect(where, f"config, {name}", given[name], value)
    config = {name: given[name] for name in space}
    trial = Trial(entry["trial"], config, entry["origin"], entry["attempt"], started=float(entry["time"]))
    return trial, entry["seen"]


def _read_reports(path, run, found, n_rows):
    column, sign = report_column(run["metric"]), -1.0 if run["mode"] == "max" else 1.0
    kinds = {"trial": _integer, "attempt": _integer, "epoch": _integer, "time": _seconds}
    for where, cells in _rows(path, n_rows):
        if found.report_columns is None:
            for name in (*kinds, column, "extra"):
                if cells.count(name) != 1:
                    raise ResultsError(f"{where}, column {name}: is there {cells.count(name)} times, expected once")
            if cells[:4] != REPORT_COLUMNS or cells[-1] != "extra" or len(set(cells)) < len(cells):
                raise ResultsError(f"{where}: expected {', '.join(REPORT_COLUMNS)}, metrics, extra, got {cells}")
            header, found.report_columns = cells, cells[4:-1]
            kinds |= {name: _scalar for name in found.report_columns} | {column: _number, "extra": _json_object}
            continue
        row = _parse_row(where, header, kinds, cells)
        trial = _find_trial(where, row, found.trials)
        if row["attempt"] == trial.attempt and row[column] is not None and math.isfinite(row[column]):
            trial.curve.append((row["epoch"], sign * row[column]))
        found.seconds = max(found.seconds, row["time"])
        found.n_rows["reports"] += 1


def _read_ends(path, space, found, n_rows):
    kinds = {"trial": _integer, "attempt": _integer, "status": _status, "value": _number, "last_value": _number}
    kinds |= {"best_epoch": _scalar, "n_epochs": _integer, "origin": _scalar, "error": _scalar}
    kinds |= dict.fromkeys(["started", "ended", "seconds", "suggest_seconds"], _seconds)
    kinds |= {f"config_{name}": _scalar for name in space}
    header, ended = None, set()
    for where, cells in _rows(path, n_rows):
        if header is None:
            header = cells
            for name, got in itertools.zip_longest(trial_columns(space), cells):
                if name != got:
                    raise ResultsError(f"{where}, column {name or got}: expected column {name!r}, got {got!r}")
            continue
        row = _parse_row(where, header, kinds, cells)
        trial = _find_trial(where, row, found.trials)
        if (trial.id, row["attempt"]) in ended:
            raise ResultsError(
                f"{where}, column trial: trial {trial.id} ends a second time in attempt {row['attempt']}"
            )
        ended.add((trial.id, row["attempt"]))
        for name, value in trial.config.items():
            _expect(where, f"config_{name}", row[f"config_{name}"], unescape(to_cell(value)))
        if row["attempt"] == trial.attempt:
            trial.status, trial.error = row["status"], row["error"]
            trial.ended, trial.suggest_seconds = row["ended"], row["suggest_seconds"]
        found.seconds = max(found.seconds, row["ended"])
        found.n_rows["trials"] += 1


def _find_trial(where, row, trials):
    if row["trial"] >= len(trials):
        raise ResultsError(f"{where}, column trial: configs.jsonl has no start of trial {row['trial']}")
    trial = trials[row["trial"]]
    if not 1 <= row["attempt"] <= trial.attempt:
        raise ResultsError(
            f"{where}, column attempt: configs.jsonl has no attempt {row['attempt']} of trial {trial.id}"
        )
    return trial


def _lines(path):
    """(place, text) of each line; a last one without its line end was being written when the run died."""
    try:
        with open(path, "rb") as file:
            for i, line in enumerate(file, 1):
                where = f"{path}, line {i}"
                if not line.endswith(b"\n"):
                    warnings.warn(f"{where}: is torn, and left out: {line[:80]!r}", stacklevel=2)
                    return
                try:
                    text = line[:-1].decode()
                except UnicodeDecodeError as error:
                    raise ResultsError(f"{where}: byte {error.start + 1} is no UTF-8") from None
                yield where, text
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from None


def _rows(path, n_rows):
    """(place, unescaped cells) of the header of a CSV file and of its first n_rows rows."""
    n_cells = None
    for i, (where, line) in enumerate(_lines(path)):
        if i > n_rows:
            return
        try:
            (cells,) = csv.reader([line], strict=True)
        except (csv.Error, ValueError) as error:
            raise ResultsError(f"{where}: is no line of a CSV file: {error}") from None
        n_cells = n_cells or len(cells)
        if len(cells) != n_cells:
            raise ResultsError(
                f"{where}, column {min(len(cells), n_cells) + 1}: expected {n_cells} cells, got {len(cells)}"
            )
        yield where, [unescape(cell) if "\\" in cell else cell for cell in cells]


def _cut_torn(path):
    """Cuts off the part of a line that was being written when the run died, so that the next row begins a line."""
    with open(path, "r+b") as file:
        data = file.read()
        n_whole = data.rfind(b"\n") + 1
        if n_whole < len(data):
            warnings.warn(f"{path}: the last line is torn, and cut off: {data[n_whole:][:80]!r}", stacklevel=2)
            file.truncate(n_whole)


# ---- What a cell may hold -----------------------------------------------------------------------------------------------
_INTEGER = re.compile("[0-9]{1,16}")
_NUMBER = re.compile("-?[0-9]+([.][0-9]+)?(e[-+]?[0-9]+)?|NaN|-?Inf")
START_FIELDS = {
    "trial": (lambda value: type(value) is int and value >= 0, "an integer >= 0"),
    "attempt": (lambda value: type(value) is int and value >= 1, "an integer >= 1"),
    "config": (lambda value: isinstance(value, dict), "an object"),
    "origin": (lambda value: isinstance(value, str), "a text"),
    "time": (lambda value: type(value) in (int, float) and 0 <= value < 1e12, "seconds"),
    "seen": (
        lambda value: value is None or isinstance(value, dict) and all(type(value.get(k)) is int for k in SEEN),
        "an object with the numbers of trials and reports, or null",
    ),
}


def _parse_row(where, header, kinds, cells):
    row = {}
    for column, cell in zip(header, cells):
        try:
            row[column] = kinds[column](cell)
        except ValueError as error:
            raise ResultsError(f"{where}, column {column}: expected {error}, got {cell!r:.80}") from None
    return row


def _expect(where, column, got, expected):
    if config_key(got) != config_key(expected):
        raise ResultsError(f"{where}, column {column}: expected {expected!r:.80}, got {got!r:.80}")


def _scalar(text):
    return text


def _integer(text):
    if not _INTEGER.fullmatch(text):
        raise ValueError("an integer >= 0")
    return int(text)


def _number(text):
    """None for an empty cell."""
    if text and not _NUMBER.fullmatch(text):
        raise ValueError("a number")
    return float(text) if text else None


def _seconds(text):
    value = _number(text)
    if value is None or not 0 <= value < 1e12:
        raise ValueError("seconds >= 0")
    return value


def _status(text):
    if text not in STATUSES:
        raise ValueError(f"one of {', '.join(STATUSES)}")
    return text


def _json_object(text):
    try:
        if text and not isinstance(json.loads(text), dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise ValueError("a JSON object") from None
    return text
