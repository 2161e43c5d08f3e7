"""Pictures of a run: the best so far and every trial over time, and the learning curves.

python -m experiments.plot results/DIR [PICTURE.png]      default results/DIR/run.png; during a run too
"""

import pathlib
import sys

import numpy as np

from experiments.curves import read_folder
from hpo.results import load, load_run

COLOURS = {"done": "tab:green", "stopped": "tab:orange", "timeout": "tab:purple", "running": "tab:blue"}


def plot(folder, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    run, trials = load_run(folder), [trial for trial in load(folder) if trial.value is not None]
    if not trials:
        raise ValueError(f"{folder}: no trial has reported {run['metric']} yet; there is nothing to draw")
    sign = -1.0 if run["mode"] == "max" else 1.0
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    reports = sorted(
        (t.started + seconds, loss)
        for t, curve in zip(trials, read_folder(pathlib.Path(folder)).curves)
        for seconds, loss in zip(curve.seconds.cumsum(), curve.losses)
    )
    times, losses = np.array(reports).T
    left.step(times / 60, sign * np.minimum.accumulate(losses), where="post", color="black", label="best so far")
    for status, colour in COLOURS.items():
        these = [trial for trial in trials if trial.status == status]
        if these:
            ended = [trial.ended or times[-1] for trial in these]
            values = [sign * trial.value for trial in these]
            left.plot(np.array(ended) / 60, values, ".", color=colour, label=f"{len(these)} {status}")
    for trial in trials:
        epochs, losses = np.array(trial.curve).T
        right.plot(epochs, sign * losses, color=COLOURS[trial.status], lw=0.7, alpha=0.6)
    best = min(trials, key=lambda trial: trial.value)
    epochs, losses = np.array(best.curve).T
    right.plot(epochs, sign * losses, color="black", lw=1.2, label=f"trial {best.id}: {sign * best.value:.4f}")
    values = np.array([sign * trial.value for trial in trials])
    worth = (
        np.quantile(values, (0.0, 1.0))
        if len(values) < 8
        else np.quantile(values, (0.4, 1.0) if sign < 0 else (0, 0.6))
    )
    margin = 0.1 * (worth[1] - worth[0]) or 0.1 * abs(worth[0]) or 0.1
    left.set(
        xlabel="minutes", ylabel=run["metric"], ylim=(worth[0] - margin, worth[1] + margin)
    )  # bad ones: out of view
    right.set(xlabel="epoch", xscale="log")
    left.legend()
    right.legend()
    figure.suptitle(f"{pathlib.Path(folder).name}: {run['metric']}, {run['mode']}; {len(trials)} trials", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) not in (1, 2) or arguments[0].startswith("-"):
        print("usage: python -m experiments.plot results/DIR [PICTURE.png]", file=sys.stderr)
        return 2
    path = pathlib.Path(arguments[1] if len(arguments) > 1 else pathlib.Path(arguments[0]) / "run.png")
    try:
        plot(arguments[0], path)
    except ImportError:
        print("experiments.plot needs matplotlib: pip install matplotlib", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"experiments.plot: error: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
