"""Pictures of a run: the best so far and every trial over time, and the learning curves.

python -m experiments.plot results/DIR [PICTURE.png]      default results/DIR/run.png; during a run too
"""

import pathlib

import numpy as np

from experiments import command
from experiments.curves import timed_curves
from hpo.results import load, load_run

COLOURS = {"done": "tab:green", "stopped": "tab:orange", "timeout": "tab:purple", "running": "tab:blue"}


def plot(folder, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    run, trials = load_run(folder), load(folder)
    curves, trials = timed_curves(folder, run, trials), [trial for trial in trials if trial.value is not None]
    if not trials:
        raise ValueError(f"{folder}: no trial has reported {run['metric']} yet; there is nothing to draw")
    sign = -1.0 if run["mode"] == "max" else 1.0
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    reports = sorted(
        (t.started + seconds, loss)
        for t, curve in zip(trials, curves)
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
        marker = "." if len(epochs) == 1 else ""  # a curve of one point is no line
        right.plot(epochs, sign * losses, color=COLOURS[trial.status], marker=marker, lw=0.7, alpha=0.6)
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
    parser = command.parser("plot", __doc__)
    parser.add_argument("folder", metavar="DIR", type=pathlib.Path, help="the folder of a run")
    parser.add_argument("picture", metavar="PICTURE.png", type=pathlib.Path, nargs="?", help="default DIR/run.png")
    args = parser.parse_args(arguments)
    picture = args.picture or args.folder / "run.png"
    try:
        with command.checking(parser):
            if args.picture and (picture.is_dir() or not picture.suffix or not picture.parent.is_dir()):
                raise ValueError(f"{picture}: expected the picture to write, such as run.png; one run at a time")
            plot(args.folder, picture)
    except ImportError:
        raise command.Failed("the picture needs matplotlib: pip install matplotlib") from None
    print(picture)


if __name__ == "__main__":
    command.run("plot")
