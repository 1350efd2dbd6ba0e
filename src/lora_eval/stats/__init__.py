"""Paired statistics: pure functions on arrays, NumPy and SciPy only.

`paired_binary`, `paired_scores` and `paired_likelihoods` each turn two aligned arrays into an `Estimate`;
`holm` adjusts the p-values of one pair of arms over its tasks; `judge` turns an estimate into a verdict.
Formulas, sources and reference implementations: docs/statistics.md.
"""

from lora_eval.stats.binary import dirichlet_interval, mcnemar_exact, mcnemar_mid_p, paired_binary
from lora_eval.stats.estimate import Estimate
from lora_eval.stats.likelihood import paired_likelihoods
from lora_eval.stats.multiple import holm
from lora_eval.stats.power import mcnemar_mde, mcnemar_n, needed_n, normal_mde
from lora_eval.stats.scores import ClusterMean, cluster_mean, paired_scores
from lora_eval.stats.verdict import Judgement, judge

__all__ = [
    "ClusterMean",
    "Estimate",
    "Judgement",
    "cluster_mean",
    "dirichlet_interval",
    "holm",
    "judge",
    "mcnemar_exact",
    "mcnemar_mde",
    "mcnemar_mid_p",
    "mcnemar_n",
    "needed_n",
    "normal_mde",
    "paired_binary",
    "paired_likelihoods",
    "paired_scores",
]
