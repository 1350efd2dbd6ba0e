"""Paired statistics: pure functions on arrays, NumPy and SciPy only.

`paired_binary`, `paired_scores` and `paired_likelihoods` each turn two aligned arrays into an `Estimate`;
`holm` adjusts the p-values of one pair of arms over its tasks, `equivalence` tests an estimate against a
margin on both sides, `macro_average` combines tasks, and `judge` turns an estimate into a verdict.
Formulas, sources and reference implementations: docs/statistics.md.
"""

from lora_eval.stats.binary import dirichlet_interval, mcnemar_exact, mcnemar_mid_p, paired_binary
from lora_eval.stats.differences import ClusterMean, cluster_mean
from lora_eval.stats.equivalence import Equivalence, equivalence
from lora_eval.stats.estimate import Estimate
from lora_eval.stats.laws import DirichletLaw, Law, ScaledLaw, StudentLaw, law_of
from lora_eval.stats.likelihood import paired_likelihoods
from lora_eval.stats.multiple import benjamini_hochberg, holm
from lora_eval.stats.power import mcnemar_mde, mcnemar_n, needed_n, normal_mde
from lora_eval.stats.resampling import bootstrap_interval, exact_sign_flip, permutation_p
from lora_eval.stats.scores import paired_scores
from lora_eval.stats.suite import macro_average
from lora_eval.stats.verdict import Judgement, judge

__all__ = [
    "ClusterMean",
    "DirichletLaw",
    "Equivalence",
    "Estimate",
    "Judgement",
    "Law",
    "ScaledLaw",
    "StudentLaw",
    "benjamini_hochberg",
    "bootstrap_interval",
    "cluster_mean",
    "dirichlet_interval",
    "equivalence",
    "exact_sign_flip",
    "holm",
    "judge",
    "law_of",
    "macro_average",
    "mcnemar_exact",
    "mcnemar_mde",
    "mcnemar_mid_p",
    "mcnemar_n",
    "needed_n",
    "normal_mde",
    "paired_binary",
    "paired_likelihoods",
    "paired_scores",
    "permutation_p",
]
