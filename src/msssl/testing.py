"""Checks that every method must pass: test your own method with one line, `check_method(MyLoss)`."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.data import DataLoader

from msssl.methods import MultiViewModule
from msssl.methods.predictive import PredictiveModule

Check = Callable[..., None]


def check_method(method: type[MultiViewModule], **kwargs: Any) -> None:
    """Run all checks of this file on a method.

    Where a method is meant to fail a check, such as a method whose views have different roles, loop over `CHECKS`
    instead and leave that check out: each check takes the same arguments as this function.

    Args:
        method: a subclass of `MultiViewModule` whose `compute_loss` depends on nothing but z and random numbers of
            `step_generator`.
        **kwargs: arguments of the method, except for the backbone.

    Raises:
        AssertionError: a check failed; the message says which and what to do. An error that `compute_loss` itself
            raises is passed on with a note of what it was called with.

    >>> from msssl import BarlowTwins
    >>> check_method(BarlowTwins, beta=0.1)
    """
    for check in checks_of(method):
        check(method, **kwargs)


def checks_of(method: type[MultiViewModule]) -> list[Check]:
    """The checks that a method must pass: all, except that one with a predictor may collapse, and have a BatchNorm."""
    if issubclass(method, PredictiveModule):
        return [check for check in CHECKS if check not in NOT_OF_PREDICTORS]
    return [*CHECKS]


def embeddings(n_views: int, n_images: int = 32, dim: int = 8) -> Tensor:
    """Random embeddings (K, N, D), float64, of correlated views, whose dimensions differ in mean and scale."""
    generator = torch.Generator().manual_seed(n_views)
    image = torch.randn(n_images, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(n_views, n_images, dim, generator=generator, dtype=torch.float64)
    return (image + 0.5 * noise) * torch.linspace(0.5, 2, dim) + torch.linspace(-1, 0.5, dim)


def check_every_embedding_gets_a_gradient(method: type[MultiViewModule], **kwargs: Any) -> None:
    """For K = 2 to 5 views, every embedding gets a finite gradient, and z is not modified."""
    module = _build(method, kwargs)
    for n_views in range(2, 6):
        z = embeddings(n_views).requires_grad_()
        before = z.detach().clone()
        loss = _loss(module, z)
        assert torch.equal(z, before), "compute_loss changed z in place: work on a copy, such as z * 2 for z.mul_(2)"
        assert loss.requires_grad, "the loss does not depend on z: compute_loss detached it"
        (gradient,) = torch.autograd.grad(loss, z, materialize_grads=True)
        assert gradient.isfinite().all(), (
            f"K = {n_views}: the gradient is not finite: add a small number within square roots, logarithms, divisors"
        )
        left_out = [tuple(place) for place in (gradient.abs().sum(dim=-1) == 0).nonzero().tolist()]
        assert not left_out, (
            f"K = {n_views}: {len(left_out)} of {n_views * z.shape[1]} embeddings get no gradient, such as "
            f"(view, image) {left_out[0]}: the loss leaves them out or detaches them. Leave this check out if it "
            "chooses some on purpose"
        )


def check_the_loss_is_a_function_of_the_embeddings(method: type[MultiViewModule], **kwargs: Any) -> None:
    """The loss depends on nothing but the gathered embeddings, so that all ranks compute that of a single process."""
    module, z = _build(method, kwargs), embeddings(3)
    first = _loss(module, z)
    torch.rand(1)  # changes the global random state
    message = (
        "the same embeddings have another loss the second time: draw random numbers from self.step_generator(), and "
        "change moving averages, queues and counters in on_train_batch_end, not in compute_loss"
    )
    assert_close(_loss(module, z), first, rtol=0, atol=0, msg=message)


def check_evaluation_mode_does_not_matter(method: type[MultiViewModule], **kwargs: Any) -> None:
    """The loss is the same in training and evaluation mode."""
    module, z = _build(method, kwargs), embeddings(3)
    message = (
        "the loss is another one in evaluation mode: leave dropout and BatchNorm to the backbone and the projector"
    )
    first = _loss(module, z)
    assert_close(_loss(module.eval(), z), first, rtol=0, atol=0, msg=message)


def check_order_of_views_does_not_matter(method: type[MultiViewModule], **kwargs: Any) -> None:
    """All views are made by the same augmentations, so that the loss should treat them alike."""
    module, z = _build(method, kwargs), embeddings(3)
    message = (
        "the order of the views matters: average over all views or pairs of them. Leave this check out if views have "
        "roles on purpose, such as one that predicts another"
    )
    assert_close(_loss(module, z.flip(0)), _loss(module, z), rtol=1e-9, atol=1e-9, msg=message)


def check_order_of_images_does_not_matter(method: type[MultiViewModule], **kwargs: Any) -> None:
    """The order of the images is random and depends on the ranks, so that the loss should not depend on it."""
    module, z = _build(method, kwargs), embeddings(3)
    message = (
        "the order of the images matters: the loss must not depend on their place in the batch. Leave this check out "
        "if the loss uses labels or targets that belong to the places"
    )
    assert_close(_loss(module, z.flip(1)), _loss(module, z), rtol=1e-9, atol=1e-9, msg=message)


def check_collapse_is_punished(method: type[MultiViewModule], **kwargs: Any) -> None:
    """Embeddings that differ between images have a smaller loss than those that collapsed to a point or a line."""
    module = _build(method, kwargs)
    spread = nn.functional.normalize(embeddings(2, n_images=256)[:1], dim=-1).expand(4, -1, -1) * 8**0.5
    point = spread[:, :1].expand_as(spread)
    line = spread[:, :, :1].sign().expand_as(spread)
    best = _loss(module, spread)
    for name, collapsed in {"a point": point, "a line": line}.items():
        assert best < _loss(module, collapsed), (
            f"collapse to {name} costs nothing: embeddings that differ between images have no smaller loss than {name} "
            "for all of them. Raise the weight of the term that spreads them; leave this check out if something else "
            "than the loss prevents a collapse, such as a predictor with a stop-gradient"
        )


def check_half_precision(method: type[MultiViewModule], **kwargs: Any) -> None:
    """Under bf16 autocast, and for bf16 embeddings, the loss is computed in float32."""
    module, z = _build(method, kwargs).float(), embeddings(4).bfloat16()
    expected = _loss(module, z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [_loss(module, z), _loss(module, z.float())]
    for loss in losses:
        assert loss.dtype == torch.float32, (
            f"the loss is {loss.dtype} under autocast: z is float32, and so should be all that is computed from it"
        )
        message = f"the loss is {loss:g} under autocast and {expected:g} without: leave autocast out of compute_loss"
        assert_close(loss, expected, rtol=1e-4, atol=1e-4, msg=message)


def check_nothing_waits_for_the_device(method: type[MultiViewModule], **kwargs: Any) -> None:
    """The loss and its gradient are computed without host synchronisation, for which Python would wait for the GPU."""
    module, z = _build(method, kwargs), embeddings(4).requires_grad_()
    names: set[str] = set()
    with _HostMethods(names), _HostOperations(names):
        torch.autograd.grad(_loss(module, z), z, materialize_grads=True)
    assert not names, (
        f"compute_loss calls {', '.join(sorted(names))}, for which Python waits until the GPU has finished: the loss "
        "is right, but each step is slower. Keep values in tensors: torch.where for `if`, a factor 0 or 1 for z[mask]"
    )


def check_compile(method: type[MultiViewModule], **kwargs: Any) -> None:
    """`torch.compile` gives the same loss and gradient, in one graph, or in several if one is not possible.

    msssl compiles no loss, so that a loss that cannot be compiled at all, such as with a `torch.Generator`, passes.
    """
    module, z = _build(method, kwargs), embeddings(4).requires_grad_()
    eager = _loss(module, z)
    gradient = torch.autograd.grad(eager, z)[0]
    compiled = None
    for fullgraph in (True, False):
        torch.compiler.reset()  # compiled graphs of other methods count towards a limit
        try:
            with warnings.catch_warnings(action="ignore"):  # warnings about graph breaks
                compiled = torch.compile(lambda z: _loss(module, z), fullgraph=fullgraph, backend="aot_eager")(z)
            break
        except TorchDynamoException:
            continue
    if compiled is None:
        return
    message = (
        "torch.compile gives another loss or gradient: compute_loss depends on something that changes between calls, "
        "such as a counter or a list. msssl compiles no loss: this matters only if you do"
    )
    assert_close(compiled, eager, rtol=1e-9, atol=1e-9, msg=message)
    assert_close(torch.autograd.grad(compiled, z)[0], gradient, rtol=1e-7, atol=1e-9, msg=message)


def check_checkpoint(method: type[MultiViewModule], **kwargs: Any) -> None:
    """Two steps of training change every parameter, and loading a checkpoint restores the weights and the loss."""
    module = _build(method, kwargs).float()
    before = {name: value.clone() for name, value in module.named_parameters() if value.requires_grad}
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    views = torch.randn(4, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = {"views": views, "label": torch.zeros(16, dtype=torch.int64), "index": torch.arange(16)}
    trainer.fit(module, DataLoader([batch, batch], batch_size=None))  # type: ignore[arg-type]
    for name, value in module.named_parameters():
        assert name not in before or not torch.equal(value, before[name]), (
            f"{name} did not train in two steps: the loss does not use it, which stops DDP. Remove it, or freeze it by "
            "requires_grad_(False)"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checked.ckpt")
        trainer.save_checkpoint(path)
        loaded = MultiViewModule.load_from_checkpoint(path, backbone=_backbone()).float()
    assert type(loaded) is method, f"the checkpoint of a {method.__name__} was loaded as a {type(loaded).__name__}"
    assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)
    module.trainer = None  # so that its step is 0, as that of the loaded module
    z = embeddings(4).float()
    message = "an argument was lost in the checkpoint: the loaded method has another loss. Is it in self.hparams?"
    assert_close(_loss(loaded, z), _loss(module, z), rtol=0, atol=0, msg=message)


CHECKS = (
    check_every_embedding_gets_a_gradient,
    check_the_loss_is_a_function_of_the_embeddings,
    check_evaluation_mode_does_not_matter,
    check_order_of_views_does_not_matter,
    check_order_of_images_does_not_matter,
    check_collapse_is_punished,
    check_half_precision,
    check_nothing_waits_for_the_device,
    check_compile,
    check_checkpoint,
)
NOT_OF_PREDICTORS = (check_evaluation_mode_does_not_matter, check_collapse_is_punished)


def _backbone() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 16))


def _build(method: type[MultiViewModule], kwargs: dict[str, Any]) -> MultiViewModule:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return method(backbone=_backbone(), **{"proj_dim": 8, **kwargs}).double()  # as the embeddings


def _loss(module: MultiViewModule, z: Tensor) -> Tensor:
    try:
        return module.terms(z)["loss"]
    except Exception as error:
        error.add_note(
            f"{type(module).__name__}.compute_loss raised this for embeddings z {tuple(z.shape)}, {z.dtype}. "
            "check_method gives it z alone, for any K >= 2: for a loss that needs more, such as labels, the targets of "
            'a teacher or a certain K, see "What check_method cannot know" in docs/new-method.md'
        )
        raise


class _HostOperations(TorchDispatchMode):
    """Collects the names of operations for whose results Python must wait."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_iter(args[1:]))
        of_unknown_shape = torch.Tag.dynamic_output_shape in func.tags
        if func is torch.ops.aten.index.Tensor:
            of_unknown_shape = by_mask
        if of_unknown_shape or torch.Tag.data_dependent_output in func.tags:
            name = func.overloadpacket.__name__
            self.names.add({"_local_scalar_dense": "item", "index": "z[mask]"}.get(name, name))
        return func(*args, **(kwargs or {}))


class _HostMethods(TorchFunctionMode):
    """Collects the names of methods that copy a tensor to the host; on a CPU they call no operation."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.cpu):
            self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))
