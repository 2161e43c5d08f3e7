"""A training script that saves its state each epoch, and goes on from there."""

import argparse
import json
import pathlib
import time

try:
    from syne_tune import Reporter
except ImportError:
    from hpo import Reporter


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--step", type=float, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=0.0)  # of an epoch
    parser.add_argument("--st_checkpoint_dir", type=pathlib.Path)
    args, _ = parser.parse_known_args()
    state = {"epoch": 0, "loss": 1.0}
    if args.st_checkpoint_dir:
        args.st_checkpoint_dir.mkdir(parents=True, exist_ok=True)
        file = args.st_checkpoint_dir / "state.json"
        if file.exists():
            state = json.loads(file.read_text())
    report = Reporter()
    while state["epoch"] < args.epochs:
        time.sleep(args.seconds)
        state = {"epoch": state["epoch"] + 1, "loss": state["loss"] * args.step}
        if args.st_checkpoint_dir:
            file.write_text(json.dumps(state))
        report(**state)
