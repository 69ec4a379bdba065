"""The exact lab: the true expected reward, gradient, entropy and KL, and any recipe's bias and variance, by enumeration."""

from upslope.exact.estimator import Estimate
from upslope.exact.lab import ExactLab

__all__ = ["Estimate", "ExactLab"]
