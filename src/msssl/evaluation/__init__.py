"""Before and after a run: what it will see, and what its features are worth."""

from msssl.evaluation.inspect import inspect as inspect
from msssl.evaluation.probe import probe as probe
