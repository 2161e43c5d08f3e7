"""A training script that reads a JSON file of values, and saves its state to go on from it."""

import argparse
import json
import pathlib
import time

try:
    from syne_tune import Reporter
except ImportError:
    from hpo import Reporter


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=pathlib.Path, required=True)
    parser.add_argument("--st_checkpoint_dir", type=pathlib.Path, required=True)
    args, _ = parser.parse_known_args()
    config, file = json.loads(args.config.read_text()), args.st_checkpoint_dir / "state.json"
    args.st_checkpoint_dir.mkdir(parents=True, exist_ok=True)
    state = json.loads(file.read_text()) if file.exists() else {"epoch": 0, "loss": 1.0}
    report = Reporter()
    while state["epoch"] < config["epochs"]:
        time.sleep(config["sleep"]["seconds"])
        state = {"epoch": state["epoch"] + 1, "loss": state["loss"] * config["step"]}
        file.write_text(json.dumps(state))
        report(**state)


if __name__ == "__main__":
    main()
