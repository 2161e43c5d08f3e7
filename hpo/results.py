"""The run's folder: the whole state of a run, append-only, readable by any tool.

    run.json       space, arguments, seed, versions, machine; the sessions, when the run was resumed
    configs.jsonl  a line before each start: trial, attempt, config with exact types, origin, time, and `seen`, the number
                   of rows of the two CSVs when it was suggested: that prefix is what the searcher saw (`load_before`).
                   A trial that is started again has another line, attempt one higher, seen null: nothing was suggested
    trials.csv     a row for each ended trial
    reports.csv    a row for each report
    logs/          what each trial printed

Of a trial's attempts the last one counts; the rows of earlier ones stay in the files, which only grow. The three files are
written in the order of the run's clock, and a row is on the disk before any that rests on it; so that rows are missing
shows, except at the end, where a crash can have taken them.
A row is a line: backslashes, line breaks and other control characters inside a cell are written as escapes. Values are
in the user's own sign; this module alone knows the mode: everywhere else a loss is lower-is-better.
"""

import bisect
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
from dataclasses import dataclass, field
from importlib import metadata

from filelock import FileLock, Timeout

from hpo.space import cast_config, config_key, space_from_json, space_to_json
from hpo.trial import Trial

REPORT_COLUMNS = ["trial", "attempt", "epoch", "time"]
TRIAL_COLUMNS = ["trial", "attempt", "status", "value", "last_value", "best_epoch", "n_epochs", "origin"]
LAST_COLUMNS = ["started", "ended", "seconds", "suggest_seconds", "error"]
REMEDY = "restore the file, or undo the change"  # where a file is not as a run, whatever its end, leaves it
csv.field_size_limit(2**31 - 1)  # of one cell: an error message may be long
APPENDED = ("configs.jsonl", "trials.csv", "reports.csv")
SEEN = ("trials", "reports")  # what `seen` counts
SIGN = {"max": -1.0, "min": 1.0}  # of a loss
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


def trial_row(space, trial, sign):
    """What stands in those columns of an ended trial."""
    row = [trial.id, trial.attempt, trial.status, with_sign(sign, trial.value), with_sign(sign, trial.last_value)]
    row += [trial.best_epoch, trial.n_epochs, trial.origin, *(trial.config[name] for name in space)]
    row += [round(t, 3) for t in (trial.started, trial.ended, trial.ended - trial.started)]
    return [*row, round(trial.suggest_seconds, 6), trial.error]


def with_sign(sign, loss):
    return None if loss is None else sign * loss + 0.0  # + 0.0: -0.0 becomes 0.0


# ---- Writing ------------------------------------------------------------------------------------------------------------
class Results:
    """Appends to a run's folder. Every row is one unbuffered write, so that a killed run loses nothing written."""

    def __init__(self, folder, space, metric, mode):
        self.folder = pathlib.Path(folder)
        self.space, self.metric, self.mode = space, metric, mode
        self.sign = SIGN[mode]
        self.n_rows = {"trials": 0, "reports": 0}
        self.run = {}  # run.json of earlier sessions
        self.trials, self.clock = [], 0.0  # of earlier sessions, and the seconds that they took
        self.report_columns = None  # names of the metrics' columns, once there is a header
        self.column_owners = {report_column(metric): metric}
        # reports.csv: time of its last fsync, rows written since: those of a killed session may not be on the disk yet
        self.synced, self.unsynced = -math.inf, True
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
                "arguments": {},
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
        """The run of a folder, locked, that is to go on; nothing is changed before `begin_session`.

        ResultsError when another run is using it, when it cannot be written, or when a row is wrong.
        """
        run = load_run(folder)
        results = cls(folder, run["space"], run["metric"], run["mode"])
        try:
            results.lock.acquire()
            results.run = load_run(folder)  # another session may have ended meanwhile
            if not os.access(results.folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "is read-only")
            found = _read(results.folder, results.run)
        except Timeout:
            raise ResultsError(f"{folder}: another run is using it; wait for its end, or end it") from None
        except OSError as error:
            results.close()
            raise ResultsError(f"{folder}: cannot go on in it: {error}") from None
        except ResultsError:
            results.close()
            raise
        results.trials, results.report_columns = found.trials, found.report_columns
        results.n_rows = {name: len(found.times[name]) for name in SEEN}
        results.clock = max(max(times, default=0.0) for times in found.times.values())
        return results

    def begin_session(self, arguments):
        """Notes in run.json that the run goes on, with which arguments, and cuts torn last lines off; or ResultsError."""
        session = {"began": _now(), "clock": self.clock, "arguments": arguments}
        run = {**self.run, "space": space_to_json(self.space), "arguments": arguments}
        try:
            self._open_files()
            (self.folder / "logs").mkdir(exist_ok=True)
            self._write_run({**run, "sessions": [*run["sessions"], session]})
            for name in APPENDED:  # the last: where the disk is full, the folder stays as it was
                _cut_torn(self.folder / name)
        except OSError as error:
            raise ResultsError(f"{self.folder}: cannot go on in it: {error}") from None

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
        self._append("trials.csv", to_line(trial_row(self.space, trial, self.sign)), sync=True)
        self.n_rows["trials"] += 1

    def to_loss(self, value):
        """Lower is better; NaN where the metric is no finite number."""
        is_finite = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        return self.sign * value if is_finite else math.nan

    def to_metric(self, loss):
        """The user's own sign."""
        return with_sign(self.sign, loss)

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
        try:
            with open(partial, "w") as file:
                file.write(json.dumps(run, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.folder / "run.json")
        except OSError:
            partial.unlink(missing_ok=True)
            raise

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
        if isinstance(run, dict):
            run = {"directory": "", "prepared": {}, "sessions": [], **run}  # which may be missing
        _check_fields(path, run, RUN_FIELDS)
        return {**run, "space": space_from_json(run["space"])}
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}; expected the folder of a run") from None
    except ResultsError as error:
        raise ResultsError(f"{error}; {REMEDY}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ResultsError(f"{path}: not the record of a run: {error}; {REMEDY}") from None


def load(folder):
    """The trials of a run, sorted by id, as the searcher sees them: losses, lower is better.

    ResultsError names file, line and column of whatever is wrong; a torn last line is left out, with a warning.
    """
    return _read(folder, load_run(folder)).trials


def load_before(folder, trial_id):
    """The trials exactly as they were when the searcher was asked for the configuration of trial `trial_id`."""
    found = _read(folder, load_run(folder), trial_id)
    if found.seen is None:
        raise ResultsError(f"{folder}: has no trial {trial_id}, but {len(found.trials)} trials, counted from 0")
    return found.trials


@dataclass
class _Contents:
    """What has been read of a folder."""

    folder: pathlib.Path
    sizes: dict  # file -> bytes to read
    trials: list = field(default_factory=list)  # their last attempts
    attempts: dict = field(default_factory=dict)  # (trial id, attempt) -> Trial
    starts: list = field(default_factory=list)  # (place, time, seen) of the lines of configs.jsonl, seen not null
    seen: dict | None = None  # of the start before which the reading ends
    times: dict = field(default_factory=lambda: {name: [] for name in ("starts", *SEEN)})  # of the rows, in order
    report_columns: list | None = None  # None while reports.csv has no header


def _read(folder, run, before=None):
    try:
        found = _Contents(pathlib.Path(folder), _sizes(pathlib.Path(folder)))
        _read_starts(run["space"], found, before)
        _read_reports(run, found)
        _read_ends(run, found)
        _check_seen(found)
    except OSError as error:
        raise ResultsError(f"{error.filename}: cannot be read: {error.strerror}") from None
    except ResultsError as error:
        raise ResultsError(f"{error}; {REMEDY}") from None
    return found


def _sizes(folder):
    """{file: bytes} of the three files at one instant, as a run under way may be appending to them."""
    before = None
    while (sizes := {name: (folder / name).stat().st_size for name in APPENDED}) != before:
        before = sizes
    return sizes


def _read_starts(space, found, before):
    for where, line in _lines(found, "configs.jsonl"):
        trial, seen = _parse_start(where, line, space)
        if seen:
            found.starts.append((where, trial.started, seen))
        if seen and trial.id == before:
            found.seen = seen
            return
        is_again = trial.id < len(found.trials)
        _expect(where, "trial", trial.id, trial.id if is_again else len(found.trials))
        _expect(where, "attempt", trial.attempt, found.trials[trial.id].attempt + 1 if is_again else 1)
        _note_time(where, "time", trial.started, found.times["starts"])
        found.trials[trial.id : trial.id + 1] = [trial]  # a later attempt replaces an earlier one
        found.attempts[trial.id, trial.attempt] = trial


def _parse_start(where, line, space):
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{where}: is not JSON: {error}") from None
    _check_fields(where, entry, START_FIELDS)
    given = entry["config"]
    try:
        config = cast_config(space, given)
    except ValueError as error:
        raise ResultsError(f"{where}, column config, {error}") from None
    for name, value in config.items():
        if name not in given:
            raise ResultsError(f"{where}, column config, {name}: expected a value, got nothing")
        _expect(where, f"config, {name}", given[name], value)  # of the same type too
    trial = Trial(entry["trial"], config, entry["origin"], entry["attempt"], started=float(entry["time"]))
    return trial, entry["seen"]


def _read_reports(run, found):
    column, sign, rows = report_column(run["metric"]), SIGN[run["mode"]], _rows(found, "reports")
    kinds = {"trial": _integer, "attempt": _integer, "epoch": _integer, "time": _seconds}
    where, header = next(rows, ("", None))
    if header is None:
        return  # there has been no report yet
    for name in (*kinds, column, "extra"):
        if header.count(name) != 1:
            raise ResultsError(f"{where}, column {name}: is there {header.count(name)} times, expected once")
    if header[:4] != REPORT_COLUMNS or header[-1] != "extra" or len(set(header)) < len(header):
        raise ResultsError(f"{where}: expected {', '.join(REPORT_COLUMNS)}, metrics, extra, got {header}")
    found.report_columns = header[4:-1]
    kinds |= {name: str for name in found.report_columns} | {column: _number, "extra": _json_object}
    for where, cells in rows:
        row = _parse_row(where, header, kinds, cells)
        trial = _find_attempt(where, row, found)
        if row[column] is not None and math.isfinite(row[column]):
            trial.curve.append((row["epoch"], sign * row[column]))
        _note_time(where, "time", row["time"], found.times["reports"])


def _read_ends(run, found):
    kinds, rows = dict.fromkeys(trial_columns(run["space"]), str), _rows(found, "trials")
    kinds |= {"trial": _integer, "attempt": _integer, "status": _status}
    kinds |= dict.fromkeys(["started", "ended", "seconds", "suggest_seconds"], _seconds)
    where, header = next(rows, (f"{found.folder / 'trials.csv'}, line 1", []))
    for name, got in itertools.zip_longest(kinds, header):
        if name != got:
            raise ResultsError(f"{where}, column {name or got}: expected column {name!r}, got {got!r}")
    for where, cells in rows:
        row = _parse_row(where, header, kinds, cells)
        trial = _find_attempt(where, row, found)
        if trial.status != "running":
            raise ResultsError(f"{where}, column trial: trial {trial.id} ends twice in attempt {trial.attempt}")
        trial.status, trial.error = row["status"], row["error"]
        trial.ended, trial.suggest_seconds = row["ended"], row["suggest_seconds"]
        _note_time(where, "ended", trial.ended, found.times["trials"])
        for name, got, value in zip(header, cells, trial_row(run["space"], trial, SIGN[run["mode"]])):
            expected = unescape(to_cell(value))
            if got != expected and name != "seconds":  # which are of times that were not yet rounded
                raise ResultsError(
                    f"{where}, column {name}: expected {expected!r:.80}, as configs.jsonl and the trial's "
                    f"{len(trial.curve)} rows in reports.csv have it, got {got!r:.80}"
                )


def _find_attempt(where, row, found):
    trial = found.attempts.get((row["trial"], row["attempt"]))
    if trial is None:
        column = "trial" if row["trial"] >= len(found.trials) else "attempt"
        start = f"start of trial {row['trial']}, attempt {row['attempt']}"
        raise ResultsError(f"{where}, column {column}: configs.jsonl has no {start}")
    return trial


def _note_time(where, column, time, times):
    if times and time < times[-1]:
        raise ResultsError(f"{where}, column {column}: expected at least {times[-1]}, as in the row before, got {time}")
    times.append(time)


def _check_seen(found):
    """Each start had seen as many rows as are older than it; else some have been taken away since, or put in."""
    for where, started, seen in found.starts:
        for name in SEEN:
            n, times = seen[name], found.times[name]
            least, most = bisect.bisect_left(times, started), bisect.bisect_right(times, started)
            if not least <= n <= most:  # they differ where a row has the start's own millisecond
                what, got = ("taken away", most) if n > most else ("put in", least)
                place = f"{found.folder / name}.csv, line {min(n, got) + 2}: rows before it have been {what}"
                start = f"{pathlib.Path(where).name}, column seen"
                raise ResultsError(f"{place}: expected {n} up to {started} s, as {start}, counts them, got {got}")


def _lines(found, name):
    """(place, text) of each line; a last one without its line end was being written when the run died."""
    path, n_left = str(found.folder / name), found.sizes[name]
    with open(path, "rb") as file:
        for i, line in enumerate(file, 1):
            where, n_left = f"{path}, line {i}", n_left - len(line)
            if n_left < 0:
                return  # it has been written since
            if not line.endswith(b"\n"):
                warnings.warn(f"{where}: is torn, and left out: {line[:80]!r}", stacklevel=2)
                return
            try:
                text = line[:-1].decode()
            except UnicodeDecodeError as error:
                raise ResultsError(f"{where}: byte {error.start + 1} is no UTF-8") from None
            yield where, text


def _rows(found, name):
    """(place, unescaped cells) of the header of a CSV file and of its rows, those that the start had seen."""
    n_cells, n_rows = None, found.seen[name] if found.seen else math.inf
    for i, (where, line) in enumerate(_lines(found, f"{name}.csv")):
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
        file.truncate(file.read().rfind(b"\n") + 1)


# ---- What a cell may hold -----------------------------------------------------------------------------------------------
_INTEGER = re.compile("[0-9]{1,16}")
_NUMBER = re.compile("-?[0-9]+([.][0-9]+)?(e[-+]?[0-9]+)?|NaN|-?Inf")
_OBJECT = (lambda value: isinstance(value, dict), "an object")
_TEXT = (lambda value: isinstance(value, str), "a text")
START_FIELDS = {
    "trial": (lambda value: type(value) is int and value >= 0, "an integer >= 0"),
    "attempt": (lambda value: type(value) is int and value >= 1, "an integer >= 1"),
    "config": _OBJECT,
    "origin": _TEXT,
    "time": (lambda value: type(value) in (int, float) and 0 <= value < 1e12, "seconds"),
    "seen": (
        lambda value: (
            value is None or isinstance(value, dict) and all(type(n := value.get(k)) is int and n >= 0 for k in SEEN)
        ),
        "an object with the numbers of trials and reports, or null",
    ),
}
RUN_FIELDS = {
    "space": _OBJECT,
    "metric": _TEXT,
    "mode": (lambda value: isinstance(value, str) and value in SIGN, "max or min"),
    "arguments": _OBJECT,
    "directory": _TEXT,  # in which it began
    "prepared": _OBJECT,
    "sessions": (lambda value: isinstance(value, list), "a list"),
}


def _check_fields(where, entry, fields):
    if not isinstance(entry, dict):
        raise ResultsError(f"{where}: expected a JSON object, got {json.dumps(entry):.80}")
    for name, (is_right, expected) in fields.items():
        if name not in entry or not is_right(entry[name]):
            got = f"{entry[name]!r:.80}" if name in entry else "nothing"
            raise ResultsError(f"{where}, column {name}: expected {expected}, got {got}")


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


def _integer(text):
    if not _INTEGER.fullmatch(text):
        raise ValueError("an integer >= 0")
    return int(text)


def _number(text):
    """None for an empty cell."""
    value = float(text) if _NUMBER.fullmatch(text) else None
    if text and (value is None or math.isinf(value) and "Inf" not in text):  # 1e400 was never written
        raise ValueError("a number")
    return value


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
