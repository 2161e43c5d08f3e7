"""Reporter: the two lines that make a training script tunable.

    report = Reporter()
    for epoch in range(1, n_epochs + 1):
        ...
        report(epoch=epoch, accuracy=accuracy)

In a trial's process each report goes to the tuner, which answers "go on" or "stop". Anywhere else it is printed as one
line, as Syne Tune's reporter does: [tune-metric]: {"epoch": 1, "accuracy": 0.81}. Imports the standard library only.
"""

import json
import threading

MAX_BYTES = 50_000  # of one report as JSON: metrics, not data

tuner = None  # the connection to the tuner; set by hpo.trial in a trial's process


class StopTrial(BaseException):
    """Raised by a report when the tuner has stopped the trial.

    Not an Exception, so that `except Exception` in training code does not swallow it. Clean up and let it pass.
    """


class Reporter:
    """Callable that reports the metrics of an epoch; see the module's docstring."""

    def __init__(self):
        self.n_reports = 0
        self.stopped = False
        self.lock = threading.Lock()  # a question to the tuner and its answer belong together

    def __call__(self, /, **metrics):
        """None; raises StopTrial when the trial is to stop, TypeError or ValueError for what cannot be reported.

        metrics: JSON scalars by name (numpy and torch scalars are unwrapped). `epoch`, an integer >= 0, defaults to the
        number of this report, counted from 1; by default no trial is stopped early that does not give it.
        """
        with self.lock:
            if self.stopped:
                raise StopTrial
            metrics = {name: _scalar(name, value) for name, value in metrics.items()}
            counted = "epoch" not in metrics
            epoch = metrics.setdefault("epoch", self.n_reports + 1)
            if isinstance(epoch, float) and epoch.is_integer():
                epoch = metrics["epoch"] = int(epoch)
            if type(epoch) is not int or not 0 <= epoch < 2**53:
                raise ValueError(f"epoch: expected an integer >= 0, got {epoch!r}")
            if len(metrics) == 1:
                raise ValueError("report needs at least one metric, such as report(epoch=1, accuracy=0.9)")
            line = json.dumps(metrics)
            if len(line) > MAX_BYTES:
                raise ValueError(
                    f"report: expected at most {MAX_BYTES} bytes of JSON, got {len(line)}; report less text"
                )
            self.n_reports += 1
            if tuner is None:
                print(f"[tune-metric]: {line}", flush=True)
                return
            tuner.send_bytes(json.dumps({"report": metrics, "counted": counted}).encode())
            self.stopped = tuner.recv_bytes() == b"stop"
            if self.stopped:
                raise StopTrial


def _scalar(name, value):
    """The plain Python scalar of a value; numpy's and torch's are unwrapped, subclasses (IntEnum) become int, str, ..."""
    if value is None:
        return None
    plain = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    if type(plain).__name__ == "longdouble":  # numpy's, which has no Python equal
        return float(plain)
    for kind in (bool, int, float, str):
        if isinstance(plain, kind):
            return kind(plain)
    raise TypeError(
        f"{name}: expected a number, string, boolean or None, got {type(value).__name__}; "
        "report a scalar, such as float(value) or values.mean()"
    )
