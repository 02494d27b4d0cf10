"""One-shot pruning of weights, as functions of matrices."""
