"""Before and after a run: what it will see, what its features are worth, and in which form they leave."""

from msssl.evaluation.export import export as export
from msssl.evaluation.inspect import inspect as inspect
from msssl.evaluation.probe import probe as probe
from msssl.evaluation.side_by_side import compare as compare
