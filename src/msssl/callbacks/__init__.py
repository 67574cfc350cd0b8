"""Callbacks that a user may add to a run: they measure, draw, write files, or change the size of the views."""

from msssl.callbacks.features_writer import FeaturesWriter as FeaturesWriter
from msssl.callbacks.online_knn import OnlineKNN as OnlineKNN
from msssl.callbacks.online_probe import OnlineProbe as OnlineProbe
from msssl.callbacks.progressive_resolution import ProgressiveResolution as ProgressiveResolution
from msssl.callbacks.rank_monitor import RankMonitor as RankMonitor
from msssl.callbacks.view_grid import ViewGrid as ViewGrid
from msssl.run.best_checkpoint import BestCheckpoint as BestCheckpoint
from msssl.run.last_checkpoint import LastCheckpoint as LastCheckpoint
