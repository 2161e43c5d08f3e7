"""A training script with argparse, in the style of Syne Tune's tutorial. From the root:

python run.py experiments/examples/script.py --space experiments/examples/script.json \
    --metric accuracy --mode max --trials 30

With `from syne_tune import Reporter` in place of hpo's it is tuned in the same way.
"""

import argparse

from hpo import Reporter

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--learning_rate", type=float, required=True)
    parser.add_argument("--dropout", type=float, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    arguments, _ = parser.parse_known_args()
    report, accuracy = Reporter(), 0.1
    for epoch in range(1, arguments.epochs + 1):  # a formula in place of a network
        step = arguments.learning_rate * (1 - arguments.dropout)
        accuracy += step * (0.95 - accuracy)
        report(epoch=epoch, accuracy=accuracy)
