"""Before and after a run: what it will see, what its features are worth, and in which form they leave."""

from msssl.data.inspect import inspect as inspect
from msssl.evaluation.compare.side_by_side import compare as compare
from msssl.evaluation.export.export import export as export
from msssl.evaluation.probe.probe import probe as probe
