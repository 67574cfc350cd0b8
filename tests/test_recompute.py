"""`chunk_views`: the same numbers as the same parts without recomputation, in the memory of one part."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import load
from torch import nn
from torch.testing import assert_close

import msssl
from msssl.methods import module as module_file
from msssl.methods.optimizer import take_memory_layout

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


class Net(nn.Sequential):
    num_features = 32

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )


def make(chunk_views=2, **kwargs):
    torch.manual_seed(0)
    made = msssl.BarlowTwins(backbone=Net(), proj_dim=8, chunk_views=chunk_views, **kwargs)
    made.log = lambda *args, **kwargs: None
    made.configure_model()
    return made


def step(module, views):
    """Loss, gradients and buffers after one step."""
    torch.manual_seed(1)
    batch = {"views": views, "label": torch.zeros(views[0].shape[1] if isinstance(views, list) else views.shape[1])}
    loss = module.training_step(batch, 0)["loss"]
    loss.backward()
    return loss.detach(), [p.grad for p in module.parameters()], dict(module.named_buffers())


def kept(encode, views, chunk_views, backbone):
    """The same parts, with their activations."""
    return torch.cat([encode(part.flatten(0, 1)).unflatten(0, part.shape[:2]) for part in views.split(chunk_views)])


@pytest.mark.parametrize("K", [2, 5])
@pytest.mark.parametrize("chunk_views", [1, 2, 7])
def test_gradients_and_statistics_are_those_of_the_same_parts_kept(K, chunk_views, monkeypatch):
    views = torch.randn(K, 6, 3, 16, 16)
    module = make(chunk_views)
    other = copy.deepcopy(module)
    found = step(module, views)
    monkeypatch.setattr(module_file, "features_of", kept)
    assert_close(found, step(other, views), rtol=0, atol=0)  # dropout too draws the same
    assert found[2]["backbone.1.num_batches_tracked"] == -(-K // chunk_views)  # once for each part, not twice


def test_statistics_seen_twice_would_be_found_out(monkeypatch):
    from contextlib import nullcontext

    from msssl.methods import encoder

    views = torch.randn(4, 6, 3, 16, 16)
    expected = step(make(), views)[2]["backbone.1.running_mean"]
    monkeypatch.setattr(encoder, "_frozen_buffers", lambda backbone: nullcontext())
    assert not torch.allclose(step(make(), views)[2]["backbone.1.running_mean"], expected)


def test_one_part_is_the_step_without_chunks():
    views = torch.randn(3, 6, 3, 16, 16)
    assert_close(step(make(3), views), step(make(None), views), rtol=0, atol=0)


def test_views_of_several_sizes():
    groups = [torch.randn(2, 6, 3, 16, 16), torch.randn(3, 6, 3, 8, 8)]
    loss, grads, buffers = step(make(2), groups)
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in grads)
    assert buffers["backbone.1.num_batches_tracked"] == 3


def test_half_precision(monkeypatch):
    views = torch.randn(5, 6, 3, 16, 16)
    module = make()
    other = copy.deepcopy(module)
    with torch.autocast("cpu", torch.bfloat16):
        found = step(module, views)
        monkeypatch.setattr(module_file, "features_of", kept)
        assert_close(found, step(other, views), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_views", [None, 2])
def test_compiled(chunk_views):
    """Without dropout: compiled code draws in another order."""
    views = torch.randn(5, 6, 3, 16, 16)
    module, compiled = make(chunk_views), make(chunk_views, compile=True)
    for each in (module, compiled):
        each.backbone[3].p = 0.0
    found, expected = step(compiled, views), step(module, views)
    assert compiled._compiled is not None
    assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    for grad, other in zip(found[1], expected[1], strict=True):
        assert (grad - other).norm() <= 1e-4 * other.norm() + 1e-4  # some are zero but for rounding
    assert_close(found[2], expected[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("device", "compiles"), [("cuda", True), ("cpu", False)])
def test_auto_compiles_for_the_device_of_the_trainer_to_which_the_module_is_still_to_be_moved(device, compiles):
    module = make()
    module.compile_backbone = "auto"
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    assert module.device.type == "cpu"
    module.configure_model()
    assert (module._compiled is not None) == compiles


def has_channels_last(module):
    return module.backbone[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("device", "compile", "last"), [("cuda", False, True), ("cpu", False, False), ("cpu", True, True)]
)
def test_channels_are_last_on_a_gpu_also_where_nothing_compiles(device, compile, last):
    module = make()
    before = copy.deepcopy(module.state_dict())
    module.compile_backbone = compile
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    module.configure_model()
    assert has_channels_last(module) == last
    other = make()
    other.load_state_dict(module.state_dict())
    assert not has_channels_last(other)  # a checkpoint holds weights, not how they lie in memory
    assert_close(other.state_dict(), before, rtol=0, atol=0)


def test_a_run_goes_on_with_channels_last_that_began_without():
    """PyTorch's fused optimizers pair elements by their place in memory, those of averages from a checkpoint too."""
    images = torch.randn(3, 4, 3, 8, 8)

    def started():
        layer = nn.Conv2d(3, 8, 3)
        return layer, torch.optim.Adam(layer.parameters(), lr=1e-2, fused=True)

    def train(layer, optimizer, batches):
        for batch in batches:
            optimizer.zero_grad()
            layer(batch).square().sum().backward()
            optimizer.step()

    straight, optimizer = started()
    train(straight, optimizer, images[:2])
    changed, restarted = started()
    changed.to(memory_format=torch.channels_last)
    changed.load_state_dict(straight.state_dict())
    restarted.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_memory_layout(restarted)
    train(straight, optimizer, images[2:])
    train(changed, restarted, images[2:])
    assert changed.weight.is_contiguous(memory_format=torch.channels_last)
    assert_close(changed.weight, straight.weight, rtol=1e-4, atol=1e-5)


def test_a_copy_runs_its_own_weights(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda encode, dynamic: encode)
    module = make(None, compile=True)
    images = torch.randn(4, 3, 16, 16)
    copied = copy.deepcopy(module).eval()
    with torch.no_grad():
        for p in copied.parameters():
            p.zero_()
        assert copied._compiled(images).norm() == 0
        assert module.eval()._compiled(images).norm() > 0


def test_without_a_compiler_it_trains_eagerly_and_that_is_said_once(monkeypatch, caplog):
    def no_compiler(images):
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", lambda encode, dynamic: no_compiler)
    views, chunks = torch.randn(4, 6, 3, 16, 16), 2
    module = make(chunks)
    other = make(chunks, compile=True)
    module.backbone[3].p = other.backbone[3].p = 0.0  # channels last draws in another order
    with caplog.at_level("INFO"):
        for _ in range(2):
            found, expected = step(other, views), step(module, views)
    assert_close(found[0], expected[0], rtol=1e-5, atol=0)  # channels last sums in another order
    messages = [record.getMessage() for record in caplog.records if record.name == "msssl.methods.encoder"]
    assert messages == ["backbone: not compiled, slower but the same: no C++ compiler"]


@pytest.mark.parametrize("n", [8, pytest.param(256, marks=pytest.mark.slow)])
def test_memory_is_that_of_the_views_in_a_part_whatever_k_is(n, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = load(BENCHMARKS / "chunk_views.py")
    few, many, kept_all = (
        benchmark.peak_memory(benchmark.make_step(K, n, chunk_views, 18, 16, "cpu"), "cpu")
        for K, chunk_views in ((4, 2), (16, 2), (4, None))
    )
    assert many <= 1.15 * few
    assert few < 0.7 * kept_all


def test_wrong_number():
    with pytest.raises(ValueError, match="chunk_views is 0"):
        make(0)
