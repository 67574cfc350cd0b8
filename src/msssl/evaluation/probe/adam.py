"""Classifiers that are trained by Adam: one with a hidden layer (MLP), and the linear head of the paper."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from msssl.evaluation.probe.features import Split
from msssl.metrics import blocks
from msssl.progress import with_bar

HIDDEN_DIM, BATCH_SIZE, LR, WEIGHT_DECAY = 256, 256, 1e-3, 1e-2  # of the MLP, by AdamW
AVERAGED = 0.98  # share of the average that is kept in a step: over about 50 steps
ROUNDS, MIN_STEPS, PATIENCE = 40, 25, 5  # a round is an epoch, and these steps at least
PAPER_EPOCHS, PAPER_BATCH_SIZE, PAPER_LR, PAPER_WEIGHT_DECAY, PAPER_SMOOTHING = 200, 512, 1e-3, 1e-6, 0.1


def mlp_probe(
    train: Split, *, num_classes: int, rounds: int = ROUNDS, val: Split | None = None
) -> tuple[nn.Module, int, float | None]:
    """Train Linear, ReLU, Linear on standardised features by AdamW, and average the weights of the last steps.

    Args:
        train: features (N, F) and labels (N,); rows labelled -1 are left out.
        num_classes: C.
        rounds: how many rounds to train, at most; a round is an epoch, but at least 25 steps.
        val: features and labels; if given, training stops 5 rounds after the best accuracy on them.

    Returns:
        The head, the number of rounds after which the accuracy on `val` was best, and that accuracy. Without `val`
        these are `rounds` and None. With `val` the head is that of the last round, not of the best one: to get the
        best, train again for that many rounds.
    """
    x, y = _labelled(train)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        head = nn.Sequential(
            _standardise(x),
            nn.Linear(x.shape[1], HIDDEN_DIM),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN_DIM, num_classes),
        ).to(x.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    steps = _train(head, optimizer, x, y, BATCH_SIZE)
    average = AveragedModel(head, multi_avg_fn=get_ema_multi_avg_fn(AVERAGED))
    steps_per_round = max(MIN_STEPS, -(-len(x) // BATCH_SIZE))
    best: tuple[int, float | None] = rounds, None
    for number in with_bar(range(1, rounds + 1), "MLP head", rounds):
        for _ in islice(steps, steps_per_round):
            average.update_parameters(head)
        if val is None:
            continue
        accuracy = top1(scores_of(average, val[0]), val[1])
        if best[1] is None or accuracy > best[1]:
            best = number, accuracy
        elif number - best[0] == PATIENCE:
            break
    return average.module.requires_grad_(False), *best


def paper_probe(train: Split, *, num_classes: int) -> nn.Module:
    """Train a linear head as Ghosh et al. do (2024, appendix D, with the weight decay of their code)."""
    x, y = _labelled(train)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        head = nn.Linear(x.shape[1], num_classes).to(x.device)
    optimizer = torch.optim.Adam(head.parameters(), lr=PAPER_LR, weight_decay=PAPER_WEIGHT_DECAY)
    steps = _train(head, optimizer, x, y, PAPER_BATCH_SIZE, PAPER_SMOOTHING)
    steps_per_epoch = -(-len(x) // PAPER_BATCH_SIZE)
    for _ in with_bar(range(PAPER_EPOCHS), "The paper's head", PAPER_EPOCHS):
        for _ in islice(steps, steps_per_epoch):
            pass
    return head.requires_grad_(False)


@torch.no_grad()
def scores_of(head: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, C) of features (N, F), computed in blocks of rows to save memory."""
    return torch.cat([head(x[block]) for block in blocks(len(x), max(x.shape[1], HIDDEN_DIM))])


def top1(scores: Tensor, labels: Tensor) -> float:
    """Share of the labelled rows whose largest score is that of their own class."""
    labelled = labels >= 0
    return float((scores[labelled].argmax(dim=1) == labels[labelled]).double().mean())


def _standardise(x: Tensor) -> nn.BatchNorm1d:
    """A layer that standardises features by the mean and variance of these rows, also in training mode."""
    norm = nn.BatchNorm1d(x.shape[1], affine=False).eval()
    norm.running_mean, norm.running_var = x.mean(dim=0), x.var(dim=0, correction=0)
    return norm


def _labelled(split: Split) -> Split:
    x, y = split
    labelled = y >= 0
    return split if labelled.all() else (x[labelled], y[labelled])  # without a copy where it can be


def _train(
    head: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, batch_size: int, smoothing: float = 0.0
) -> Iterator[None]:
    """Train endlessly, yielding after each step; each epoch is a seeded permutation of the rows."""
    generator = torch.Generator().manual_seed(0)
    while True:
        for rows in torch.randperm(len(x), generator=generator).to(x.device).split(batch_size):
            loss = F.cross_entropy(head(x[rows]), y[rows], label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield
