"""Writes stored_case.json: points of three overlapping classes, the cross-entropy of some logits with its gradient by
scipy, and the lowest cross-entropy of a linear layer, found by scikit-learn."""

import json

import numpy as np
import scipy
import sklearn
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

numbers = np.random.default_rng(11)
centres = numbers.normal(size=(3, 4))
labels = np.repeat(np.arange(3), 20)
points = (centres[labels] + numbers.normal(size=(60, 4))).round(6)
logits = numbers.normal(size=(60, 3)) * 3
right = np.eye(3)[labels]
layer = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(points, labels)
json.dump(
    {
        "made_with": f"scipy {scipy.__version__}, scikit-learn {sklearn.__version__}",
        "cross_entropy": -(log_softmax(logits, axis=1) * right).sum(axis=1).mean(),
        "best": log_loss(labels, layer.predict_proba(points)),
        "labels": labels.tolist(),
        "points": points.tolist(),
        "logits": logits.tolist(),
        "gradient": ((softmax(logits, axis=1) - right) / 60).tolist(),
    },
    open("stored_case.json", "w"),
)
