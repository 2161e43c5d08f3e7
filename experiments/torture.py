"""Torture: tuners and trials killed, a full disk, a folder taken away, damaged files; is anything lost?

    python -m experiments.torture                   everything, 15 minutes on 2 cores; Linux only
    python -m experiments.torture --kills 5 --trials 14 --disks 2 --folders 3 --fuzz 500

Every trial keeps a side log of its own, the ground truth: a report has a random token, noted before it is reported and
again when the tuner has answered. What was answered must be in reports.csv, once; what was not even begun must not. What
the tuner has printed of an ended trial must be in trials.csv, once. At last the run is resumed in peace, and each of its
trials must have ended with exactly the values of its objective.
"""

import collections
import csv
import functools
import json
import math
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import warnings

import hpo.trial
from experiments import command
from hpo.results import STATUSES, Results, ResultsError, load
from hpo.searchers import RandomSearch
from hpo.space import cast_config, choice, loguniform, randint, uniform
from hpo.trial import LocalBackend, Trial, warm_up
from hpo.tuner import Tuner
from run import natural

ROOT = pathlib.Path(__file__).resolve().parent.parent
N_EPOCHS = 4
TRIAL_TIMEOUT = 1.5  # of the trials that hang
TEXTS = ["a,b", 'c"d', "e\nf\\n", "\u00e9\u2028\U0001f600", "=1+1", "x" * 300]
OBJECTIVE = f"""
import ctypes, json, os, resource, signal, time
from hpo import Reporter, choice, uniform

FAULTS = ["none", "SIGKILL", "SIGSEGV", "memory", "hang", "hang with the lock", "hang without SIGTERM", "swallow"]
config_space = {{"x": uniform(0, 1), "fault": choice(FAULTS), "text": choice({TEXTS!r}), "epochs": {N_EPOCHS}, "pause": 0.01}}
metric, mode = "loss", "min"

def objective(config):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # a full disk is the tuner's alone, not the side log's
    log = os.open(os.environ["TORTURE_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(what, value):
        os.write(log, (json.dumps([time.monotonic(), what, value]) + "\\n").encode())

    report = Reporter()
    for epoch in range(1, config["epochs"] + 1):
        time.sleep(config["pause"])
        token = os.urandom(8).hex()
        note("begun", token)
        report(epoch=epoch, loss=config["x"] / epoch, token=token, text=config["text"])
        note("answered", token)
        if epoch == 2 and config["fault"] != "none":
            note("fault", config["x"])
            fault(config["fault"], report)

def fault(name, report):
    if name == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "SIGSEGV":
        ctypes.string_at(0)
    elif name == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
        bytearray(2**36)
    elif name == "hang with the lock":
        ctypes.PyDLL(None).sleep(600)
    elif name == "hang without SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while name == "swallow":
        try:
            report(epoch=3, loss=0.0)
        except BaseException:
            time.sleep(0.05)
    while name.startswith("hang"):
        time.sleep(1)
"""
ENDS = {  # fault: status, a word of the error
    "none": ("done", ""),
    "SIGKILL": ("failed", "SIGKILL"),
    "SIGSEGV": ("failed", "SIGSEGV"),
    "memory": ("failed", "MemoryError"),
    "hang": ("timeout", "--trial_timeout"),
    "hang with the lock": ("timeout", "--trial_timeout"),
    "hang without SIGTERM": ("timeout", "--trial_timeout"),
    "swallow": ("stopped", ""),
}


class Tally:
    """Counts of one row of the table. wrong: what else is not as it should be, in words."""

    def __init__(self):
        self.events = self.expected = self.found = self.lost = self.twice = self.orphans = 0
        self.longest_hang = 0.0
        self.wrong = []


class Run:
    """A run of the real command, its side log, and what it has printed."""

    def __init__(self, folder, tally):
        self.home, self.folder, self.tally = folder, folder / "run", tally
        folder.mkdir()
        (folder / "objective.py").write_text(OBJECTIVE, encoding="utf-8")
        self.log, self.printed = folder / "side.log", ""
        self.mark = uuid.uuid4().hex
        self.environment = {**os.environ, "TORTURE_LOG": str(self.log), "TORTURE_MARK": self.mark}

    def start(self, *arguments, **options):
        if (self.folder / "run.json").exists():
            command = ["--resume", self.folder]
        else:  # killed before it was made: nothing has begun
            shutil.rmtree(self.folder, ignore_errors=True)
            command = [self.home / "objective.py", "--results", self.folder, "--set", "fault=none"]
            command += ["--stopping", "none", "--workers", 4]  # every trial runs to its last epoch
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "encoding": "utf-8"}
        words = [sys.executable, "run.py", *map(str, command), *map(str, arguments)]
        return subprocess.Popen(words, cwd=ROOT, env=self.environment, **pipes, **options)

    def wait(self, process, seconds=30):
        """(exit code, time when all was gone) of a tuner that is to end; counts what outlives it."""
        until = time.monotonic() + seconds
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.tally.wrong.append(f"the tuner was still there after {seconds} s")
            process.kill()
        while (left := marked(self.mark)) and time.monotonic() < until:
            time.sleep(0.01)
        gone = time.monotonic()
        self.tally.orphans += len(left)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self.printed += process.communicate()[0]
        return process.returncode, gone

    def fails(self, process, since=None):
        """The tuner must end by itself with exit code 1 and a word why. since: the event; default a trial's last sign."""
        code, gone = self.wait(process)
        since = since or max(seconds for seconds, *_ in read_log(self.log))
        self.tally.events += 1
        self.tally.longest_hang = max(self.tally.longest_hang, gone - since)
        if code != 1 or "cannot append a row" not in self.printed or "Traceback" in self.printed:
            self.tally.wrong.append(f"exit code {code}:\n{self.printed[-2000:]}")

    def finish(self):
        """Resumes the run without further events until it has some more trials, and checks everything."""
        n_trials = (len(load(self.folder)) if (self.folder / "run.json").exists() else 0) + 4
        process = self.start("--trials", n_trials)
        if self.wait(process, 300)[0] != 0:
            self.tally.wrong.append(f"the last session failed:\n{self.printed[-2000:]}")
        self.check()
        trials = load(self.folder)
        for trial in trials:
            values = [(epoch, trial.config["x"] / epoch) for epoch in range(1, N_EPOCHS + 1)]
            if trial.status != "done" or trial.curve != values:
                self.tally.wrong.append(f"trial {trial.id} is {trial.status}, with {trial.curve}")
        if len(trials) != n_trials:
            self.tally.wrong.append(f"{len(trials)} trials instead of {n_trials}")

    def check(self):
        """Counts rows lost and twice: reports by their tokens, ends by what was printed."""
        check_reports(self.tally, self.folder, self.log)
        ended = re.findall(r"^trial +(\d+) (?:done|failed|stopped|timeout)", self.printed, re.MULTILINE)
        rows = [row["trial"] for row in read_rows(self.folder / "trials.csv")]
        count(self.tally, collections.Counter(ended), collections.Counter(rows))
        attempts = collections.Counter((row["trial"], row["attempt"]) for row in read_rows(self.folder / "trials.csv"))
        self.tally.twice += sum(n - 1 for n in attempts.values())


def check_reports(tally, folder, log):
    entries, rows = read_log(log), read_rows(folder / "reports.csv")
    tokens = collections.Counter(row["token"] for row in rows if row["token"])
    count(tally, {token: 1 for _, what, token in entries if what == "answered"}, tokens)
    begun = {token for _, what, token in entries if what == "begun"}
    tally.twice += sum(n - 1 for n in tokens.values())
    tally.wrong += [f"a report that no trial has made: {token}" for token in tokens if token not in begun]


def count(tally, expected, found):
    """expected, found: {key: number of rows}."""
    tally.expected += sum(expected.values())
    tally.found += sum(min(n, found.get(key, 0)) for key, n in expected.items())
    tally.lost += sum(max(0, n - found.get(key, 0)) for key, n in expected.items())


def read_log(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def marked(mark):
    """Ids of the processes that live with this mark in their environment."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TORTURE_MARK={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended
    return found


# ---- The tuner dies -----------------------------------------------------------------------------------------------------
def kill_tuners(home, n, rng):
    tally, say = Tally(), progress("kills", n)
    run = Run(home / "kills", tally)
    for i in range(n):
        process = run.start()
        time.sleep(rng.choice([rng.uniform(0, 1.5), rng.uniform(0.5, 4)]))  # while it starts too
        process.kill()
        killed = time.monotonic()
        tally.longest_hang = max(tally.longest_hang, run.wait(process)[1] - killed)
        tally.events += 1
        say(i)
    run.finish()
    n_again = sum(trial.attempt > 1 for trial in load(run.folder))
    return {f"tuner SIGKILLed, {n_again} trials started again": tally}


# ---- Trials die ---------------------------------------------------------------------------------------------------------
def kill_trials(home, n, rng):
    """A run in this process, with a rule that stops the trials that swallow, and less patience than usual."""
    home = home / "trials"
    home.mkdir()
    (home / "objective.py").write_text(OBJECTIVE, encoding="utf-8")
    os.environ["TORTURE_LOG"], os.environ["TORTURE_MARK"] = str(home / "side.log"), "trials"
    before = hpo.trial.GRACE_SECONDS, hpo.trial.TERM_SECONDS
    hpo.trial.GRACE_SECONDS, hpo.trial.TERM_SECONDS = 0.5, 0.5
    patience = {"swallow": 0.5, "hang without SIGTERM": 0.5}  # beside the timeout of those that hang
    faults = [fault for fault in ENDS if fault != "none"]
    space = {"x": uniform(0, 1), "fault": choice([*ENDS]), "text": choice(TEXTS), "epochs": N_EPOCHS, "pause": 0.01}
    chosen = ["none", *rng.sample([faults[i % len(faults)] for i in range(n)], n), *["none"] * (n // 7)]
    start = [{**RandomSearch(space, i).suggest([])[0], "fault": fault} for i, fault in enumerate(chosen)]
    warm_up(home / "objective.py", 8)
    results = Results.create(home / "run", space, "loss", "min", {})
    backend = LocalBackend(home / "objective.py", results.folder / "logs", n_workers=8)
    say, ours = progress("trials", len(start)), set(marked("trials"))  # the fork server, the guard
    show = type("Show", (), {"seconds": 60, "tick": lambda *_: None, "ended": lambda _, trial: say(trial.id)})()
    tuner = Tuner(
        space, RandomSearch(space), backend, results, n_workers=8, n_trials=len(start), start=start, show=show,
        trial_timeout=TRIAL_TIMEOUT, rule=lambda trial, *_: trial.config["fault"] == "swallow" and len(trial.curve) > 2,
    )  # fmt: skip
    tuner.run()
    orphans = len(set(marked("trials")) - ours)
    results.close()
    hpo.trial.GRACE_SECONDS, hpo.trial.TERM_SECONDS = before
    tallies = {f"trial: {fault}": Tally() for fault in ENDS}
    when = {x: seconds for seconds, what, x in read_log(home / "side.log") if what == "fault"}
    rows = collections.Counter(row["trial"] for row in read_rows(results.folder / "trials.csv"))
    for trial in load(results.folder):
        fault = trial.config["fault"]
        tally = tallies[f"trial: {fault}"]
        tally.events += 1
        count(tally, {trial.id: 1}, {trial.id: rows[str(trial.id)]})
        tally.twice += max(0, rows[str(trial.id)] - 1)
        status, word = ENDS[fault]
        if trial.status != status or word not in trial.error:
            tally.wrong.append(f"trial {trial.id} is {trial.status} ({trial.error})")
        if fault != "none":
            is_overdue = ENDS[fault][0] == "timeout"
            since = backend.zero + trial.started + TRIAL_TIMEOUT if is_overdue else when[trial.config["x"]]
            hang = backend.zero + trial.ended - since - patience.get(fault, 0)
            tally.longest_hang = max(tally.longest_hang, hang)
    reports = tallies["reports of these trials"] = Tally()
    reports.orphans = orphans
    check_reports(reports, results.folder, home / "side.log")
    return tallies


# ---- The folder fails ---------------------------------------------------------------------------------------------------
def fill_disks(home, n, rng):
    """A file-size limit stands for a full disk: the write that reaches it is cut short, as there."""
    tally, say = Tally(), progress("disks", n)
    for i in range(n):
        run, limit = Run(home / f"disk{i}", tally), rng.randint(3_000, 15_000)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        set_limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, hard))
        run.fails(run.start(preexec_fn=set_limit))
        with warnings.catch_warnings(action="error"):  # the failed row was cut back: no line is torn
            load(run.folder)
        run.finish()
        say(i)
    return {"disk full": tally}


def take_folders(home, n, rng):
    tallies, say = {}, progress("folders", n)
    for i in range(n):
        kind = ["deleted", "made read-only", "moved"][i % 3]
        tally = tallies.setdefault(f"folder {kind}", Tally())
        run = Run(home / f"folder{i}", tally)
        process = run.start()
        until = time.monotonic() + 60
        while len(read_log(run.log)) < rng.randint(10, 200) and time.monotonic() < until:
            time.sleep(0.01)
        since = time.monotonic()
        if kind == "deleted":
            while run.folder.exists():  # logs come into being meanwhile
                shutil.rmtree(run.folder, ignore_errors=True)
        elif kind == "moved":
            run.folder.rename(run.home / "elsewhere")
        else:
            change_modes(run.folder, 0o222, 0)
        run.fails(process, since)
        if kind == "moved":
            (run.home / "elsewhere").rename(run.folder)
        elif kind == "made read-only":
            change_modes(run.folder, 0, 0o200)
        if kind != "deleted":
            run.finish()
        say(i)
    return tallies


def change_modes(folder, off, on):
    for path in [*folder.rglob("*"), folder]:
        path.chmod(path.stat().st_mode & ~off | on)


# ---- Damaged files ------------------------------------------------------------------------------------------------------
FUZZ_SPACE = {"lr": loguniform(1e-4, 1), "n": randint(1, 9), "kind": choice(["a", 1, None, [1, "x,y\n"]]), "epochs": 3}


def fuzz(home, n, rng):
    """Bytes and rows of a good folder changed at random: an error that names a file, or trials within the schema.

    One change in four takes whole rows away, which must be named unless a crash could have taken them.
    """
    tallies, n_named, say = collections.defaultdict(Tally), collections.Counter(), progress("fuzz", n)
    folder = write_good_folder(home / "fuzz", rng)
    good = {path: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    *_, last = [json.loads(line) for line in good[folder / "configs.jsonl"].splitlines()]
    # the lines on which others rest, headers included: starts up to the last that has a report, rows that a start has seen
    reports = csv.DictReader(good[folder / "reports.csv"].decode().splitlines())
    needed = {"configs.jsonl": 1 + max(int(row["trial"]) for row in reports)}
    needed |= {f"{name}.csv": 1 + n_seen for name, n_seen in last["seen"].items()}
    for i in range(n):
        path, kind, first = rng.choice(list(good)), "file damaged", math.inf
        if path.name in needed and rng.random() < 1 / 3:
            kind, lines = "rows taken away", good[path].splitlines(True)
            first = rng.randrange(len(lines))
            gone = {first, *rng.sample(range(first, len(lines)), rng.randrange(min(4, len(lines) - first)))}
            path.write_bytes(b"".join(line for k, line in enumerate(lines) if k not in gone))
        else:
            path.write_bytes(damage(good[path], rng))
        read, tally = Results.open if rng.random() < 0.1 else load, tallies[kind]
        try:
            with warnings.catch_warnings(action="ignore"):  # torn last lines
                found = read(folder)
            trials = found if read is load else found.trials
            if read is not load:
                found.close()
            if path.name != "run.json":  # else it may be another space
                tally.wrong += outside_schema(FUZZ_SPACE, trials)
            if first < needed.get(path.name, 0):
                tally.wrong.append(f"{path.name}: line {first + 1} was taken away, and nobody noticed")
        except ResultsError as error:
            n_named[kind] += 1
            if str(folder) not in str(error) or "\n" in str(error):
                tally.wrong.append(f"unclear: {error}")
        except Exception as error:  # that there is none is what is to be shown
            tally.wrong.append(f"{path.name}: {error!r}")
        for name, data in good.items():
            name.write_bytes(data)
        tally.events += 1
        say(i)
    return {f"{kind}, {n_named[kind]} times named": tally for kind, tally in tallies.items()}


def damage(data, rng):
    lines = data.split(b"\n")
    kind = rng.random()
    i, n = rng.randrange(len(data)), rng.randint(0, 8)
    if kind < 0.1:
        return data[:i]
    if kind < 0.2:
        rng.shuffle(lines)
        return b"\n".join(lines)
    if kind < 0.3:
        return b"\n".join([*lines[: i % len(lines)], rng.choice(lines), *lines[i % len(lines) :]])
    alphabet = b'\0\n\r",{}[]0123456789eE-+.:\\ aNIn_\xff\xc3\xa9' if kind < 0.8 else bytes(range(256))
    return data[:i] + bytes(rng.choices(alphabet, k=rng.randint(0, n + 1))) + data[i + n :]


def write_good_folder(folder, rng):
    """A run of eight trials, three at a time, that has just started the last one."""
    results = Results.create(folder, FUZZ_SPACE, "accuracy", "max", {"arguments": {"seed": 0}})
    now, n_trials, running = 0.0, 0, []
    while n_trials < 8:
        now += rng.uniform(0.01, 0.1)
        if len(running) < 3:
            config, origin = RandomSearch(FUZZ_SPACE, 1).suggest([None] * n_trials)
            running.append(Trial(n_trials, config, origin, started=now))
            results.append_config(running[-1], dict(results.n_rows))
            n_trials += 1
            continue
        trial = rng.choice(running)
        if len(trial.curve) < 3:
            metrics = {"epoch": len(trial.curve) + 1, "accuracy": rng.random(), "note": 'a,"\n\u00e9'}
            trial.curve.append(results.append_report(trial, metrics, now))
        else:
            trial.status, trial.error, trial.ended = STATUSES[trial.id % 4], 'bad,\n"\u00e9', now
            results.append_trial(trial)
            running.remove(trial)
    results.close()
    return folder


def outside_schema(space, trials):
    """What of loaded trials could not have been written, in words."""
    wrong = []
    for i, trial in enumerate(trials):
        right = {
            "id": trial.id == i,
            "attempt": type(trial.attempt) is int and trial.attempt >= 1,
            "config": cast_config(space, trial.config) == trial.config and list(trial.config) == list(space),
            "status": trial.status in (*STATUSES, "running"),
            "times": 0 <= trial.started < 1e12 and 0 <= (trial.ended or 0) < 1e12 and trial.suggest_seconds >= 0,
            "ended": (trial.ended is None) == (trial.status == "running"),
            "curve": all(type(epoch) is int and epoch >= 0 and math.isfinite(loss) for epoch, loss in trial.curve),
            "texts": isinstance(trial.origin, str) and isinstance(trial.error, str),
        }
        wrong += [f"trial {i}: {name} of {trial}" for name, is_right in right.items() if not is_right]
    return wrong


# ---- All together -------------------------------------------------------------------------------------------------------
def progress(name, n):
    """Function that shows how far a part has come."""

    def say(i):
        if sys.stderr.isatty():
            print(f"\r\x1b[K{name}: {i + 1} of {n}", end="\n" if i + 1 == n else "", file=sys.stderr, flush=True)

    return say


def main(arguments=None):
    parser = command.parser("torture", __doc__)
    parser.add_argument("--kills", type=natural, default=100, help="times that the tuner is killed and resumed")
    parser.add_argument("--trials", type=natural, default=210, help="trials that die in one of seven ways")
    parser.add_argument("--disks", type=natural, default=20, help="runs that meet a full disk")
    parser.add_argument(
        "--folders", type=natural, default=15, help="runs whose folder is deleted, made read-only or moved"
    )
    parser.add_argument("--fuzz", type=natural, default=20_000, help="files damaged")
    parser.add_argument("--seed", type=natural, default=0)
    args = parser.parse_args(arguments)
    rng, tallies = random.Random(args.seed), {}
    with tempfile.TemporaryDirectory() as home:
        parts = (kill_tuners, args.kills), (kill_trials, args.trials), (fill_disks, args.disks)
        for part, n in (*parts, (take_folders, args.folders), (fuzz, args.fuzz)):
            if n:
                tallies |= part(pathlib.Path(home), n, rng)
    print(f"{'event':45} events  rows expected   found  lost  twice  orphans  longest hang")
    for name, t in tallies.items():
        row = f"{t.events:6} {t.expected:14} {t.found:7} {t.lost:5} {t.twice:6} {t.orphans:8} {t.longest_hang:12.2f}s"
        print(f"{name:45} {row}")
    problems = [f"{name}: {words}" for name, t in tallies.items() for words in t.wrong]
    problems += [
        f"{name}: rows lost, twice or orphans" for name, t in tallies.items() if t.lost or t.twice or t.orphans
    ]
    print(*problems[:50], f"{len(problems)} problems", sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    command.run("torture")
