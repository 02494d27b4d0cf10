"""One-shot pruning of weights, as functions of matrices: a weight (m, n), the Gram matrix of its inputs, a pattern.

pattern   what is to be removed                 gram           H, its damped inverse, the layer's loss
scores    the cost of one weight alone          groups         the cheapest set of every N:M group
blocked   masks from left to right              compensation   what the kept weights become
alps      masks by ADMM                         owl            how much to remove from each layer
methods   all of it by the name of a method
"""

from fxcompress.weights.gram import Gram, relative_loss
from fxcompress.weights.methods import METHODS, Pruned
from fxcompress.weights.owl import allocate, outlier_ratio
from fxcompress.weights.pattern import NM, Pattern, Unstructured, parse

__all__ = [
    "METHODS",
    "NM",
    "Gram",
    "Pattern",
    "Pruned",
    "Unstructured",
    "allocate",
    "outlier_ratio",
    "parse",
    "relative_loss",
]
