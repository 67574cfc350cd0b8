"""One contract for every method: those of the package, the paper's code and a loss of one's own."""

from pathlib import Path

import pytest
import torch
from conftest import NARROW, TINY_IMAGES, load
from test_cli import readme_block
from torch.nn.functional import normalize

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
    "LeJEPA": {"lambda_": 0.1, "n_directions": 32},
    "FroSSL": {"weight": 4.0},
    "LogDet": {"alpha": 2.0, "proj_dim": 4},
    "LogDet tcr": {"form": "tcr", "alpha": 20.0},
    "VISReg": {"lambda_": 0.5, "n_directions": 32},
    "MVDHEL": {"temperature": 0.3},
    "SimSiam": {"pred_hidden_dim": 6},
    "BYOL": {"momentum": 0.9},
    "FastSSLBarlowTwins": {},
    "FastSSLVICReg": {},
}


def find(name):
    name = name.split()[0]
    return getattr(load(PAPER) if name.startswith("FastSSL") else package, name)


def checks():
    for name in METHODS:
        for check in testing.checks_of(find(name)):
            if name != "FastSSLBarlowTwins" or check is not testing.check_collapse_is_punished:
                yield pytest.param(name, check, id=f"{name}-{check.__name__}")
            # the paper's code divides by a standard deviation of zero there


@pytest.mark.parametrize(("name", "check"), checks())
def test_contract(name, check):
    check(find(name), **METHODS[name])


def test_a_predictor_may_collapse_and_nothing_else_may():
    assert testing.checks_of(package.BarlowTwins) == [*testing.CHECKS]
    left_out = {*testing.CHECKS} - {*testing.checks_of(package.SimSiam)}
    assert left_out == {testing.check_collapse_is_punished, testing.check_evaluation_mode_does_not_matter}


@pytest.mark.parametrize("name", METHODS)
def test_losses_of_msssl_compile_as_one_graph(name):
    module, z = testing._build(find(name), METHODS[name]), testing.embeddings(4)
    torch.compiler.reset()
    compiled = torch.compile(lambda z: module.terms(z)["loss"], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z), module.terms(z)["loss"], rtol=1e-9, atol=1e-9)


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
    "a value in Python": (read_by_the_host, "calls item, .* the loss is right, but each step is slower"),
    "rows by a mask": (lambda z: spread(z) + z[z > 9].sum(), r"calls z\[mask\]"),
    "a list": (lambda z: spread(z) * len(z.flatten().tolist()), "calls tolist"),
    "random": (lambda z: spread(z + torch.randn_like(z)), "self.step_generator"),
    "detached": (lambda z: spread(z.detach()), "detached"),
    "infinite gradient": (lambda z: spread(z) + (z - z).norm(dim=-1).sqrt().sum(), "not finite: add a small number"),
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
    with pytest.raises(AssertionError, match=BROKEN[rule][1]):
        testing.check_method(Broken, rule=rule)


def sliced(z, directions):
    """A loss along directions (D, S): spread, and views that agree."""
    x = z @ normalize(directions, dim=0)
    return (z - z.mean(dim=0)).square().mean() + x.mean(dim=1).square().mean() + (x.std(dim=1) - 1).square().mean()


class Drawing(package.MultiViewModule):
    """Directions are drawn in the loss."""

    def compute_loss(self, z):
        options = {"device": z.device, "dtype": z.dtype}
        return sliced(z, torch.randn(z.shape[-1], 32, generator=self.step_generator(), **options))


class DrawingOfItsOwn(package.MultiViewModule):
    """The same by a generator of one's own."""

    def compute_loss(self, z):
        generator = torch.Generator(z.device).manual_seed(self.global_step)
        return sliced(z, torch.randn(z.shape[-1], 32, generator=generator, device=z.device, dtype=z.dtype))


class Refilled(package.MultiViewModule):
    """Directions are drawn before each step, into a buffer that stands in checkpoints."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register_buffer("directions", torch.randn(self.proj_dim, 32))

    def on_train_batch_start(self, batch, batch_idx):
        self.directions.normal_(generator=self.step_generator())

    def compute_loss(self, z):
        return sliced(z, self.directions)


class Learned(package.MultiViewModule):
    """A loss with a layer of its own, and a network that is frozen."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = torch.nn.Linear(self.proj_dim, self.proj_dim)
        self.frozen = torch.nn.Linear(self.proj_dim, self.proj_dim).requires_grad_(False)

    def compute_loss(self, z):
        return package.losses.vicreg_loss(self.head(z) + self.frozen(z))["loss"]


@pytest.mark.parametrize("method", [Drawing, DrawingOfItsOwn, Refilled, Learned])
def test_the_contract_takes_losses_that_draw_and_losses_with_parameters(method):
    testing.check_method(method)


def test_a_loss_that_needs_more_than_embeddings_is_told_where_to_read_on():
    class Labelled(package.MultiViewModule):
        def compute_loss(self, z):
            return z[:, self.labels == 0].mean()

    with pytest.raises(AttributeError) as error:
        testing.check_method(Labelled)
    (note,) = error.value.__notes__
    assert note.startswith("Labelled.compute_loss raised this for embeddings z (2, 32, 8), torch.float64.")
    page = (Path(__file__).parents[1] / "docs" / "new-method.md").read_text()
    assert "\n## What check_method cannot know\n" in page.replace("`", "")


def test_a_method_is_checked_under_another_default_type():
    torch.set_default_dtype(torch.float64)
    try:
        testing.check_checkpoint(package.BarlowTwins)
    finally:
        torch.set_default_dtype(torch.float32)
