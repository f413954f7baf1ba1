"""Writes stored_case.json: points of three overlapping classes, and the lowest cross-entropy of a linear layer, found by scikit-learn."""

import json

import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

numbers = np.random.default_rng(11)
centres = numbers.normal(size=(3, 4))
labels = np.repeat(np.arange(3), 20)
points = (centres[labels] + numbers.normal(size=(60, 4))).round(6)
layer = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(points, labels)
json.dump(
    {
        "made_with": f"scikit-learn {sklearn.__version__}",
        "best": log_loss(labels, layer.predict_proba(points)),
        "labels": labels.tolist(),
        "points": points.tolist(),
    },
    open("stored_case.json", "w"),
)
