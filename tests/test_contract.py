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


class Broken(package.MultiViewModule):
    """A loss that breaks one rule, chosen by its name."""

    def __init__(self, rule, **kwargs):
        super().__init__(**kwargs)
        self.rule = rule

    def compute_loss(self, z):
        if self.rule == "in place":
            z.data.mul_(2)
        if self.rule == "first view only":
            return z[0].square().mean() - z.square().mean(dim=1).detach().sum()
        if self.rule == "order of views":
            return -(z.var(dim=1).log().mean(dim=1) * torch.arange(1, len(z) + 1)).sum()
        if self.rule == "order of images":
            z = z * torch.arange(1, z.shape[1] + 1)[:, None]
        if self.rule == "half precision":
            return -z.bfloat16().var(dim=1).log().mean()
        if self.rule == "read by the host" and z.mean().item() > 1e9:
            return z.sum()
        return z.var(dim=0).mean() if self.rule == "collapse" else -z.var(dim=1).log().mean()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("in place", "in place"),
        ("first view only", "no gradient"),
        ("order of views", "order of the views"),
        ("order of images", "order of the images"),
        ("collapse", "collapse to a point"),
        ("half precision", "autocast"),
        ("read by the host", "item"),
    ],
)
def test_the_contract_finds_what_breaks_it(rule, message):
    error = Exception if rule == "read by the host" else AssertionError
    with pytest.raises(error, match=message):
        testing.check_method(Broken, rule=rule)
