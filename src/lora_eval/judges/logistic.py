"""Logistic models with soft labels: maximum likelihood by Newton's method, NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_STEPS = 60
_LARGEST_STEP = 4.0
# Coefficients beyond this are probabilities of 0 or 1 to a double: a sample that separates has no finite
# maximum.
LARGEST = 15.0


def fit(design: Values, labels: Values, weights: Values, start: Values | None = None) -> Values:
    """Return the coefficients that maximise sum_i w_i (y_i log p_i + (1 - y_i) log(1 - p_i)), p = sigma(X b).

    `design` is (n, k) of full rank, `labels` (n,) in 0..1. `weights` is (n,), or (samples, n) for that many
    fits at once; the result is (k,) or (samples, k). Where no finite maximum exists, a coefficient stops
    at 15. `start` (k,) saves steps where the maximum is near it. Reference: `statsmodels` GLM, family
    Binomial, `var_weights`.
    """
    batch = np.atleast_2d(weights)
    coefficients: Values = np.zeros((len(batch), design.shape[1])) + (0.0 if start is None else start)
    for _ in range(_STEPS):
        chance = probability(coefficients @ design.T)  # (samples, n)
        gradient = (batch * (labels - chance)) @ design  # (samples, k)
        step = np.linalg.solve(information(design, batch * chance * (1.0 - chance)), gradient[..., None])[
            ..., 0
        ]
        step *= np.minimum(1.0, _LARGEST_STEP / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
        before = coefficients
        coefficients = np.clip(coefficients + step, -LARGEST, LARGEST)
        if np.abs(coefficients - before).max() < 1e-11:
            break
    return coefficients if weights.ndim == 2 else coefficients[0]


def information(design: Values, weights: Values) -> Values:
    """Return X' W X for each row of `weights` (samples, n), as (samples, k, k), with a ridge of 1e-9."""
    products = design[:, :, None] * design[:, None, :]  # (n, k, k)
    gram = np.tensordot(weights, products, axes=(1, 0))
    return gram + 1e-9 * np.eye(design.shape[1])


def cluster_covariance(
    design: Values, labels: Values, weights: Values, coefficients: Values, clusters: NDArray[np.int64]
) -> Values:
    """Return the cluster-robust covariance of `fit`'s coefficients: bread * meat * bread * G / (G - 1).

    Reference: `statsmodels` GLM `fit(cov_type="cluster")` with its factor (n - 1) / (n - k) taken away.
    """
    chance = probability(design @ coefficients)
    bread = np.linalg.inv(information(design, (weights * chance * (1.0 - chance))[None])[0])
    scores = design * (weights * (labels - chance))[:, None]
    groups = int(clusters.max()) + 1
    sums = np.zeros((groups, design.shape[1]))
    np.add.at(sums, clusters, scores)
    covariance: Values = bread @ (sums.T @ sums) @ bread * groups / (groups - 1)
    return covariance


def probability(logits: Values) -> Values:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))
