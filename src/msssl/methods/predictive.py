"""`SimSiam` and `BYOL`: a predictor maps the embedding of each view to the mean of the targets of the other views."""

import copy
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from msssl.batch import StepOutput, ViewsBatch
from msssl.distributed import check_equal_shapes, gather
from msssl.errors import UserError
from msssl.losses._common import check_embeddings, mean_of_others
from msssl.methods.encoder import CompiledEncoder
from msssl.methods.module import MultiViewModule


class PredictiveModule(MultiViewModule):
    r"""A method with a predictor q; subclasses implement `targets(z)`.

    Let t_k be the targets of view k, and tb_{-k} the mean of those of the other views. q and the mean have unit length:

        similarity = mean_{k,n} q(z_kn) . tb_{-k,n}
        loss       = 2 - 2 similarity

    The loss alone does not punish a collapse: it is 0 where all embeddings are equal. Only the predictor, and targets
    without gradient, prevent it.

    Args:
        pred_hidden_dim: width of the predictor's hidden layer; `proj_dim` by default.
        **kwargs: arguments of `MultiViewModule`.

    Raises:
        ValueError: pred_hidden_dim is below 1.
    """

    def __init__(self, pred_hidden_dim: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if pred_hidden_dim is not None and pred_hidden_dim < 1:
            raise UserError(f"pred_hidden_dim is {pred_hidden_dim}: expected at least 1")
        self.pred_hidden_dim = hidden_dim = pred_hidden_dim or self.proj_dim
        self.predictor = nn.Sequential(
            nn.Linear(self.proj_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, self.proj_dim),
        )

    @abstractmethod
    def targets(self, z: Tensor) -> Tensor:
        """Targets (K, N, D), without gradient, of the views whose embeddings z (K, N, D) are of all ranks."""

    def predict(self, z: Tensor) -> Tensor:
        """Predictions (K, N, D) of embeddings z (K, N, D), at unit length."""
        z = check_embeddings(z)
        rows: Tensor = self.predictor(z.flatten(0, 1).to(self.dtype)).to(z.dtype)
        predicted: Tensor = F.normalize(rows, dim=-1).unflatten(0, z.shape[:2])
        return predicted

    def mean_targets(self, z: Tensor) -> Tensor:
        """The mean target of the other views (K, N, D), at unit length, for each of the embeddings z (K, N, D)."""
        return F.normalize(mean_of_others(self.targets(z)), dim=-1).to(z.dtype)

    @override
    def compute_loss(self, z: Tensor) -> dict[str, Tensor]:
        similarity = (self.predict(z) * self.mean_targets(z)).sum(dim=-1).mean()
        return {"loss": 2 - 2 * similarity, "similarity": similarity}


class SimSiam(PredictiveModule):
    """SimSiam for K >= 2 views: the targets are the embeddings themselves. With 4 views it is FastSiam.

    The authors' projector has three layers of width 2048 and a batch norm at its end, their predictor a hidden layer of
    width 512.

    Args:
        pred_hidden_dim: width of the predictor's hidden layer; `proj_dim` by default.
        **kwargs: arguments of `MultiViewModule`.

    Source: Chen and He 2021 (arXiv:2011.10566), eq. 4; Pototzky et al. 2022 (FastSiam), eq. 3, for K views.
    """

    @override
    def targets(self, z: Tensor) -> Tensor:
        return z.detach()


class BYOL(PredictiveModule):
    """BYOL for K >= 2 views: the targets are the embeddings of a network whose weights follow slowly.

    Args:
        momentum: share of its weights that the target network keeps at an optimizer step, in [0, 1].
        pred_hidden_dim: width of the predictor's hidden layer; `proj_dim` by default.
        **kwargs: arguments of `MultiViewModule`.

    Raises:
        ValueError: the momentum is not in [0, 1], or the weights have 16 bits.

    Source: Grill et al. 2020 (arXiv:2006.07733), eq. 2 and 3. Differs: the momentum is constant, and each of any number
    of views is predicted from the others.
    """

    def __init__(self, momentum: float = 0.99, pred_hidden_dim: int | None = None, **kwargs: Any) -> None:
        super().__init__(pred_hidden_dim=pred_hidden_dim, **kwargs)
        if not 0 <= momentum <= 1:
            raise UserError(f"momentum is {momentum}: expected a number in [0, 1]")
        self.momentum = momentum
        self.target = copy.deepcopy(self._online).requires_grad_(False)
        self._compiled_target: CompiledEncoder | None = None
        self._targets: Tensor | None = None  # of the batch, within a training step

    @property
    def _online(self) -> nn.Sequential:
        """The network that the target follows."""
        return nn.Sequential(self.backbone, self.projector)

    @override
    def on_fit_start(self) -> None:
        if self.dtype in (torch.bfloat16, torch.float16):
            raise UserError(
                f"weights are {self.dtype}: the target network of BYOL moves by steps that these round away; take "
                "precision bf16-mixed"
            )
        is_fresh = not self._has_weights
        super().on_fit_start()
        if is_fresh:  # the backbone may have started from given weights
            self.target.load_state_dict(self._online.state_dict())

    @override
    def configure_model(self) -> None:
        super().configure_model()
        for online, target in zip(self._online.parameters(), self.target.parameters(), strict=True):
            target.data = torch.empty_like(online).copy_(target)  # in the memory layout of the online network
        self._compiled_target = None if self._compiled is None else CompiledEncoder(self.target.forward)

    @override
    def training_step(self, batch: ViewsBatch, batch_idx: int) -> StepOutput:
        targets = self._target_embeddings(batch["views"])
        if not self._shapes_checked:  # once: it waits for all ranks
            check_equal_shapes(targets)
        self._targets = gather(targets if targets.dtype == torch.float64 else targets.float())
        try:
            return super().training_step(batch, batch_idx)
        finally:
            self._targets = None

    @torch.no_grad()
    def _target_embeddings(self, views: Tensor | list[Tensor]) -> Tensor:
        """Embeddings (K, N, D) by the target network, with as many views at once as in the online network."""
        groups = views if isinstance(views, list) else [views]
        self._check_channels(groups[0])
        chunks = [chunk for group in groups for chunk in group.split(self.chunk_views or len(group))]
        encode: Any = self._compiled_target or self.target
        embeddings = [encode(chunk.flatten(0, 1).to(self.dtype)).unflatten(0, chunk.shape[:2]) for chunk in chunks]
        return torch.cat(embeddings)

    @override
    def targets(self, z: Tensor) -> Tensor:
        return z.detach() if self._targets is None else self._targets  # none where the loss alone is called

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)  # once for several accumulated batches
        with torch.no_grad():
            torch._foreach_lerp_([*self.target.parameters()], [*self._online.parameters()], 1 - self.momentum)
