"""A scikit-learn model, scored by cross-validation; needs scikit-learn. From the root:

python run.py experiments/examples/forest.py --trials 40
"""

from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score

from hpo import choice, lograndint, uniform

config_space = {
    "n_estimators": lograndint(10, 200),
    "max_features": uniform(0.05, 1),
    "criterion": choice(["gini", "entropy"]),
    "n_folds": 3,
}
metric, mode = "accuracy", "max"


def objective(config):
    X, y = load_digits(return_X_y=True)
    settings = {name: config[name] for name in ("n_estimators", "max_features", "criterion")}
    model = RandomForestClassifier(**settings, random_state=0)
    return cross_val_score(model, X, y, cv=config["n_folds"]).mean()
