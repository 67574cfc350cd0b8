"""Measures of frozen features, as pure functions: kNN, linear probe, rank and spectrum, intervals of accuracies."""

from msssl.metrics.blocks import blocks as blocks
from msssl.metrics.clid import CLID as CLID
from msssl.metrics.clid import clid as clid
from msssl.metrics.interval import accuracy_interval as accuracy_interval
from msssl.metrics.interval import mean_interval as mean_interval
from msssl.metrics.knn import knn as knn
from msssl.metrics.knn import neighbours as neighbours
from msssl.metrics.knn import neighbours_taken as neighbours_taken
from msssl.metrics.lidar import lidar as lidar
from msssl.metrics.linear_probe import linear_probe as linear_probe
from msssl.metrics.linear_probe import linear_probes as linear_probes
from msssl.metrics.spectrum import alpha_of as alpha_of
from msssl.metrics.spectrum import alpha_req as alpha_req
from msssl.metrics.spectrum import eigenspectrum as eigenspectrum
from msssl.metrics.spectrum import rankme as rankme
from msssl.metrics.spectrum import spread_rows as spread_rows
