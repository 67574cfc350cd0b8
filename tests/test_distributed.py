# Run as a script, by the fixture `folder`, this file starts the ranks and saves what each of them found.
import pickle
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import load
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from msssl import BYOL, BarlowTwins, SimSiam, distributed
from msssl.distributed import BackgroundMaximum, check_equal_shapes, gather, gather_rows
from msssl.losses import (
    barlow_twins_loss,
    frossl_loss,
    lejepa_loss,
    logdet_loss,
    mmcr_loss,
    mvdhel_loss,
    simclr_loss,
    spectral_contrastive_loss,
    vicreg_loss,
    visreg_loss,
)

ROOT = Path(__file__).parents[1]
N, FEATURES, D = 3, 6, 4  # images per rank, and widths
DIRECTIONS = nn.functional.normalize(torch.randn(D, 5, generator=torch.Generator().manual_seed(0)), dim=0).double()
LOSSES = {
    "barlow_twins": partial(barlow_twins_loss, beta=0.3),
    "barlow_twins pairs": partial(barlow_twins_loss, beta=0.3, form="pairs"),
    "barlow_twins eq10": partial(barlow_twins_loss, beta=0.3, form="eq10"),
    "vicreg": vicreg_loss,
    "vicreg pairs": partial(vicreg_loss, form="pairs"),
    "simclr": simclr_loss,
    "spectral_contrastive": spectral_contrastive_loss,
    "mmcr": partial(mmcr_loss, local_coeff=0.2),
    "lejepa": partial(lejepa_loss, directions=DIRECTIONS, lambda_=0.3),
    "visreg": partial(visreg_loss, directions=DIRECTIONS),
    "frossl": frossl_loss,
    "logdet": logdet_loss,
    "logdet tcr": partial(logdet_loss, form="tcr"),
    "mvdhel": mvdhel_loss,
}
CASES = [(name, K) for name in LOSSES for K in (2, 3)]


def images(K, world_size):
    """Views of the global batch (K, W*N, FEATURES), the ranks' shares far apart in mean and scale."""
    generator = torch.Generator().manual_seed(K)
    image = torch.randn(world_size * N, FEATURES, generator=generator, dtype=torch.float64)
    noise = torch.randn(K, world_size * N, FEATURES, generator=generator, dtype=torch.float64)
    rank = torch.arange(world_size).repeat_interleave(N)[:, None]
    return (image + 0.5 * noise) * (1 + rank) + rank


def share(x, rank):
    return x[:, rank * N : (rank + 1) * N]


def make_model():
    torch.manual_seed(0)
    return nn.Linear(FEATURES, D, dtype=torch.float64)


def one_process(loss, x):
    model = make_model()
    value = LOSSES[loss](model(x))["loss"]
    value.backward()
    return value.detach(), [p.grad for p in model.parameters()]


def gather_without_autograd(z):
    parts = [torch.empty_like(z) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, z.detach())
    parts[dist.get_rank()] = z  # the rank's own embeddings keep their gradient
    return torch.cat(parts, dim=1)


def global_mean(x):
    """Mean over the images of all ranks, by an all_reduce that autograd does not see."""
    total = x.sum(dim=1)
    others = total.detach().clone()
    dist.all_reduce(others)
    return (total + (others - total.detach())) / (x.shape[1] * dist.get_world_size())


def barlow_twins_by_all_reduce(z):
    centred = z - global_mean(z)[:, None]
    h = centred / (global_mean(centred.square()) + 1e-5).sqrt()[:, None]
    correlation = global_mean((h[0] * h[1])[None])[0]
    hb = h.mean(dim=0)
    gram = global_mean((hb[:, :, None] * hb[:, None, :]).flatten(1)[None]).view(D, D)
    off_diagonal = gram - gram.diag().diag()
    return (1 - correlation).square().sum() + 0.3 * off_diagonal.square().sum()


def under_ddp(compute_loss, x, rank):
    model = DistributedDataParallel(make_model())
    value = compute_loss(model(share(x, rank)))
    value.backward()
    return value.detach(), [p.grad for p in model.parameters()]


def work(rank, world_size, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    found = {}
    for K in (2, 3):
        x = share(images(K, world_size), rank)
        found["gathered", K] = gather(x)
        found["labels", K] = gather(x.argmax(dim=2, keepdim=True))
    for name, K in CASES:
        x = images(K, world_size)
        found[name, K] = under_ddp(lambda z, name=name: LOSSES[name](gather(z))["loss"], x, rank)
        wrong = under_ddp(lambda z, name=name: LOSSES[name](gather_without_autograd(z))["loss"], x, rank)
        found["without autograd", name, K] = wrong
    for name, method in second_networks().items():
        value, grads = step_of_second_network(method, 3, world_size, rank)
        for grad in grads:  # as DDP does
            dist.all_reduce(grad)
            grad /= world_size
        found[name] = value, grads
    found |= gathered_rows(rank, world_size)
    found["largest numbers"] = largest_numbers(rank)
    check_equal_shapes(torch.zeros(2, N, D))
    with pytest.raises(ValueError, match="every rank needs") as error:
        check_equal_shapes(torch.zeros(2, N + rank, D))
    found["unequal"] = str(error.value)
    module = BarlowTwins(backbone=nn.Flatten(), feature_dim=12, proj_dim=D)
    views = torch.randn(2, N + rank, 3, 2, 2)
    with pytest.raises(ValueError, match="every rank needs"):
        module.training_step({"views": views, "label": torch.zeros(N + rank)}, 0)
    found["all_reduce"] = under_ddp(barlow_twins_by_all_reduce, images(2, world_size), rank)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def all_rows():
    """Index, and rows of several types and shapes: bool, integers, halves, and none of a width of 0."""
    generator = torch.Generator().manual_seed(9)
    features = torch.randn(11, 2, 3, generator=generator)
    features[3, 0, 0] = torch.nan
    label = torch.arange(11) * 2**40 - 1
    return torch.arange(11) * 10, features[:, 0, 0] > 0, label, features.bfloat16(), features, features[:, 0, :0]


def batches_of(rank, world_size, how):
    """A rank's share of these rows, in two batches and not in their order."""
    last_has = {"uneven": True, "no rows": False, "no batches": False, "nothing anywhere": False}[how]
    sharing = world_size if last_has else world_size - 1
    mine = torch.arange(11).flip(0)
    mine = mine[mine % sharing == rank] if rank < sharing else mine[:0]
    if how == "nothing anywhere" or (how == "no batches" and rank == world_size - 1):
        return []
    return [tuple(column[rows] for column in all_rows()) for rows in (mine[:1], mine[1:])]


def gathered_rows(rank, world_size):
    """What `gather_rows` gives, and what it sends: small objects, and parts of a few bytes."""
    all_gather, all_gather_object = dist.all_gather, dist.all_gather_object
    sent = []

    def small_object(values, value):
        assert len(pickle.dumps(value)) < 1000
        assert "torch._utils" not in str(pickle.dumps(value)), "a tensor is pickled"
        all_gather_object(values, value)

    def part(parts, own):
        sent.append(own.nbytes)
        all_gather(parts, own)

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_gather_object", small_object)
        patch.setattr(dist, "all_gather", part)
        patch.setattr(distributed, "CHUNK_BYTES", 50)
        for how in ("uneven", "no rows", "no batches", "nothing anywhere"):
            batches = batches_of(rank, world_size, how)
            found["rows", how] = gather_rows(batches)
            found["rows on the first rank", how] = gather_rows(batches, on_first_rank_only=True)
    return {**found, "largest part": max(sent), "parts": len(sent)}


def largest_numbers(rank):
    """What `BackgroundMaximum` tells: at once nothing, and then the largest of all ranks, at each step anew."""
    largest = BackgroundMaximum()
    found = [largest.take()]
    for step in range(3):
        largest.begin(rank + 5 if step == 1 else 0)
        found += [largest.take(), largest.take()]
    largest.begin(1)
    largest.close()
    return found


def embeddings_in_bf16(world_size):
    return images(3, world_size)[..., :D].bfloat16()


def work_in_bf16(rank, world_size, folder):
    """Gradients of a rank's embeddings under autocast: as they are, and as tensors of float32."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/bf16", rank=rank, world_size=world_size)
    module = BarlowTwins(backbone=nn.Flatten(), feature_dim=12, proj_dim=D)
    z = share(embeddings_in_bf16(world_size), rank).clone().requires_grad_()
    exact = z.detach().float().requires_grad_()
    own_type = z.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [module.terms(embeddings)["loss"] for embeddings in (z, exact)]
    sum(losses).backward()
    gather(own_type).backward(torch.ones(3, world_size * N, D, dtype=torch.bfloat16) * 1.0078125)
    torch.save({"bf16": z.grad, "float32": exact.grad, "own": own_type.grad}, folder / f"bf16-{rank}.pt")
    dist.destroy_process_group()


def second_networks():
    """Methods with targets or predictors: of the documentation, of the package and of the examples."""
    page = (ROOT / "docs" / "new-method.md").read_text()
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", page, flags=re.S) if "class Distilled" in block]
    namespace = {"__name__": "documented"}
    exec(block, namespace)
    moco = load(ROOT / "configs" / "examples" / "moco.py").MoCo
    return {"Distilled": namespace["Distilled"], "BYOL": BYOL, "SimSiam": SimSiam, "MoCo": moco}


def step_of_second_network(method, K, world_size, rank=None):
    """Loss and gradients of a step, of the whole batch or of a rank's share of it."""
    torch.manual_seed(0)
    module = method(backbone=nn.Flatten(), feature_dim=FEATURES, proj_dim=D, proj_layers=1).double()
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.requires_grad:
                parameter.mul_(1.5).add_(0.1)  # targets are those of another network
    x = images(K, world_size).view(K, -1, 1, 1, FEATURES)
    x = x if rank is None else share(x, rank)
    outputs = module.training_step({"views": x, "label": torch.zeros(x.shape[1])}, 0)
    outputs["loss"].backward()
    return outputs["loss"].detach(), [p.grad for p in module.parameters() if p.requires_grad]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run = subprocess.run([sys.executable, __file__, str(folder)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(params=[2, 3])
def ranks(request, folder):
    return [torch.load(folder / str(request.param) / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("K", [2, 3])
def test_gathered_batch_is_in_rank_order_on_every_rank(ranks, K):
    x = images(K, len(ranks))
    for found in ranks:
        assert torch.equal(found["gathered", K], x)
        assert torch.equal(found["labels", K], x.argmax(dim=2, keepdim=True))  # integers, as the probe's labels


@pytest.mark.parametrize("how", ["uneven", "no rows", "no batches"])
def test_gathered_rows_are_those_of_one_process(ranks, how):
    for rank, found in enumerate(ranks):
        assert_exactly(found["rows", how], all_rows())
        assert_exactly(found["rows on the first rank", how], all_rows() if rank == 0 else ())
        assert found["rows", "nothing anywhere"] == found["rows on the first rank", "nothing anywhere"] == ()
        assert found["largest part"] <= 50
        assert found["parts"] > 2 * 3 * len(all_rows())


def test_rows_of_one_process_are_sorted_by_their_index():
    assert_exactly(gather_rows(batches_of(0, 1, "uneven")), all_rows())
    assert gather_rows([], on_first_rank_only=True) == ()


def assert_exactly(found, expected):
    assert len(found) == len(expected)
    for column, other in zip(found, expected, strict=True):
        assert_close(column, other, rtol=0, atol=0, equal_nan=True)  # of types and shapes, too


def test_the_largest_number_of_the_ranks_is_known_on_all_of_them(ranks):
    for found in ranks:
        assert found["largest numbers"] == [0, 0, 0, len(ranks) + 4, 0, 0, 0]


def test_unequal_batches_are_an_error_on_every_rank(ranks):
    for found in ranks:
        for rank in range(len(ranks)):
            assert f"(2, {N + rank}, {D}) on rank {rank}" in found["unequal"]


@pytest.mark.parametrize(("loss", "K"), CASES)
def test_loss_and_gradients_are_those_of_one_process(ranks, loss, K):
    value, grads = one_process(loss, images(K, len(ranks)))
    for found in ranks:
        assert_close(found[loss, K], (value, grads), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["Distilled", "BYOL", "SimSiam", "MoCo"])
def test_targets_of_a_second_network_are_those_of_one_process(ranks, method):
    expected = step_of_second_network(second_networks()[method], 3, len(ranks))
    assert max(grad.abs().max() for grad in expected[1]) > 1e-3
    for found in ranks:
        assert_close(found[method], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_the_gradient_under_bf16_is_that_of_one_process(folder, world_size):
    """Exact to float32; and rounded once where the embeddings themselves are bf16, not at each addition."""
    z = embeddings_in_bf16(world_size).float().requires_grad_()
    module = BarlowTwins(backbone=nn.Flatten(), feature_dim=12, proj_dim=D)
    (expected,) = torch.autograd.grad(module.terms(z)["loss"], z)
    for rank in range(world_size):
        found, own = torch.load(folder / str(world_size) / f"bf16-{rank}.pt"), share(expected, rank)
        assert_close(found["float32"] / world_size, own, rtol=1e-6, atol=1e-9)
        rounded_once = found["bf16"] == (world_size * own).bfloat16()
        assert rounded_once.float().mean() > 0.95  # all, but for what float32 rounds to the other side of a tie
        once = (torch.full((3, N, D), 1.0078125) * world_size).bfloat16()  # by `gather` alone, of bf16
        assert torch.equal(found["own"], once)


# Without these two, the test above could pass whatever the gradient of `gather` is.
@pytest.mark.parametrize(("loss", "K"), CASES)
def test_gather_without_autograd_would_be_found_out(ranks, loss, K):
    expected, grads = one_process(loss, images(K, len(ranks)))
    value, found = ranks[0]["without autograd", loss, K]
    assert_close(value, expected, rtol=1e-10, atol=0)
    assert (found[0] - grads[0]).norm() > 0.1 * grads[0].norm()


def test_all_reduce_of_statistics_would_be_found_out(ranks):
    expected, grads = one_process("barlow_twins", images(2, len(ranks)))
    value, found = ranks[0]["all_reduce"]
    assert_close(value, expected, rtol=1e-10, atol=0)
    assert (found[0] - grads[0]).norm() > 0.1 * grads[0].norm()


def test_one_process_gets_its_own_tensor(tmp_path):
    z = torch.randn(3, 4, 2)
    assert gather(z) is z
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert gather(z) is z
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    import torch._dynamo  # which DDP imports: once before the fork, not once per rank

    for world_size in (2, 3, 8):
        folder = Path(sys.argv[1], str(world_size))
        folder.mkdir()
        mp.start_processes(work_in_bf16, (world_size, folder), nprocs=world_size, start_method="fork")
        if world_size == 8:
            break
        mp.start_processes(work, (world_size, folder), nprocs=world_size, start_method="fork")
