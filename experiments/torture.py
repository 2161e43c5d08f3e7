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
from hpo.journal import Journal, load, load_run, write_tables
from hpo.space import cast_config

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
    """A run of the real command, its side log, and what it has printed."""

    def __init__(self, home, tally):
        self.home, self.folder, self.log, self.tally = home, home / "run", home / "log", tally
        self.environment = os.environ | {"TORTURE_LOG": str(self.log), "TMPDIR": f"{home}/tmp"}
        self.printed = ""
        (home / "tmp").mkdir(parents=True)
        (home / "objective.py").write_text(OBJECTIVE)

    def start(self, *arguments, fault="none", program=("run.py",)):
        """Begins the run, or goes on with it. A fault of None: each trial has its own."""
        if (journal := self.folder / "journal.jsonl").exists() and b"\n" in journal.read_bytes():
            words = ["--resume", self.folder]
        else:  # killed before it was made
            shutil.rmtree(self.folder, ignore_errors=True)
            words = [self.home / "objective.py", "--results", self.folder, "--stopping", "none"]
            words += ["--set", f"fault={fault}"] if fault else []
        words = [sys.executable, *program, *map(str, [*words, *arguments])]
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
        self.printed += process.communicate()[0]
        if process.returncode not in codes:
            self.tally.wrong.append(f"exit code {process.returncode}:\n{self.printed[-2000:]}")

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

    def wait_for_answers(self, n, since=0.0):
        """Waits, at most 30 s, until n reports have been answered since an instant."""
        for _ in range(3_000):
            if sum(t > since for t in self.notes("answered").values()) >= n:
                return
            time.sleep(0.01)
        self.tally.wrong.append("no trial has reported for 30 s")

    def finish(self):
        """Resumes the run in peace until it has some more trials, and checks everything."""
        with contextlib.suppress(ValueError), warnings.catch_warnings(action="ignore"):
            n_trials = 4
            n_trials += len(load(self.folder))
        self.wait(self.start("--trials", n_trials), 0, seconds=300)
        self.check()
        trials = load(self.folder)
        for trial in trials:
            values = [(epoch, trial.config["x"] / epoch) for epoch in range(1, N_EPOCHS + 1)]
            if trial.status != "done" or trial.curve != values:
                self.tally.wrong.append(f"trial {trial.id} is {trial.status}, with {trial.curve}")
        self.tally.wrong += ["trials are missing"] * (len(trials) != n_trials)
        return f"{sum(trial.attempt > 1 for trial in trials)} trials started again"

    def check(self):
        """Counts lines lost and twice: reports by their tokens, ends by what was printed."""
        lines = list(map(json.loads, (self.folder / "journal.jsonl").read_text().splitlines()))
        metrics = [line["metrics"] for line in lines if "report" in line]
        tokens = Counter(m["token"] for m in metrics if "token" in m)
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


# ---- Processes die ----
def kill_tuners(home, n, rng):
    run = Run(home, Tally())
    run.tally.events = n
    for _ in range(n):
        process = run.start(fault="grandchildren")
        time.sleep(rng.choice([rng.uniform(0, 1.5), rng.uniform(0.5, 4)]))  # while it starts too
        process.kill()
        run.wait(process, -signal.SIGKILL)
    return {f"tuner SIGKILLed, {run.finish()}": run.tally}


def kill_trials(home, n, rng):
    """One run whose start configurations have all the faults; it has less patience than usual."""
    run = Run(home, Tally())
    faults = ["none", *rng.sample([[*FAULTS][i % len(FAULTS)] for i in range(n)], n)]
    (home / "start.json").write_text(json.dumps([{"fault": fault} for fault in faults]))
    arguments = ["--trials", n + 1, "--workers", 8, "--trial_timeout", TRIAL_TIMEOUT]
    arguments += ["--start", home / "start.json"]
    run.wait(run.start(*arguments, fault=None, program=["-c", IMPATIENT]), 0, seconds=300)
    run.check()
    for trial in load(run.folder):
        status, word, _ = FAULTS[trial.config["fault"]]
        if trial.status != status or word not in trial.error:
            what = f"{trial.config['fault']}: trial {trial.id} is {trial.status} ({trial.error})"
            run.tally.wrong.append(what)
    run.tally.events = n + 1
    return {f"trials died in {len(FAULTS) - 2} ways": run.tally}


def kill_servers(home, n, rng):
    """The fork server dies, or temporary files go: the run goes on."""
    run = Run(home, Tally())
    process = run.start()
    run.wait_for_answers(9)
    for i in range(n):
        time.sleep(rng.uniform(0.5, 2))
        if i % 2:
            shutil.rmtree(run.home / "tmp")
            (run.home / "tmp").mkdir()
        else:
            servers = [i for i in children_of(process.pid) if is_alive(i, "spawn_main")]
            os.kill(servers[0], signal.SIGKILL)  # those after it are its trials
        run.wait_for_answers(9, time.monotonic())
    run.tally.events = n
    process.send_signal(signal.SIGINT)
    run.wait(process, 130)
    return {f"fork server SIGKILLed, TMPDIR emptied, {run.finish()}": run.tally}


# ---- The folder fails ----
def take_folders(home, n, rng):
    """A file-size limit stands for a full disk: it cuts the write that reaches it short, too."""
    kinds = ("disk full", "folder deleted", "folder made read-only", "folder moved")
    tallies = {kind: Tally() for kind in kinds}
    for i in range(n):
        kind = kinds[i % 4]
        run = Run(home / str(i), tallies[kind])
        run.tally.events += 1
        process, elsewhere = run.start(), run.home / "elsewhere"
        run.wait_for_answers(rng.randint(5, 100))
        if kind == "disk full":
            size = (run.folder / "journal.jsonl").stat().st_size + rng.randint(0, 300)
            hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, hard))
        elif kind == "folder moved":
            run.folder.rename(elsewhere)
        elif kind == "folder made read-only":
            run.folder.chmod(0o555)
        while kind == "folder deleted" and run.folder.exists():  # logs come into being meanwhile
            shutil.rmtree(run.folder, ignore_errors=True)
        run.wait(process, 1)
        if f"\nrun.py: failed: {run.folder}" not in run.printed:
            run.tally.wrong.append(f"no reason:\n{run.printed[-2000:]}")
        if elsewhere.exists():
            elsewhere.rename(run.folder)
        if run.folder.exists():
            run.folder.chmod(0o755)
            with warnings.catch_warnings(action="error"):  # no line is torn
                load(run.folder)
            run.finish()
    return tallies


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
                for trial in load(home):
                    assert cast_config(load_run(home)["space"], trial.config) == trial.config, trial
                    assert all(loss == loss + 0 * epoch for epoch, loss in trial.curve), trial
                if rng.random() < 0.2:
                    with contextlib.closing(Journal.open(home)) as journal:
                        journal.begin_session({})
        except ValueError as error:
            n_named += 1
            if f"{home}/journal.jsonl, line " not in str(error) or "\n" in str(error):
                tally.wrong.append(f"unclear: {error}")
        except Exception as error:  # that there is none is what is to be shown
            tally.wrong.append(repr(error))
    return {f"journal damaged, {n_named} times named": tally}


def damage(data, rng):
    lines, i, n = data.splitlines(True), rng.randrange(len(data)), rng.randint(0, 8)
    first, second = sorted(rng.choices(range(len(lines)), k=2))
    alphabet = b'\0\n\r",{}[]0123456789eE-+.:\\ aNIn_\xff\xc3\xa9'
    return rng.choice([
        data[:i],
        b"".join(lines[:first] + lines[second:]),  # taken away
        b"".join([*lines[:first], lines[second], *lines[first:]]),  # in another place
        *[data[:i] + bytes(rng.choices(alphabet, k=rng.randint(0, n + 1))) + data[i + n :]] * 7,
    ])  # fmt: skip


# ---- All together ----
PARTS = [
    ("kills", 100, kill_tuners, "times that the tuner is killed and resumed"),
    ("trials", 210, kill_trials, f"trials, which die in {len(FAULTS) - 2} ways"),
    ("servers", 10, kill_servers, "times that the fork server is killed, or TMPDIR emptied"),
    ("folders", 36, take_folders, "runs that meet a full disk, or lose their folder"),
    ("fuzz", 20_000, fuzz, "journals damaged"),
]


def main(arguments=None, parts=PARTS, command_name="torture", description=__doc__):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # started by `&`, all would ignore it
    parser = command.parser(command_name, description)
    for name, default, _, text in parts:
        parser.add_argument(f"--{name}", type=command.natural, default=default, help=text)
    parser.add_argument("--seed", type=command.natural, default=0)
    args = parser.parse_args(arguments)
    rng, tallies = random.Random(args.seed), {}
    with tempfile.TemporaryDirectory() as home:
        for name, _, part, _ in parts:
            if n := getattr(args, name):
                print(f"{name} {n} ...", file=sys.stderr)
                tallies |= part(pathlib.Path(home, name), n, rng)
    return print_table(tallies)


if __name__ == "__main__":
    command.run("torture")
