from pathlib import Path

import pytest
import torch
from conftest import NARROW, TINY_IMAGES, load
from test_losses import embeddings
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from msssl import MultiViewModule

EXAMPLES = Path(__file__).parents[1] / "configs" / "examples"


@pytest.mark.parametrize(("example", "flags"), [("moco.MoCo", []), ("diet.DIET", ["--model.n_images=80"])])
def test_examples_train_by_one_flag_and_load_again(example, flags, msssl, tmp_path):
    file = f"{example.partition('.')[0]}.py"
    (tmp_path / file).write_text((EXAMPLES / file).read_text())
    code, _, err = msssl(
        "fit", "--config", "demo.yaml", "--model", example, *flags, *NARROW, *TINY_IMAGES, "--trainer.max_steps=2"
    )
    assert code == 0, err
    loaded = MultiViewModule.load_from_checkpoint(next(tmp_path.glob("runs/*/last.ckpt")))
    assert type(loaded).__name__ == example.partition(".")[2]


def test_moco_loss_is_the_mean_over_views_and_images():
    module = load(EXAMPLES / "moco.py").MoCo(backbone=nn.Flatten(), feature_dim=4, proj_dim=4, temperature=0.5).double()
    module.eval()
    z, module._targets = embeddings(3, 5, 4), embeddings(4, 5, 4)[:3]
    values = []
    for k in range(3):
        others = F.normalize(torch.stack([module._targets[j] for j in range(3) if j != k]).mean(dim=0), dim=-1)
        for n in range(5):
            similarities = F.normalize(module.predictor(z[k, n][None]), dim=-1)[0] @ others.T / 0.5
            values.append(similarities.logsumexp(dim=0) - similarities[n])
    assert_close(module.compute_loss(z)["loss"], torch.stack(values).mean(), rtol=1e-11, atol=0)


def test_diet_loss_is_that_of_each_index_in_turn():
    module = load(EXAMPLES / "diet.py").DIET(n_images=9, backbone=nn.Flatten(), feature_dim=4, proj_dim=3).double()
    z, module._index = embeddings(3, 5, 4), torch.tensor([8, 2, 0, 5, 1])
    values = []
    for k in range(3):
        for n, index in enumerate(module._index):
            logs = module.head(z[k, n]).log_softmax(dim=0)
            values.append(-0.2 * logs[index] - 0.8 * logs.mean())
    assert_close(module.compute_loss(z)["loss"], torch.stack(values).mean(), rtol=1e-11, atol=0)


def test_diet_names_the_number_of_images(msssl, tmp_path):
    (tmp_path / "diet.py").write_text((EXAMPLES / "diet.py").read_text())
    flags = ["fit", "--config", "demo.yaml", "--model", "diet.DIET", *NARROW, *TINY_IMAGES, "--trainer.max_steps=2"]
    for given, line in (("59", "n_images is 59, and the training set has 60"), ("0", "n_images is 0: expected")):
        code, _, err = msssl(*flags, f"--model.n_images={given}")
        assert code == 2
        assert line in err


def test_per_instance_loss_takes_its_negatives_from_the_same_image():
    module = load(EXAMPLES / "per_instance_simclr.py").PerInstanceSimCLR(backbone=nn.Flatten(), temperature=0.5)
    z = embeddings(6, 3, 4)
    values = []
    for n in range(3):
        for k in range(6):
            similarity = F.cosine_similarity(z[k, n][None], z[:, n]) / 0.5
            others = [j for j in range(6) if j != k]
            values.append(similarity[others].exp().sum().log() - similarity[(k + 3) % 6])
    assert_close(module.compute_loss(z), torch.stack(values).mean(), rtol=1e-11, atol=0)
    with pytest.raises(ValueError, match="n_views is 5"):
        module.compute_loss(embeddings(5, 3, 4))


def test_shared_crops():
    crop = load(EXAMPLES / "per_instance_simclr.py").SharedCrop(8)
    views = crop(torch.rand(1, 3, 16, 16).repeat(12, 1, 1, 1))  # one image, K * N = 12
    assert views.shape == (12, 3, 8, 8)
    assert torch.equal(views[:6], views[6:])
    assert len(views.flatten(1).unique(dim=0)) == 6


def test_per_instance_simclr_trains_by_its_config(msssl, tmp_path):
    for name in ("per_instance_simclr.py", "per_instance_simclr.yaml"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text())
    overlay = ["--config", "per_instance_simclr.yaml"]
    code, _, err = msssl("fit", "--config", "demo.yaml", *overlay, *NARROW, *TINY_IMAGES, "--trainer.max_steps=2")
    assert code == 0, err
