"""The method that all losses share: views -> backbone -> projector -> loss."""

import inspect
from abc import ABC, abstractmethod
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from msssl.backbones import build_backbone, check_features, evaluating, find_feature_dim
from msssl.distributed import check_equal_shapes, gather
from msssl.errors import UserError
from msssl.methods.encoder import CompiledEncoder, features_of
from msssl.methods.optimizer import (
    WarmupCosine,
    arguments_of,
    let_clip,
    parameter_groups,
    refuse_finders,
    take_arguments,
    take_memory_layout,
    with_schedule,
)
from msssl.methods.weights import load_weights
from msssl.run.exact_resume import ExactResume
from msssl.run.memory_advice import MemoryAdvice
from msssl.run.non_finite_guard import NonFiniteGuard
from msssl.run.reloadable import Reloadable
from msssl.run.steps import is_logging_step, run_length, trainer_of
from msssl.seeding import derive_seed
from msssl.views import Preprocess


class MultiViewModule(Reloadable, LightningModule, ABC):  # type: ignore[misc]  # its load_from_checkpoint is a descriptor
    """Pretrains a backbone with a loss over K views; subclasses implement `compute_loss(z)`.

    All K*N views pass through backbone and projector as one batch, so BatchNorm pools its statistics over the views.
    Views of several sizes pass through the backbone as one batch for each size, and together through the projector.
    `module(images)` returns backbone features (N, F) of normalised images: those of a file are
    `module.preprocess.evaluate(images)`, where the module comes from a checkpoint.

    Args:
        backbone: `resnet18`, `resnet34` or `resnet50` (`msssl.ResNet` at width 64 with the small-image stem),
            `timm:<name>`, or a module that maps (N, 3, H, W) to (N, F).
        proj_dim: D, width of the projector's output.
        proj_hidden_dim: width of its hidden layers; `proj_dim` by default.
        proj_layers: its linear layers; 2 is the paper's projector, 1 a single linear map.
        weights: what the backbone of a fresh run starts from: a checkpoint, a file of a `state_dict`, or such as
            `torchvision:ResNet50_Weights.IMAGENET1K_V2` or `timm:resnet50.a1_in1k`; a run that goes on, and a loaded
            checkpoint, keep their own.
        feature_dim: F; found from the backbone by default.
        decay_bias_and_norm: whether weight decay acts on biases and normalisation parameters too.
        chunk_views: how many of the K views pass through the backbone together, computed again in the backward pass:
            memory is that of these alone, for a third more time, and BatchNorm's statistics are those of each such
            part; by default all views pass together, and are kept.
        compile: whether `torch.compile` fuses the backbone in training, after a minute or so; `auto` is yes on CUDA.
            Where it does, and on CUDA in any case, the backbone's weights lie in memory with channels last.
        optimizer: from parameters to an optimizer; Adam as in the paper by default.
        lr_scheduler: from the optimizer to a schedule that steps once an epoch (`msssl.WarmupCosine`: every step);
            constant by default.

    Source: Ghosh et al. 2024 (NeurIPS), appendix D for projector and optimizer.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        proj_dim: int = 256,
        proj_hidden_dim: int | None = None,
        proj_layers: int = 2,
        weights: str | None = None,
        feature_dim: int | None = None,
        decay_bias_and_norm: bool = True,
        chunk_views: int | None = None,
        compile: bool | Literal["auto"] = False,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-6),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_plain_hyperparameters()
        for name, number in {"proj_layers": proj_layers, "proj_dim": proj_dim, "chunk_views": chunk_views}.items():
            if number is not None and number < 1:
                raise UserError(f"{name} is {number}: expected at least 1")
        self.backbone = build_backbone(backbone)
        self.feature_dim = feature_dim or find_feature_dim(self.backbone)
        self.proj_dim = proj_dim
        hidden_dim = proj_hidden_dim or proj_dim
        self.projector = _projector([self.feature_dim, *[hidden_dim] * (proj_layers - 1), proj_dim])
        self.weights = weights
        self.decay_bias_and_norm = decay_bias_and_norm
        self.chunk_views = chunk_views
        self.compile_backbone = compile
        self._compiled: CompiledEncoder | None = None
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.preprocess: Preprocess | None = None  # of the run that the weights are from
        self._optimizer_arguments: list[dict[str, Any]] = []
        self._step_seed: int | None = None
        self._shapes_checked = False
        self._has_weights = False

    @abstractmethod
    def compute_loss(self, z: Tensor) -> Tensor | dict[str, Tensor]:
        """Loss of the embeddings z (K, N, D), float32, N being the global batch: z is gathered over the devices.

        Returns a scalar, or a dict of scalars with the key `loss`; each is logged as `train/<name>`. Random numbers
        come from `step_generator`, so that all ranks draw the same.
        """

    def step_generator(self) -> torch.Generator:
        """A generator of random numbers on this module's device, for this optimizer step.

        It depends on the seed of the run and the number of the step alone: it is the same on every rank, for all
        batches whose gradients accumulate, and in a run that goes on. The global random state is left as it was. Each
        call begins the numbers of the step anew: take all that a step needs from one generator.
        """
        seed = torch.initial_seed() if self._step_seed is None else self._step_seed
        return torch.Generator(self.device).manual_seed(derive_seed("step", seed, self.global_step))

    def terms(self, z: Tensor) -> dict[str, Tensor]:
        """What `compute_loss` returns, as a dict, for this rank's embeddings z (K, N, D) gathered over the ranks.

        It runs outside autocast and sees float32, or float64 if z is: losses are small differences of large sums.
        """
        gathered = gather(z if z.dtype == torch.float64 else z.float())  # so that its gradient is not rounded either
        with torch.autocast(z.device.type, enabled=False):
            terms = self.compute_loss(gathered)
        if isinstance(terms, Tensor):
            terms = {"loss": terms}
        name = type(self).__name__
        if not isinstance(terms, dict):
            raise UserError(f"{name}.compute_loss returned a {type(terms).__name__}: expected a tensor or a dict")
        if "loss" not in terms:
            raise UserError(f"{name}.compute_loss returned {', '.join(terms)}: expected a 'loss' too")
        for term, value in terms.items():
            if isinstance(value, Tensor) and value.numel() != 1:
                shape = tuple(value.shape)
                raise UserError(f"{name}.compute_loss returned {term} of shape {shape}: expected one number, its mean")
        return terms

    @override
    def setup(self, stage: str) -> None:
        if (trainer := trainer_of(self)) is not None:  # ranks are seeded alike only if the user seeds them
            self._step_seed = trainer.strategy.broadcast(torch.initial_seed())

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        given = getattr(getattr(trainer_of(self), "datamodule", None), "preprocess", None)
        if isinstance(given, Preprocess):  # else there is no data module, or one of the user's own kind
            self.preprocess = given
        if self.preprocess is not None:
            checkpoint["preprocess"] = self.preprocess.as_dict()
        checkpoint["working_dir"] = str(Path.cwd())  # from which relative paths of the run are meant
        checkpoint["step_seed"] = self._step_seed

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._has_weights = True
        self._step_seed = checkpoint.get("step_seed", self._step_seed)  # a run that goes on keeps its random numbers
        if "preprocess" in checkpoint:
            self.preprocess = Preprocess.from_dict(checkpoint["preprocess"])

    @override
    def on_fit_start(self) -> None:  # not in `setup`, which does not know yet whether a run goes on
        if self.weights is not None and not self._has_weights:
            load_weights(self.backbone, self.weights)
        self._has_weights = True

    @override
    def configure_model(self) -> None:  # before DDP looks at the layout of the parameters
        trainer = trainer_of(self)
        device = trainer.strategy.root_device if trainer else self.device  # the module itself has not moved there yet
        compiles = self.compile_backbone is True or (self.compile_backbone == "auto" and device.type == "cuda")
        if compiles or device.type == "cuda":  # in which the views come there, and its convolutions are fastest
            self.backbone.to(memory_format=torch.channels_last)
        self._compiled = None
        if compiles:
            self._compiled = CompiledEncoder(self.forward)  # in training alone: evaluation has sizes of its own

    @override
    def forward(self, images: Tensor) -> Tensor:
        return check_features(self.backbone(images.to(self.dtype)), self.backbone)  # e.g. under precision 64-true

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        views = batch["views"]  # (K, N, C, H, W), or a list of such, one for each size
        groups = views if isinstance(views, list) else [views]
        encode: Any = self._compiled or self
        features = torch.cat([features_of(encode, group, self.chunk_views, self.backbone) for group in groups])
        z = self.projector(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        if not self._shapes_checked:  # once: it waits for all ranks
            check_equal_shapes(z)
            self._shapes_checked = True
        terms = self.terms(z)
        detached = {name: torch.as_tensor(value).detach() for name, value in terms.items()}
        for name, value in detached.items() if is_logging_step(trainer_of(self)) else []:
            self.log(f"train/{name}", value, batch_size=z.shape[1])  # not for the bar: Lightning would wait for it
        outputs = {
            "loss": terms["loss"],
            "terms": detached,
            "features": features.detach(),  # (K, N, F)
            "label": batch["label"],
        }
        if "probe" in batch:
            probe = batch["probe"]
            outputs["probe"] = {"features": self._clean_features(probe["image"])[None], "label": probe["label"]}
        return outputs

    @torch.no_grad()
    def _clean_features(self, images: Tensor) -> Tensor:
        """Features in evaluation mode: BatchNorm's statistics never see these images."""
        with evaluating(self.backbone):
            features: Tensor = self(images)
        return features

    @override
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return {"features": self(batch["image"]), "label": batch["label"], "index": batch["index"]}

    test_step = predict_step = validation_step

    @override
    def configure_callbacks(self) -> list[Callback]:
        refuse_finders(self.trainer)
        return [NonFiniteGuard(), ExactResume(), MemoryAdvice()]

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(parameter_groups(self, self.decay_bias_and_norm))
        self._optimizer_arguments = arguments_of(optimizer)
        let_clip(optimizer, trainer_of(self))
        return with_schedule(optimizer, self.make_lr_scheduler)

    @override
    def on_train_start(self) -> None:  # after the optimizer of a checkpoint is loaded: arguments win over it
        for loaded in self.trainer.optimizers:
            take_memory_layout(loaded)
        scheduler = self.lr_schedulers()
        if self._optimizer_arguments:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            take_arguments(optimizer, self._optimizer_arguments, scheduler)
        if isinstance(scheduler, WarmupCosine):
            step, total_steps = run_length(self.trainer)  # which may have changed since the checkpoint
            scheduler.fill_in(total_steps, step)


# Under this name `pickle` finds the default, as `torch.save(module)` and `ddp_spawn` need; for the command line, which
# reads its source, it stays the lambda that it is.
_default_optimizer = inspect.signature(MultiViewModule).parameters["optimizer"].default
_default_optimizer.__qualname__ = "_default_optimizer"


def _projector(dims: list[int]) -> nn.Sequential:
    """Linear(bias=False), BatchNorm1d, ReLU between each two widths, then Linear."""
    layers: list[nn.Module] = []
    for width, next_width in pairwise(dims[:-1]):
        layers += [nn.Linear(width, next_width, bias=False), nn.BatchNorm1d(next_width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(dims[-2], dims[-1]))
