"""hpo/dask_backend.py, with a real scheduler and real workers on this machine."""

import contextlib
import os
import signal
import socket
import sys

import pytest

from experiments.command import children_of, end_tree
from experiments.dask_check import Cluster
from hpo import load, tune
from hpo.trial import End, Trial

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

OBJECTIVE = """
import time
from hpo import Reporter, uniform

config_space = {"x": uniform(0, 1), "epochs": 6}
metric, mode = "loss", "min"


def objective(config):
    print("x is", config["x"])
    report = Reporter()
    for epoch in range(1, config["epochs"] + 1):
        time.sleep(0.02)
        report(epoch=epoch, loss=config["x"] / epoch)
    if config["x"] > 0.9:
        raise ValueError("too high")
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    pytest.importorskip("distributed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cluster = Cluster(2, tmp_path_factory.mktemp("cluster"), port)
    yield cluster
    cluster.end()


@pytest.fixture
def objective(tmp_path):
    (tmp_path / "objective.py").write_text(OBJECTIVE)
    return str(tmp_path / "objective.py")


def test_run_on_a_cluster_survives_killed_workers(cluster, objective, tmp_path):
    def rule(trial, trials, max_epochs):
        if (trial.id, trial.attempt) == (3, 1):
            for nanny in cluster.workers:  # which starts another worker
                for pid in children_of(nanny.pid):  # the worker and its trial
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        return trial.id == 2 and trial.n_epochs >= 2

    options = {"dask": cluster.address, "trials": 6, "workers": 2, "searcher": "random"}
    start = [{"x": 0.5}, {"x": 0.95}, {"x": 0.25}, *[{"x": 0.125}] * 3]
    run = tune(objective, results=tmp_path / "run", stopping=rule, start=start, **options)
    assert [t.status for t in run.trials] == ["done", "failed", "stopped", *["done"] * 3]
    assert run.trials[1].error == "ValueError: too high" and run.reason == "trials"
    assert run.trials[3].attempt == 2
    assert run.trials[0].curve == [(e, 0.5 / e) for e in range(1, 7)]
    assert load(run.folder) == run.trials
    assert set((run.folder / "logs/0000.log").read_text().splitlines()) == {"x is 0.5"}


def test_without_dask_the_error_says_what_to_install(objective, monkeypatch):
    monkeypatch.setitem(sys.modules, "hpo.dask_backend", None)
    with pytest.raises(ValueError, match="pip install distributed"):
        tune(objective, dask="tcp://127.0.0.1:1")


def test_log_comes_home_and_a_trial_ends_though_no_worker_is_left(
    cluster, objective, tmp_path, monkeypatch
):
    """The last test: it ends the workers."""
    from hpo.dask_backend import DaskBackend

    with contextlib.closing(DaskBackend(cluster.address, objective)) as backend:
        assert backend.describe(space=None, metric=None, mode=None)["metric"] == "loss"
        backend.begin(tmp_path / "only here" / "logs", 0)  # a folder that no worker sees
        backend.start(trial := Trial(0, {"x": 0.25, "epochs": 1}, "random"))
        assert backend.wait(60)[0].metrics == {"epoch": 1, "loss": 0.25}
        backend.answer(trial, True)
        assert backend.wait(60) == [End(0, 1, "finished")]
        assert (tmp_path / "only here/logs/0000.log").read_text() == "x is 0.25\n"
        backend.start(trial := Trial(1, {"x": 0.25, "epochs": 99}, "random"))
        assert backend.wait(60)[0].metrics["epoch"] == 1
        for worker in cluster.workers:
            end_tree(worker)
        monkeypatch.setattr("hpo.dask_backend.SILENCE", 1.0)
        monkeypatch.setattr("hpo.dask_backend.PERIOD", 1.0)
        backend.kill(trial)
        assert backend.wait(60) == [End(1, 1, "lost", "the Dask worker is gone")]
