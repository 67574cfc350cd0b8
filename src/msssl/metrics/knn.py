"""Classifies features by their weighted k nearest neighbours."""

import torch
from torch import Tensor
from torch.nn import functional as F

from msssl.errors import UserError
from msssl.metrics.blocks import blocks


@torch.no_grad()
def knn(
    features: Tensor, bank: Tensor, bank_labels: Tensor, *, num_classes: int, k: int = 200, temperature: float = 0.1
) -> Tensor:
    """Scores of each class by the votes of the k nearest neighbours in a bank of labelled features.

    A neighbour with cosine similarity s votes for its class with weight exp(s / temperature).

    Args:
        features: features to classify, shape (N, F), floating point.
        bank: labelled features, shape (M, F), on the same device.
        bank_labels: shape (M,), integers in [0, num_classes); rows labelled -1 are left out.
        num_classes: C.
        k: number of neighbours; at most half of the labelled bank is taken, see `neighbours_taken`.
        temperature: temperature of the votes.

    Returns:
        Scores of shape (N, C), which sum to 1 for each row; `argmax(dim=1)` is the prediction.

    Raises:
        ValueError: the shapes do not match, or the bank has no labelled rows.

    Source: Wu et al. 2018 (arXiv:1805.01978), section 3.4.

    >>> bank, labels = torch.eye(4)[[0, 0, 0, 1, 1, 1]], torch.tensor([0, 0, 0, 1, 1, 1])
    >>> knn(torch.tensor([[2.0, 1.0, 0.0, 0.0]]), bank, labels, num_classes=2).argmax(dim=1)
    tensor([0])
    """
    if features.ndim != 2 or bank.ndim != 2 or features.shape[1] != bank.shape[1] or len(bank_labels) != len(bank):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (features, bank, bank_labels))
        raise UserError(f"features, bank and bank_labels are {shapes}: expected (N, F), (M, F) and (M,)")
    labelled = bank_labels >= 0
    if not labelled.any():
        raise UserError("the bank has no labelled rows")
    if labelled.all():
        bank = F.normalize(bank, dim=1)
    else:  # normalise in place: indexing has made a copy already
        bank, bank_labels = bank[labelled], bank_labels[labelled]
        F.normalize(bank, dim=1, out=bank)
    similarity, nearest = _neighbours(features, bank, neighbours_taken(bank_labels, k))
    votes = torch.softmax(similarity / temperature, dim=1)  # exp(s / temperature), normalised without overflow
    return votes.new_zeros(len(features), num_classes).scatter_add_(1, bank_labels[nearest], votes)


def neighbours_taken(bank_labels: Tensor, k: int = 200) -> int:
    """The number of neighbours that `knn` takes from a bank: k, but at most half of its labelled rows.

    >>> neighbours_taken(torch.arange(76) % 2), neighbours_taken(torch.zeros(5000))
    (38, 200)
    """
    return min(k, max(1, int((bank_labels >= 0).sum()) // 2))


@torch.no_grad()
def neighbours(features: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of a bank (M, F) nearest to each feature (N, F): their cosine similarities and indices, both (N, k).

    >>> neighbours(torch.tensor([[2.0, 1.0]]), torch.eye(2), k=2)[1]
    tensor([[0, 1]])
    """
    return _neighbours(features, F.normalize(bank, dim=1), k)


def _neighbours(features: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`neighbours` in a bank whose rows have length 1."""
    row_blocks = blocks(len(features), max(bank.shape))
    nearest_of_blocks = [(F.normalize(features[block], dim=1) @ bank.T).topk(k, dim=1) for block in row_blocks]
    similarity, nearest = zip(*nearest_of_blocks, strict=True)
    return torch.cat(similarity), torch.cat(nearest)
