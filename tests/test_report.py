"""hpo/report.py: one printed line outside a trial, questions and answers inside one, and what cannot be reported."""

import enum
import json
import math
import multiprocessing
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

import hpo.report
from hpo.report import MAX_BYTES, Reporter, StopTrial

ROOT = pathlib.Path(__file__).resolve().parent.parent
PREFIX = "[tune-metric]: "


def printed(capsys):
    """The metrics of each printed line, and that nothing else was printed."""
    out, err = capsys.readouterr()
    assert err == "" and (out == "" or out.endswith("\n"))
    lines = out.split("\n")[:-1]
    assert all(line.startswith(PREFIX) for line in lines)
    return [json.loads(line.removeprefix(PREFIX)) for line in lines]


class Scalar:
    """As torch's: a 0-d object that is unwrapped by item()."""

    ndim = 0

    def __init__(self, value):
        self.value = value

    def item(self):
        return self.value


class Vector(Scalar):
    ndim = 1


@pytest.fixture
def tuner(monkeypatch):
    """The tuner's end of a trial's connection."""
    ours, theirs = multiprocessing.Pipe()
    monkeypatch.setattr(hpo.report, "tuner", theirs)
    yield ours
    ours.close()
    theirs.close()


def asked(tuner):
    assert tuner.poll(5)
    return json.loads(tuner.recv_bytes())


# ---- Outside a trial ----------------------------------------------------------------------------------------------------
def test_report_prints_exactly_one_line(capsys):
    assert Reporter()(epoch=1, accuracy=0.81) is None
    assert capsys.readouterr().out == '[tune-metric]: {"epoch": 1, "accuracy": 0.81}\n'


def test_report_is_flushed_at_once():
    """Into a pipe, which is block-buffered, by a program that dies at once."""
    program = "import os; from hpo import Reporter; Reporter()(loss=1.5); os._exit(0)"
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, env=environment, check=True)
    assert done.stdout == b'[tune-metric]: {"loss": 1.5, "epoch": 1}\n'


def test_report_counts_the_epochs_itself(capsys):
    report = Reporter()
    for _ in range(3):
        report(loss=0)
    assert [metrics["epoch"] for metrics in printed(capsys)] == [1, 2, 3]


def test_report_without_epoch_is_the_nth(capsys):
    report = Reporter()
    report(epoch=10, loss=0)
    report(loss=0)
    with pytest.raises(TypeError):
        report(loss=[])
    report(loss=0)
    assert [metrics["epoch"] for metrics in printed(capsys)] == [10, 2, 3]


def test_each_reporter_counts_for_itself(capsys):
    Reporter()(loss=0)
    Reporter()(loss=0)
    assert [metrics["epoch"] for metrics in printed(capsys)] == [1, 1]


@pytest.mark.parametrize("epoch", [0, 3, 3.0, np.int64(3), np.float32(3), Scalar(3), 2**53 - 1])
def test_epoch_may_be_any_whole_number(epoch, capsys):
    Reporter()(epoch=epoch, loss=0)
    (metrics,) = printed(capsys)
    expected = epoch.item() if hasattr(epoch, "item") else epoch
    assert type(metrics["epoch"]) is int and metrics["epoch"] == expected


@pytest.mark.parametrize("epoch", [-1, 1.5, math.nan, math.inf, "1", None, True, 2**53, 1e300, np.bool_(True)])
def test_other_epochs_are_refused(epoch, capsys):
    with pytest.raises(ValueError, match="^epoch: expected an integer >= 0, got "):
        Reporter()(epoch=epoch, loss=0)
    assert printed(capsys) == []


@pytest.mark.parametrize("metrics", [{}, {"epoch": 1}])
def test_report_without_a_metric_is_refused(metrics, capsys):
    with pytest.raises(ValueError, match="at least one metric"):
        Reporter()(**metrics)
    assert printed(capsys) == []


class Color(enum.IntEnum):
    RED = 7


class Words(str):
    pass


@pytest.mark.parametrize(
    "value, expected",
    [
        (0.1, 0.1), (1, 1), (True, True), ("text", "text"), (None, None), (2**70, 2**70), (-0.0, -0.0),
        (np.float64(0.1), 0.1), (np.float32(0.5), 0.5), (np.float16(0.5), 0.5), (np.int8(-3), -3), (np.uint64(3), 3),
        (np.bool_(False), False), (np.str_("text"), "text"), (np.array(2.5), 2.5), (np.array(3), 3),
        (np.longdouble(0.5), 0.5), (Scalar(0.25), 0.25), (Scalar(True), True), (Scalar(np.float64(2)), 2.0),
        (Color.RED, 7), (Words("é\n\u2028\ud800"), "é\n\u2028\ud800"),
    ],
)  # fmt: skip
def test_scalars_are_unwrapped(value, expected, capsys):
    Reporter()(loss=value)
    (metrics,) = printed(capsys)
    assert type(metrics["loss"]) is type(expected) and repr(metrics["loss"]) == repr(expected)


@pytest.mark.parametrize("value, text", [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
def test_non_finite_numbers_are_printed(value, text, capsys):
    for wrap in (float, np.float32, Scalar):
        Reporter()(loss=wrap(value))
        assert capsys.readouterr().out == PREFIX + '{"loss": ' + text + ', "epoch": 1}\n'


@pytest.mark.parametrize(
    "value",
    [[1.0], (1.0,), {"a": 1}, {1}, b"1", 1j, object(), print, np.zeros(3), np.zeros((1, 1)), np.zeros(1), np.array([])]
    + [
        np.complex128(1j),
        np.array(None),
        np.array({}),
        np.datetime64("2020-01-01"),
        Vector(1.0),
        Scalar([1]),
        Scalar(1j),
    ],
    ids=repr,
)
def test_other_values_are_refused_by_name(value, capsys):
    with pytest.raises(TypeError, match="^accuracy: expected a number, string, boolean or None, got "):
        Reporter()(loss=1.0, accuracy=value)
    assert printed(capsys) == []


def test_metric_may_have_any_name(capsys):
    metrics = {"val/acc": 1, "a b": 2, "é\n": 3, "self": 4, "trial": 5, "metrics": 6, "": 7}
    Reporter()(**metrics)
    assert printed(capsys) == [{**metrics, "epoch": 1}]


def test_too_long_report_is_refused(capsys):
    report = Reporter()
    with pytest.raises(ValueError, match=f"at most {MAX_BYTES} bytes of JSON, got {MAX_BYTES + 1}"):
        report(epoch=1, text="x" * (MAX_BYTES + 1 - len('{"epoch": 1, "text": ""}')))
    with pytest.raises(ValueError, match="at most"):
        report(text="é" * (MAX_BYTES // 2))  # six bytes each
    assert printed(capsys) == []
    report(epoch=1, text="x" * (MAX_BYTES - len('{"epoch": 1, "text": ""}')))
    assert len(printed(capsys)) == 1


# ---- In a trial ---------------------------------------------------------------------------------------------------------
def test_report_asks_the_tuner_and_goes_on(tuner, capsys):
    report = Reporter()
    for epoch in (1, 2):
        tuner.send_bytes(b"go on")
        report(accuracy=np.float32(0.5), note="é\ud800")
        assert asked(tuner) == {"report": {"accuracy": 0.5, "note": "é\ud800", "epoch": epoch}, "counted": True}
    assert printed(capsys) == [] and not tuner.poll()


def test_report_waits_for_its_answer(tuner):
    steps = []

    def train():
        Reporter()(loss=1.0)
        steps.append("answered")

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    assert asked(tuner) == {"report": {"loss": 1.0, "epoch": 1}, "counted": True}
    thread.join(0.05)
    assert thread.is_alive() and steps == []
    tuner.send_bytes(b"go on")
    thread.join(5)
    assert steps == ["answered"]


def test_stop_raises_now_and_at_every_later_report(tuner):
    report = Reporter()
    tuner.send_bytes(b"stop")
    with pytest.raises(StopTrial):
        report(loss=1.0)
    assert asked(tuner) == {"report": {"loss": 1.0, "epoch": 1}, "counted": True}
    for _ in range(3):
        tuner.send_bytes(b"go on")  # whoever asks again is answered, and so does not hang
        with pytest.raises(StopTrial):
            report(loss=1.0)
    assert not tuner.poll(), "a stopped trial asks no more"


def test_stop_passes_except_exception(tuner):
    tuner.send_bytes(b"stop")
    with pytest.raises(StopTrial):
        try:
            Reporter()(loss=1.0)
        except Exception:  # as careless training code has it
            pytest.fail("StopTrial was swallowed")
    assert issubclass(StopTrial, BaseException) and not issubclass(StopTrial, Exception)


def test_refused_report_sends_nothing(tuner):
    report = Reporter()
    for error, metrics in ((TypeError, {"loss": []}), (ValueError, {"epoch": -1, "loss": 0}), (ValueError, {})):
        with pytest.raises(error):
            report(**metrics)
    with pytest.raises(ValueError):
        report(loss="x" * MAX_BYTES)
    assert not tuner.poll()


def test_nan_reaches_the_tuner(tuner):
    tuner.send_bytes(b"go on")
    Reporter()(loss=math.nan)
    assert math.isnan(asked(tuner)["report"]["loss"])


def test_threads_get_their_own_answers(tuner):
    """Two threads report through one Reporter: questions and answers do not cross, no epoch is given twice."""
    report, stopped = Reporter(), []

    def train():
        try:
            for _ in range(20):
                report(loss=0.0)
        except StopTrial:
            stopped.append(True)

    threads = [threading.Thread(target=train, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    epochs = []
    for i in range(40):
        epochs.append(asked(tuner)["report"]["epoch"])
        tuner.send_bytes(b"stop" if i == 39 else b"go on")
    for thread in threads:
        thread.join(5)
    assert epochs == list(range(1, 41)) and len(stopped) == 1


# ---- Imports ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("statement", ["import hpo.report", "from hpo import Reporter", "from hpo import StopTrial"])
def test_reporter_loads_no_numpy(statement):
    program = (
        f"import sys; {statement}; print(sorted({{'numpy', 'torch', 'filelock', 'hpo.space'}} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "[]\n"
