"""Upslope: published policy-optimization methods as small recipes over shared parts."""

__version__ = "0.1.0"
