"""What every method must hold: put your own through it, in a test of one line, `check_method(MyLoss)`."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from msssl.modules import MultiViewModule


def check_method(method: type[MultiViewModule], **kwargs: Any) -> None:
    """Put a method through all checks of this file.

    Args:
        method: a subclass of `MultiViewModule` whose `compute_loss` is a function of z alone.
        **kwargs: its arguments, but for the backbone.

    Raises:
        AssertionError: naming what does not hold; what breaks `torch.compile` raises its own error.

    >>> from msssl import BarlowTwins
    >>> check_method(BarlowTwins, beta=0.1)
    """
    for check in CHECKS:
        check(method, **kwargs)


def embeddings(n_views: int, n_images: int = 32, dim: int = 8) -> Tensor:
    """Views (K, N, D), float64, that agree in part, of dimensions that differ in mean and scale."""
    generator = torch.Generator().manual_seed(n_views)
    image = torch.randn(n_images, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(n_views, n_images, dim, generator=generator, dtype=torch.float64)
    return (image + 0.5 * noise) * torch.linspace(0.5, 2, dim) + torch.linspace(-1, 0.5, dim)


def check_every_embedding_gets_a_gradient(method: type[MultiViewModule], **kwargs: Any) -> None:
    """K = 2 to 5; z is not modified; a loss that is not a scalar or a gradient that is not finite is found too."""
    module = _build(method, kwargs)
    for n_views in range(2, 6):
        z = embeddings(n_views).requires_grad_()
        before = z.detach().clone()
        loss = _loss(module, z)
        (gradient,) = torch.autograd.grad(loss, z)
        assert torch.equal(z, before), "compute_loss changed z in place"
        assert gradient.isfinite().all(), f"K = {n_views}: the gradient is not finite"
        assert (gradient.abs().sum(dim=-1) > 0).all(), f"K = {n_views}: an embedding gets no gradient"


def check_the_loss_is_a_function_of_the_embeddings(method: type[MultiViewModule], **kwargs: Any) -> None:
    """Nothing else: so that ranks, which all see the gathered embeddings, agree with one process."""
    module, z = _build(method, kwargs), embeddings(3)
    first = _loss(module, z)
    torch.rand(1)  # another state of the generator
    message = "the same embeddings have another loss the second time"
    assert_close(_loss(module, z), first, rtol=0, atol=0, msg=message)
    assert_close(_loss(module.eval(), z), first, rtol=0, atol=0, msg=message)


def check_order_does_not_matter(method: type[MultiViewModule], **kwargs: Any) -> None:
    """Neither that of the views nor that of the images."""
    module, z = _build(method, kwargs), embeddings(3)
    assert_close(_loss(module, z.flip(0)), _loss(module, z), rtol=1e-9, atol=1e-9, msg="the order of the views matters")
    assert_close(
        _loss(module, z.flip(1)), _loss(module, z), rtol=1e-9, atol=1e-9, msg="the order of the images matters"
    )


def check_collapse_is_punished(method: type[MultiViewModule], **kwargs: Any) -> None:
    """Equal views of different images are better than one point for all, or one direction, of the same length."""
    module = _build(method, kwargs)
    spread = nn.functional.normalize(embeddings(2, n_images=256)[:1], dim=-1).expand(4, -1, -1) * 8**0.5
    point = spread[:, :1].expand_as(spread)
    line = spread[:, :, :1].sign().expand_as(spread)
    assert _loss(module, spread) < _loss(module, point), "collapse to a point costs nothing"
    assert _loss(module, spread) < _loss(module, line), "collapse to a line costs nothing"


def check_half_precision(method: type[MultiViewModule], **kwargs: Any) -> None:
    """Under bf16 autocast, and for bf16 embeddings, the loss is that of the same numbers in float32."""
    module, z = _build(method, kwargs), embeddings(4).bfloat16()
    expected = _loss(module, z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [_loss(module, z), _loss(module, z.float())]
    for loss in found:
        assert loss.dtype == torch.float32, f"the loss is {loss.dtype} under autocast"
        assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def check_compile(method: type[MultiViewModule], **kwargs: Any) -> None:
    """One graph, the same value and gradient, no value read by the host."""
    module, z = _build(method, kwargs), embeddings(4).requires_grad_()
    torch.compiler.reset()  # the graphs of other methods count against a limit
    compiled = torch.compile(lambda z: _loss(module, z), fullgraph=True, backend="aot_eager")(z)
    eager = _loss(module, z)
    assert_close(compiled, eager, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(loss, z)[0] for loss in (compiled, eager)]
    assert_close(*gradients, rtol=1e-7, atol=1e-9)


def check_checkpoint(method: type[MultiViewModule], **kwargs: Any) -> None:
    """A few steps of training move every parameter; the checkpoint gives back the weights and the loss."""
    module = _build(method, kwargs)
    before = {name: value.clone() for name, value in module.named_parameters()}
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
        assert not torch.equal(value, before[name]), f"{name} did not train"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checked.ckpt")
        trainer.save_checkpoint(path)
        loaded = MultiViewModule.load_from_checkpoint(path, backbone=_backbone())
    assert type(loaded) is method
    assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)
    z = embeddings(4)
    assert_close(_loss(loaded, z), _loss(module, z), rtol=0, atol=0, msg="an argument was lost in the checkpoint")


CHECKS = (
    check_every_embedding_gets_a_gradient,
    check_the_loss_is_a_function_of_the_embeddings,
    check_order_does_not_matter,
    check_collapse_is_punished,
    check_half_precision,
    check_compile,
    check_checkpoint,
)


def _backbone() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 16))


def _build(method: type[MultiViewModule], kwargs: dict[str, Any]) -> MultiViewModule:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return method(backbone=_backbone(), **{"proj_dim": 8, **kwargs})


def _loss(module: MultiViewModule, z: Tensor) -> Tensor:
    return module.terms(z)["loss"]
