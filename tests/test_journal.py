"""hpo/journal.py: what was written is read back, and a damaged or lost folder is named."""

import csv
import json
import math
import os
import random
import resource
import shutil
from functools import partial

import pytest

from experiments import torture
from hpo.journal import STATUSES, Journal, WriteError, check_new, load, write_tables
from hpo.space import choice, randint, space_to_json, uniform

TEXTS = ["a", "1", "NaN", "=1+1", 'c"d,e', "é✓😀", "\u2028\ud800\0\r\n\x85", "x" * 999]
SPACE = {"x": uniform(0, 1), "n": randint(1, 9), "kind": choice([*TEXTS, 1, None, [1, "x,y\n"]])}
RUN = {"space": space_to_json(SPACE), "metric": "accuracy", "mode": "max", "arguments": {"seed": 7}}


def start(i, at=0.0, attempt=1, **config):
    event = {"start": i, "attempt": attempt, "config": {"x": 0.5, "n": 3, "kind": "a", **config}}
    return {**event, "origin": "random", "at": at, "suggest_seconds": 0.25}


def report(i, at=0.0, attempt=1, epoch=1, **metrics):
    return {"report": i, "attempt": attempt, "epoch": epoch, "metrics": metrics, "at": at}


def end(i, at=0.0, attempt=1, status="done", error=""):
    return {"end": i, "attempt": attempt, "status": status, "error": error, "at": at}


def session(at=0.0, **arguments):
    return {"session": {"arguments": arguments, "at": at, "time": "2026-01-01"}}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function that makes the journal of a run in tmp_path / "run", with these events."""

    def make_one(*events, name="run", **run):
        journal = Journal.create(tmp_path / name, {**RUN, **run})
        for event in events:
            if "session" in event:  # as a run does it: the journal is closed and opened again
                journal.close()
                journal = reopen(journal.folder, event["session"]["arguments"])
            else:
                journal.append(event)
        return journal

    monkeypatch.setattr(os, "fsync", lambda file: None)  # it takes long on a busy disk
    return make_one


def reopen(folder, arguments=()):
    journal = Journal.open(folder)
    journal.begin_session(dict(arguments))
    return journal


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- The fold ------------------------------------------------------------------------------------
VALUES = [0.25, 0.5, 1, -0.0, math.nan, math.inf, "1", None, True, 10**400]


def random_events(rng, n):
    """A valid sequence: three trials at a time, sessions, interrupted trials started again."""
    events, at, attempts, running, again = [start(0)], 0.0, {0: 1}, [0], []
    while len(events) < n:
        if rng.random() < 0.04:
            events.append(session(at, hours=at))
            again, running = again + running, []
            continue
        at = round(at + rng.expovariate(1) * rng.choice([0, 1]), 3)  # several at the same time
        if len(running) < 3:
            running.append(i := again.pop() if again else len(attempts))
            attempts[i] = attempts.get(i, 0) + 1
            kind = rng.choice(SPACE["kind"].values)
            events.append(start(i, at, attempts[i], x=rng.random(), kind=kind))
        elif rng.random() < 0.7:
            i, metrics = rng.choice(running), {rng.choice("abcdef"): rng.choice(TEXTS)}
            metrics["accuracy"] = rng.choice(VALUES)
            events.append(report(i, at, attempts[i], rng.randint(0, 9), **metrics))
        else:
            i, status = running.pop(rng.randrange(3)), rng.choice(STATUSES)
            again += [i] if status == "interrupted" else []
            events.append(end(i, at, attempts[i], status, rng.choice(TEXTS)))
    last = len(attempts)
    return [*events, session(at, hours=at), start(last, at + 1), end(last, at + 2)]


@pytest.mark.parametrize("seed", range(3))
def test_random_run_is_the_same_live_and_loaded(make, seed):
    events = random_events(random.Random(seed), 150)
    journal = make(*events, mode=["max", "min"][seed % 2])
    found = [repr(trial) for trial in journal.trials]  # repr tells exact types apart, 1 from 1.0
    assert found == list(map(repr, load(journal.folder)))
    for i in range(0, len(found), 15):
        n = next(n for n, event in enumerate(events) if event.get("start") == i)
        known = make(*events[:n], name=f"before {i}", mode=journal.mode)
        assert load(journal.folder, before=i) == known.trials
        known.close()
    hours = events[-3]["session"]["arguments"]["hours"]
    journal.close()
    assert Journal.open(journal.folder).run["arguments"] == {"seed": 7, "hours": hours}
    live = contents(journal.folder)
    write_tables(journal.folder)
    assert contents(journal.folder) == live  # rows were added to the CSVs one by one


def test_trial_is_what_its_attempts_have_reported(make):
    """A later attempt replaces what an earlier one reported, but not the epochs before its own."""
    bad = [report(0, 3.0, epoch=3, accuracy=value) for value in VALUES[4:]]
    journal = make(
        start(0), report(0, 1.0, epoch=1, accuracy=0.5), report(0, 2.0, epoch=2, accuracy=1), *bad,
        start(1, 3.5), end(1, 4.0, status="failed", error="why"), start(2, 4.5),
        session(), start(0, 5.0, attempt=2), session(), start(0, 6.0, attempt=3),
        start(3, 6.5), report(3, 6.5, epoch=7, accuracy=0.5), end(3, 7.0, status="stopped"),
        report(0, 8.0, 3, epoch=2, accuracy=-0.0),
    )  # fmt: skip
    journal.append(start(2, 8.5, attempt=2))
    journal.append(report(0, 9.0, 3, epoch=3, accuracy=0.25))
    found = [(t.status, t.error, t.started, t.ended, t.curve, t.earlier) for t in journal.trials]
    assert found == [
        ("running", "", 6.0, None, [(1, -0.5), (2, 0.0), (3, -0.25)], [[(1, -0.5), (2, -1)], []]),
        ("failed", "why", 3.5, 4.0, [], []), ("running", "", 8.5, None, [], [[]]),
        ("stopped", "", 6.5, 7.0, [(7, -0.5)], []),
    ]  # fmt: skip
    with open(journal.folder / "reports.csv") as file:
        assert [row["time"] for row in csv.DictReader(file)] == ["1.0", "6.5", "8.0", "9.0"]
    live = contents(journal.folder)  # rows were added; now the whole journal makes the tables
    write_tables(journal.folder)
    assert contents(journal.folder) == live


# ---- What is refused -----------------------------------------------------------------------------
BAD = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"{}"]
BAD_RUNS = [
    *BAD, start(0), {"run": 3}, {"run": {**RUN, "mode": "best"}}, {"run": {**RUN, "arguments": 3}},
    *[{"run": {key: RUN[key] for key in RUN if key != name}} for name in RUN],
    {"run": {**RUN, "space": {"x": {"uniform": [1, 0]}}}},
]  # fmt: skip
BAD_EVENTS = [
    *BAD, {"run": RUN}, {"stop": 1}, start(3), start(0), start(1), start(-1), start("x"),
    start(2, attempt=2), start(1, attempt=3), start(2, x=7), start(2, more=1),
    {**start(2), "config": [1]}, start(2, "3"), report(0), report(2), report(-1), report("x"),
    report(1, attempt=2), report(1, epoch=1.5), {**report(1), "metrics": 3}, end(0), end(2),
    end(1, attempt=2), end(1, status="lost"), {"session": {}}, {"session": {"at": 0.0}},
    session("noon"),
    *[{key: event[key] for key in event if key != name}
      for event in (start(2), report(1), end(1))
      for name in list(event)[1:] if name != "suggest_seconds"],
]  # fmt: skip


@pytest.mark.parametrize(
    "number, bad", [*((1, x) for x in BAD_RUNS), *((5, x) for x in BAD_EVENTS)]
)
def test_bad_line_is_named(tmp_path, number, bad):
    path, events = tmp_path / "journal.jsonl", [{"run": RUN}, start(0), end(0), start(1), report(1)]
    lines = [json.dumps(event).encode() + b"\n" for event in events]
    bad = bad if isinstance(bad, bytes) else json.dumps(bad).encode()
    path.write_bytes(b"".join([*lines[: number - 1], bad + b"\n", *lines[number - 1 :]]))
    before = path.read_bytes()
    for read in (load, reopen, write_tables):
        with pytest.raises(ValueError, match=rf"/journal\.jsonl, line {number}: ") as error:
            read(tmp_path)
        assert len(str(error.value)) < 1_000 and "\n" not in str(error.value)
    assert path.read_bytes() == before and not (tmp_path / "trials.csv").exists()


def test_torn_last_line_is_left_out_and_cut(make):
    """At every byte. The first line, which is the run, cannot be left out."""
    journal = make(start(0), end(0), start(1))
    journal.close()
    path = journal.path
    whole = path.read_bytes()
    n = whole.rindex(b"\n", 0, -1) + 1
    for torn in range(n + 1, len(whole)):
        path.write_bytes(whole[:torn])
        with pytest.warns(UserWarning, match=r"journal\.jsonl, line 4: is torn, and left out"):
            assert len(load(journal.folder)) == 1
    with pytest.warns(UserWarning, match="is torn"):
        journal = reopen(journal.folder)
    journal.append(start(1))
    journal.close()
    assert path.read_bytes().startswith(whole[:n] + b'{"session": ')
    assert [trial.status for trial in load(journal.folder)] == ["done", "running"]
    path.write_bytes(first := whole[: whole.index(b"\n")])
    with pytest.raises(ValueError, match="line 1"):
        reopen(journal.folder)
    assert path.read_bytes() == first


def test_random_damage_loads_or_is_named(make, tmp_path):
    good = make(*random_events(random.Random(1), 60)).path.read_bytes()
    (tally,) = torture.fuzz(tmp_path / "fuzz", 100, random.Random(0), good).values()
    assert (tally.events, tally.wrong) == (100, [])


# ---- Writing -------------------------------------------------------------------------------------
def test_starts_and_ends_are_synced_at_once_and_reports_each_second(make, monkeypatch):
    journal, syncs, n_syncs = make(), [], []
    monkeypatch.setattr(os, "fsync", syncs.append)
    times = (5.2, 5.9, 6.1, 6.5, 7.3)
    for event in [start(0, 5.0), *(report(0, at, accuracy=0.5) for at in times), end(0, 7.4)]:
        journal.append(event)
        n_syncs.append(len(syncs))
    assert n_syncs == [1, 1, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("n", [0, 20])
def test_failed_write_cuts_the_line_back(make, n):
    """The disk is full after n more bytes."""
    journal, (limit, hard) = make(), resource.getrlimit(resource.RLIMIT_FSIZE)
    for event in (start(0), report(0, 9.0, accuracy=0.5), end(0, 10.0)):
        before, trials = contents(journal.folder), repr(journal.trials)
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + n, hard))
        try:
            with pytest.raises(WriteError, match="run: cannot write: "):
                journal.append(event)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        assert contents(journal.folder) == before and repr(journal.trials) == trials
        journal.append(event)
    assert load(journal.folder) == journal.trials and journal.trials[0].status == "done"


def link(folder, name):
    """Somebody else's file in place of one of the run's."""
    (folder / name).rename(folder.with_name("victim"))
    (folder / name).symlink_to(folder.with_name("victim"))


CHANGES = [  # of the folder, and a word of the error
    (shutil.rmtree, "No such file"),
    (lambda folder: folder.rename(folder.with_name("moved")), "No such file"),
    (lambda folder: folder.chmod(0o555), "read-only|denied"),  # root could still write
    (lambda folder: (folder / "journal.jsonl").chmod(0o444), "read-only|denied"),
    *[(partial(link, name=f), "symbolic links") for f in ("journal.jsonl", "trials.csv")],
]


@pytest.mark.parametrize("change, words", CHANGES)
def test_folder_that_is_lost_is_a_write_error(make, tmp_path, change, words):
    journal = make(start(0), report(0, accuracy=0.5))
    change(journal.folder)
    victim = tmp_path / "victim"
    before = contents(tmp_path).get(victim)
    with pytest.raises(WriteError, match=rf"run: cannot write: .*({words})"):
        for event in (report(0, accuracy=0.5), end(0)):
            journal.append(event)
    assert contents(tmp_path).get(victim) == before


# ---- The CSVs ------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode, best, epoch", [("max", "0.75", "2"), ("min", "0.0", "3")])
def test_csvs_have_the_documented_columns(make, mode, best, epoch):
    """In the user's own sign, of which zero has none; NaN and Inf as pandas and R spell them."""
    journal = make(start(0, 0.125, kind=[1, "x,y\n"]), report(0, 1, accuracy=0.5), mode=mode)
    (journal.folder / "reports.csv").unlink()  # it is made anew
    for event in (
        report(0, 2, epoch=2, accuracy=0.75, time=3, loss=math.nan),
        report(0, 3, epoch=3, accuracy=-0.0, loss=-math.inf, text="é\n"), end(0, 10.25),
        start(1, 11.0), end(1, 12.0, status="failed", error='bad "a",\nb'),
    ):  # fmt: skip
        journal.append(event)
    lines = (journal.folder / "trials.csv").read_bytes().decode().splitlines()
    first, second = csv.DictReader(lines, strict=True)  # a row is a line
    assert list(first.items()) == [
        ("trial", "0"), ("status", "done"), ("value", best), ("last_value", "0.0"),
        ("best_epoch", epoch), ("n_epochs", "3"), ("origin", "random"), ("config_x", "0.5"),
        ("config_n", "3"), ("config_kind", '[1, "x,y\\n"]'), ("started", "0.125"),
        ("ended", "10.25"), ("seconds", "10.125"), ("suggest_seconds", "0.25"), ("error", ""),
    ]  # fmt: skip
    assert (second["value"], second["best_epoch"], second["n_epochs"]) == ("", "", "0")
    assert second["error"] == 'bad "a",\\nb'
    assert (journal.folder / "reports.csv").read_text(encoding="utf-8").splitlines() == [
        "trial,epoch,time,accuracy,metric_time,loss,text",
        "0,1,1,0.5,,,", "0,2,2,0.75,3,NaN,", "0,3,3,-0.0,,-Inf,é\\n",
    ]  # fmt: skip


# ---- Folders -------------------------------------------------------------------------------------
def test_folder_in_use_or_without_a_run_is_refused(make, tmp_path, run_py):
    journal = make(start(0), end(0))
    command = ["-m", "hpo.journal", journal.folder]  # writes the CSVs anew
    code, _, err = run_py(*command)
    assert code == 1 and "run: another run is using it" in err and err.count("\n") == 1
    journal.close()
    before = contents(journal.folder)
    (journal.folder / "trials.csv").unlink()
    assert run_py(*command) == (0, "", "") and contents(journal.folder) == before
    with pytest.raises(ValueError, match=r"nowhere/journal\.jsonl: .*expected the folder"):
        load(tmp_path / "nowhere")


def test_new_run_needs_a_new_folder(make, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    make(start(0)).close()
    before = contents(tmp_path)
    for name in ("file", "run"):
        with pytest.raises(ValueError, match="expected a new folder"):
            check_new(tmp_path / name)
        with pytest.raises(ValueError, match=f"--results .*{name}: "):
            make(name=name)
    assert contents(tmp_path) == before
    for name in ("empty", "a/b/c"):
        check_new(tmp_path / name)
        assert load(make(name=name).folder) == []
