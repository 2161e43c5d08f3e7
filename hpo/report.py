"""Reporter: the two lines that make a training script tunable.

    report = Reporter()
    for epoch in range(1, n_epochs + 1):
        ...
        report(epoch=epoch, accuracy=accuracy)

In a trial's process each report goes to the tuner, which answers "go" or "stop". Anywhere else it
is printed, as by Syne Tune's reporter: [tune-metric]: {"epoch": 1, "accuracy": 0.81}
"""

import json
import os
import pathlib
import threading

tuner = None  # in a trial's process, the socket to the tuner; hpo/trial.py sets it
process_id = None  # only this process, the trial's own, may report
names = set()  # of the metrics that were reported
stopped = False  # the tuner has stopped the trial
lock = threading.Lock()  # one thread at a time reports and waits for the answer


class StopTrial(BaseException):
    """The tuner has stopped the trial. Not an Exception, so `except Exception` lets it pass."""


class Reporter:
    n_reports = 0

    @property
    def checkpoint_path(self):
        """The trial's own folder, which is kept when it is started again; None outside a trial."""
        folder = os.environ.get("TRIAL_CHECKPOINTS")
        if folder:
            os.makedirs(folder, exist_ok=True)
        return pathlib.Path(folder) if folder else None

    def __call__(self, /, **metrics):
        """Reports metrics, JSON scalars by name. Raises StopTrial when the trial is to stop.

        `epoch` is an integer >= 0. Reports without it are counted from 1. No rule judges them, and
        if --stopping was given, they fail the trial. Raises TypeError or ValueError for bad values.
        """
        global stopped
        metrics = {name: scalar(name, value) for name, value in metrics.items()}
        counted = "epoch" not in metrics
        epoch = metrics.setdefault("epoch", self.n_reports + 1)
        if type(epoch) not in (int, float) or not 0 <= epoch < 2**53 or epoch % 1:
            raise ValueError(f"epoch: expected an integer >= 0, got {epoch!r}")
        if len(metrics) == 1:
            raise ValueError("report: expected a metric, such as report(epoch=1, accuracy=0.9)")
        metrics["epoch"] = int(epoch)
        self.n_reports += 1
        if tuner is None:
            print(f"[tune-metric]: {json.dumps(metrics)}", flush=True)
            return
        if os.getpid() != process_id:
            raise RuntimeError("report: called in a process that the trial forked")
        with lock:
            if not stopped:
                message = json.dumps({"report": metrics, "counted": counted})
                tuner.sendall(message.encode() + b"\n")
                names.update(metrics)
                stopped = tuner.recv(8) != b"go"  # b"" when the tuner is gone
        if stopped:
            raise StopTrial


def scalar(name, value):
    """The plain Python scalar of a value, which may be numpy's or torch's."""
    plain = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    if isinstance(plain, (int, float, str, type(None))):
        return plain
    raise TypeError(f"{name}: expected a number, string, boolean or None, got {type(value)}")
