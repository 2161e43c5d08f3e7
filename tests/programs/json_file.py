"""A training script that reads all its values, lists and dicts among them, from a JSON file."""

import argparse
import json

try:
    from syne_tune import Reporter
except ImportError:
    from hpo import Reporter


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--st_config_json_filename", required=True)
    args, _ = parser.parse_known_args()
    with open(args.st_config_json_filename) as file:
        config = json.load(file)
    numerator, denominator = config["scale"]["by"]
    Reporter()(accuracy=config["x"] * numerator / denominator)
