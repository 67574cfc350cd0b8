"""`.beton` files: written whole or not at all, refused when broken. That their order is ours is in test_storage.py."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from conftest import NARROW
from lightning import Trainer, seed_everything
from PIL import Image
from torch import nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from msssl import BarlowTwins, Beton, ImageFolder, MultiViewDataModule
from msssl.callbacks import LastCheckpoint
from msssl.data.pixels.beton_file import import_ffcv
from msssl.data.write_beton import write_beton
from msssl.views import Preprocess

pytestmark = pytest.mark.long
needs_ffcv = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed")


def images(n=12, size=8, seed=0, **kwargs):
    pixels = torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    kwargs = {"batch_size": 2, "num_workers": 0, "val_fraction": 0.0, **kwargs}
    return MultiViewDataModule.from_datasets(TensorDataset(pixels, torch.arange(n) % 3), **kwargs)


def read(folder, **kwargs):
    data = Beton(str(folder), **{"batch_size": 4, "num_workers": 0, "val_fraction": 0.0, **kwargs})
    data.setup()
    return data


def test_a_missing_ffcv_says_how_to_install_it(msssl, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv", None)
    (tmp_path / "train.beton").write_bytes(b"")
    code, _, err = msssl("fit", "--config", "cifar.yaml", "--config", "ffcv.yaml", "--data.data_dir", tmp_path, *NARROW)
    assert code == 2, err
    lines = err.strip().splitlines()
    assert "  apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++" in lines
    assert "  pip install 'msssl[ffcv]'" in lines
    assert "storage: cached" in lines[-1]
    assert "Traceback" not in err


@needs_ffcv
def test_predict_reads_every_image_of_the_files(tmp_path):
    """Also for a run whose deeper images were read by a window: the files hold 8 bits."""
    write_beton(images(), str(tmp_path))
    data = Beton(str(tmp_path), batch_size=5, num_workers=0, val_fraction=0.5)
    data.preprocess = Preprocess((0.5,) * 3, (0.5,) * 3, image_size=(4, 4), window=(0.0, 4095.0))
    data.setup("predict")
    batches = [data.on_after_batch_transfer(batch) for batch in data.predict_dataloader()]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(12))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [i % 3 for i in range(12)]
    assert torch.cat([batch["image"] for batch in batches]).shape == (12, 3, 4, 4)


@needs_ffcv
def test_jpegs_are_near_and_a_proportion_of_them_is_nearer(tmp_path):
    data = images(n=40, size=32)
    smooth = torch.nn.functional.interpolate(torch.rand(40, 3, 4, 4), 32, mode="bicubic").clamp(0, 1) * 255
    data.setup()
    pixels = data.datasets["train"].tensors[0].copy_(smooth)
    exact = {}
    for mode in ("raw", "jpg", "proportion"):
        write_beton(data, str(tmp_path / mode), mode)
        batches = list(read(tmp_path / mode).evaluation_dataloader("probe"))
        found = torch.cat([batch["image"] for batch in batches])
        assert (found.int() - pixels).abs().float().mean() < 4
        exact[mode] = sum(torch.equal(one, other) for one, other in zip(found, pixels, strict=True))
    assert exact["raw"] == 40
    assert exact["jpg"] == 0
    assert 4 < exact["proportion"] < 36  # exceeded once in ten million


@needs_ffcv
def test_large_images_are_reduced(tmp_path):
    write_beton(images(size=32), str(tmp_path), max_side=20)
    assert next(iter(read(tmp_path).train_dataloader()))["image"].shape == (4, 3, 20, 20)


@needs_ffcv
def test_torch_and_the_global_random_state_are_left_alone(tmp_path):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(3)
    try:
        write_beton(images(), str(tmp_path))
        list(read(tmp_path, num_workers=2).train_dataloader())
        read(tmp_path, order="quasi_random").train_dataloader().order(0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)


@needs_ffcv
@pytest.mark.parametrize("skip", [False, True])
def test_an_unreadable_image_stops_the_writing_or_is_left_out(tmp_path, skip):
    for i in range(8):
        (tmp_path / "train").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / "train" / f"{i}.png")
    (tmp_path / "train" / "5.png").write_bytes(b"not an image")
    data = ImageFolder(str(tmp_path), batch_size=2, num_workers=0, on_error="skip" if skip else "stop")
    if not skip:
        with pytest.raises(ValueError, match=r"train/5\.png cannot be read"):
            write_beton(data, str(tmp_path / "beton"))
        assert not list((tmp_path / "beton").iterdir())
        return
    write_beton(data, str(tmp_path / "beton"))
    (batch,) = read(tmp_path / "beton", batch_size=8).evaluation_dataloader("probe")
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert batch["index"].tolist() == list(range(7))


def cut_header(path):
    path.write_bytes(path.read_bytes()[:10])


def cut_metadata(path):
    path.write_bytes(path.read_bytes()[:3000])


def cut_images(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_table(path):
    path.write_bytes(path.read_bytes()[:-30])


def empty(path):
    path.write_bytes(b"")


def something_else(path):
    path.write_bytes(b"PK" * 5000)


def other_fields(path):
    ffcv = import_ffcv()
    fields = {"covariate": ffcv.fields.NDArrayField(np.dtype("float32"), (3,)), "label": ffcv.fields.IntField()}
    ffcv.writer.DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset([(np.zeros(3, "float32"), 0)] * 3)


def mixed_sizes(path):
    ffcv = import_ffcv()
    fields = {"image": ffcv.fields.RGBImageField(), "label": ffcv.fields.IntField()}
    mixed = [(np.zeros((8, width, 3), np.uint8), 0) for width in (8, 9)]
    ffcv.writer.DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(mixed)


def another_size_in_val(path):
    write_beton(images(size=10), str(path.parent / "other"))
    (path.parent / "other" / "train.beton").rename(path.parent / "val.beton")


def missing(path):
    path.unlink()


@needs_ffcv
@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (cut_header, "no beton or cut short"),
        (cut_metadata, "cut short"),
        (cut_images, "cut short"),
        (cut_table, "cut short"),
        (empty, "no beton or cut short"),
        (something_else, "no beton or cut short"),
        (other_fields, "fields covariate, label"),
        (mixed_sizes, "images of 8 to 8 x 8 to 9 pixels"),
        (another_size_in_val, "(10, 10)"),
        (missing, "write-beton"),
    ],
)
def test_a_broken_file_is_named(tmp_path, damage, fragment):
    write_beton(images(), str(tmp_path))
    damage(tmp_path / "train.beton")
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        read(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert fragment in str(raised.value)
    assert "\n" not in str(raised.value)


@needs_ffcv
def test_quasi_random_is_an_order_of_all_images_for_one_device(tmp_path):
    write_beton(images(n=30), str(tmp_path))
    data = read(tmp_path, order="quasi_random", batch_size=5)
    loader = data.train_dataloader()
    orders = [loader.order(epoch).flatten().tolist() for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    for order in orders:
        assert sorted(order) == list(range(30))
    pixels = data.datasets["train"]
    assert len(pixels) == 30
    exact = {
        int(i): image
        for batch in read(tmp_path).train_dataloader()
        for i, image in zip(batch["index"], batch["image"], strict=True)
    }
    for batch in loader:
        for index, image in zip(batch["index"].tolist(), batch["image"], strict=True):
            assert index not in exact or torch.equal(image, exact[index])
    from msssl.data.loaders import TrainLoader

    with pytest.raises(ValueError, match="one device"):
        TrainLoader(data.images("train"), 5, seed=0, epoch=lambda: 0, world_size=2)


@pytest.mark.parametrize("kwargs", [{"storage": "memory"}, {"on_error": "skip"}])
def test_options_of_other_sets_are_refused(kwargs):
    with pytest.raises(ValueError, match="not for Beton"):
        Beton("data", **kwargs)


@needs_ffcv
def test_a_labelled_set_of_its_own_is_written_and_probed_with(msssl, tmp_path, stl10_folder):
    code, _, err = msssl("write-beton", "--config", "stl10.yaml", "--data.num_workers=0")
    assert code == 0, err
    assert {path.name for path in (tmp_path / "beton").iterdir()} == {"train.beton", "probe.beton", "test.beton"}
    args = ["--config", "stl10.yaml", "--config", "ffcv.yaml", *NARROW, "--trainer.accelerator=cpu"]
    args += ["--trainer.precision=32-true", "--trainer.max_epochs=1", "--data.batch_size=8", "--data.val_fraction=0.5"]
    code, out, err = msssl("fit", *args)
    assert code == 0, err
    assert "images: 40 train, 10 probe, 10 val, 10 test" in err
    assert "top-1 on validation images" in out
    code, out, err = msssl("probe", "--ckpt_path", "last", "--baselines=false")
    assert code == 0, err
    assert "test top-1" in out
    assert len(list(tmp_path.glob("runs/*/probe.png"))) == 1


@needs_ffcv
def test_groups_that_are_held_out_become_a_file_of_their_own(tmp_path):
    rows = ["path,label,group"]
    for i in range(30):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'sick' if i // 3 % 2 else 'well'},patient {i // 3}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    data = ImageFolder(
        str(tmp_path), manifest=str(tmp_path / "list.csv"), val_fraction=0.2, batch_size=2, num_workers=0
    )
    write_beton(data, str(tmp_path / "beton"))
    written = read(tmp_path / "beton", batch_size=2, val_fraction=0.1)
    for split in ("probe", "val"):
        found, expected = (
            torch.cat([batch["image"][:, 0, 0, 0] for batch in each.evaluation_dataloader(split)]).tolist()
            for each in (written, data)
        )
        assert found == expected
        assert len({i // 3 for i in found}) * 3 == len(found)


@needs_ffcv
def test_images_larger_than_ffcvs_pages_are_written(tmp_path):
    large = TensorDataset(torch.randint(256, (2, 3, 1700, 1700), dtype=torch.uint8), torch.tensor([0, 1]))
    data = MultiViewDataModule.from_datasets(large, batch_size=2, num_workers=0, val_fraction=0.0)
    write_beton(data, str(tmp_path))
    (batch,) = read(tmp_path, batch_size=2).evaluation_dataloader("probe")
    assert torch.equal(batch["image"], large.tensors[0])


@needs_ffcv
@pytest.mark.parametrize("order", ["exact", "quasi_random"])
def test_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path, order):
    write_beton(images(n=24), str(tmp_path / "beton"))
    undisturbed = trained(tmp_path, order)
    trained(tmp_path, order, max_steps=9, every_n_train_steps=4)  # the second epoch is left after its second batch
    found = trained(tmp_path, order, ckpt_path=tmp_path / "last.ckpt")
    assert_close(found, undisturbed, rtol=0, atol=0)


def trained(folder, order, max_steps=14, ckpt_path=None, **saving):
    torch.manual_seed(0)
    seed_everything(3, verbose=False)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))
    module = BarlowTwins(backbone=backbone, feature_dim=8, proj_dim=8)
    callbacks = [LastCheckpoint(dirpath=folder, **saving)] if saving else []
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=bool(saving),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data = Beton(str(folder / "beton"), order=order, batch_size=4, num_workers=2, val_fraction=0.0)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module.state_dict()
