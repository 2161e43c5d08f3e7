"""hpo/results.py: what is written is read back exactly, whatever the text, and a damaged folder says where it is damaged."""

import csv
import errno
import json
import math
import os
import re
import shutil
import warnings

import numpy as np
import pytest
from filelock import Timeout

import hpo.results
from experiments.torture import outside_schema
from hpo.results import (
    LAST_COLUMNS,
    TRIAL_COLUMNS,
    Results,
    ResultsError,
    WriteError,
    check_new,
    escape,
    load,
    load_before,
    load_run,
    report_column,
    to_cell,
    to_line,
    trial_columns,
    unescape,
)
from hpo.space import choice, randint, uniform
from hpo.trial import Trial

SPACE = {"lr": uniform(0, 1), "n": randint(1, 9), "kind": choice(["a", 1, None, [1, "x,y"]]), "epochs": 3}
NASTY = [
    "", " ", "a", ",", '"', '""', "'", "\n", "\r", "\r\n", "\t", "\0", "\x0b", "\x0c", "\x1c", "\x7f", "\x85", "\x9f",
    "\u2028", "\u2029", "\ud800", "\udfff", "\udcff\udc00", "\\", "\\\\", "\\n", "\\\n", "\\u0041", "\\\\u0041", "\\u",
    "\\x", "\\\\n", "a,b\n\"c\"", "é", "✓", "😀", "\ufeff", "\ufffe", "\xa0", " a ", "#", ";", "=1+1", "None", "NaN", "nan",
    "Inf", "1", "1.0", "True", "[1]", "{}", "x" * 10_000, "\\" * 9_999, "\n" * 1_000, "é\0" * 1_000,
]  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """Results of new runs in tmp_path, closed at the end."""
    made = []

    def make_one(name="run", space=SPACE, metric="accuracy", mode="max", settings=None):
        made.append(Results.create(tmp_path / name, space, metric, mode, settings or {}))
        return made[-1]

    yield make_one
    for results in made:
        results.close()


def config(lr=0.5, n=3, kind="a"):
    return {"lr": lr, "n": n, "kind": kind, "epochs": 3}


def now_or_later(results, time):
    """A time of the run's clock, which never goes back."""
    results.clock = max(results.clock, time)
    return results.clock


def start(results, trial):
    trial.started = now_or_later(results, trial.started)
    results.append_config(trial, dict(results.n_rows))
    return trial


def report(results, trial, /, now=1.0, **metrics):
    return report_all(results, trial, metrics, now)


def report_all(results, trial, metrics, now=1.0):
    point = results.append_report(trial, metrics, now_or_later(results, now))
    if point is not None and not math.isnan(point[1]):
        trial.curve.append(point)
    return point


def end(results, trial, status="done", error="", ended=10.25):
    trial.status, trial.error, trial.ended = status, error, now_or_later(results, ended)
    results.append_trial(trial)


def rows(results, name="trials.csv"):
    with open(results.folder / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def lines(results, name="trials.csv"):
    return (results.folder / name).read_bytes().decode().splitlines()  # str.splitlines: \x85 and others break lines too


# ---- Cells --------------------------------------------------------------------------------------------------------------
def nasty_texts():
    rng = np.random.default_rng(0)
    alphabet = list(',"\\\n\r\t\0ntux0019af\x85\u2028\ud800é😀 ')
    return NASTY + ["".join(rng.choice(alphabet, rng.integers(1, 30))) for _ in range(2_000)]


def test_escape_is_undone_exactly():
    for text in nasty_texts():
        assert unescape(escape(text)) == text


def test_escape_leaves_one_printable_line():
    for text in nasty_texts():
        escaped = escape(text)
        assert len(f"{escaped}|".splitlines()) == 1
        assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", escaped)
        escaped.encode()


def test_escape_gives_different_texts_different_cells():
    texts = set(nasty_texts())
    assert len({escape(text) for text in texts}) == len(texts)


def test_escape_keeps_harmless_text():
    for text in ("a b", "é✓😀", "a,b", '"quoted"', "C:/x"):
        assert escape(text) == text
    assert escape("a\nb\\c\r\t\0") == "a\\nb\\\\c\\r\\t\\u0000"


def test_row_is_one_line_that_csv_reads():
    texts = nasty_texts()
    for i in range(0, len(texts), 3):
        cells = texts[i : i + 3]
        line = to_line(cells)
        assert line.endswith("\n") and len(line.splitlines()) == 1
        (back,) = csv.reader([line], strict=True)
        assert [unescape(cell) for cell in back] == cells


@pytest.mark.parametrize(
    "value, text",
    [(None, ""), (True, "True"), (1, "1"), (0.1, "0.1"), (1e-300, "1e-300"), (2**70, str(2**70)), (-0.0, "-0.0")]
    + [(math.nan, "NaN"), (math.inf, "Inf"), (-math.inf, "-Inf"), ([1, "a"], '[1, "a"]'), ({"a": None}, '{"a": null}')]
    + [(np.float64(0.1), "0.1"), (1 / 3, "0.3333333333333333"), (["\n"], '["\\\\n"]')],
)
def test_cell_of_a_value(value, text):
    assert to_cell(value) == text


# ---- Round trip ---------------------------------------------------------------------------------------------------------
def write_a_run(results):
    """Six trials of every kind, as a tuner would have them."""
    trials = [
        Trial(0, config(), "start", started=0.0, suggest_seconds=0.000123),
        Trial(1, config(lr=1 / 3, n=9, kind=[1, "x,y"]), "random", started=0.125),
        Trial(2, config(lr=1.0, kind=1), "random", started=0.25),
        Trial(3, config(lr=1e-14, kind=None), "model", started=0.5),
        Trial(4, config(lr=0.0), "random", started=0.75),
        Trial(5, config(n=1), "random", started=1.0),
    ]
    for trial in trials:
        start(results, trial)
    for epoch, values in enumerate([(0.5, 0.1, 1 / 3, 0.25), (0.75, 0.2, 0.1, 0.3), (0.625, 0.3, 2 / 3, 0.2)], 1):
        for trial, value in zip(trials[:4], values):
            report(results, trial, epoch=epoch, accuracy=value, loss=1 - value, now=epoch + 0.125)
    end(results, trials[0])
    end(results, trials[1], "stopped")
    end(results, trials[3], "timeout", "--trial_timeout 5")
    end(results, trials[4], "failed", 'ValueError: "bad",\n\\n \x85\ud800 é')
    end(results, trials[2])
    return trials


@pytest.mark.parametrize("mode", ["max", "min"])
def test_load_gives_back_the_trials(make, mode):
    results = make(mode=mode)
    trials = write_a_run(results)
    loaded = load(results.folder)
    assert loaded == trials  # dataclasses: every field, the curves included
    assert [trial.status for trial in loaded] == ["done", "stopped", "done", "timeout", "failed", "running"]
    for trial, back in zip(trials, loaded):
        assert list(back.config) == list(SPACE)
        assert [type(v) for v in back.config.values()] == [type(v) for v in trial.config.values()]
        assert all(type(epoch) is int and type(loss) is float for epoch, loss in back.curve)


def test_load_of_a_new_run_is_empty(make):
    assert load(make().folder) == []


@pytest.mark.parametrize("mode, sign, best, best_epoch", [("max", -1, 0.75, 2), ("min", 1, 0.5, 1)])
def test_values_have_the_users_sign_and_losses_ours(make, mode, sign, best, best_epoch):
    results = make(mode=mode)
    trial = write_a_run(results)[0]
    assert trial.curve == [(1, sign * 0.5), (2, sign * 0.75), (3, sign * 0.625)]
    assert trial.value == sign * best and trial.last_value == sign * 0.625
    row = rows(results)[0]
    assert [row[name] for name in ("value", "last_value", "best_epoch", "n_epochs")] == [
        str(best),
        "0.625",
        str(best_epoch),
        "3",
    ]
    assert [r["accuracy"] for r in rows(results, "reports.csv") if r["trial"] == "0"] == ["0.5", "0.75", "0.625"]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_has_no_negative_sign(make, mode, zero):
    results = make(mode=mode)
    trial = start(results, Trial(0, config(), "start"))
    report(results, trial, epoch=1, accuracy=zero)
    end(results, trial)
    assert rows(results)[0]["value"] == rows(results)[0]["last_value"] == "0.0"


def test_columns_are_the_documented_ones(make):
    results = make()
    write_a_run(results)
    names = list(rows(results)[0])
    assert names == [*TRIAL_COLUMNS, *(f"config_{name}" for name in SPACE), *LAST_COLUMNS]
    assert {"trial", "status", "value", "last_value", "best_epoch", "n_epochs", "origin"} <= set(names[:8])
    assert names[-5:] == ["started", "ended", "seconds", "suggest_seconds", "error"]
    assert list(rows(results, "reports.csv")[0]) == ["trial", "attempt", "epoch", "time", "accuracy", "loss", "extra"]


def test_rows_hold_what_was_written(make):
    results = make()
    write_a_run(results)
    stopped = rows(results)[1]
    assert stopped["status"] == "stopped" and stopped["config_kind"] == '[1, "x,y"]' and stopped["config_n"] == "9"
    assert float(stopped["config_lr"]) == 1 / 3
    assert [stopped[name] for name in ("started", "ended", "seconds")] == ["0.125", "10.25", "10.125"]
    failed = rows(results)[3]
    assert failed["trial"] == "4" and failed["value"] == failed["best_epoch"] == "" and failed["n_epochs"] == "0"
    assert unescape(failed["error"]) == 'ValueError: "bad",\n\\n \x85\ud800 é'
    assert len(lines(results)) == 6 and len(lines(results, "reports.csv")) == 13


def test_pandas_reads_the_tables_without_options(make):
    pandas = pytest.importorskip("pandas")
    results = make()
    write_a_run(results)
    table = pandas.read_csv(results.folder / "trials.csv")
    assert table.value.dtype == float and table.value.tolist()[:2] == [0.75, 0.3] and math.isnan(table.value[3])
    assert pandas.read_csv(results.folder / "reports.csv").accuracy.dtype == float


def test_configs_hold_exact_types_and_what_was_seen(make):
    results = make()
    write_a_run(results)
    first, second, *_ = (json.loads(line) for line in lines(results, "configs.jsonl"))
    assert first == {
        "trial": 0,
        "attempt": 1,
        "config": config(),
        "origin": "start",
        "time": 0.0,
        "seen": {"trials": 0, "reports": 0},
    }
    assert second["config"] == config(lr=1 / 3, n=9, kind=[1, "x,y"]) and second["time"] == 0.125


def test_seen_is_the_prefix_of_the_two_tables(make):
    results = make()
    seen = []
    for i in range(4):
        trial = start(results, Trial(i, config(), "random"))
        seen.append((len(rows(results)), len(rows(results, "reports.csv")) if i else 0))
        for epoch in range(1, i + 2):
            report(results, trial, epoch=epoch, accuracy=0.5)
        if i % 2:
            end(results, trial)
    written = [json.loads(line)["seen"] for line in lines(results, "configs.jsonl")]
    assert [(s["trials"], s["reports"]) for s in written] == seen == [(0, 0), (0, 1), (1, 3), (1, 6)]
    assert results.n_rows == {"trials": 2, "reports": 10}


def test_run_json_describes_the_run(make):
    results = make(settings={"arguments": {"seed": 7, "hours": 3.0}})
    run = load_run(results.folder)
    assert run["space"] == SPACE and (run["metric"], run["mode"]) == ("accuracy", "max")
    assert run["arguments"] == {"seed": 7, "hours": 3.0}
    assert run["versions"]["numpy"] == np.__version__ and run["machine"]["cores"] == os.cpu_count()
    assert sorted(path.name for path in results.folder.iterdir() if path.name != ".lock") == [
        "configs.jsonl",
        "logs",
        "reports.csv",
        "run.json",
        "trials.csv",
    ]


def test_a_later_attempt_replaces_an_earlier_one(make):
    results = make()
    first = start(results, Trial(0, config(), "start"))
    report(results, first, epoch=1, accuracy=0.9)
    other = start(results, Trial(1, config(n=4), "random"))
    second = Trial(0, config(), "start", attempt=2, started=5.0)
    results.append_config(second, None)
    report(results, second, epoch=1, accuracy=0.25)
    end(results, second)
    assert load(results.folder) == [second, other]
    assert load(results.folder)[0].curve == [(1, -0.25)]


def test_error_text_of_any_kind_comes_back(make):
    results = make()
    trials = []
    for i, text in enumerate(NASTY):
        trials.append(start(results, Trial(i, config(), "random")))
        end(results, trials[-1], "failed", text)
    assert load(results.folder) == trials
    assert len(lines(results)) == len(NASTY) + 1


def test_configuration_text_of_any_kind_comes_back(make):
    short = NASTY[:-4]  # written with each of the trials
    space = {"text": choice(NASTY), "list": choice([[text] for text in NASTY]), "constant": short}
    results = make(space=space)
    trials = []
    for i, text in enumerate(NASTY):
        trials.append(start(results, Trial(i, {"text": text, "list": [text], "constant": short}, "random")))
        end(results, trials[-1])
    assert load(results.folder) == trials
    assert [unescape(row["config_text"]) for row in rows(results)] == NASTY


def test_a_very_long_cell_is_read_back(make):
    """The csv module's limit for a cell is 131,072 characters."""
    results = make(space={"text": choice(["short", "x" * 200_000]), "n": randint(1, 9)})
    trial = start(results, Trial(0, {"text": "x" * 200_000, "n": 1}, "random"))
    end(results, trial, "failed", "y" * 200_000)
    assert load(results.folder) == [trial]


def test_values_of_two_types_are_told_apart(make):
    results = make(space={"x": choice([1, 1.0, True, "1"])})
    trials = [start(results, Trial(i, {"x": value}, "random")) for i, value in enumerate([1, 1.0, True, "1"])]
    assert [type(trial.config["x"]) for trial in load(results.folder)] == [int, float, bool, str]
    assert load(results.folder) == trials


# ---- Metrics ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "high", "0.5", True, None, 10**400, ""])
def test_metric_that_is_no_finite_number_is_nan_and_loads(make, value):
    """As the tuner saw it: the trial failed, and its curve has no such point, before and after loading."""
    results = make()
    trial, other = (start(results, Trial(i, config(), "random")) for i in range(2))
    report(results, other, epoch=1, accuracy=0.5)
    epoch, loss = report(results, trial, epoch=1, accuracy=value)
    assert epoch == 1 and math.isnan(loss)
    end(results, trial, "failed", "no finite number")
    assert load(results.folder) == [trial, other]
    assert load(results.folder)[0].curve == []


def test_non_finite_cells_are_spelled_as_pandas_and_r_do(make):
    results = make()
    trial = start(results, Trial(0, config(), "random"))
    for epoch, value in enumerate([math.nan, math.inf, -math.inf], 1):
        report(results, trial, epoch=epoch, accuracy=0.5, loss=value)
    assert [row["loss"] for row in rows(results, "reports.csv")] == ["NaN", "Inf", "-Inf"]
    assert [loss for _, loss in load(results.folder)[0].curve] == [-0.5] * 3


def test_report_without_the_metric_gives_none(make):
    results = make()
    trial = start(results, Trial(0, config(), "random"))
    assert report(results, trial, epoch=1, loss=0.5) is None
    assert report(results, trial, epoch=2, accuracy=0.5) == (2, -0.5)
    assert load(results.folder) == [trial] and trial.curve == [(2, -0.5)]
    assert list(rows(results, "reports.csv")[0]) == ["trial", "attempt", "epoch", "time", "accuracy", "loss", "extra"]


def test_later_metrics_go_to_extra(make):
    results = make()
    trial = start(results, Trial(0, config(), "random"))
    report(results, trial, epoch=1, accuracy=0.5)
    report(results, trial, epoch=2, accuracy=0.6, loss=0.4, note="a,\n\ud800")
    report(results, trial, epoch=3, loss=math.nan)
    first, second, third = rows(results, "reports.csv")
    assert first["extra"] == ""
    assert json.loads(unescape(second["extra"])) == {"loss": 0.4, "note": "a,\n\ud800"}
    assert math.isnan(json.loads(unescape(third["extra"]))["loss"]) and third["accuracy"] == ""
    assert load(results.folder) == [trial] and trial.curve == [(1, -0.5), (2, -0.6)]


@pytest.mark.parametrize(
    "name", ["trial", "attempt", "time", "extra", "row", "a b", "é", "a,b", 'a"b', "a\nb", "a\\b", ""]
)
def test_another_metric_may_have_any_name(make, name):
    results = make()
    trial = start(results, Trial(0, config(), "random"))
    for epoch in (1, 2):
        report_all(results, trial, {"epoch": epoch, "accuracy": 0.5, name: "text"})
    assert load(results.folder) == [trial] and len(trial.curve) == 2
    header = next(csv.reader(lines(results, "reports.csv")))
    assert len(set(header)) == len(header)
    for row in rows(results, "reports.csv"):
        cells = {unescape(key): value for key, value in row.items()}
        extra = json.loads(unescape(row["extra"])) if row["extra"] else {}
        assert "text" in (cells.get(report_column(name)), extra.get(name))
        assert (row["trial"], row["attempt"], row["time"]) == ("0", "1", "1.0")


@pytest.mark.parametrize("name", ["trial", "attempt", "time", "extra", "a b", "é", "a,b", 'a"b', "a\nb", "a\\b", ""])
def test_the_metric_may_have_any_name(make, name):
    results = make(metric=name)
    trial = start(results, Trial(0, config(), "random"))
    report_all(results, trial, {"epoch": 1, "other": 1, name: 0.5})
    report_all(results, trial, {"epoch": 2, "later": 1, name: 0.25})
    end(results, trial)
    assert trial.curve == [(1, -0.5), (2, -0.25)]
    assert load(results.folder) == [trial]


def test_metrics_whose_columns_would_be_the_same_are_kept_apart(make):
    results = make(metric="trial")
    trial = start(results, Trial(0, config(), "random"))
    report_all(results, trial, {"epoch": 1, "trial": 0.5, "metric_trial": 0.9})
    header = next(csv.reader(lines(results, "reports.csv")))
    assert len(set(header)) == len(header)
    assert load(results.folder) == [trial] and trial.curve == [(1, -0.5)]


# ---- A new folder -------------------------------------------------------------------------------------------------------
def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_folder_that_holds_a_run_is_refused(make, tmp_path):
    make().close()
    before = snapshot(tmp_path)
    for attempt in (lambda: make(), lambda: check_new(tmp_path / "run")):
        with pytest.raises(ResultsError, match=r"run: holds a run already; .*--results"):
            attempt()
    assert snapshot(tmp_path) == before


def test_folder_that_holds_something_is_refused_and_kept(make, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(ResultsError, match=r"run: .*empty"):
        make()
    assert (tmp_path / "run" / "thesis.tex").read_text() == "mine"


def test_file_in_place_of_the_folder_is_refused_and_kept(make, tmp_path):
    (tmp_path / "run").write_text("mine")
    for name in ("run", "run/below"):
        with pytest.raises(ResultsError, match="run"):
            make(name)
    assert (tmp_path / "run").read_text() == "mine"


def test_empty_and_nested_folders_are_taken(make, tmp_path):
    (tmp_path / "run").mkdir()
    make("run")
    make("a/b/c")
    assert load(tmp_path / "a/b/c") == []


def test_second_results_cannot_lock_the_folder(make):
    results = make()
    second = Results(results.folder, SPACE, "accuracy", "max")
    with pytest.raises(Timeout):
        second.lock.acquire()
    results.close()
    second.lock.acquire()
    second.lock.release()


def test_two_runs_that_make_one_folder_leave_the_first_alone(make, monkeypatch):
    """Both have found the folder free before either has made it."""
    results = make()
    before = snapshot(results.folder)
    monkeypatch.setattr(hpo.results, "check_new", lambda folder: None)
    with pytest.raises(ResultsError, match="run: "):
        make()
    assert snapshot(results.folder) == before
    trial = start(results, Trial(0, config(), "start"))
    assert load(results.folder) == [trial]


@pytest.mark.parametrize("name", ["write", "fsync"])
def test_folder_that_cannot_be_written_leaves_nothing_behind(make, tmp_path, monkeypatch, name):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(ResultsError, match=r"run: .*No space left.*--results"):
        make()
    assert list(tmp_path.iterdir()) == []


def test_removed_results_leave_nothing_behind(make, tmp_path):
    results = make()
    start(results, Trial(0, config(), "start"))
    results.remove()
    assert list(tmp_path.iterdir()) == []


# ---- Write errors -------------------------------------------------------------------------------------------------------
def appends(results):
    """A function for each kind of append, with the file it writes to."""
    trial = Trial(1, config(), "random", started=20.0)
    return [
        ("configs.jsonl", lambda: results.append_config(trial, dict(results.n_rows))),
        ("reports.csv", lambda: report(results, trial, 100.0, epoch=1, accuracy=0.5)),
        ("trials.csv", lambda: end(results, trial, ended=100.0)),
    ]


def short_write(file, data, write=os.write):
    return write(file, data[: len(data) // 2])


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name, fault", [("write", short_write), ("write", full_disk), ("fsync", full_disk)])
@pytest.mark.parametrize("i", range(3), ids=["configs", "reports", "trials"])
def test_write_error_cuts_back_the_row(make, monkeypatch, name, fault, i):
    results = make()
    first = start(results, Trial(0, config(), "start"))
    report(results, first, epoch=1, accuracy=0.5)
    end(results, first)
    before, n_rows, (file, append) = snapshot(results.folder), dict(results.n_rows), appends(results)[i]
    monkeypatch.setattr(os, name, fault)
    with pytest.raises(WriteError, match=rf"{file}: cannot append a row: .*[nN]o space left"):
        append()
    assert snapshot(results.folder) == before and results.n_rows == n_rows
    monkeypatch.undo()
    assert load(results.folder) == [first]
    for _, append in appends(results):
        append()
    assert [trial.id for trial in load(results.folder)] == [0, 1]


@pytest.mark.parametrize("fault", [short_write, full_disk])
def test_header_that_could_not_be_written_is_written_later(make, monkeypatch, fault):
    """The tuner goes on after a write error, to end its trials; when there is space again the file must be whole."""
    results = make()
    trial = start(results, Trial(0, config(), "start"))
    monkeypatch.setattr(os, "write", fault)
    with pytest.raises(WriteError):
        results.append_report(trial, {"epoch": 1, "accuracy": 0.25}, 1.0)
    monkeypatch.undo()
    report(results, trial, epoch=2, accuracy=0.5)
    assert load(results.folder) == [trial] and trial.curve == [(2, -0.5)]


@pytest.mark.parametrize("i", range(3), ids=["configs", "reports", "trials"])
def test_deleted_folder_is_detected(make, i):
    results = make()
    first = start(results, Trial(0, config(), "start"))
    report(results, first, epoch=1, accuracy=0.5)
    shutil.rmtree(results.folder)
    file, append = appends(results)[i]
    with pytest.raises(WriteError, match=f"{file}.*deleted"):
        append()


def test_rows_of_a_report_are_one_write_each(make, monkeypatch):
    results, writes = make(), []
    trial = start(results, Trial(0, config(), "start"))
    report(results, trial, epoch=1, accuracy=0.5)
    monkeypatch.setattr(os, "write", lambda file, data, write=os.write: writes.append(data) or write(file, data))
    report(results, trial, epoch=2, accuracy=0.5)
    end(results, trial)
    start(results, Trial(1, config(), "random"))
    assert len(writes) == 3 and all(data.endswith(b"\n") and data.count(b"\n") == 1 for data in writes)


def test_reports_are_synced_once_a_second_and_the_rest_always(make, monkeypatch):
    results, syncs = make(), []
    trial = start(results, Trial(0, config(), "start"))
    monkeypatch.setattr(os, "fsync", lambda file, fsync=os.fsync: syncs.append(file) or fsync(file))
    for now in (5.0, 5.2, 5.9, 6.0, 6.5, 7.1):
        report(results, trial, now, epoch=1, accuracy=0.5)
    assert len(syncs) == 3  # at 5.0, 6.0 and 7.1
    end(results, trial)
    start(results, Trial(1, config(), "random"))
    assert len(syncs) == 5
    report(results, trial, 7.2, epoch=2, accuracy=0.5)
    start(results, Trial(2, config(), "random"))
    assert len(syncs) == 7  # first the report that the suggestion has seen


# ---- Damaged folders ----------------------------------------------------------------------------------------------------
FILES = ["configs.jsonl", "trials.csv", "reports.csv"]


@pytest.mark.parametrize("name", FILES)
def test_torn_last_line_is_left_out_with_a_warning(make, name):
    """Cut at every byte of the last line, in the middle of a character too."""
    results = make(space={"text": choice(["é✓😀", "b"])})
    trials = [start(results, Trial(i, {"text": "é✓😀"}, "random")) for i in range(2)]
    for trial in trials:
        report(results, trial, epoch=1, accuracy=0.5, note="é✓😀")
        end(results, trial, "done", "é✓😀")
    path = results.folder / name
    whole = path.read_bytes()
    n_before = whole.rindex(b"\n", 0, -1) + 1
    later = {"configs.jsonl": ["trials.csv", "reports.csv"], "reports.csv": ["trials.csv"]}
    if name in later:  # what rests on the line was not written yet
        for other in later[name]:
            table = (results.folder / other).read_bytes()
            (results.folder / other).write_bytes(table[: table.rindex(b"\n", 0, -1) + 1])
    path.write_bytes(whole[:n_before])
    expected = load(results.folder)
    assert expected[0] == trials[0] and expected != trials
    for n in range(n_before + 1, len(whole)):
        path.write_bytes(whole[:n])
        with pytest.warns(UserWarning, match=rf"{name}, line \d+: is torn"):
            assert load(results.folder) == expected, n


def test_torn_header_is_left_out_and_written_again(make):
    """Of reports.csv; that of trials.csv is on the disk before there is a run.json."""
    results = make()
    trial = start(results, Trial(0, config(), "random"))
    report(results, trial, epoch=1, accuracy=0.5)
    results.close()
    path = results.folder / "reports.csv"
    path.write_bytes(path.read_bytes()[:5])
    with pytest.warns(UserWarning, match=r"reports.csv, line 1: is torn"):
        assert [trial.id for trial in load(results.folder)] == [0]
    with pytest.warns(UserWarning, match=r"reports.csv, line 1: is torn"):
        again = Results.open(results.folder)
    again.begin_session({})
    trial.curve = []
    report(again, trial, epoch=1, accuracy=0.5)
    end(again, trial)
    assert load(results.folder)[0].status == "done"
    again.close()


@pytest.fixture(scope="module")
def written_once(tmp_path_factory):
    results = Results.create(tmp_path_factory.mktemp("once") / "run", SPACE, "accuracy", "max", {})
    write_a_run(results)
    results.close()
    return results.folder


@pytest.fixture
def written(written_once, tmp_path):
    """Folder of a run that has ended."""
    return shutil.copytree(written_once, tmp_path / "run")


START = {"trial": 1, "attempt": 1, "config": config(), "origin": "a", "time": 1, "seen": {"trials": 0, "reports": 0}}
END = '1,1,done,0.3,0.3,3,3,random,0.3333333333333333,9,"[1, ""x,y""]",3,0.125,10.25,10.125,0.1,'


def start_line(**changes):
    return json.dumps({name: value for name, value in {**START, **changes}.items() if value is not ...})


@pytest.mark.parametrize(
    "name, n, line, column",
    [
        ("configs.jsonl", 2, "{", ""),
        ("configs.jsonl", 2, "", ""),
        ("configs.jsonl", 2, "[]", ""),
        ("configs.jsonl", 2, "3", ""),
        ("configs.jsonl", 2, "[" * 100_000, ""),
        ("configs.jsonl", 2, start_line(attempt=...), "attempt"),
        ("configs.jsonl", 2, start_line(trial="x"), "trial"),
        ("configs.jsonl", 2, start_line(trial=math.inf), "trial"),
        ("configs.jsonl", 2, start_line(trial=True), "trial"),
        ("configs.jsonl", 2, start_line(trial=2), "trial"),
        ("configs.jsonl", 2, start_line(trial=0), "attempt"),
        ("configs.jsonl", 2, start_line(attempt=2), "attempt"),
        ("configs.jsonl", 2, start_line(config={**config(), "lr": 7}), "config, lr"),
        ("configs.jsonl", 2, start_line(config={**config(), "n": 3.0}), "config, n"),
        ("configs.jsonl", 2, start_line(config={**config(), "n": "3"}), "config, n"),
        ("configs.jsonl", 2, start_line(config={**config(), "epochs": 4}), "config, epochs"),
        ("configs.jsonl", 2, start_line(config={**config(), "other": 4}), "config, other"),
        ("configs.jsonl", 2, start_line(config={"lr": 0.5}), "config, n"),
        ("configs.jsonl", 2, start_line(config=[1]), "config"),
        ("configs.jsonl", 2, start_line(time="noon"), "time"),
        ("configs.jsonl", 2, start_line(time=-1), "time"),
        ("configs.jsonl", 2, start_line(seen=...), "seen"),
        ("configs.jsonl", 2, start_line(seen={"trials": 1}), "seen"),
        ("configs.jsonl", 2, start_line(seen={"trials": 0, "reports": -1}), "seen"),
        ("trials.csv", 3, "", "1"),
        ("trials.csv", 3, "1,2", "3"),
        ("trials.csv", 3, END + ",", "18"),
        ("trials.csv", 3, END + '"', ""),
        ("trials.csv", 3, END.replace("1,1", "9,1", 1), "trial"),
        ("trials.csv", 3, END.replace("1,1", "0,1", 1), "trial"),
        ("trials.csv", 3, END.replace("1,1", "1,2", 1), "attempt"),
        ("trials.csv", 3, END.replace("1,1", "1,one", 1), "attempt"),
        ("trials.csv", 3, END.replace("1,1", "1,\u0661", 1), "attempt"),
        ("trials.csv", 3, END.replace("0.125,10.25", "0.125,noon"), "ended"),
        ("trials.csv", 3, END.replace("0.125,10.25", "0.125,NaN"), "ended"),
        ("trials.csv", 3, END.replace("0.125,10.25", "0.125, 1.0"), "ended"),
        ("trials.csv", 3, END.replace("done", "rubbish"), "status"),
        ("trials.csv", 3, END.replace("done", "running"), "status"),
        ("trials.csv", 3, END.replace("0.125,10.25", "0.125,9.0"), "ended"),
        ("trials.csv", 3, END.replace("0.125,10.25", "0.25,10.25"), "started"),
        ("trials.csv", 3, END.replace("0.3,0.3", "0.3,0_3"), "last_value"),
        ("trials.csv", 3, END.replace("0.3,0.3", "0.5,0.3"), "value"),
        ("trials.csv", 3, END.replace("0.3,0.3", "0.3\r,0.3"), ""),
        ("trials.csv", 3, END.replace(",3,3,", ",2,3,"), "best_epoch"),
        ("trials.csv", 3, END.replace(",3,3,", ",3,4,"), "n_epochs"),
        ("trials.csv", 3, END.replace("random", "model"), "origin"),
        ("trials.csv", 3, END.replace(",9,", ",8,"), "config_n"),
        ("trials.csv", 3, "1," + "x" * 140_000, "3"),
        ("reports.csv", 2, "0,1,1,0.0,0.5", "6"),
        ("reports.csv", 2, "0,1,1,0.0,0.5,0.5,,", "8"),
        ("reports.csv", 2, "9,1,1,0.0,0.5,0.5,", "trial"),
        ("reports.csv", 2, "-1,1,1,0.0,0.5,0.5,", "trial"),
        ("reports.csv", 2, "0,0,1,0.0,0.5,0.5,", "attempt"),
        ("reports.csv", 2, "0,1,first,0.0,0.5,0.5,", "epoch"),
        ("reports.csv", 2, "0,1,1,0.0,good,0.5,", "accuracy"),
        ("reports.csv", 2, "0,1,1,0.0,1e400,0.5,", "accuracy"),
        ("reports.csv", 2, "0,1,1,0.0,0.5,0.5,{", "extra"),
        ("reports.csv", 2, "0,1,1,0.0,0.5,0.5,3", "extra"),
        ("reports.csv", 1, "trial,attempt,time,accuracy,loss,extra", "epoch"),
        ("reports.csv", 1, "trial,attempt,epoch,time,loss,loss2,extra", "accuracy"),
        ("reports.csv", 1, "trial,attempt,epoch,time,accuracy,accuracy,extra", "accuracy"),
        ("reports.csv", 3, "0,1,1,0.5,0.5,0.5,", "time"),
        ("trials.csv", 1, "trial", "attempt"),
        ("trials.csv", 1, ",".join(trial_columns({**SPACE, "more": 1})), "started"),
        ("trials.csv", 1, ",".join(trial_columns({"lr": 1, "kind": 1, "n": 1, "epochs": 1})), "config_n"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_damaged_line_is_named_with_its_column(written, name, n, line, column):
    path = written / name
    text = path.read_bytes().decode().split("\n")
    text[n - 1] = line
    path.write_bytes("\n".join(text).encode())
    place = f"{name}, line {n}" + (f", column {column}" if column else "")
    with pytest.raises(ResultsError, match=rf"/{re.escape(place)}: ") as error:
        load(written)
    assert len(str(error.value)) < 1_000 and "\n" not in str(error.value)
    with pytest.raises(ResultsError):
        Results.open(written)


def test_good_end_line_is_right(written):
    """The line that the cases above damage."""
    path = written / "trials.csv"
    text = path.read_bytes().decode().split("\n")
    text[2] = END
    path.write_bytes("\n".join(text).encode())
    assert load(written)[1].suggest_seconds == 0.1


RUN = {"space": {"u": {"uniform": [0, 1]}}, "metric": "accuracy", "mode": "max", "arguments": {}}


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ": not the record of a run: Expecting value"),
        ("{", ": not the record"),
        ("\0", ": not the record"),
        ("[" * 100_000, ": not the record"),
        ("[]", ": expected a JSON object, got []"),
        ("3", ": expected a JSON object, got 3"),
        ("{}", ", column space: expected an object, got nothing"),
        ({**RUN, "space": 3}, ", column space: expected an object, got 3"),
        ({**RUN, "space": {"u": 1}}, ": not the record of a run: config_space: nothing to tune"),
        ({**RUN, "space": {"u": {"uniform": [1, 0]}}}, ": not the record of a run: u: uniform needs low <= high"),
        ({**RUN, "metric": 3}, ", column metric: expected a text, got 3"),
        ({**RUN, "mode": "best"}, ", column mode: expected max or min, got 'best'"),
        ({**RUN, "mode": []}, ", column mode: expected max or min, got []"),
        ({"space": RUN["space"], "metric": "a", "mode": "max"}, ", column arguments: expected an object, got nothing"),
        ({**RUN, "arguments": []}, ", column arguments: expected an object, got []"),
        ({**RUN, "sessions": 3}, ", column sessions: expected a list, got 3"),
        ({**RUN, "prepared": 3}, ", column prepared: expected an object, got 3"),
    ],
    ids=lambda text: str(text)[:70],
)
def test_damaged_run_json_is_named(written, text, words):
    (written / "run.json").write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(ResultsError, match=r"/run\.json" + re.escape(words)) as error:
        load(written)
    assert str(error.value).endswith("; restore the file, or undo the change") and "\n" not in str(error.value)


def test_file_that_is_no_text_is_named(make):
    for name in [*FILES, "run.json"]:
        results = make(name.replace(".", "_"))
        write_a_run(results)
        path = results.folder / name
        path.write_bytes(b"\xff\xfe\n" + path.read_bytes())
        with pytest.raises(ResultsError, match=f"/{re.escape(name)}"):
            load(results.folder)


@pytest.mark.parametrize("name", [*FILES, "run.json"])
def test_missing_file_is_named(written, name):
    (written / name).unlink()
    for read in (load, Results.open):
        with pytest.raises(ResultsError, match=f"/{re.escape(name)}"):
            read(written)


def test_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(ResultsError, match=r"nowhere.*run\.json"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [*FILES, "run.json"])
def test_random_damage_loads_or_is_named(written, name):
    """Bytes replaced, dropped and doubled at random: a ResultsError that names a file, or trials of this space."""
    path, rng = written / name, np.random.default_rng(0)
    whole = path.read_bytes()
    n_errors, others = 0, set()
    for _ in range(300):
        i, n = rng.integers(len(whole)), rng.integers(1, 9)
        put = bytes(rng.choice(list(b'\0\n\r",{}[]0123456789eE-.:\\aNI\xff\xc3'), rng.integers(0, n + 1)).tolist())
        path.write_bytes(whole[:i] + put + whole[i + n :])
        try:
            with warnings.catch_warnings(action="ignore"):  # a torn last line
                trials = load(written)
            if name != "run.json":  # else it may be another space
                assert outside_schema(SPACE, trials) == []
        except ResultsError as error:
            n_errors += 1
            assert str(written) in str(error)
        except Exception as error:
            others.add(repr(error))
    assert others == set() and n_errors > 30


# ---- A folder taken up again --------------------------------------------------------------------------------------------
def test_open_goes_on_where_the_rows_end(make):
    results = make()
    trials = write_a_run(results)
    n_rows, before = results.n_rows, snapshot(results.folder)
    results.close()
    again = Results.open(results.folder)
    assert again.trials == trials == load(results.folder) and again.n_rows == n_rows
    assert snapshot(results.folder) == before and again.clock == 10.25  # the latest time written
    again.begin_session({})
    late = start(again, Trial(6, config(), "random", started=11.0))
    report(again, late, epoch=1, loss=0.5, accuracy=0.25, later="text")
    end(again, late, ended=12.0)
    again.close()
    assert load(results.folder) == [*trials, late]
    assert rows(again, "reports.csv")[-1]["extra"] == '{"later": "text"}'


def test_metric_whose_column_was_renamed_keeps_it(make):
    results = make()
    trial = start(results, Trial(0, config(), "random"))
    report(results, trial, epoch=1, accuracy=0.5, time=3)
    results.close()
    again = Results.open(results.folder)
    again.begin_session({})
    report(again, trial, epoch=2, accuracy=0.5, time=4)
    again.close()
    assert [row["metric_time"] for row in rows(again, "reports.csv")] == ["3", "4"]


def test_open_folder_is_refused_to_others_and_free_afterwards(make):
    results = make()
    with pytest.raises(ResultsError, match="run: another run is using it"):
        Results.open(results.folder)
    results.close()
    again = Results.open(results.folder)
    with pytest.raises(ResultsError, match="run: another run is using it"):
        Results.open(results.folder)
    again.close()


def test_session_that_cannot_be_noted_changes_nothing(make, monkeypatch):
    results = make()
    write_a_run(results)
    results.close()
    with open(results.folder / "reports.csv", "ab") as file:
        file.write(b"5,1,1,")
    before = snapshot(results.folder)
    with pytest.warns(UserWarning, match="is torn"):
        again = Results.open(results.folder)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ResultsError, match=r"run: cannot go on in it: .*No space left"):
        again.begin_session({"hours": 2.0})
    again.close()
    assert snapshot(results.folder) == before


def test_sessions_are_noted(make):
    results = make(settings={"arguments": {"hours": 1.0}})
    write_a_run(results)
    results.close()
    for hours in (2.0, 3.0):
        again = Results.open(results.folder)
        again.begin_session({"hours": hours})
        again.close()
    run = load_run(results.folder)
    assert run["arguments"] == {"hours": 3.0} and run["space"] == SPACE
    assert [(session["arguments"]["hours"], session["clock"]) for session in run["sessions"]] == [
        (2.0, 10.25),
        (3.0, 10.25),
    ]


def test_load_before_gives_what_the_searcher_saw(make):
    results = make()
    first = start(results, Trial(0, config(), "start"))
    report(results, first, epoch=1, accuracy=0.9)
    start(results, Trial(1, config(n=4), "random"))
    report(results, first, epoch=2, accuracy=0.8)
    second = Trial(0, config(), "start", attempt=2, started=1.0)
    results.append_config(second, None)
    report(results, second, epoch=1, accuracy=0.25)
    start(results, Trial(2, config(n=5), "random"))
    end(results, second)
    assert load_before(results.folder, 0) == []
    assert [(trial.attempt, trial.curve) for trial in load_before(results.folder, 1)] == [(1, [(1, -0.9)])]
    seen = load_before(results.folder, 2)
    assert [(trial.attempt, trial.status, trial.curve) for trial in seen] == [
        (2, "running", [(1, -0.25)]),
        (1, "running", []),
    ]
    with pytest.raises(ResultsError, match="has no trial 3, but 3 trials"):
        load_before(results.folder, 3)


def test_load_of_a_run_under_way_sees_one_instant(make, monkeypatch):
    """While it reads, trials report, end and start: what is new since is left out of all three files alike."""
    results = make()
    trials, read_reports = write_a_run(results), hpo.results._read_reports

    def read_while_it_goes_on(run, found):
        report(results, trials[5], epoch=1, accuracy=0.5)
        late = start(results, Trial(6, config(), "random"))
        report(results, late, epoch=1, accuracy=0.5)
        for trial in (trials[5], late):
            end(results, trial)
        read_reports(run, found)

    before = load(results.folder)
    monkeypatch.setattr(hpo.results, "_read_reports", read_while_it_goes_on)
    assert load(results.folder) == before
    monkeypatch.undo()
    assert load(results.folder)[5:] != before[5:]


@pytest.mark.parametrize("name", [".", *FILES])
def test_folder_made_read_only_is_detected(make, name):
    """By its mode, as open files could still be written, and root can write everything."""
    results = make()
    trial = start(results, Trial(0, config(), "start"))
    path = results.folder / name
    path.chmod(0o555)
    with pytest.raises(WriteError, match="made read-only"):
        start(results, Trial(1, config(), "random"))
        report(results, trial, epoch=1, accuracy=0.5)
        end(results, trial)
    path.chmod(0o755)
    end(results, trial)
