"""Fits the linear heads of the offline probe: multinomial logistic regression, solved to its optimum by L-BFGS."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msssl.errors import UserError
from msssl.metrics.blocks import blocks
from msssl.progress import with_bar


def linear_probe(
    features: Tensor, labels: Tensor, *, num_classes: int, weight_decay: float = 1e-2, max_iter: int = 200
) -> nn.Linear:
    """Fit a linear classifier to frozen features by L-BFGS; see `linear_probes`, which fits several.

    >>> features = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> head = linear_probe(features, torch.tensor([0, 0, 1, 1]), num_classes=2)
    >>> head(features).argmax(dim=1)
    tensor([0, 0, 1, 1])
    """
    return linear_probes(features, labels, num_classes=num_classes, weight_decays=[weight_decay], max_iter=max_iter)[0]


def linear_probes(
    features: Tensor, labels: Tensor, *, num_classes: int, weight_decays: Sequence[float], max_iter: int = 200
) -> list[nn.Linear]:
    """Fit a linear classifier to frozen features for each weight decay.

    Minimises cross-entropy + weight_decay / 2 * ||W||^2 over features that are standardised by their own mean and
    standard deviation; the bias has no penalty. The problem is strictly convex in W and the solver starts from zero, so
    that the result depends on neither a seed nor a learning rate. The largest weight decay is solved first, and each
    solution is the start of the next one. The standardisation is folded into the returned layers. The memory needed in
    addition to the features is that of one float32 copy of them.

    Args:
        features: shape (N, F), floating point.
        labels: shape (N,), integers in [0, num_classes); rows labelled -1 are left out.
        num_classes: C.
        weight_decays: strengths of the L2 penalty, in units of the standardised features.
        max_iter: iterations of L-BFGS at most, for each weight decay.

    Returns:
        Layers that map raw features (N, F) to logits (N, C), in the order of `weight_decays`, on the device of the
        features, float32.

    Raises:
        ValueError: the shapes do not match, features are not finite, no row is labelled, or a label is num_classes or
            more.

    Source: Berkson 1944 for the model; Liu and Nocedal 1989 for L-BFGS; Kornblith et al. 2019 (arXiv:1805.08974) for
    this evaluation of encoders.
    """
    x, y, mean, std = _standardised(features, labels, num_classes)
    weight = x.new_zeros(num_classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(num_classes, requires_grad=True)
    heads: dict[float, nn.Linear] = {}
    strongest_first = sorted(weight_decays, reverse=True)
    for weight_decay in with_bar(strongest_first, "Linear heads") if len(strongest_first) > 1 else strongest_first:
        _minimise(weight, bias, x, y, weight_decay, max_iter)
        head = nn.utils.skip_init(nn.Linear, x.shape[1], num_classes, device=features.device)  # no random draw
        with torch.no_grad():
            head.weight.copy_(weight / std)
            head.bias.copy_(bias - (weight / std) @ mean)
        heads[weight_decay] = head.requires_grad_(False)
    return [heads[weight_decay] for weight_decay in weight_decays]


def _standardised(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The standardised labelled rows, their labels, and the mean and standard deviation of each column."""
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise UserError(f"features {tuple(features.shape)} and labels {tuple(labels.shape)}: expected (N, F) and (N,)")
    labelled = labels >= 0
    if not labelled.any():
        raise UserError(f"none of the {len(labels)} rows is labelled")
    if labels.max() >= num_classes:
        raise UserError(f"label {int(labels.max())} is not below num_classes={num_classes}")
    features = features.detach()
    if broken := sum(int((~features[block].isfinite().all(dim=1)).sum()) for block in blocks(*features.shape)):
        raise UserError(f"{broken} of {len(features)} rows of features are not finite")
    rows, y = labelled.nonzero().squeeze(1), labels[labelled].long()
    row_blocks = blocks(len(rows), features.shape[1])
    # In float64: the rounding error of a constant feature's mean would be divided by a tiny standard deviation.
    mean, variance = _mean_and_variance(features[rows[block]].double() for block in row_blocks)
    std = (variance + 1e-12).sqrt()
    x = torch.empty(len(rows), features.shape[1], device=features.device)
    for block in row_blocks:
        x[block] = features[rows[block]].double().sub_(mean).div_(std)
    return x, y, mean, std


def _mean_and_variance(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of each column, over all blocks of rows together."""
    n, mean, variance = 0, torch.zeros(()), torch.zeros(())
    for part in parts:
        n += len(part)
        share, delta = len(part) / n, part.mean(dim=0) - mean
        mean = mean + share * delta
        variance = (1 - share) * (variance + share * delta.square()) + share * part.var(dim=0, correction=0)
    return mean, variance


def _minimise(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, weight_decay: float, max_iter: int) -> None:
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iter,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    row_blocks = blocks(len(x), len(bias))  # each with logits of limited size

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = x.new_zeros(())
        for block in row_blocks:
            loss = F.cross_entropy(F.linear(x[block], weight, bias), y[block]) * (len(y[block]) / len(y))
            loss.backward()
            total += loss.detach()
        penalty = weight_decay / 2 * weight.square().sum()
        penalty.backward()
        return total + penalty.detach()

    with torch.enable_grad():
        optimizer.step(closure)
