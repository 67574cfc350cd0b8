"""CLID: how well clusters of features can be learnt, and how many dimensions the features have."""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor
from torch.nn import functional as F

from msssl.metrics.blocks import blocks
from msssl.metrics.spectrum import spread_rows

MAX_ROWS = 5000  # all distances between them are computed


class CLID(NamedTuple):
    """Both parts of CLID; the higher, the better.

    Attributes:
        learnability: accuracy with which nearest neighbours predict the clusters of k-means, in [0, 1].
        dimension: intrinsic dimension, above 0; NaN where it cannot be estimated.
    """

    learnability: float
    dimension: float


@torch.no_grad()
def clid(features: Tensor, seed: int = 0) -> CLID:
    """Cluster learnability and intrinsic dimension of features at unit length.

    The authors add both after they standardise each over the encoders that are compared, so that a single encoder has
    no such sum.

    Learnability: k-means finds sqrt(N) clusters; the clusters of a random half of the rows are predicted by the nearest
    neighbour in the other half. Dimension: let r be the ratio of the distances of a row to its second and to its first
    neighbour; the dimension is 1 / mean(log r) (the estimator TwoNN by maximum likelihood). Rows that are equal to
    another one are left out of it.

    Args:
        features: shape (N, F), N >= 4; at most 5,000 rows, evenly spread, are used.
        seed: of k-means and of the halves.

    Raises:
        ValueError: features have another shape, or are not finite.

    Source: Lu et al. 2023 (arXiv:2206.01251); Facco et al. 2017 (arXiv:1803.06992) for the dimension.

    >>> corners = torch.eye(4).repeat_interleave(25, dim=0) + 1e-3 * torch.rand(100, 4)
    >>> clid(corners).learnability > 0.5
    True
    """
    x = spread_rows(features, MAX_ROWS)
    x = F.normalize(x.double(), dim=1)
    n_rows = len(x)
    n_clusters = max(2, round(n_rows**0.5))
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.filterwarnings("ignore", message="One of the clusters is empty")  # which changes nothing here
        _, clusters = kmeans2(x.cpu().numpy(), n_clusters, minit="++", rng=seed)
    labels = torch.from_numpy(clusters).to(x.device)
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed)).to(x.device)
    bank, queries = order[: n_rows // 2], order[n_rows // 2 :]
    nearest = torch.cat([(x[queries[rows]] @ x[bank].T).argmax(dim=1) for rows in blocks(len(queries), len(bank))])
    learnability = float((labels[bank][nearest] == labels[queries]).double().mean())
    return CLID(learnability, _dimension(x))


def _dimension(x: Tensor) -> float:
    """The intrinsic dimension of x (N, F) by the distances of each row to its two nearest neighbours."""
    ratios = []
    for rows in blocks(len(x), len(x)):
        nearest = (x[rows] @ x.T).topk(3, dim=1).indices  # the row itself, and two others
        distances = (x[nearest] - x[rows, None]).norm(dim=2).sort(dim=1).values  # more exact than by the product
        first, second = distances[:, 1], distances[:, 2]
        ratios.append((second / first)[first > 0])
    return float(1 / torch.cat(ratios).log().mean())
