"""The run's folder: a journal, which is the run, and two CSVs made from it.

journal.jsonl has one JSON object a line, in the order in which things happened:

    {"run": {"space": ..., "metric": "accuracy", "mode": "max", "arguments": {...}, ...}}
    {"start": 0, "attempt": 1, "config": {...}, "origin": "start", "at": 0.4, ...}
    {"report": 0, "attempt": 1, "epoch": 1, "metrics": {"accuracy": 0.81}, "at": 12.1}
    {"end": 0, "attempt": 1, "status": "done", "error": "", "at": 90.2}
    {"session": {"arguments": {...}, "at": 90.2, "time": ...}}                  the run goes on

The state of a run is a fold over these lines: `Journal.apply`, both live and when a file is read. A
line is one write, made before a report is answered, so a killed run loses nothing. "at" is in
seconds of the run's clock. The CSVs are for people and tools, and are never read back. All files
have values in the user's own sign. Only this module turns them into losses: lower is better.

    python -m hpo.journal results/DIR      writes the two CSVs anew
"""

import csv
import json
import math
import os
import pathlib
import platform
import sys
import time
import warnings

from filelock import FileLock

from hpo.space import cast_config, space_from_json
from hpo.trial import Trial

STATUSES = ("done", "stopped", "failed", "timeout", "interrupted")
SIGN = {"max": -1.0, "min": 1.0}  # of a loss
SYNC_SECONDS = 1.0  # between two fsyncs of reports: a power cut loses at most these seconds
NOW = "%Y-%m-%dT%H:%M:%S%z"


class WriteError(Exception):
    """A line cannot be appended to the files of a run under way."""


class Journal:
    """A run: its trials, sorted by id, in the state after the last event; and its files.

    run: the first line, with domains in its space. folder: is locked here; None: only in memory.
    """

    def __init__(self, run, folder=None):
        self.run, self.folder = run, folder and pathlib.Path(folder)
        self.space, self.metric, self.mode = run["space"], run["metric"], run["mode"]
        self.sign, self.trials, self.clock = SIGN[self.mode], [], 0.0
        known, self.learned = run.get("learned", []), []  # trials of earlier runs, with ids below 0
        for i, trial in enumerate(known, -len(known)):
            config = cast_config(self.space, trial["config"])
            curve = [(epoch, self.to_loss(value)) for epoch, value in trial["curve"]]
            self.learned.append(Trial(i, config, "learned", 1, trial["status"], curve))
        self.ended = []  # all attempts that have ended, in order
        self.synced = -math.inf  # the run's clock at the last fsync
        self.columns = {}  # table -> its columns; {}: write the tables anew at the next row
        if folder:
            self.path, self.lock = self.folder / "journal.jsonl", FileLock(self.folder / ".lock")
            try:
                self.lock.acquire(timeout=0)
            except OSError as error:  # filelock's Timeout, or the folder is read-only
                raise ValueError(f"{folder}: another run is using it? {error}") from None

    # ---- The fold ----
    def apply(self, event):
        """Applies an event and returns its trial, or None for a session. Raises ValueError.

        It changes the list of trials in place, so whoever holds the list sees the current state.
        """
        at, trial = event.get("session", event)["at"], None  # a session has its time inside
        match event:
            case {"start": int(i), "attempt": attempt, "config": config, "origin": str(origin)}:
                trial = Trial(i, cast_config(self.space, config), origin, attempt, started=at)
                trial.suggest_seconds = event.get("suggest_seconds", 0.0) + 0.0
                if i == len(self.trials) and attempt == 1:
                    self.trials.append(trial)
                elif 0 <= i < len(self.trials) and attempt == self.trials[i].attempt + 1:
                    trial.earlier = [*self.trials[i].earlier, self.trials[i].curve]
                    self.trials[i] = trial
                    self.columns = {}
                else:
                    raise ValueError(f"trial {i}, attempt {attempt} is not the next to start")
            case {"report": i, "epoch": int(epoch), "metrics": metrics}:
                trial = self._running(i, event["attempt"])
                if trial.earlier and not trial.curve:  # it may continue from a checkpoint
                    before = next((curve for curve in reversed(trial.earlier) if curve), [])
                    trial.curve = [point for point in before if point[0] < epoch]
                    self.columns = {}
                if math.isfinite(loss := self.to_loss(metrics.get(self.metric))):
                    trial.curve.append((epoch, loss))
            case {"end": i, "status": status, "error": str(error)} if status in STATUSES:
                trial = self._running(i, event["attempt"])
                trial.status, trial.error, trial.ended = status, error, at
                self.ended.append(trial)
            case {"session": {"arguments": arguments}}:
                self.run["arguments"] |= arguments  # the budget may have changed
                for cut_off in [t for t in self.trials if t.status == "running"]:
                    cut_off.status, cut_off.ended = "interrupted", at  # the tuner was killed
                    self.ended.append(cut_off)
            case _:
                raise ValueError("is no start, report, end or session with all its fields")
        self.clock = at + 0.0  # a TypeError if it is no number
        return trial

    def _running(self, i, attempt):
        trial = self.trials[i]
        if (trial.id, trial.attempt, trial.status) != (i, attempt, "running"):
            raise ValueError(f"trial {i}, attempt {attempt} is not running")
        return trial

    def to_loss(self, value):
        """The loss of a metric's value; NaN if it is no finite number."""
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return self.sign * value if is_number and abs(value) <= sys.float_info.max else math.nan

    def to_metric(self, loss):
        """The value, in the user's own sign, of a loss; None stays None."""
        return None if loss is None else self.sign * loss + 0.0  # + 0.0: -0.0 becomes 0.0

    # ---- Files ----
    @classmethod
    def create(cls, folder, run):
        """The journal of a new run in a new folder; ValueError if the folder cannot be made."""
        try:
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            journal = cls({**run, "space": space_from_json(run["space"])}, folder)
            journal.path.touch(exist_ok=False)  # another run may have begun in it before the lock
            machine = f"{platform.platform()}, {os.cpu_count()} cores"
            journal._write({"run": {**run, "machine": machine, "time": time.strftime(NOW)}})
            journal.columns = write_tables(folder)
        except OSError as error:
            raise ValueError(f"--results {folder}: cannot be made: {error}") from None
        return journal

    @classmethod
    def open(cls, folder):
        """The journal of a run that is to go on. Changes nothing before `begin_session`."""
        journal = cls(load_run(folder), folder)
        list(read_events(folder, journal))
        return journal

    def begin_session(self, arguments):
        """Notes that the run goes on, and arguments that have changed. Raises WriteError."""
        session = {"arguments": arguments, "at": self.clock, "time": time.strftime(NOW)}
        self.append({"session": session})

    def append(self, event):
        """Writes an event to the journal and applies it; returns its trial. Raises WriteError."""
        if self.folder is None:
            return self.apply(event)
        try:
            if "session" in event:
                with open(self.path, "rb+", opener=no_link) as file:
                    file.truncate(file.read().rfind(b"\n") + 1)  # cuts off a torn last line
            self._write(event)
            trial = self.apply(event)
            if "report" in event:
                self._add_row("reports", report_row(event))
            elif "end" in event:
                self._add_row("trials", trial_row(self, trial))
            elif "session" in event:
                self.columns = write_tables(self.folder)
        except (OSError, ValueError) as error:  # ValueError: tables of a journal that was deleted
            raise WriteError(f"{self.folder}: cannot write: {error}") from None
        return trial

    def close(self):
        self.lock.release()

    def _write(self, event):
        """Appends a line to the journal: all of it or nothing."""
        data, at = json.dumps(event).encode() + b"\n", event.get("at", self.clock)
        with open(self.path, "ab", buffering=0, opener=no_link) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                mode = os.fstat(file.fileno()).st_mode & os.stat(self.folder).st_mode
                if not mode & 0o222 or file.write(data) < len(data):  # root could still write
                    raise OSError(f"{self.path} was made read-only, or the disk is full")
                if "report" not in event or at - self.synced >= SYNC_SECONDS:
                    os.fsync(file.fileno())
                    self.synced = at
            except OSError:
                file.truncate(size)
                raise

    def _add_row(self, table, row):
        columns, path = self.columns.get(table, ()), self.folder / f"{table}.csv"
        if row.keys() <= set(columns) and path.exists():
            with open(path, "a", encoding="utf-8", opener=no_link) as file:
                csv.DictWriter(file, columns, lineterminator="\n").writerow(row)
        else:
            self.columns = write_tables(self.folder)


def no_link(path, flags):
    """Opener of a file that exists and is no link: someone else may have made the folder."""
    return os.open(path, flags & ~os.O_CREAT | getattr(os, "O_NOFOLLOW", 0))


def check_new(folder):
    """Raises ValueError if a new run cannot use this folder."""
    if os.path.exists(folder) and (not os.path.isdir(folder) or {*os.listdir(folder)} - {".lock"}):
        raise ValueError(f"--results {folder}: expected a new folder, got one that holds something")


# ---- Reading -------------------------------------------------------------------------------------
def load(folder, before=None):
    """The trials of a run, sorted by id.

    before: the id of a trial; then the trials that the searcher knew when it suggested this one,
    those of --learn_from included.
    """
    journal = Journal(load_run(folder))
    list(read_events(folder, journal, before))
    return journal.trials if before is None else journal.learned + journal.trials


def load_run(folder):
    """The first line of a run's journal, as a dict with domains in its space; or ValueError."""
    path = pathlib.Path(folder) / "journal.jsonl"
    try:
        with open(path, "rb") as file:
            run = json.loads(file.readline()[:-1])["run"]  # [:-1] makes a torn line an error
        own = {"space": space_from_json(run["space"]), "arguments": {**run["arguments"]}}
        return Journal({**run, **own}).run
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; expected the folder of a run") from None
    except Exception as error:  # whatever a damaged line raises
        raise ValueError(f"{path}, line 1: expected a run: {error!r}") from None


def read_events(folder, journal=None, before=None):
    """Yields the events of a run, or only those before the start of trial `before`.

    journal: None, or a Journal that applies each event first. Raises ValueError.
    """
    path = pathlib.Path(folder) / "journal.jsonl"
    with open(path, "rb") as file:
        file.readline()
        for number, line in enumerate(file, 2):
            if not line.endswith(b"\n"):
                warnings.warn(f"{path}, line {number}: is torn, and left out", stacklevel=1)
                break
            try:
                event = json.loads(line)
                if before is not None and event.get("start") == before:
                    return
                if journal:
                    journal.apply(event)
            except Exception as error:  # whatever a damaged line raises
                raise ValueError(f"{path}, line {number}: {error!r}") from None
            yield event
    if before is not None:
        raise ValueError(f"{folder}: has no trial {before}; they are counted from 0")


# ---- Tables --------------------------------------------------------------------------------------
def write_tables(folder):
    """Writes the two CSVs of a run anew; returns {table: its columns}.

    reports.csv has the reports of the last attempt of each trial. If that attempt continued from a
    checkpoint, it has those of the epochs before, too.
    """
    journal = Journal(load_run(folder))
    # The first row is a sample that is not written. It gives an empty table its columns.
    trials = [trial_row(journal, Trial(0, journal.space, "", ended=0.0))]
    reports = [{"report": -1, "epoch": 0, "at": 0.0, "metrics": {journal.metric: 0.0}}]
    attempts = {}  # trial -> attempt of its last report
    for event in read_events(folder, journal):
        if "report" in event:
            i, epoch = event["report"], event["epoch"]
            if event["attempt"] > attempts.get(i, 1):
                reports = [e for e in reports if e["report"] != i or e["epoch"] < epoch]
            attempts[i] = event["attempt"]
            reports.append(event)
    trials += [trial_row(journal, t) for t in journal.ended if t is journal.trials[t.id]]
    columns = {}
    for table, (sample, *rows) in ("trials", trials), ("reports", map(report_row, reports)):
        columns[table] = list(dict.fromkeys(name for row in (sample, *rows) for name in row))
        path = pathlib.Path(folder) / f"{table}.partial"
        path.unlink(missing_ok=True)  # it may be a link
        with open(path, "x", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns[table], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(path, path.with_suffix(".csv"))
    return columns


def trial_row(journal, trial):
    row = {
        "trial": trial.id, "status": trial.status, "value": journal.to_metric(trial.value),
        "last_value": journal.to_metric(trial.last_value), "best_epoch": trial.best_epoch,
        "n_epochs": trial.n_epochs, "origin": trial.origin,
        **{f"config_{name}": value for name, value in trial.config.items()},
        "started": trial.started, "ended": trial.ended,
        "seconds": round(trial.ended - trial.started, 3),
        "suggest_seconds": trial.suggest_seconds, "error": trial.error,
    }  # fmt: skip
    return {name: to_cell(value) for name, value in row.items()}


def report_row(event):
    row = {"trial": event["report"], "epoch": event["epoch"], "time": event["at"]}
    metrics = [(to_cell(name), to_cell(value)) for name, value in event["metrics"].items()]
    return row | {f"metric_{name}" if name in row else name: value for name, value in metrics}


def to_cell(value):
    """The text of a cell: NaN and Inf as pandas and R read them, lists as JSON, no line breaks."""
    if isinstance(value, float):
        return str(value).replace("nan", "NaN").replace("inf", "Inf")
    text = json.dumps(value) if isinstance(value, (list, dict)) else value
    return printable(text).replace("\n", "\\n") if isinstance(text, str) else text


def printable(text):
    """A text with its control characters, but not its line ends, replaced by escapes."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


if __name__ == "__main__":
    try:
        journal = Journal.open(" ".join(sys.argv[1:]))  # locks the folder while it is kept
        write_tables(journal.folder)
    except (ValueError, OSError) as error:
        sys.exit(f"hpo.journal: error: {error}")
