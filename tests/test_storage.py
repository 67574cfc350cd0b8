"""Every storage shows the same images in the same order; caches survive kills, changes and company."""

import gc
import importlib.util
import logging
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision import transforms as T
from torchvision.transforms import v2

from msssl import Beton, ImageFolder, MultiView, MultiViewDataModule
from msssl.data.loaders import EvaluationLoader, TrainLoader
from msssl.data.pixels import cache, decode, item
from msssl.data.pixels import storage as storage_module
from msssl.data.pixels.decode import Decoded
from msssl.data.pixels.images import Images
from msssl.data.pixels.labels import fingerprint
from msssl.data.pixels.pixel_format import ImageKind
from msssl.data.sets import pieces
from msssl.data.write_beton import write_beton
from msssl.methods import BarlowTwins

needs_ffcv = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed")
STORAGES = ["memory", "cached", "stream", pytest.param("ffcv", marks=needs_ffcv)]


@pytest.fixture
def folder(tmp_path):
    """Two classes of noise, 20 training and 7 test images each."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 7)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(256, size=(8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{i:02}.png")
    return tmp_path / "images"


def read(folder, storage, **kwargs):
    kwargs = {"batch_size": 4, "num_workers": 0, "views": MultiView(2), **kwargs}
    if storage == "ffcv":
        write_beton(ImageFolder(str(folder), image_size=8, num_workers=0), str(folder / "beton"))
        data = Beton(str(folder / "beton"), **kwargs)
    else:
        data = ImageFolder(str(folder), image_size=8, storage=storage, **kwargs)
    data.setup()
    return data


def equal(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key, value in batch.items():
            assert value == other[key] if isinstance(value, int) else torch.equal(value, other[key]), key
            if isinstance(value, torch.Tensor):
                assert value.dtype == other[key].dtype
                assert value.is_contiguous()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("storage", STORAGES)
def test_every_storage_shows_the_same_images_in_the_same_order(folder, storage, num_workers):
    data = read(folder, storage, num_workers=num_workers, fraction=0.5)
    reference = read(folder, "stream", fraction=0.5)
    for split in ("probe", "val", "test"):
        equal(list(data.evaluation_dataloader(split)), list(reference.evaluation_dataloader(split)))
    for rank, world_size in ((0, 1), (1, 2)):
        for epoch in (0, 1):
            loaders = [
                TrainLoader(
                    each.images("train"),
                    4,
                    seed=3,
                    epoch=lambda epoch=epoch: epoch,
                    rank=rank,
                    world_size=world_size,
                    num_workers=workers,
                )
                for each, workers in ((data, num_workers), (reference, 0))
            ]
            equal(*map(list, loaders))


@pytest.mark.parametrize("storage", STORAGES)
def test_a_loader_goes_on_in_the_middle_of_an_epoch(folder, storage):
    images = read(folder, storage).images("train")
    loader = TrainLoader(images, 4, seed=3, epoch=lambda: 2)
    whole = list(loader)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    state = loader.state_dict()
    resumed = TrainLoader(images, 4, seed=3, epoch=lambda: 2)
    resumed.load_state_dict(state)
    equal(list(resumed), whole[3:])
    equal(list(loader), whole)  # the iteration that was left has left nothing behind


def test_the_loss_of_three_steps_is_that_of_every_storage(folder):
    found = {}
    for storage in [param if isinstance(param, str) else param.values[0] for param in STORAGES]:
        if storage == "ffcv" and importlib.util.find_spec("ffcv") is None:
            continue
        torch.manual_seed(0)
        module = BarlowTwins(
            backbone=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8)), feature_dim=8, proj_dim=4
        )
        losses = found[storage] = []
        module.on_train_batch_end = lambda outputs, *_, losses=losses: losses.append(float(outputs["loss"]))
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        Trainer(max_steps=3, **options).fit(module, read(folder, storage))
    assert len(found["stream"]) == 3
    for storage, losses in found.items():
        assert losses == pytest.approx(found["stream"], rel=1e-6), storage


class Counted(Dataset):
    """Images that count how often they are read."""

    def __init__(self, n=40, fingerprint=None):
        self.reads = [0] * n
        self.targets = [i % 2 for i in range(n)]
        if fingerprint:
            self.fingerprint = fingerprint

    def __len__(self):
        return len(self.reads)

    def __getitem__(self, index):
        self.reads[index] += 1
        return torch.full((3, 8, 8), index, dtype=torch.uint8), self.targets[index]


@pytest.mark.parametrize(("storage", "n_reads"), [("memory", 1), ("cached", 1), ("stream", 3)])
def test_eight_views_need_one_read_an_image_an_epoch_or_one_in_all(tmp_path, storage, n_reads):
    dataset = Counted(fingerprint="counted")
    data = MultiViewDataModule.from_datasets(
        dataset,
        data_dir=str(tmp_path),
        storage=storage,
        val_fraction=0.0,
        batch_size=4,
        num_workers=0,
        views=MultiView(8, []),
    )
    data.setup()
    for _ in range(3):
        for batch in data.train_dataloader():
            assert data.on_after_batch_transfer(batch)["views"].shape == (8, 4, 3, 8, 8)
    # A few are also read twice, to see whether they stay the same, and the first one's size is looked at.
    compared = [i for i, reads in enumerate(dataset.reads) if reads > n_reads]
    assert len(compared) == item.N_COMPARED
    assert [dataset.reads[i] for i in compared[1:]] == [n_reads + 2] * (item.N_COMPARED - 1)
    assert dataset.reads[0] <= n_reads + 3
    assert min(dataset.reads) == n_reads


# The cache.


def contents(data):
    batches = list(data.evaluation_dataloader("probe"))
    return torch.cat([batch["image"] for batch in batches]), torch.cat([batch["label"] for batch in batches])


def cached(folder, **kwargs):
    data = read(folder, "cached", val_fraction=0.0, **kwargs)
    return contents(data)


def caches(folder):
    return {path.name for path in (folder / ".msssl").iterdir()} - {"lock"}


def never(*_):
    pytest.fail("decoded again")
    yield


def test_a_second_start_decodes_nothing(folder, monkeypatch):
    first = cached(folder)
    monkeypatch.setattr(storage_module, "decode", never)
    equal_pairs(cached(folder), first)
    assert len(caches(folder)) == 1


def equal_pairs(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_cache_moves_with_its_folder_or_stays_away_from_it(folder, tmp_path, monkeypatch):
    first = cached(folder)
    shutil.copytree(folder, tmp_path / "moved", copy_function=shutil.copy2)
    with monkeypatch.context() as patch:
        patch.setattr(storage_module, "decode", never)
        equal_pairs(cached(tmp_path / "moved"), first)
    equal_pairs(cached(folder, cache_dir=str(tmp_path / "away")), first)
    assert {path.name for path in (tmp_path / "away").iterdir()} - {"lock"} == caches(folder)


def changed_pixels(folder):
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "train" / "cat" / "05.png")


def replaced_by_one_of_the_same_length(folder):
    path = folder / "train" / "cat" / "05.bmp"
    (folder / "train" / "cat" / "05.png").unlink()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(path)
    cached(folder)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path)


def one_image_less(folder):
    (folder / "train" / "cat" / "05.png").unlink()


def another_label(folder):
    (folder / "train" / "cat" / "05.png").rename(folder / "train" / "dog" / "99.png")


@pytest.mark.parametrize("change", [changed_pixels, replaced_by_one_of_the_same_length, one_image_less, another_label])
def test_a_changed_set_is_cached_anew(folder, change):
    cached(folder)
    before = caches(folder)
    change(folder)
    equal_pairs(cached(folder), contents(read(folder, "stream", val_fraction=0.0)))
    assert len(caches(folder)) >= len(before) + 1


def test_settings_have_caches_of_their_own(folder):
    for size, window in ((8, None), (6, None), (8, (0, 99))):
        data = ImageFolder(
            str(folder),
            size,
            window=window,
            dtype="uint8" if window else "auto",
            storage="cached",
            batch_size=4,
            num_workers=0,
        )
        data.setup()
        assert next(iter(data.train_dataloader()))["image"].shape[-1] == size
    assert len(caches(folder)) == 3


@pytest.mark.parametrize("dataset", ["arrays", "fingerprint"])
def test_size_and_window_of_images_of_ones_own_have_caches_of_their_own(tmp_path, dataset):
    arrays = torch.utils.data.TensorDataset(torch.randint(256, (8, 1, 8, 8), dtype=torch.int16), torch.arange(8) % 2)
    own = Counted(8, "counted")
    for size, window in ((None, (0, 255)), (6, (0, 255)), (6, (0, 99)), (4, (0, 99))):
        for _ in range(2):
            data = MultiViewDataModule.from_datasets(
                arrays if dataset == "arrays" else own,
                data_dir=str(tmp_path),
                storage="cached",
                image_size=size,
                window=window,
                dtype="uint8",
                batch_size=4,
                num_workers=0,
            )
            data.setup()
            assert next(iter(data.train_dataloader()))["image"].shape[-1] == (size or 8)
    assert len(caches(tmp_path)) == 4


def build(folder, kill_at, barrier):
    """In a process of its own: builds the cache, or is killed when it has decoded that many images."""
    decode.CHUNK_BYTES = 600  # three images at a time
    n_read = 0
    original = pieces.open_pixels

    def open_pixels(*args):
        nonlocal n_read
        n_read += 1
        if n_read > kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    pieces.open_pixels = open_pixels
    if kill_at == 41:  # after the last image: before the folder gets its name
        cache.json.dumps = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    if barrier is not None:
        barrier.wait()
    cached(folder)


def spawn(folder, kill_at=10**9, barrier=None):
    process = multiprocessing.get_context("fork").Process(target=build, args=(folder, kill_at, barrier))
    process.start()
    return process


def test_a_builder_killed_at_ten_points_leaves_no_corrupt_cache(folder):
    expected = contents(read(folder, "stream", val_fraction=0.0))
    for kill_at in (1, 2, 5, 9, 14, 20, 27, 33, 39, 41):
        process = spawn(folder, kill_at)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not [name for name in caches(folder) if not name.endswith(".tmp")]
        equal_pairs(cached(folder), expected)
        assert not [name for name in caches(folder) if name.endswith(".tmp")]
        shutil.rmtree(folder / ".msssl")


def test_two_processes_build_one_cache(folder):
    expected = contents(read(folder, "stream", val_fraction=0.0))
    for _ in range(3):
        barrier = multiprocessing.get_context("fork").Barrier(2)
        processes = [spawn(folder, barrier=barrier) for _ in range(2)]
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        assert len(caches(folder)) == 1
        equal_pairs(cached(folder), expected)
        shutil.rmtree(folder / ".msssl")


def private_bytes():
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux counts private memory")
@pytest.mark.parametrize("n_bytes", [2**28, pytest.param(2**32, marks=pytest.mark.slow)])
def test_an_epoch_of_a_mapped_set_takes_no_private_memory(tmp_path, n_bytes):
    shape = (n_bytes // (3 * 160 * 160), 3, 160, 160)
    folder = tmp_path / "sparse"
    folder.mkdir()
    with (folder / "images.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + int(np.prod(shape)))
    np.save(folder / "targets.npy", np.zeros(shape[0], dtype=np.int64))
    (folder / "unreadable.json").write_text("{}")
    decoded = cache.load_or_build(folder, shape[0], ImageKind(shape[1:], torch.uint8), [], bool)
    assert decoded.images.shape == shape
    loader = TrainLoader(Images(decoded, torch.arange(len(decoded)), "train"), 64, seed=0, epoch=lambda: 0)
    before = private_bytes()
    assert sum(len(batch["image"]) for batch in loader) == len(loader) * 64
    assert private_bytes() - before < min(200e6, n_bytes / 4)


# The choice.


def chosen(tmp_path, caplog, dataset, **kwargs):
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="msssl"):
        data = MultiViewDataModule.from_datasets(dataset, data_dir=str(tmp_path), batch_size=2, num_workers=0, **kwargs)
        data.setup()
        data.train_dataloader()
    return next(line for line in caplog.messages if line.startswith("storage of train"))


def test_auto_takes_the_first_that_fits_and_says_why(tmp_path, caplog, monkeypatch):
    told = chosen(tmp_path, caplog, Counted())
    assert re.match(r"storage of train: memory, 7\.68 kB of 8 x 8 pixels; it fits into [\d.]+ GB", told)
    monkeypatch.setattr(storage_module, "MEMORY_LIMIT", 5000)
    told = chosen(tmp_path, caplog, Counted(fingerprint="x"))
    assert f"cached, 7.68 kB of 8 x 8 pixels; it does not fit into 5 kB of memory; in {tmp_path}/.msssl" in told
    told = chosen(tmp_path, caplog, Counted())
    assert "stream, 7.68 kB of 8 x 8 pixels; it does not fit into 5 kB of memory, and a data set without a" in told
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 8000))
    told = chosen(tmp_path, caplog, Counted(fingerprint="y"))
    assert "stream" in told
    assert f"nor on the disk of {tmp_path}/.msssl (8 kB free)" in told
    assert "stream, 7.68 kB of 8 x 8 pixels; as asked for" in chosen(tmp_path, caplog, Counted(), storage="stream")


def test_all_sets_on_a_gpu_take_a_quarter_of_its_memory_together(tmp_path, caplog, monkeypatch):
    def place(n, free, total=100_000):
        monkeypatch.setattr(storage_module, "_free_and_total", lambda device: (free, total))
        storage = storage_module.Storage("memory", str(tmp_path), parallel=False, skip=False, trainer=None)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="msssl"):
            return storage.open(Counted(n), "images"), caplog.messages[-1]

    monkeypatch.setattr(storage_module, "_ON_DEVICE", weakref.WeakSet())
    train, told = place(80, free=90_000)  # 80 images of 192 bytes: 15.4 kB of the 25 kB
    assert told == "storage of images: on cpu"
    _, told = place(80, free=74_640)  # less than a quarter of what is free now
    assert told == "storage of images: on the host; images may take 9.64 kB more on cpu"
    val, told = place(40, free=74_640)
    assert told == "storage of images: on cpu"
    assert set(storage_module._ON_DEVICE) == {train, val}
    assert "images may take 0 B more" in place(11, free=0)[1]  # other processes have the rest
    assert "images may take 1.96 kB more" in place(11, free=66_960)[1]
    del train
    gc.collect()
    assert place(80, free=82_320)[1] == "storage of images: on cpu"  # a set that is dropped leaves its room


def test_arrays_are_cached_by_their_content(tmp_path):
    def start(images):
        dataset = torch.utils.data.TensorDataset(images, torch.arange(8) % 2)
        kwargs = {"data_dir": str(tmp_path), "storage": "cached", "batch_size": 2, "num_workers": 0}
        data = MultiViewDataModule.from_datasets(dataset, val_fraction=0.0, **kwargs)
        data.setup()
        return contents(data)[0]

    one, two = torch.randint(256, (2, 8, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(start(one), one)
    assert torch.equal(start(two), two)
    assert torch.equal(start(one), one)
    assert len(caches(tmp_path)) == 2


class Transformed(Counted):
    """Noise of 12 pixels, seen through a transform, with a fingerprint, so that it could be cached."""

    def __init__(self, transform, n=24):
        super().__init__(n, fingerprint="transformed")
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (n, 3, 12, 12), dtype=torch.uint8, generator=generator)
        self.transform = transform

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index].permute(1, 2, 0).numpy())), self.targets[index]


class OwnNumbers:
    """Flips by random numbers of its own, as other libraries of augmentations do."""

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __call__(self, image):
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.generator.random() < 0.5 else image


def with_python(image):
    return image.rotate(90 * random.randrange(4))


def with_numpy(image):
    return image.crop((0, 0, 8, 8)) if np.random.rand() < 2 else image  # noqa: NPY002


def seeded(image):
    """Noise that is always the same."""
    torch.manual_seed(7)
    return T.functional.to_pil_image(torch.randint(256, (3, 8, 8), dtype=torch.uint8))


RANDOM = {
    "crop": T.RandomCrop(8),
    "seldom": T.RandomGrayscale(0.01),
    "composed": T.Compose([T.Resize(9), T.RandomApply([T.RandomHorizontalFlip()]), T.CenterCrop(8)]),
    "second version": v2.Compose([v2.RandomResizedCrop(8), v2.ColorJitter(0.5)]),
    "of Python": with_python,
    "of NumPy": with_numpy,
    "numbers of its own": OwnNumbers(),
}
FIXED = {"size": T.Resize(8), "composed": T.Compose([T.Resize(9), T.CenterCrop(8), T.Grayscale()]), "seeded": seeded}


def wrapped(transform):
    return {
        "itself": lambda: Transformed(transform),
        "subset": lambda: Subset(Transformed(transform), range(20)),
        "a part": lambda: ConcatDataset([Transformed(lambda image: image.resize((8, 8))), Transformed(transform)]),
    }


def from_transformed(tmp_path, dataset, **kwargs):
    data = MultiViewDataModule.from_datasets(dataset, data_dir=str(tmp_path), batch_size=4, num_workers=0, **kwargs)
    data.setup()
    return data


@pytest.mark.parametrize("name", RANDOM)
def test_random_transforms_are_streamed_and_their_crops_never_kept(tmp_path, caplog, name):
    dataset = Transformed(RANDOM[name])
    told = chosen(tmp_path, caplog, dataset)
    assert re.search("stream, .* of train (is read with random numbers|had other pixels).*transform", told)
    for storage in ("memory", "cached"):
        with pytest.raises(ValueError, match=rf"storage: {storage} would keep .* image \d+ of train (is read|had)"):
            from_transformed(tmp_path, dataset, storage=storage).train_dataloader()
    images = from_transformed(tmp_path, dataset).images("train")
    if name not in ("seldom", "of NumPy"):
        assert not all(torch.equal(images[range(20)]["image"], images[range(20)]["image"]) for _ in range(4))


@pytest.mark.parametrize("name", ["itself", "subset", "a part"])
def test_random_transforms_are_seen_inside_of_other_data_sets(tmp_path, caplog, name):
    assert "stream" in chosen(tmp_path, caplog, wrapped(RANDOM["seldom"])[name](), image_size=8)


@pytest.mark.parametrize("name", FIXED)
def test_transforms_that_are_not_random_are_kept_in_memory(tmp_path, caplog, name):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert "memory" in chosen(tmp_path, caplog, Transformed(FIXED[name]))
    if name != "seeded":
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]


def test_looking_for_random_transforms_leaves_the_random_numbers_as_they_were():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    for transform in (*RANDOM.values(), seeded):
        item.why_not_fixed(Transformed(transform), "train")
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@needs_ffcv
def test_random_transforms_are_not_frozen_in_a_beton(tmp_path):
    data = MultiViewDataModule.from_datasets(Transformed(T.RandomCrop(8)), batch_size=4, num_workers=0)
    with pytest.raises(ValueError, match="a beton holds the pixels of each image once, but image 0 of train"):
        write_beton(data, str(tmp_path / "beton"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_in_the_gpus_memory_are_read_without_waiting():
    images = torch.randint(256, (64, 3, 8, 8), dtype=torch.uint8)
    decoded = Decoded(images.cuda(), torch.arange(64).cuda(), {})
    loader = TrainLoader(Images(decoded, torch.arange(64), "train"), 8, seed=0, epoch=lambda: 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(loader)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch in batches:
        assert torch.equal(batch["image"].cpu(), images[batch["index"]])


def test_evaluation_of_a_decoded_set_shows_every_image_once():
    decoded = Decoded(torch.zeros(17, 3, 4, 4, dtype=torch.uint8), torch.arange(17), {})
    seen = [batch["label"] for batch in EvaluationLoader(Images(decoded, torch.arange(17), "val"), 4)]
    assert sorted(torch.cat(seen).tolist()) == list(range(17))


def test_a_cache_that_is_there_is_used_whatever_is_free(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(storage_module, "MEMORY_LIMIT", 5000)
    assert "cached" in chosen(tmp_path, caplog, Counted(fingerprint="x"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 10))
    assert (
        f"cached, 7.68 kB of 8 x 8 pixels; it does not fit into 5 kB of memory; found in {tmp_path}/.msssl"
        in chosen(tmp_path, caplog, Counted(fingerprint="x"))
    )


def test_auto_streams_where_it_cannot_write(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(storage_module, "MEMORY_LIMIT", 5000)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "stream" in chosen(tmp_path, caplog, Counted(fingerprint="x"))
    assert "cannot be written (cache_dir says where else)" in caplog.text


def test_all_sets_together_keep_to_the_limit(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(storage_module, "MEMORY_LIMIT", 10_000)
    with caplog.at_level(logging.INFO, logger="msssl"):
        data = MultiViewDataModule.from_datasets(
            Counted(), Counted(), data_dir=str(tmp_path), batch_size=2, num_workers=0
        )
        data.setup()
        list(data.train_dataloader()), list(data.val_dataloader())
    assert "storage of train: memory" in caplog.text
    assert "storage of val: stream" in caplog.text


def test_labels_and_transforms_are_part_of_the_content():
    class Arrays(Counted):
        def __init__(self, targets, transform=None):
            super().__init__(2000)
            self.data = np.zeros((2000, 4, 4, 3), dtype=np.uint8)
            self.targets = torch.as_tensor(targets)
            self.transform = transform

    labels = torch.zeros(2000, dtype=torch.long)
    other = labels.clone()
    other[1000] = 1
    assert fingerprint(Arrays(labels)) == fingerprint(Arrays(labels.clone()))
    assert fingerprint(Arrays(labels)) != fingerprint(Arrays(other))
    assert fingerprint(Arrays(labels, transform=len)) is None


def test_a_cache_is_mapped_anew_in_processes_that_are_not_forked(folder):
    data = read(folder, "cached")
    decoded = data.images("train").dataset
    pickled = pickle.dumps(decoded)
    assert len(pickled) < 1000
    assert torch.equal(pickle.loads(pickled).images, decoded.images)


@pytest.mark.parametrize("name", ["images.npy", "targets.npy", "unreadable.json"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_cache_is_named(folder, name, damage):
    cached(folder)
    (path,) = (path for path in (folder / ".msssl").iterdir() if path.name != "lock")
    if damage == "cut":
        (path / name).write_bytes((path / name).read_bytes()[:-1])
    else:
        (path / name).unlink()
    with pytest.raises(OSError, match=rf"the cache {re.escape(str(path))} is damaged .*: delete it"):
        cached(folder)


class Opened(Counted):
    """Files that are only opened, as most people's data sets do it; the third is cut short."""

    def __init__(self, folder, fingerprint=None):
        super().__init__(6, fingerprint)
        self.folder = folder
        for i in range(6):
            noise = np.random.default_rng(i).integers(256, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{i}.png")
        (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:100])

    def __getitem__(self, index):
        return Image.open(self.folder / f"{index}.png"), self.targets[index]


@pytest.mark.parametrize("storage", ["memory", "cached", "stream"])
def test_images_that_are_only_opened_are_stopped_at_or_skipped_too(tmp_path, storage):
    kwargs = {"data_dir": str(tmp_path), "storage": storage, "batch_size": 2, "num_workers": 0, "val_fraction": 0.0}
    data = MultiViewDataModule.from_datasets(Opened(tmp_path, "opened"), on_error="skip", **kwargs)
    data.setup()
    assert torch.cat([batch["index"] for batch in data.evaluation_dataloader("probe")]).sort()[0].tolist() == [
        0,
        1,
        3,
        4,
        5,
    ]
    data = MultiViewDataModule.from_datasets(Opened(tmp_path, "again"), **kwargs)
    data.setup()
    with pytest.raises(ValueError, match=r"image 2 of train cannot be read: .*truncated"):
        list(data.train_dataloader())
