"""Offline evaluation: what a checkpoint's features are worth."""

from msssl.evaluation.inspect import inspect as inspect
from msssl.evaluation.probe import probe as probe
