"""The commands before and after training: `inspect` (in `data/`), and what evaluates, compares and exports a run."""

from msssl.data.inspect import inspect as inspect
from msssl.evaluation.compare.side_by_side import compare as compare
from msssl.evaluation.export.export import export as export
from msssl.evaluation.finetune.finetune import finetune as finetune
from msssl.evaluation.neighbours.neighbours import neighbours as neighbours
from msssl.evaluation.probe.probe import probe as probe
