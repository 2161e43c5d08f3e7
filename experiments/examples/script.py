"""A training script with argparse, in the style of Syne Tune's tutorial. From the root:

python run.py experiments/examples/script.py --space experiments/examples/script.json \
    --metric accuracy --mode max --trials 30

With `from syne_tune import Reporter` in place of hpo's it is tuned in the same way.
"""

import argparse

from hpo import Reporter


def train(arguments):
    """The accuracy after each epoch, of a formula in place of a network."""
    accuracy = 0.1
    for _ in range(arguments.epochs):
        step = arguments.learning_rate * (1 - arguments.dropout)
        accuracy += step * (0.95 - accuracy)
        yield accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--learning_rate", type=float, required=True)
    parser.add_argument("--dropout", type=float, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--report_each_epoch", type=int, default=1)
    arguments, _ = parser.parse_known_args()
    report = Reporter()
    for epoch, accuracy in enumerate(train(arguments), 1):
        if arguments.report_each_epoch:
            report(epoch=epoch, accuracy=accuracy)
    if not arguments.report_each_epoch:
        report(accuracy=accuracy)
