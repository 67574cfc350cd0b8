"""Measures of frozen features, as pure functions."""

from msssl.metrics.linear_probe import linear_probe as linear_probe
