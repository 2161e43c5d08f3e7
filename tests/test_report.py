"""Reporter: a printed line outside a trial, questions and answers in one, what is refused."""

import json
import math
import os
import socket
import types

import numpy as np
import pytest

import hpo.report
from hpo.report import Reporter, StopTrial


def tensor(value, ndim=0):
    """As torch's: where it is 0-d, it is unwrapped by item()."""
    return types.SimpleNamespace(ndim=ndim, item=lambda: value)


def printed(capsys):
    """The metrics of each printed line; nothing else was printed."""
    out, err = capsys.readouterr()
    assert err == "" and all(line.startswith("[tune-metric]: ") for line in out.splitlines())
    return [json.loads(line.removeprefix("[tune-metric]: ")) for line in out.splitlines()]


# ---- Outside a trial -----------------------------------------------------------------------------
def test_report_is_one_line_that_is_flushed_at_once(run_py):
    program = "import os; from hpo import Reporter; Reporter()(loss=1.5); os._exit(0)"
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # a pipe is then block-buffered
    expected = (0, '[tune-metric]: {"loss": 1.5, "epoch": 1}\n', "")
    assert run_py("-c", program, env=environment) == expected


def test_epoch_is_any_whole_number_from_0_on_or_counted(capsys):
    report = Reporter()
    report(epoch=10, loss=0)
    report(loss=0)
    with pytest.raises(TypeError):
        report(loss=[])  # which does not count
    report(loss=0)
    Reporter()(loss=0)
    assert [metrics["epoch"] for metrics in printed(capsys)] == [10, 2, 3, 1]
    for epoch in (0, 3, 3.0, np.int64(3), np.float32(3), tensor(3), 2**53 - 1):
        Reporter()(epoch=epoch, loss=0)
        ((found, _),) = (metrics.values() for metrics in printed(capsys))
        assert type(found) is int and found == (epoch.item() if hasattr(epoch, "item") else epoch)
    for epoch in (-1, 1.5, math.nan, math.inf, "1", None, True, 2**53, 1e300, np.bool_(True)):
        with pytest.raises(ValueError, match="^epoch: expected an integer >= 0, got "):
            Reporter()(epoch=epoch, loss=0)


def test_scalars_are_unwrapped_and_all_else_is_refused_by_name(capsys):
    for value, expected in [
        *((plain, plain) for plain in (0.1, 1, True, "é\n\ud800", None, 2**70, -0.0, math.inf)),
        *((np.float64(0.1), 0.1), (np.float32(0.5), 0.5), (tensor(math.nan), math.nan)),
        *((np.int8(-3), -3), (np.bool_(False), False), (np.str_("a"), "a"), (np.array(3), 3)),
    ]:
        Reporter()(loss=value)
        (metrics,) = printed(capsys)
        assert type(metrics["loss"]) is type(expected) and repr(metrics["loss"]) == repr(expected)
    for value in ([1.0], {"a": 1}, b"1", 1j, print, tensor(1.0, ndim=1), tensor([1]), np.zeros(1)):
        with pytest.raises(TypeError, match="^accuracy: expected a number, string, boolean or No"):
            Reporter()(loss=1.0, accuracy=value)
    for metrics in ({}, {"epoch": 1}):
        with pytest.raises(ValueError, match="expected a metric"):
            Reporter()(**metrics)
    assert printed(capsys) == []
    names = {"val/acc": 1, "a b": 2, "é\n": 3, "self": 4, "trial": 5, "metrics": 6, "": 7}
    Reporter()(**names)
    assert printed(capsys) == [{**names, "epoch": 1}]


# ---- In a trial; more of this is in test_trial.py ------------------------------------------------
@pytest.mark.parametrize("answer", [b"stop", b""])  # b"": the tuner has died
def test_stop_passes_except_exception_and_comes_again(monkeypatch, answer):
    tuner, theirs = socket.socketpair()
    state = {"tuner": theirs, "process_id": os.getpid(), "stopped": False, "names": set()}
    for name, value in state.items():
        monkeypatch.setattr(hpo.report, name, value)
    with tuner, theirs:
        tuner.send(answer)
        tuner.shutdown(socket.SHUT_WR)
        for _ in range(3):
            with pytest.raises(StopTrial):
                try:
                    Reporter()(epoch=2.0, loss=np.float32("nan"), text="\ud800")
                except Exception:  # as careless training code has it
                    pytest.fail("StopTrial was swallowed")
        message = json.loads(tuner.recv(65536))  # and it asks no more
    assert math.isnan(message["report"].pop("loss"))
    assert message == {"report": {"epoch": 2, "text": "\ud800"}, "counted": False}
