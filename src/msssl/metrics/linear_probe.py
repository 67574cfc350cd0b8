"""The offline linear probe: multinomial logistic regression, solved to its optimum."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear_probe(
    features: Tensor, labels: Tensor, *, num_classes: int, weight_decay: float = 1e-2, max_iter: int = 200
) -> nn.Linear:
    """Fit a linear classifier to frozen features by L-BFGS.

    Minimises cross-entropy + weight_decay / 2 * ||W||^2 over features that are standardised by their own mean and
    standard deviation; the bias is free. The problem is strictly convex in W and starts from zero, so there is
    nothing to seed and no learning rate to tune. The standardisation is folded into the returned layer.

    Args:
        features: shape (N, F), floating point.
        labels: shape (N,), integers in [0, num_classes); rows labelled -1 are left out.
        num_classes: C.
        weight_decay: strength of the L2 penalty, in units of the standardised features.
        max_iter: iterations of L-BFGS at most.

    Returns:
        A layer from raw features (N, F) to logits (N, C), on the device of the features, float32.

    Raises:
        ValueError: shapes that do not match, no labelled row, or a label that is num_classes or more.

    Source: Berkson 1944 for the model; Liu and Nocedal 1989 for L-BFGS. Kornblith et al. 2019 (arXiv:1805.08974)
    evaluate encoders so.

    >>> features = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> head = linear_probe(features, torch.tensor([0, 0, 1, 1]), num_classes=2)
    >>> head(features).argmax(dim=1)
    tensor([0, 0, 1, 1])
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"features {tuple(features.shape)} and labels {tuple(labels.shape)}: expected (N, F) and (N,)")
    labelled = labels >= 0
    if not labelled.any():
        raise ValueError(f"none of the {len(labels)} rows is labelled")
    if labels.max() >= num_classes:
        raise ValueError(f"label {int(labels.max())} is not below num_classes={num_classes}")
    raw, y = features[labelled].double(), labels[labelled].long()
    mean = raw.mean(dim=0)  # in float32 the rounding of a constant feature's mean would be scaled up to weights
    std = (raw.var(dim=0, correction=0) + 1e-12).sqrt()
    x = ((raw - mean) / std).float()

    weight = x.new_zeros(num_classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iter, tolerance_grad=1e-5, tolerance_change=1e-8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)

    head = nn.utils.skip_init(nn.Linear, x.shape[1], num_classes, device=features.device)  # no random draw
    with torch.no_grad():
        head.weight.copy_(weight / std)
        head.bias.copy_(bias - (weight / std) @ mean)
    fitted: nn.Linear = head.requires_grad_(False)
    return fitted
