"""One contract for every method: those of the package, the paper's code and a loss of one's own."""

from pathlib import Path

import pytest
import torch
from conftest import NARROW, TINY_IMAGES, load
from test_cli import readme_block

import msssl as package
from msssl import testing

PAPER = Path(__file__).parents[1] / "configs" / "paper" / "fastssl.py"


METHODS = {
    "BarlowTwins": {},
    "BarlowTwins pairs": {"form": "pairs"},
    "BarlowTwins eq10": {"form": "eq10"},
    "VICReg": {},
    "VICReg pairs": {"form": "pairs"},
    "SimCLR": {},
    "SpectralContrastive": {},
    "MMCR": {"local_coeff": 0.1},
    "FastSSLBarlowTwins": {},
    "FastSSLVICReg": {},
}


def find(name):
    name = name.split()[0]
    return getattr(load(PAPER) if name.startswith("FastSSL") else package, name)


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", METHODS)
def test_contract(name, check):
    if name == "FastSSLBarlowTwins" and check is testing.check_collapse_is_punished:
        pytest.skip("the paper's code divides by a standard deviation of zero there")
    check(find(name), **METHODS[name])


def test_the_loss_of_the_readme(tmp_path, monkeypatch):
    (tmp_path / "readme_losses.py").write_text(readme_block("class Alignment"))
    testing.check_method(load(tmp_path / "readme_losses.py").Alignment)


@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("BarlowTwins", "VICReg", "BarlowTwins eq10")]
)
def test_every_method_trains_by_one_flag(name, msssl, tmp_path):
    """Two ranks give the loss of one in `test_distributed.py`."""
    method = find(name)
    path = method.__name__
    if path.startswith("FastSSL"):
        (tmp_path / PAPER.name).write_text(PAPER.read_text())
        path = f"fastssl.{path}"
    arguments = [f"--model.{key}={value}" for key, value in METHODS[name].items()]
    code, _, err = msssl(
        "fit", "--config", "demo.yaml", "--model", path, *arguments, *NARROW, *TINY_IMAGES, "--trainer.max_steps=2"
    )
    assert code == 0, err
    checkpoint = next(tmp_path.glob("runs/*/last.ckpt"))
    loaded = package.MultiViewModule.load_from_checkpoint(checkpoint)
    assert type(loaded).__name__ == method.__name__
    for key, value in METHODS[name].items():
        assert getattr(loaded, key) == value
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())


def spread(z):
    """A loss that keeps every rule: the embeddings should vary in each dimension."""
    return -z.var(dim=1).log().mean()


def read_by_the_host(z):
    return z.sum() if z.mean().item() > 1e9 else spread(z)


CALLS = iter(range(1, 1_000_000))
BROKEN = {  # a loss that breaks one rule, and what the contract says of it
    "in place": (lambda z: spread(z.data.mul_(2)) + spread(z), "in place"),
    "first view only": (lambda z: spread(z[:1]), "no gradient"),
    "state": (lambda z: spread(z) * next(CALLS), "same embeddings"),
    "order of views": (
        lambda z: -(z.var(dim=1).log().mean(dim=1) * torch.arange(1, len(z) + 1)).sum(),
        "order of the views",
    ),
    "order of images": (lambda z: spread(z * torch.arange(1, z.shape[1] + 1)[:, None]), "order of the images"),
    "collapse to a point": (lambda z: z.var(dim=0).mean(), "collapse to a point"),
    "collapse to a line": (lambda z: -z.sum(dim=-1).var(dim=1).mean(), "collapse to a line"),
    "half precision": (lambda z: spread(z.bfloat16()), "autocast"),
    "read by the host": (read_by_the_host, "item"),
}


class Broken(package.MultiViewModule):
    def __init__(self, rule, **kwargs):
        super().__init__(**kwargs)
        self.rule = rule

    def compute_loss(self, z):
        return BROKEN[self.rule][0](z)


class Forgetful(package.MultiViewModule):
    """An argument that the checkpoint does not bring back."""

    def __init__(self, weight=1.0, **kwargs):
        super().__init__(**kwargs)
        self.weight = weight
        self.hparams["weight"] = 1.0

    def compute_loss(self, z):
        return self.weight * package.losses.vicreg_loss(z)["loss"]


class Frozen(package.VICReg):
    """A parameter that does not train."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.unused = torch.nn.Parameter(torch.zeros(1))


def test_the_contract_finds_what_a_checkpoint_or_training_loses():
    with pytest.raises(AssertionError, match="an argument was lost"):
        testing.check_method(Forgetful, weight=2.0)
    with pytest.raises(AssertionError, match="unused did not train"):
        testing.check_method(Frozen)


@pytest.mark.parametrize("rule", BROKEN)
def test_the_contract_finds_what_breaks_it(rule):
    error = Exception if rule == "read by the host" else AssertionError
    with pytest.raises(error, match=BROKEN[rule][1]):
        testing.check_method(Broken, rule=rule)
