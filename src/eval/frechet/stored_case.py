"""Writes stored_case.json: Fréchet distances of pairs of sets by scipy's matrix root; where a covariance is singular, by numpy's singular
values of the product of the centred sets, which are the same thing."""

import json

import numpy as np
import scipy.linalg

numbers = np.random.default_rng(5)


def frechet(a, b):
    means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    of_a, of_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    centred = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    root = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    if min(len(a), len(b)) > a.shape[1]:
        assert abs(root - np.trace(scipy.linalg.sqrtm(of_a @ of_b)).real) < 1e-9
    return means + np.trace(of_a) + np.trace(of_b) - 2 * root


def case(name, n, m, d, scale):
    mix = numbers.normal(size=(d, d)) * np.geomspace(1, scale, d)
    a = (numbers.normal(size=(n, d)) @ mix).round(6)
    b = (numbers.normal(size=(m, d)) @ numbers.normal(size=(d, d)) + numbers.normal(size=d)).round(6)
    spread = float(np.sqrt(((a - a.mean(0)) ** 2).sum() / (n - 1)))
    return {"name": name, "frechet": frechet(a, b), "diversity_a": spread, "a": a.tolist(), "b": b.tolist()}


cases = [
    case("usual", 40, 50, 6, 1),
    case("nearly flat", 40, 50, 6, 1e-4),
    case("fewer points than dimensions", 8, 12, 16, 1),
]
json.dump(cases, open("stored_case.json", "w"))
