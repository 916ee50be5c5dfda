"""A scikit-learn program as a trial: parameters from the command line or the parameter file, one metric reported."""

import argparse

import phalanx
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

parser = argparse.ArgumentParser()
parser.add_argument("--trees", type=int, default=100)
parser.add_argument("--depth", type=int, default=8)
args = parser.parse_args()

# What the command line does not mention comes from the trial's parameter file; outside of a sweep it is empty.
features = phalanx.params().get("features", "sqrt")

x, y = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=0)
model = RandomForestClassifier(args.trees, max_depth=args.depth, max_features=features, random_state=0)
model.fit(x_train, y_train)

accuracy = model.score(x_test, y_test)
phalanx.report(1, accuracy=accuracy)
print(f"accuracy: {accuracy:.4f}")
