"""`MultiViewModule`, the base class of all methods: views -> backbone -> projector -> loss, and the optimizer."""

import inspect
import logging
from abc import ABC, abstractmethod
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from msssl.backbones import (
    build_backbone,
    channels_of,
    check_channels,
    check_features,
    evaluating,
    find_feature_dim,
)
from msssl.batch import Batch, EvaluationOutput, StepOutput, ViewsBatch
from msssl.distributed import check_equal_shapes, gather
from msssl.errors import UserError
from msssl.losses._common import check_positive
from msssl.methods.encoder import CompiledEncoder, features_of
from msssl.methods.optimizer import (
    WarmupCosine,
    arguments_of,
    let_clip,
    parameter_groups,
    refuse_finders,
    scale_backbone_rate,
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

log = logging.getLogger(__name__)


class MultiViewModule(Reloadable, LightningModule, ABC):  # type: ignore[misc]  # its load_from_checkpoint is a descriptor
    """Pretrains a backbone with a loss over K views; subclasses implement `compute_loss(z)`.

    All K*N views pass through backbone and projector as one batch, so BatchNorm pools its statistics over the views.
    Views of several sizes pass through the backbone as one batch for each size, and together through the projector.
    `module(images)` returns backbone features (N, F) of normalised images. Where the module was loaded from a
    checkpoint, `module.preprocess.evaluate(images)` normalises images as its run did.

    Args:
        backbone: `resnet18`, `resnet34` or `resnet50` (`msssl.ResNet` at width 64 with the small-image stem),
            `timm:<name>`, or a module that maps (N, C, H, W) to (N, F).
        proj_dim: D, width of the projector's output.
        proj_hidden_dim: width of the projector's hidden layers; `proj_dim` by default.
        proj_layers: number of the projector's linear layers; 2 is the paper's projector, 1 a single linear map, and 0
            none: the loss then sees the features themselves, and D is F whatever `proj_dim` says.
        weights: weights from which the backbone of a new run starts: a checkpoint, a file of a `state_dict`, or a name
            such as `torchvision:ResNet50_Weights.IMAGENET1K_V2` or `timm:resnet50.a1_in1k`. A resumed run and a loaded
            checkpoint ignore them.
        feature_dim: F; by default what the backbone says, or the width of its output for one image.
        decay_bias_and_norm: whether weight decay acts on biases and normalisation parameters too.
        backbone_lr_scale: what the learning rate of the backbone is multiplied by; 0.1 keeps given `weights` while the
            projector learns at the full rate.
        chunk_views: number of views that pass through the backbone together, with their activations computed again in
            the backward pass. This needs the memory of these views alone and a third more time, and BatchNorm has the
            statistics of these views. By default all views pass together, without recomputation.
        compile: whether `torch.compile` compiles the backbone for training, which takes about a minute; `auto` does so
            on CUDA. A compiled backbone, and any backbone on CUDA, has its weights in channels-last memory format.
        optimizer: makes an optimizer of the parameters; Adam as in the paper by default.
        lr_scheduler: makes a schedule of the optimizer, which steps once an epoch (`msssl.WarmupCosine`: every step);
            the learning rate is constant by default.
        in_channels: C, the number of channels of the images, for a backbone that is given by name. A module has its
            own number, which it may tell by its attribute `in_channels`.

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
        backbone_lr_scale: float = 1.0,
        chunk_views: int | None = None,
        compile: bool | Literal["auto"] = False,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-6),
        lr_scheduler: LRSchedulerCallable | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.save_plain_hyperparameters()
        least = {"proj_layers": (proj_layers, 0), "proj_dim": (proj_dim, 1), "chunk_views": (chunk_views, 1)}
        for name, (number, smallest) in least.items():
            if number is not None and number < smallest:
                raise UserError(f"{name} is {number}: expected at least {smallest}")
        self.backbone = build_backbone(backbone, in_channels)
        self._backbone_by_name = isinstance(backbone, str)
        self.in_channels = in_channels if self._backbone_by_name else channels_of(self.backbone)
        self.feature_dim = feature_dim or find_feature_dim(self.backbone, self.in_channels)
        self.proj_dim = proj_dim if proj_layers else self.feature_dim
        hidden_dims = [proj_hidden_dim or proj_dim] * (proj_layers - 1)
        self.projector = _projector([self.feature_dim, *hidden_dims, proj_dim]) if proj_layers else nn.Sequential()
        self.weights = weights
        self.decay_bias_and_norm = decay_bias_and_norm
        self.backbone_lr_scale = check_positive("backbone_lr_scale", backbone_lr_scale)
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
        """Compute the loss of embeddings.

        Take random numbers from `step_generator`, so that all ranks draw the same.

        Args:
            z: shape (K, N, D), float32, gathered over all ranks: N is the global batch.

        Returns:
            A scalar, or a dict of scalars with the key `loss`; each is logged as `train/<name>`.
        """

    def step_generator(self) -> torch.Generator:
        """A random number generator for this optimizer step, on this module's device.

        Its seed depends only on the seed of the run and the number of the step. So it is the same on every rank, for
        all batches whose gradients are accumulated, and in a resumed run. The global random state does not change.
        Each call returns a generator that starts again: draw all random numbers of a step from one generator.
        """
        seed = torch.initial_seed() if self._step_seed is None else self._step_seed
        return torch.Generator(self.device).manual_seed(derive_seed("step", seed, self.global_step))

    def terms(self, z: Tensor) -> dict[str, Tensor]:
        """Gather this rank's embeddings z (K, N, D) over the ranks, and return their `compute_loss` as a dict.

        The loss is computed outside autocast in float32 (float64 if z is), since losses are small differences of large
        sums.

        Raises:
            ValueError: `compute_loss` returned something else than a scalar or a dict of scalars with the key `loss`.
        """
        gathered = gather(z if z.dtype == torch.float64 else z.float())  # in float32, so that its gradient is too
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
        preprocess = getattr(getattr(trainer_of(self), "datamodule", None), "preprocess", None)
        if isinstance(preprocess, Preprocess):  # else there is no data module, or one of another library
            self.preprocess = preprocess
        if self.preprocess is not None:
            checkpoint["preprocess"] = self.preprocess.as_dict()
        checkpoint["working_dir"] = str(Path.cwd())  # to which relative paths of the run refer
        checkpoint["step_seed"] = self._step_seed

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._has_weights = True
        self._step_seed = checkpoint.get("step_seed", self._step_seed)  # a resumed run draws the same
        if "preprocess" in checkpoint:
            self.preprocess = Preprocess.from_dict(checkpoint["preprocess"])

    @override
    def on_fit_start(self) -> None:  # not in `setup`, when it is not known yet whether the run is resumed
        if self.weights is not None and not self._has_weights:
            load_weights(self.backbone, self.weights)
        self._has_weights = True
        if weights := _weights_of_the_loss(self):
            log.info("loss of %s: %s", type(self).__name__, ", ".join(weights))

    @override
    def configure_model(self) -> None:  # before DDP records the layout of the parameters
        trainer = trainer_of(self)
        device = trainer.strategy.root_device if trainer else self.device  # the module itself has not moved there yet
        compiles = self.compile_backbone is True or (self.compile_backbone == "auto" and device.type == "cuda")
        if compiles or device.type == "cuda":  # as the views are there; fastest for convolutions
            self.backbone.to(memory_format=torch.channels_last)
        self._compiled = None
        if compiles:
            self._compiled = CompiledEncoder(self.forward)  # for training only: evaluation has other sizes

    def _check_channels(self, images: Tensor) -> None:
        check_channels(images, self.backbone, self.in_channels, self._backbone_by_name)

    @override
    def forward(self, images: Tensor) -> Tensor:
        self._check_channels(images)
        return check_features(self.backbone(images.to(self.dtype)), self.backbone)  # e.g. under precision 64-true

    @override
    def training_step(self, batch: ViewsBatch, batch_idx: int) -> StepOutput:
        views = batch["views"]
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
        output = StepOutput(loss=terms["loss"], terms=detached, features=features.detach(), label=batch["label"])
        if "probe" in batch:
            probe = batch["probe"]
            output["probe"] = {"features": self._clean_features(probe["image"])[None], "label": probe["label"]}
        return output

    @torch.no_grad()
    def _clean_features(self, images: Tensor) -> Tensor:
        """Features in evaluation mode, so that these images do not change BatchNorm's statistics."""
        with evaluating(self.backbone):
            features: Tensor = self(images)
        return features

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> EvaluationOutput:
        return {"features": self(batch["image"]), "label": batch["label"], "index": batch["index"]}

    test_step = predict_step = validation_step

    @override
    def configure_callbacks(self) -> list[Callback]:
        refuse_finders(self.trainer)
        return [NonFiniteGuard(), ExactResume(), MemoryAdvice()]

    @override
    def configure_optimizers(self) -> Any:
        backbone = None if self.backbone_lr_scale == 1 else self.backbone
        optimizer = self.make_optimizer(parameter_groups(self, self.decay_bias_and_norm, backbone))
        scale_backbone_rate(optimizer, self.backbone_lr_scale)
        self._optimizer_arguments = arguments_of(optimizer)
        let_clip(optimizer, trainer_of(self))
        return with_schedule(optimizer, self.make_lr_scheduler)

    @override
    def on_train_start(self) -> None:  # after the optimizer of a checkpoint was loaded, whose arguments are replaced
        for loaded in self.trainer.optimizers:
            take_memory_layout(loaded)
        scheduler = self.lr_schedulers()
        if self._optimizer_arguments:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            take_arguments(optimizer, self._optimizer_arguments, scheduler)
        if isinstance(scheduler, WarmupCosine):
            step, total_steps = run_length(self.trainer)  # which may have changed since the checkpoint
            scheduler.fill_in(total_steps, step)


# `pickle`, which `torch.save(module)` and `ddp_spawn` need, finds the default optimizer under this name. It stays a
# lambda because the command line reads its source.
_default_optimizer = inspect.signature(MultiViewModule).parameters["optimizer"].default
_default_optimizer.__qualname__ = "_default_optimizer"


def _weights_of_the_loss(module: MultiViewModule) -> list[str]:
    """Name and value of each argument that a method has beyond those of all methods."""
    shared = inspect.signature(MultiViewModule).parameters
    own = [name for name in inspect.signature(type(module)).parameters if name not in shared and name in vars(module)]
    values = {name: getattr(module, name) for name in own}
    return [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()]


def _projector(dims: list[int]) -> nn.Sequential:
    """Linear(bias=False), BatchNorm1d and ReLU for each hidden width, then Linear to the last width."""
    layers: list[nn.Module] = []
    for width, next_width in pairwise(dims[:-1]):
        layers += [nn.Linear(width, next_width, bias=False), nn.BatchNorm1d(next_width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(dims[-2], dims[-1]))
