"""A training script as people have them: a required flag for each value, a report each epoch."""

import argparse

try:
    from syne_tune import Reporter
except ImportError:
    from hpo import Reporter


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--shift", type=float, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    args, _ = parser.parse_known_args()
    report = Reporter()
    for epoch in range(1, args.epochs + 1):
        accuracy = (1 - 0.5**epoch) / (1 + args.learning_rate + args.shift**2)
        report(epoch=epoch, accuracy=accuracy)


if __name__ == "__main__":
    main()
