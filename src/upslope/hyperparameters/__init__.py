"""Hyper-parameter files in the format of rl-baselines3-zoo, as settings of this library. Nothing in a file is executed."""

from upslope.hyperparameters.reading import Hyperparameters, read_hyperparameters

__all__ = ["Hyperparameters", "read_hyperparameters"]
