"""`docs/minimal.md`, the method in one file, computes what the package computes."""

import ast
import re
from pathlib import Path

import pytest
import torch
from conftest import load
from torch import nn

from msssl import BarlowTwins, ResNet
from msssl.losses import barlow_twins_loss
from msssl.metrics import linear_probe

ROOT = Path(__file__).parents[1]


def code():
    """Of the first block of the page."""
    return re.search(r"^```python\n(.*?)^```$", (ROOT / "docs/minimal.md").read_text(), re.DOTALL | re.MULTILINE)[1]


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "minimal.py"
    path.write_text(code())
    return load(path)


def test_it_is_one_hundred_lines_without_the_package():
    lines = code().splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 120
    assert not re.search(r"^(import|from) (msssl|lightning)", code(), flags=re.MULTILINE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("shape", [(2, 16, 8), (4, 16, 8), (5, 8, 16)])
def test_losses_and_gradients_are_equal_on_the_same_embeddings(minimal, shape, dtype, tolerance):
    ours = torch.randn(shape, dtype=dtype).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    beta = 5 / shape[-1]
    expected, found = barlow_twins_loss(ours, beta=beta)["loss"], minimal.barlow_twins(theirs, beta)
    expected.backward()
    found.backward()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(theirs.grad, ours.grad, rtol=tolerance, atol=tolerance * float(ours.grad.abs().max()))


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_steps_of_training_are_equal_on_the_same_views(minimal):
    network = nn.Sequential(minimal.encoder(), minimal.projector(512, 16))
    module = BarlowTwins(backbone=ResNet(depth=18), proj_dim=16)
    module.backbone.load_state_dict(network[0].state_dict())
    module.projector.load_state_dict(network[1].state_dict())
    network.double(), module.double()
    theirs = [*network.parameters()]
    ours = [*module.backbone.parameters(), *module.projector.parameters()]
    initial = theirs[0].detach().clone()
    their_optimizer = torch.optim.Adam(theirs, lr=1e-3, weight_decay=1e-6)
    our_optimizer = module.configure_optimizers()
    for step in range(2):
        views = torch.randn(3, 4, 3, 8, 8, dtype=torch.float64)
        batch = {"views": views, "label": torch.full((4,), -1), "index": torch.arange(4)}
        found, expected = minimal.loss_of(network, views), module.training_step(batch, step)["loss"]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
        for loss, optimizer in ((found, their_optimizer), (expected, our_optimizer)):
            optimizer.zero_grad()
            loss.backward()
        largest = max(float(each.grad.abs().max()) for each in ours)
        for mine, own in zip(theirs, ours, strict=True):
            torch.testing.assert_close(mine.grad, own.grad, rtol=1e-9, atol=1e-9 * largest)
        their_optimizer.step()
        our_optimizer.step()
    assert not torch.equal(theirs[0], initial)
    for mine, own in zip(theirs, ours, strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-9, atol=1e-9)


def test_views_are_of_each_image_and_differ(minimal):
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    images[1] = 255  # white stays brighter than noise, whatever is drawn
    views = minimal.make_views(images, 4)
    assert views.shape == (4, 3, 3, 32, 32)
    assert (views.mean(dim=(2, 3, 4)).argmax(dim=1) == 1).all()
    assert len({float(view) for view in views[:, 0].sum(dim=(1, 2, 3))}) == 4


def test_the_probe_is_that_of_the_package(minimal):
    """On features that are pixels: the same accuracy of the same convex problem."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 10
    patterns = torch.randint(70, 185, (10, 3, 8, 8), generator=generator)
    noise = torch.randint(-200, 200, (120, 3, 8, 8), generator=generator)
    images = (patterns[labels] + noise).clamp(0, 255).to(torch.uint8)
    train, test = (images[:60], labels[:60]), (images[60:], labels[60:])
    found = minimal.linear_probe(nn.Flatten(), train, test)
    x, x_test = (minimal.NORMALIZE(each / 255).flatten(1) for each in (images[:60], images[60:]))
    head = linear_probe(x, labels[:60], num_classes=10, weight_decay=1e-2)
    expected = float((head(x_test).argmax(dim=1) == labels[60:]).float().mean())
    assert 0.2 < expected < 1
    assert found == pytest.approx(expected, abs=1 / 60 + 1e-6)  # one image may lie on the border


@pytest.mark.parametrize("name", ["make_views", "projector", "barlow_twins", "loss_of", "linear_probe"])
def test_the_notebook_has_the_same_functions(name):
    found = [
        ast.unparse(node)
        for text in (code(), (ROOT / "notebooks/6_minimal.py").read_text())
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    assert len(found) == 2
    assert found[0] == found[1]
