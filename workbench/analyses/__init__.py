"""The published methods, one module each; see `base` for the contract they share."""

from workbench.analyses.base import Analysis, Params, Result, get, names

__all__ = ["Analysis", "Params", "Result", "get", "names"]
