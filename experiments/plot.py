"""Pictures of a run: the best so far and every trial over time, and the learning curves.

    python -m experiments.plot results/DIR [PICTURE.png]    default DIR/run.png; during a run too

Faint grey curves are of attempts that were interrupted and started again. Needs matplotlib.
"""

import pathlib

import numpy as np

from experiments import command
from hpo.journal import Journal, load, load_run, read_events

COLOURS = {"done": "tab:green", "stopped": "tab:orange", "timeout": "tab:purple"}
COLOURS |= {"running": "tab:blue", "interrupted": "lightgrey"}


def plot(folder, path):
    """Draws a run; ValueError when there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    run, trials = load_run(folder), [trial for trial in load(folder) if trial.status != "failed"]
    journal, ids = Journal(run), {trial.id for trial in trials}
    reports = [event for event in read_events(folder) if event.get("report") in ids]
    reports = [event for event in reports if run["metric"] in event["metrics"]]
    losses = np.array([journal.to_loss(event["metrics"][run["metric"]]) for event in reports])
    if not len(losses):
        raise ValueError(f"{folder}: no trial has reported {run['metric']}; nothing to draw")
    minutes = np.array([event["at"] for event in reports]) / 60
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    best = journal.sign * np.fmin.accumulate(losses)
    left.step(minutes, best, where="post", color="black", label="best so far")
    valued = [trial for trial in trials if trial.value is not None]
    for status, colour in COLOURS.items():
        these = [trial for trial in valued if trial.status == status]
        ended = [minutes[-1] if trial.ended is None else trial.ended / 60 for trial in these]
        values = [journal.to_metric(trial.value) for trial in these]
        if these:
            left.plot(ended, values, ".", color=colour, label=f"{len(these)} {status}")
    curves = [(curve, "interrupted") for trial in trials for curve in trial.earlier if curve]
    for curve, status in curves + [(trial.curve, trial.status) for trial in valued]:
        epochs, y = np.array(curve).T
        style = "." if len(epochs) == 1 else "-"  # a curve of one point is no line
        right.plot(epochs, journal.sign * y, style, color=COLOURS[status], lw=0.7, alpha=0.6)
    values = np.sort([journal.to_metric(trial.value) for trial in valued] or best)
    if len(values) >= 8:  # the poor ones are out of view
        n = len(values) * 3 // 5
        values = values[-n:] if run["mode"] == "max" else values[:n]
    margin = 0.1 * (values[-1] - values[0]) or 0.1 * abs(values[0]) or 0.1
    left.set(ylim=(values[0] - margin, values[-1] + margin), xlabel="minutes", ylabel=run["metric"])
    right.set(xlabel="epoch", xscale="log")
    left.legend()
    figure.suptitle(f"{pathlib.Path(folder).name}: {len(valued)} trials, best {best[-1]:.6g}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments=None):
    parser = command.parser("plot", __doc__)
    parser.add_argument("folder", metavar="DIR", type=pathlib.Path, help="the folder of a run")
    parser.add_argument("picture", metavar="PICTURE.png", nargs="?", help="default DIR/run.png")
    args = parser.parse_args(arguments)
    picture = pathlib.Path(args.picture or args.folder / "run.png")
    try:
        with command.checking(parser):
            if args.picture and (not picture.suffix or not picture.parent.is_dir()):
                raise ValueError(f"{picture}: expected a picture to write, such as run.png")
            plot(args.folder, picture)
    except ImportError:
        raise command.Failed("the picture needs matplotlib: pip install matplotlib") from None
    print(picture)


if __name__ == "__main__":
    command.run("plot")
