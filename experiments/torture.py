"""Torture: tuners, trials and fork servers killed, disks full, folders taken: is anything lost?

    python -m experiments.torture                   everything, 15 minutes on 2 cores; Linux only
    python -m experiments.torture --kills 15 --trials 40 --servers 3 --folders 8 --fuzz 999

All runs are of the real command. Each report has a random token, which the trial writes to a side
log before it reports and again when the tuner has answered. What was answered, and what the tuner
has printed of an end, must be in the journal, once; what was not begun must not. At last each run
is resumed in peace: then all its trials have the values of their objective, and the CSVs are what
the journal makes of them.
"""

import contextlib
import json
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
import warnings
from collections import Counter

from experiments import command
from experiments.command import ROOT, children_of, is_alive
from hpo.journal import load, write_tables

N_EPOCHS, TRIAL_TIMEOUT = 4, 1.5  # seconds
LATE = "timeout", "--trial_timeout"
FAULTS = {  # name: the trial's status, a word of its error, and what it does after two reports
    "none": ("done", "", "pass"),
    "grandchildren": ("done", "", "os.system('setsid sleep 600 & setsid sleep 600 &')"),
    "exception": ("failed", "RuntimeError: fault", "raise RuntimeError('fault')"),
    "SIGKILL": ("failed", "SIGKILL", "os.kill(os.getpid(), signal.SIGKILL)"),
    "SIGSEGV": ("failed", "SIGSEGV", "ctypes.string_at(0)"),
    "memory": ("failed", "MemoryError", "bytearray(2**60)"),
    "hang": (*LATE, "time.sleep(600)"),
    "hang with the lock": (*LATE, "ctypes.PyDLL(None).sleep(600)"),
    "hang, SIGTERM ignored": (*LATE, "signal.signal(15, signal.SIG_IGN); time.sleep(600)"),
    "rubbish sent": ("failed", "what is not a report", "send(b'\\xff log line\\n')"),
    "half a line sent": (*LATE, "send(b'{\"report\": {'); time.sleep(600)"),
}
OBJECTIVE = f"""
import ctypes, json, os, signal, time
import hpo.report
from hpo import Reporter, choice, uniform

FAULTS = { {name: code for name, (*_, code) in FAULTS.items()} }
faults = choice([*FAULTS])
config_space = dict(x=uniform(0, 1), fault=faults, epochs={N_EPOCHS}, seconds=0.01)
metric, mode = "loss", "min"

def objective(config):
    log = os.open(os.environ["TORTURE_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    report, send = Reporter(), hpo.report.tuner.sendall
    note = lambda *words: os.write(log, json.dumps([time.monotonic(), *words]).encode() + b"\\n")
    note("process", os.getpid())
    for epoch in range(1, config["epochs"] + 1):
        time.sleep(config["seconds"])
        token = os.urandom(8).hex()
        note("begun", token)
        report(epoch=epoch, loss=config["x"] / epoch, token=token)
        note("answered", token)
        if epoch == 2:
            exec(FAULTS[config["fault"]])
"""
IMPATIENT = "import hpo.trial as t, run, sys; t.STOP_SECONDS = t.TERM_SECONDS = 0.5; run.main()"


class Tally:
    """Counts of one row of the table. wrong: what else is not as it should be, in words."""

    def __init__(self):
        self.events = self.expected = self.lost = self.twice = self.orphans = 0
        self.wrong = []


def print_table(tallies):
    """Prints {event: Tally}, and what was wrong; returns the exit code."""
    print(f"{'event':60} events  rows expected  lost  twice  orphans")
    problems = []
    for name, t in tallies.items():
        print(f"{name:60} {t.events:6} {t.expected:14} {t.lost:5} {t.twice:6} {t.orphans:8}")
        problems += [f"{name}: {words}" for words in t.wrong]
        problems += [f"{name}: lost, twice or orphans"] * bool(t.lost or t.twice or t.orphans)
    print(*problems[:50], f"{len(problems)} problems", sep="\n")
    return 1 if problems else 0


class Run:
    """A run of the real command, its side log, and what it has printed.

    options: of its first session. program: what Python is to run in place of run.py.
    """

    def __init__(self, home, tally, options=("--set", "fault=none"), program=("run.py",)):
        self.home, self.folder, self.log, self.tally = home, home / "run", home / "log", tally
        self.environment = os.environ | {"TORTURE_LOG": str(self.log), "TMPDIR": f"{home}/tmp"}
        self.options, self.program, self.printed = options, program, ""
        (home / "tmp").mkdir(parents=True)
        (home / "objective.py").write_text(OBJECTIVE)

    def has_begun(self):
        journal = self.folder / "journal.jsonl"
        return journal.exists() and b"\n" in journal.read_bytes()

    def start(self, *arguments):
        """Begins the run, or goes on with it; returns the process."""
        words = ["--resume", self.folder]
        if not self.has_begun():
            shutil.rmtree(self.folder, ignore_errors=True)
            words = [self.home / "objective.py", "--results", self.folder, "--stopping", "none"]
            words += self.options
        words = [sys.executable, *self.program, *map(str, [*words, *arguments])]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "pipesize": 2**20}
        return subprocess.Popen(words, cwd=ROOT, env=self.environment, text=True, **pipes)

    def wait(self, process, *codes, seconds=30):
        """Waits until all is gone of a tuner that ends with such a code; counts what is not."""
        until = time.monotonic() + seconds
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
        process.kill()
        while (left := self.processes()) and time.monotonic() < until + 5:
            time.sleep(0.01)
        self.tally.orphans += len(left)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        printed = process.communicate()[0]
        self.printed += printed
        reason = f"\nrun.py: failed: {self.folder}" if codes == (1,) else ""
        if process.returncode not in codes or reason not in printed:
            self.tally.wrong.append(f"exit code {process.returncode}:\n{printed[-2000:]}")

    def processes(self):
        """Ids of the processes that have the side log in their environment."""
        found, log = [], f"TORTURE_LOG={self.log}".encode()
        for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has ended
                found += [int(path.parent.name)] * (log in path.read_bytes())
        return found

    def notes(self, kind):
        """{token: seconds} of the side log; kind: begun or answered; or {id: seconds}: process."""
        lines = map(json.loads, self.log.read_text().splitlines() if self.log.exists() else [])
        return {token: seconds for seconds, what, token in lines if what == kind}

    def wait_for_answers(self, n):
        """Waits, at most 30 s, until n more reports have been answered."""
        since = time.monotonic()
        while sum(t > since for t in self.notes("answered").values()) < n:
            time.sleep(0.01)
            if time.monotonic() > since + 30:
                return self.tally.wrong.append("no trial has reported for 30 s")

    def interrupt(self, process):
        """Waits until the run has gone on, and interrupts it."""
        self.wait_for_answers(9)
        process.send_signal(signal.SIGINT)
        self.wait(process, 130)

    def finish(self):
        """Resumes the run in peace until it has four more trials, and checks everything."""
        n_trials = 4 + (len(load(self.folder)) if self.has_begun() else 0)
        self.wait(self.start("--trials", n_trials), 0, seconds=300)
        self.check()
        trials = load(self.folder)
        for trial in trials:
            epochs = range(1, trial.config["epochs"] + 1)
            values = [(epoch, trial.config["x"] / epoch) for epoch in epochs]
            if trial.status != "done" or trial.curve != values:
                self.tally.wrong.append(f"trial {trial.id} is {trial.status}, with {trial.curve}")
        self.tally.wrong += ["trials are missing"] * (len(trials) != n_trials)
        return f"{sum(trial.attempt > 1 for trial in trials)} trials started again"

    def check(self):
        """Counts lines lost and twice: reports by their tokens, ends by what was printed."""
        lines = list(map(json.loads, (self.folder / "journal.jsonl").read_text().splitlines()))
        tokens = Counter(line["metrics"]["token"] for line in lines if "report" in line)
        ends = Counter((str(e["end"]), e["status"]) for e in lines if "end" in e)
        printed = re.findall(r"^trial +(\d+) (\w+)", self.printed, re.MULTILINE)
        expected = Counter([*self.notes("answered"), *printed])
        self.tally.expected += expected.total()
        self.tally.lost += (expected - tokens - ends).total()
        self.tally.twice += tokens.total() - len(tokens)
        self.tally.twice += sum(n - 1 for (_, how), n in ends.items() if how != "interrupted")
        invented = tokens.keys() - self.notes("begun")
        self.tally.wrong += [f"a report that no trial has made: {token}" for token in invented]
        tables = [self.folder / name for name in ("trials.csv", "reports.csv")]
        live = [path.read_bytes() for path in tables]
        write_tables(self.folder)
        if live != [path.read_bytes() for path in tables]:
            self.tally.wrong.append("the CSVs are not what the journal makes of them")


# ---- Tuners die, or what they need ----
SERVERS = ["fork server SIGKILLed", "TMPDIR emptied"]
FOLDERS = ["disk full", "folder moved", "read-only"]


def attack(home, n, rng, kinds, fault="none"):
    """One run of n sessions, each of which meets an event of such a kind."""
    run = Run(home, Tally(), ["--set", f"fault={fault}"])
    for i in range(n):
        meet(run, kinds[i % len(kinds)], rng)
    run.tally.events = n
    return {", ".join([*kinds, run.finish()]): run.tally}


def meet(run, kind, rng):
    process, elsewhere = run.start(), run.home / "elsewhere"
    if kind == "tuner SIGKILLed":
        time.sleep(rng.choice([rng.uniform(0, 1.5), rng.uniform(0.5, 4)]))  # while it starts too
        process.kill()
        return run.wait(process, -signal.SIGKILL)
    run.wait_for_answers(rng.randint(5, 50))
    if kind in SERVERS:  # the run goes on
        if kind == "TMPDIR emptied":
            shutil.rmtree(run.home / "tmp")
            (run.home / "tmp").mkdir()
        else:
            kill_spawned(process.pid)
        return run.interrupt(process)
    if kind == "disk full":  # a limit of a file's size cuts the write that reaches it short, too
        size = (run.folder / "journal.jsonl").stat().st_size + rng.randint(0, 300)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    elif kind == "folder moved":
        run.folder.rename(elsewhere)
    else:
        run.folder.chmod(0o555)
    run.wait(process, 1)
    if kind == "folder moved":
        elsewhere.rename(run.folder)
    run.folder.chmod(0o755)
    with warnings.catch_warnings(action="error"):  # no line is torn
        load(run.folder)


def kill_spawned(pid):
    """Kills the first process that a process has spawned; those after it are its children."""
    os.kill(next(i for i in children_of(pid) if is_alive(i, "spawn_main")), signal.SIGKILL)


# ---- Trials die, and files are damaged ----
def kill_trials(home, n, rng):
    """One run whose start configurations have all the faults; it has less patience than usual."""
    options = ["--trials", n + 1, "--workers", 8, "--trial_timeout", TRIAL_TIMEOUT]
    run = Run(home, Tally(), [*options, "--start", home / "start.json"], ["-c", IMPATIENT])
    faults = ["none", *rng.sample([[*FAULTS][i % len(FAULTS)] for i in range(n)], n)]
    (home / "start.json").write_text(json.dumps([{"fault": fault} for fault in faults]))
    run.wait(run.start(), 0, seconds=300)
    run.check()
    for trial in load(run.folder):
        status, word, _ = FAULTS[trial.config["fault"]]
        if trial.status != status or word not in trial.error:
            what = f"{trial.config['fault']}: trial {trial.id} is {trial.status} ({trial.error})"
            run.tally.wrong.append(what)
    run.tally.events = n + 1
    return {f"trials died in {len(FAULTS) - 2} ways": run.tally}


def fuzz(home, n, rng, good=None):
    """Bytes and lines of a good journal changed at random: trials, or a line that names it."""
    tally, n_named = Tally(), 0
    if good is None:
        run = Run(home, tally)
        run.finish()
        good = (run.folder / "journal.jsonl").read_bytes()
    home.mkdir(exist_ok=True)
    for _ in range(n):
        (home / "journal.jsonl").write_bytes(damage(good, rng))
        tally.events += 1
        try:
            with warnings.catch_warnings(action="ignore"):  # torn last lines
                load(home)
        except ValueError as error:
            n_named += 1
            if f"{home}/journal.jsonl, line " not in str(error) or "\n" in str(error):
                tally.wrong.append(f"unclear: {error}")
        except Exception as error:  # that there is none is what is to be shown
            tally.wrong.append(repr(error))
    return {f"journal damaged, {n_named} times named": tally}


def damage(data, rng):
    """Bytes replaced, perhaps up to the end of the file; or lines taken away or repeated."""
    if rng.random() < 0.2:
        lines = data.splitlines(True)
        first, second = rng.choices(range(len(lines)), k=2)
        return b"".join(lines[:first] + lines[second:])
    alphabet = b'\0\n\r",{}[]0123456789eE-+.:\\ aNIn_\xff\xc3\xa9'
    begin = rng.randrange(len(data))
    end = rng.choice([*range(begin, begin + 9), len(data)])
    return data[:begin] + bytes(rng.choices(alphabet, k=rng.randint(0, 8))) + data[end:]


# ---- All together ----
PARTS = [  # flag, default, help, function(home, n, rng, *further), further arguments
    ("kills", 100, "times that the tuner is killed", attack, ["tuner SIGKILLed"], "grandchildren"),
    ("trials", 210, f"trials, which die in {len(FAULTS) - 2} ways", kill_trials),
    ("servers", 10, "times that the fork server is killed, or TMPDIR emptied", attack, SERVERS),
    ("folders", 36, "times that the disk is full, or the folder is taken", attack, FOLDERS),
    ("fuzz", 20_000, "journals damaged", fuzz),
]


def main(arguments=None, parts=PARTS, command_name="torture", description=__doc__):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # started by `&`, all would ignore it
    parser = command.parser(command_name, description)
    for name, default, text, *_ in parts:
        parser.add_argument(f"--{name}", type=command.natural, default=default, help=text)
    parser.add_argument("--seed", type=command.natural, default=0)
    args = parser.parse_args(arguments)
    rng, tallies = random.Random(args.seed), {}
    with tempfile.TemporaryDirectory() as home:
        for name, _, _, part, *further in parts:
            if n := getattr(args, name):
                print(f"{name} {n} ...", file=sys.stderr)
                tallies |= part(pathlib.Path(home, name), n, rng, *further)
    return print_table(tallies)


if __name__ == "__main__":
    command.run("torture")
