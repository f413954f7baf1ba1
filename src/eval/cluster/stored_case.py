"""Writes stored_case.json: 120 points of four overlapping groups, and what scikit-learn makes of them."""

import json

import numpy as np
import sklearn
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

numbers = np.random.default_rng(7)
centres = numbers.normal(size=(4, 5)) * 2
points = (centres[np.repeat(np.arange(4), [45, 35, 25, 15])] + numbers.normal(size=(120, 5)) * 0.9).round(6)
means = KMeans(4, n_init=50, tol=0, random_state=0).fit(points)
places = TSNE(method="exact", random_state=0).fit(points)
json.dump(
    {
        "made_with": f"scikit-learn {sklearn.__version__}",
        "k": 4,
        "inertia": means.inertia_,
        "silhouette": silhouette_score(points, means.labels_),
        "tsne_divergence": float(places.kl_divergence_),
        "labels": means.labels_.tolist(),
        "points": points.tolist(),
    },
    open("stored_case.json", "w"),
)
