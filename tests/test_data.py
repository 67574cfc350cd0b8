import logging
import pickle
import re
from typing import ClassVar
from urllib.error import URLError

import numpy as np
import pytest
import torch
from deep_images import write_png
from lightning import LightningModule, Trainer
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from msssl import CIFAR10, CIFAR100, STL10, ImageFolder, MultiView, MultiViewDataModule, Shapes
from msssl.data.loaders import EvaluationLoader, TrainLoader
from msssl.data.pixels.images import Images
from msssl.data.pixels.labels import class_names_of
from msssl.data.splits import choose, hold_out


def coded(n, size=4):
    """Images n (n < 256) that hold their own position in every pixel."""
    return torch.arange(n).to(torch.uint8).view(n, 1, 1, 1).expand(n, 3, size, size)


def dataset_of(n, n_classes=2):
    return TensorDataset(coded(n), torch.arange(n) % n_classes)


def train_loader(n=23, batch_size=4, epoch=0, seed=0, **kwargs):
    images = Images(dataset_of(n), torch.arange(n), "train")
    return TrainLoader(images, batch_size, seed=seed, epoch=lambda: epoch, **kwargs)


def evaluation_loader(n, batch_size, **kwargs):
    return EvaluationLoader(Images(dataset_of(n), torch.arange(n), "val"), batch_size, **kwargs)


def indices(batches):
    return [batch["index"].tolist() for batch in batches]


def flat_indices(batches):
    return [i for batch in indices(batches) for i in batch]


def from_datasets(*sets, **kwargs):
    data = MultiViewDataModule.from_datasets(*sets, **{"batch_size": 4, "num_workers": 0, **kwargs})
    data.setup()
    return data


def positions(images):
    return set(images.indices.tolist())


def streamed(part):
    """The images of a split, read one by one."""
    return Images(part.dataset, part.indices, part.name)


class PilImages(Dataset):
    """PIL images of the given colours, without labels to look up."""

    def __init__(self, colours, mode="RGB"):
        self.images = [Image.new(mode, (6, 6), colour) for colour in colours]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index % 2


# The training loader.


def test_an_epoch_is_a_permutation_without_the_last_short_batch():
    loader = train_loader(n=23, batch_size=4)
    batches = list(loader)
    seen = torch.cat([batch["index"] for batch in batches])
    assert len(loader) == len(batches) == 5
    assert len(seen.unique()) == len(seen) == 20
    assert set(seen.tolist()) < set(range(23))
    assert seen.tolist() != sorted(seen.tolist())
    assert [(batch["epoch"], batch["batch"]) for batch in batches] == [(0, i) for i in range(5)]


def test_every_image_has_its_turn():
    left_out = [set(range(23)) - set(flat_indices(train_loader(epoch=epoch))) for epoch in range(3)]
    assert not set.intersection(*left_out)


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): indices(train_loader(seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len({str(order) for order in orders.values()}) == 6
    torch.manual_seed(5)  # the global state has no say
    assert indices(train_loader(seed=1, epoch=2)) == orders[1, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_process_sees_the_batches_of_two_ranks_put_together(num_workers):
    both = list(train_loader(batch_size=8, num_workers=num_workers))
    ranks = [list(train_loader(batch_size=4, rank=rank, world_size=2, num_workers=num_workers)) for rank in (0, 1)]
    assert len(both) == len(ranks[0]) == len(ranks[1]) == 2
    for batch, first, second in zip(both, *ranks, strict=True):
        for name in ("image", "label", "index"):
            assert torch.equal(batch[name], torch.cat([first[name], second[name]]))
        assert batch["batch"] == first["batch"] == second["batch"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_state_goes_on_with_exactly_the_remaining_batches(num_workers):
    whole = indices(train_loader(epoch=3))
    loader = train_loader(epoch=3, num_workers=num_workers)
    batches = iter(loader)
    taken = indices([next(batches), next(batches)])
    state = loader.state_dict()  # workers have read ahead; what they read does not count

    resumed = train_loader(epoch=3, num_workers=num_workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    rest = list(resumed)
    assert taken + indices(rest) == whole
    assert [batch["batch"] for batch in rest] == [2, 3, 4]
    assert indices(resumed) == whole  # the next epoch starts at 0


def test_a_state_loads_into_the_loader_that_has_run():
    loader = train_loader()
    whole = indices(loader)
    batches = iter(loader)
    next(batches)
    loader.load_state_dict(loader.state_dict())
    assert indices(loader) == whole[1:]


@pytest.mark.parametrize("n_taken", [3, 5], ids=["in mid-epoch", "at its end"])
def test_a_state_of_another_epoch_starts_at_0(n_taken):
    loader = train_loader(epoch=0)
    for _ in zip(range(n_taken), loader, strict=False):
        pass
    resumed = train_loader(epoch=1)
    resumed.load_state_dict(loader.state_dict())
    assert indices(resumed) == indices(train_loader(epoch=1))


def test_another_number_of_batches_leaves_out_the_same_share_of_the_epoch():
    loader = train_loader(n=24, batch_size=4)
    for _ in zip(range(3), loader, strict=False):
        pass
    for batch_size, left in ((8, 2), (2, 6), (4, 3)):
        resumed = train_loader(n=24, batch_size=batch_size)
        resumed.load_state_dict(loader.state_dict())
        assert flat_indices(resumed) == flat_indices(train_loader(n=24, batch_size=batch_size))[-left * batch_size :]


def own_loop(**kwargs):
    """The loader of a loop without a trainer, and its data module."""
    data = from_datasets(dataset_of(23), val_fraction=0.0, **kwargs)
    return data.train_dataloader(), data


def test_each_iteration_of_a_loop_of_ones_own_is_the_next_epoch():
    loader, data = own_loop()
    epochs = [indices(loader), indices(loader), indices(data.train_dataloader())]  # however the loop asks for it
    assert epochs == [indices(train_loader(epoch=epoch)) for epoch in range(3)]


@pytest.mark.parametrize("n_taken", [1, 3, 5])
def test_a_loop_of_ones_own_goes_on_where_it_was(n_taken):
    loader, _ = own_loop()
    indices(loader)  # epoch 0
    taken = [batch["index"].tolist() for _, batch in zip(range(n_taken), loader, strict=False)]
    resumed, _ = own_loop()
    resumed.load_state_dict(loader.state_dict())
    whole = [each for epoch in (1, 2, 3) for each in indices(train_loader(epoch=epoch))]
    rest = [each for _ in range(2) for each in indices(resumed)]
    assert taken + rest == whole[: n_taken + len(rest)]


def test_a_loop_of_ones_own_has_the_views_of_a_trainer(tmp_path):
    seen = []

    class Sees(LightningModule):
        def training_step(self, batch, batch_idx):
            seen.append(batch["views"])

        def configure_optimizers(self):
            return None

    data = from_datasets(dataset_of(23), val_fraction=0.0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, **quiet).fit(Sees(), data)
    loader, own = own_loop()
    own.seed = loader.seed = data.seed
    made = [own.make_views(batch, "cpu")["views"] for _ in range(2) for batch in loader]
    assert len(made) == len(seen) == 10
    assert all(torch.equal(one, other) for one, other in zip(made, seen, strict=True))


def test_views_are_made_on_the_device_that_is_named():
    data = from_datasets(dataset_of(23), dataset_of(4))
    batch = data.make_views(next(iter(data.val_dataloader())), "meta")
    assert {value.device.type for value in batch.values()} == {"meta"}
    assert batch["image"].shape == (4, 3, 4, 4)


def test_processes_of_a_loop_of_ones_own_share_a_batch(monkeypatch):
    whole = indices(own_loop(batch_size=8)[0])
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr("msssl.data.datamodule.rank_and_world_size", lambda rank=rank: (rank, 2))
        shares.append(indices(own_loop()[0]))
    assert [one + other for one, other in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize(("option", "same"), [("overfit_batches", True), ("limit_train_batches", False)])
def test_overfitted_batches_are_the_same_in_each_epoch(tmp_path, option, same):
    seen, views = [], []

    class Sees(LightningModule):
        def training_step(self, batch, batch_idx):
            seen.append(batch["index"].tolist())
            views.append(batch["views"])

        def configure_optimizers(self):
            return None

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=3, accelerator="cpu", default_root_dir=tmp_path, **quiet, **{option: 2})
    trainer.fit(Sees(), from_datasets(dataset_of(23), val_fraction=0.0))
    assert len(seen) == 6
    assert (seen[:2] == seen[2:4] == seen[4:]) == same
    assert not torch.equal(views[0], views[2])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_iteration_that_was_left_does_not_touch_the_next(num_workers):
    loader = train_loader(num_workers=num_workers)
    batches = iter(loader)
    next(batches), next(batches)
    assert indices(loader) == indices(train_loader())


@pytest.mark.parametrize(("batch_size", "world_size"), [(24, 1), (12, 2)])
def test_a_batch_larger_than_the_set_is_an_error_with_both_numbers(batch_size, world_size):
    with pytest.raises(ValueError, match=rf"{batch_size}.*23"):
        train_loader(n=23, batch_size=batch_size, world_size=world_size)
    assert len(train_loader(n=24, batch_size=batch_size, world_size=world_size)) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_leave_the_global_random_state_alone(num_workers):
    before = torch.get_rng_state()
    list(train_loader(num_workers=num_workers))
    list(evaluation_loader(8, 4, num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), before)


# The evaluation loader.


@pytest.mark.parametrize(
    ("n", "world_size", "batch_size"),
    [(10, 1, 4), (10, 1, 1), (8, 2, 4), (11, 2, 3), (7, 3, 2), (5, 4, 2), (3, 3, 8), (64, 4, 5), (9, 2, 2)],
)
def test_evaluation_shows_every_image_once_in_equally_many_batches(n, world_size, batch_size):
    loaders = [evaluation_loader(n, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [indices(loader) for loader in loaders]
    assert sorted(i for rank in batches for batch in rank for i in batch) == list(range(n))
    assert {len(rank) for rank in batches} == {len(loaders[0])}
    assert all(1 <= len(batch) <= batch_size for rank in batches for batch in rank)


def test_fewer_images_than_devices_is_an_error():
    with pytest.raises(ValueError, match="val has 2 images for 3 devices"):
        evaluation_loader(2, 4, rank=0, world_size=3)


# Splits.

LABELS = torch.tensor([0] * 20 + [1] * 8 + [2] * 4)[torch.randperm(32, generator=torch.Generator().manual_seed(0))]


def test_hold_out_takes_the_same_share_of_every_class():
    kept, held_out = hold_out(LABELS, 0.25, seed=0)
    assert LABELS[held_out].bincount().tolist() == [5, 2, 1]
    assert LABELS[kept].bincount().tolist() == [15, 6, 3]
    assert sorted(kept.tolist() + held_out.tolist()) == list(range(32))
    assert kept.tolist() == sorted(kept.tolist())
    assert held_out.tolist() == sorted(held_out.tolist())


def test_choices_are_seeded_and_nested():
    quarter, half = (choose(LABELS, fraction, seed=0).tolist() for fraction in (0.25, 0.5))
    assert set(quarter) < set(half)
    assert LABELS[half].bincount().tolist() == [10, 4, 2]
    torch.manual_seed(5)  # the global state has no say
    assert choose(LABELS, 0.25, seed=0).tolist() == quarter
    assert choose(LABELS, 0.25, seed=1).tolist() != quarter


def test_all_and_none():
    assert choose(LABELS, 1.0, seed=0).tolist() == list(range(32))
    kept, held_out = hold_out(LABELS, 0.0, seed=0)
    assert kept.tolist() == list(range(32))
    assert len(held_out) == 0


def test_one_of_each_class_that_has_two_is_held_out_and_choices_stay_nested():
    labels = torch.tensor([0] * 4 + [1] * 2 + [2] + [-1] * 30)
    held_out = {fraction: hold_out(labels, fraction, seed=0)[1] for fraction in (0.1, 0.3, 0.6)}
    assert labels[held_out[0.1]].tolist() == [0, 1] + [-1] * 3
    assert (labels[held_out[0.6]] == 0).sum() == 2
    assert set(held_out[0.1].tolist()) < set(held_out[0.3].tolist()) < set(held_out[0.6].tolist())


def test_a_group_of_each_class_that_has_two_is_held_out():
    """25 patients of 4 images: a tenth of a class is less than half of a patient."""
    images = range(100)
    labels, groups = torch.tensor([i // 4 % 5 for i in images]), [f"patient {i // 4}" for i in images]
    kept, held_out = hold_out(labels, 0.1, 0, groups)
    assert labels[held_out].bincount().tolist() == [4] * 5
    assert not {groups[i] for i in kept.tolist()} & {groups[i] for i in held_out.tolist()}
    assert set(held_out.tolist()) <= set(hold_out(labels, 0.5, 0, groups)[1].tolist())
    assert len(hold_out(labels, 0.0, 0, groups)[1]) == 0
    alone = [f"class {label}" for label in labels.tolist()]
    assert len(hold_out(labels, 0.1, 0, alone)[1]) == 0  # or nothing would be left of it


class Grouped(TensorDataset):
    """Images with `groups`."""

    def __init__(self, *tensors, groups):
        super().__init__(*tensors)
        self.groups = groups


@pytest.mark.parametrize("kind", ["part", "sum"])
def test_groups_stay_together_in_parts_and_sums_of_data_sets(kind):
    names = [f"patient {i // 4}" for i in range(40)]
    dataset = Grouped(coded(40), torch.arange(40) // 20, groups=names)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    parts = [Subset(dataset, order[:24]), Subset(dataset, order[24:])]
    given = parts[0] if kind == "part" else ConcatDataset(parts)
    data = MultiViewDataModule.from_datasets(given, batch_size=4, num_workers=0, val_fraction=0.3)
    data.setup()
    held_out, kept = ({names[order[i]] for i in data.splits[name].indices.tolist()} for name in ("val", "train"))
    assert held_out
    assert not held_out & kept


@pytest.mark.parametrize("size", [1, 10])
def test_the_log_says_which_groups_are_held_out_or_why_none_is(caplog, size):
    dataset = Grouped(coded(20), torch.arange(20) // 10, groups=[str(i // size) for i in range(20)])
    with caplog.at_level(logging.INFO, logger="msssl"):
        data = from_datasets(dataset)
    if size == 1:
        assert len(data.splits["val"]) == 2
        assert "held out for validation: 2 of 20 groups, with 2 images" in caplog.text
    else:
        assert "val" not in data.splits
        assert "val_fraction 0.1 holds out none of 20 images, as no class has two groups: there is no" in caplog.text


# The data module.


def test_index_is_the_position_in_the_dataset():
    data = from_datasets(dataset_of(40), None, dataset_of(7), val_fraction=0.25, fraction=0.5)
    seen = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    for name, loader in seen.items():
        batches = list(loader)
        for batch in batches:
            assert torch.equal(batch["image"][:, 0, 0, 0].long(), batch["index"])
            assert torch.equal(batch["label"], batch["index"] % 2)
        seen[name] = set(flat_indices(batches))
    assert [len(each) for each in seen.values()] == [16, 10, 7]  # of 15 training images a class, half, rounded
    assert not seen["train"] & seen["val"]


def test_val_is_carved_out_of_train_class_by_class_where_there_is_none():
    data = from_datasets(dataset_of(40), val_fraction=0.25)
    train, val = positions(data.splits["train"]), positions(data.splits["val"])
    assert not train & val
    assert train | val == set(range(40))
    assert len([i for i in val if i % 2]) == len(val) / 2 == 5
    assert positions(from_datasets(dataset_of(40), val_fraction=0.25).splits["val"]) == val
    assert positions(from_datasets(dataset_of(40), val_fraction=0.25, split_seed=1).splits["val"]) != val
    assert "test" not in data.splits


def test_a_val_set_of_ones_own_leaves_train_whole():
    data = from_datasets(dataset_of(40), dataset_of(6))
    assert positions(data.splits["train"]) == set(range(40))
    assert positions(data.splits["val"]) == set(range(6))
    assert flat_indices(data.val_dataloader()) == list(range(6))


def test_val_fraction_0_turns_validation_off():
    data = from_datasets(dataset_of(40), val_fraction=0.0)
    assert positions(data.splits["train"]) == set(range(40))
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="no val images"):
        data.evaluation_dataloader("val")
    with pytest.raises(ValueError, match="no test images"):
        data.test_dataloader()


def test_fraction_takes_of_the_pretraining_images_only():
    whole, half, quarter = (from_datasets(dataset_of(200), fraction=fraction) for fraction in (1.0, 0.5, 0.25))
    assert positions(whole.splits["train"]) == positions(whole.splits["probe"])
    assert len(positions(half.splits["train"])) == 90
    assert positions(quarter.splits["train"]) < positions(half.splits["train"]) < positions(whole.splits["train"])
    for name in ("probe", "val"):
        assert positions(quarter.splits[name]) == positions(half.splits[name]) == positions(whole.splits[name])
    assert len([i for i in positions(quarter.splits["train"]) if i % 2]) == 22  # of 45: class-balanced
    assert flat_indices(quarter.evaluation_dataloader("probe")) == sorted(positions(whole.splits["train"]))


def test_training_batches_are_as_documented():
    data = from_datasets(dataset_of(40), views=MultiView(3))
    loaded = next(iter(data.train_dataloader()))
    batch = data.on_after_batch_transfer(loaded)
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "views": ((3, 4, 3, 4, 4), torch.float32),
        "label": ((4,), torch.int64),
        "index": ((4,), torch.int64),
    }
    assert torch.equal(batch["index"], loaded["index"])
    key = (data.seed, loaded["epoch"], loaded["batch"])
    assert torch.equal(batch["views"], MultiView(3)(loaded["image"], key, rank=0))


def test_evaluation_batches_are_as_documented():
    data = from_datasets(dataset_of(40), None, dataset_of(8))
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        loaded = next(iter(loader))
        batch = data.on_after_batch_transfer(loaded)
        assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
            "image": ((4, 3, 4, 4), torch.float32),
            "label": ((4,), torch.int64),
            "index": ((4,), torch.int64),
        }
        assert torch.equal(batch["image"], MultiView().evaluate(loaded["image"]))


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)

    def configure_optimizers(self):
        return None


def recorded(seed, tmp_path):
    """Training batches of two epochs under a trainer."""
    torch.manual_seed(seed)
    module, data = Recorder(), MultiViewDataModule.from_datasets(dataset_of(11), batch_size=4, num_workers=0)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_epochs=2, logger=False, default_root_dir=tmp_path, **quiet)
    trainer.fit(module, data)
    return module.seen


def test_the_seed_of_the_run_drives_order_and_views(tmp_path):
    batches, again, other = (recorded(seed, tmp_path) for seed in (3, 3, 4))
    assert len(batches) == 4
    assert indices(batches) == indices(again)
    assert all(torch.equal(a["views"], b["views"]) for a, b in zip(batches, again, strict=True))
    assert indices(batches) != indices(other)
    assert indices(batches[:2]) != indices(batches[2:])  # the epochs differ
    by_hand = MultiView()(coded(11)[batches[3]["index"]], (3, 1, 1), rank=0)
    assert torch.equal(batches[3]["views"], by_hand)


def test_a_resumed_data_module_keeps_its_seed():
    data, resumed = from_datasets(dataset_of(40)), from_datasets(dataset_of(40))
    data.seed = 17
    resumed.load_state_dict(data.state_dict())
    assert indices(resumed.train_dataloader()) == indices(data.train_dataloader())
    assert resumed.seed == 17


def test_pil_images_of_any_mode_become_rgb():
    data = from_datasets(PilImages([(10, 20, 30), (40, 50, 60)] * 4), PilImages([7, 8], mode="L"), val_fraction=0.0)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].dtype == torch.uint8
    expected = torch.tensor([[10, 20, 30], [40, 50, 60]])[batch["index"] % 2]
    assert torch.equal(batch["image"].long(), expected.view(4, 3, 1, 1).expand(4, 3, 6, 6))
    assert torch.equal(batch["label"], batch["index"] % 2)
    gray = next(iter(data.val_dataloader()))["image"]
    assert torch.equal(gray, torch.tensor([7, 8], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 6, 6))


def test_a_subset_counts_its_own_rows():
    subset = Subset(dataset_of(40), list(range(39, -1, -2)))  # the odd ones, backwards: class 1 only
    data = from_datasets(subset, val_fraction=0.25)
    batches = list(data.val_dataloader())
    for batch in batches:
        assert torch.equal(batch["image"][:, 0, 0, 0].long(), 39 - 2 * batch["index"])
        assert batch["label"].tolist() == [1] * len(batch["index"])
    assert len(flat_indices(batches)) == 5
    assert data.num_classes == 2


def with_labels(labels):
    images = PilImages([(0, 0, 0)] * 8)
    images.targets = labels
    return images


@pytest.mark.parametrize(
    "labels", [[0, 1] * 4, torch.tensor([0, 1] * 4), np.array([0, 1] * 4)], ids=["list", "tensor", "array"]
)
def test_targets_are_read_where_a_dataset_has_them(labels):
    data = from_datasets(with_labels(labels), val_fraction=0.25)
    assert data.num_classes == 2
    assert sorted(i % 2 for i in positions(data.splits["val"])) == [0, 1]


def test_label_minus_one_means_none():
    data = from_datasets(TensorDataset(coded(20), torch.full((20,), -1)))
    assert data.num_classes is None
    assert len(data.splits["val"]) == 2
    assert next(iter(data.train_dataloader()))["label"].tolist() == [-1] * 4
    some = from_datasets(TensorDataset(coded(20), torch.tensor([-1, 0, 1, 2] * 5)), batch_size=16)
    assert some.num_classes == 3
    assert set(next(iter(some.train_dataloader()))["label"].tolist()) == {-1, 0, 1, 2}


def bad_items():
    labels = torch.zeros(8, dtype=torch.long)
    arrays = with_labels(labels)
    arrays.images = [np.zeros((6, 6, 3), np.uint8)] * 8
    return {
        "complex": (TensorDataset(torch.rand(8, 3, 4, 4) * 1j, labels), r"train.*torch.complex64 \(3, 4, 4\)"),
        "2-D": (TensorDataset(coded(8)[:, 0], labels), r"train.*torch.uint8 \(4, 4\)"),
        "array": (arrays, "train.*ndarray"),
        "no label": (TensorDataset(coded(8)), "train"),
    }


@pytest.mark.parametrize("case", ["complex", "2-D", "array", "no label"])
def test_bad_items_are_a_value_error(case):
    dataset, message = bad_items()[case]
    with pytest.raises(ValueError, match=message):
        list(from_datasets(dataset).train_dataloader())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"val_fraction": -0.1}, "val_fraction is -0.1"),
        ({"batch_size": 1}, "batch_size is 1"),
    ],
)
def test_arguments_out_of_range_are_a_value_error(kwargs, message):
    with pytest.raises(ValueError, match=message):
        from_datasets(dataset_of(40), **kwargs)


def test_no_training_images_are_a_value_error():
    with pytest.raises(ValueError, match="no train images"):
        from_datasets(None, dataset_of(8))


# Shapes.


def shapes(split="train", test_images=40, **kwargs):
    return Shapes(train_images=40, test_images=test_images, image_size=16, **kwargs).dataset(split).tensors


def test_shapes_are_balanced_uint8_images():
    for split, n in (("train", 40), ("test", 30)):
        images, labels = shapes(split, test_images=30)
        assert images.shape == (n, 3, 16, 16)
        assert images.dtype == torch.uint8
        assert labels.bincount().tolist() == [n // 10] * 10
        assert len(images.flatten(1).unique(dim=0)) == n
    assert Shapes().num_classes == 10
    assert Shapes().dataset("val") is None


def test_shapes_are_a_function_of_data_seed_and_split():
    images, _ = shapes()
    torch.manual_seed(5)  # the global state has no say
    assert torch.equal(shapes()[0], images)
    for other in (shapes(data_seed=1)[0], shapes("test")[0]):
        assert not (other == images).flatten(1).all(dim=1).any()


def test_drawing_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    shapes()
    assert torch.equal(torch.get_rng_state(), before)


def test_shapes_make_batches():
    data = Shapes(train_images=40, test_images=30, image_size=16, batch_size=4, num_workers=0)
    data.setup()
    assert {name: len(images) for name, images in data.splits.items()} == {
        "train": 30,
        "probe": 30,
        "val": 10,
        "test": 30,
    }
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())))
    assert batch["views"].shape == (4, 4, 3, 16, 16)


# Folders of images.

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path, colour=RED, size=(12, 20), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


def two_classes(root, n=4):
    for i in range(n):
        save(root / "ape" / f"{i}.png", RED, (12 + i, 20))
        save(root / "bee" / f"{i}.png", GREEN, (30, 14 + i))
    return root


def read_folder(root, **kwargs):
    data = ImageFolder(str(root), **{"batch_size": 2, "num_workers": 0, **kwargs})
    data.prepare_data()
    data.setup()
    return data


def test_folders_are_classes_in_order_of_their_names(tmp_path):
    for split in ("train", "val", "test"):
        two_classes(tmp_path / split, n=2)
    data = read_folder(tmp_path, image_size=8)
    assert data.num_classes == 2
    assert {name: len(images) for name, images in data.splits.items()} == {"train": 4, "probe": 4, "val": 4, "test": 4}
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert batch["image"].shape == (2, 3, 8, 8)
            assert batch["image"].dtype == torch.uint8
            colours = torch.tensor([RED, GREEN])[batch["label"]].view(2, 3, 1, 1)
            assert torch.equal(batch["image"].long(), colours.expand(2, 3, 8, 8))
            assert torch.equal(batch["label"], batch["index"] // 2)


def test_every_mode_and_format_becomes_rgb(tmp_path):
    for name, mode in (("0.png", "RGB"), ("1.png", "RGBA"), ("2.png", "P"), ("3.JPEG", "RGB"), ("4.jpg", "CMYK")):
        save(tmp_path / "train" / name, RED, mode=mode)
    save(tmp_path / "train" / "5.png", (90, 90, 90), mode="L")
    save(tmp_path / "train" / "6.jpg", (90, 90, 90), mode="L")
    images = streamed(read_folder(tmp_path, val_fraction=0.0).splits["train"])
    for row, colour in enumerate([RED] * 5 + [(90, 90, 90)] * 2):
        image = images[[row]]["image"][0].long()
        assert image.shape == (3, 12, 12)
        # JPEG rounds colours.
        assert (image - torch.tensor(colour).view(3, 1, 1)).abs().max() <= (3 if row in (3, 4, 6) else 0)


def test_images_are_cropped_to_the_centre_square(tmp_path):
    stripes = Image.new("RGB", (24, 8), GREEN)
    stripes.paste(RED, (0, 0, 8, 8))
    stripes.paste(BLUE, (16, 0, 24, 8))
    (tmp_path / "train").mkdir()
    stripes.save(tmp_path / "train" / "wide.png")
    stripes.rotate(90, expand=True).save(tmp_path / "train" / "tall.png")
    images = streamed(read_folder(tmp_path, val_fraction=0.0).splits["train"])
    for row in (0, 1):
        assert torch.equal(images[[row]]["image"][0].long(), torch.tensor(GREEN).view(3, 1, 1).expand(3, 8, 8))


@pytest.mark.parametrize(("size", "expected"), [((12, 20), 12), ((90, 40), 40), ((100, 90), 64)])
def test_the_default_size_is_the_median_short_side_up_to_64(tmp_path, size, expected):
    save(tmp_path / "train" / "0.png", size=size)
    save(tmp_path / "train" / "1.png", size=(5, 7))
    save(tmp_path / "train" / "2.png", size=(1000, 900))
    images = streamed(read_folder(tmp_path, val_fraction=0.0).splits["train"])
    assert images[[0, 1, 2]]["image"].shape == (3, 3, expected, expected)


def test_a_flat_train_folder_is_unlabelled(tmp_path):
    for i in range(10):
        save(tmp_path / "train" / f"{i}.png")
    (tmp_path / "train" / "notes.txt").write_text("not an image")
    data = read_folder(tmp_path)
    assert data.num_classes is None
    assert len(data.splits["train"]) == 9
    assert len(data.splits["val"]) == 1
    assert next(iter(data.train_dataloader()))["label"].tolist() == [-1, -1]


def test_an_unlabelled_train_folder_goes_with_a_labelled_test_folder(tmp_path):
    for i in range(10):
        save(tmp_path / "train" / f"{i}.png")
    two_classes(tmp_path / "test", n=2)
    data = read_folder(tmp_path)
    assert [batch["label"].tolist() for batch in data.test_dataloader()] == [[0, 0], [1, 1]]
    assert data.num_classes is None  # there is nothing to fit a probe to


def test_a_missing_val_folder_is_carved_out_of_train(tmp_path):
    two_classes(tmp_path / "train", n=4)
    data = read_folder(tmp_path, val_fraction=0.25)
    assert len(data.splits["train"]) == 6
    assert sorted(batch["label"].tolist() for batch in data.val_dataloader()) == [[0, 1]]
    assert not positions(data.splits["train"]) & positions(data.splits["val"])
    assert "test" not in data.splits


def no_folder(root):
    return root


def empty_folder(root):
    (root / "train").mkdir()
    return root / "train"


def empty_classes(root):
    for name in ("ape", "bee"):
        (root / "train" / name).mkdir(parents=True)
    return root / "train"


def one_class(root):
    save(root / "train" / "ape" / "0.png")
    return root / "train"


def other_classes_in_val(root):
    two_classes(root / "train")
    save(root / "val" / "ape" / "0.png")
    save(root / "val" / "cat" / "0.png")
    return f"{root}: train has no images of the class 'cat'"


@pytest.mark.parametrize("broken", [no_folder, empty_folder, empty_classes, one_class, other_classes_in_val])
def test_a_wrong_folder_is_named(tmp_path, broken):
    path = broken(tmp_path)
    with pytest.raises((ValueError, OSError), match=re.escape(str(path))):
        read_folder(tmp_path)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def garbage(path):
    path.write_bytes(b"not an image")


def empty(path):
    path.write_bytes(b"")


def header(path):
    path.write_bytes(path.read_bytes()[:8])


def bad_checksum(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(content)


def noise(path):
    pixels = torch.randint(256, (20, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(path)


@pytest.mark.parametrize("position", [0, 5], ids=["the first", "another"])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("x.png", garbage),
        ("x.jpg", empty),
        ("x.png", truncated),
        ("x.jpg", truncated),
        ("x.ppm", header),
        ("x.png", bad_checksum),
    ],
)
def test_an_unreadable_image_is_named(tmp_path, name, damage, position):
    for i in range(8):
        save(tmp_path / "train" / f"{i}.png")
    path = tmp_path / "train" / f"{position}{name}"
    noise(path)
    damage(path)
    if position == 0:
        (tmp_path / "train" / "0.png").unlink()
    with pytest.raises((ValueError, OSError), match=re.escape(str(path))):
        list(read_folder(tmp_path, val_fraction=0.0, batch_size=2).evaluation_dataloader("probe"))


# CIFAR-10.


def test_cifar10_gives_the_images_of_its_files_back(cifar10_folder):
    data = CIFAR10(str(cifar10_folder), batch_size=4, num_workers=0, val_fraction=0.0)
    data.prepare_data()
    data.setup()
    assert data.num_classes == 10
    names = {"probe": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    for split, files in names.items():
        parts = [pickle.loads((cifar10_folder / "cifar-10-batches-py" / name).read_bytes()) for name in files]
        pixels = torch.cat([torch.from_numpy(part["data"]) for part in parts]).view(-1, 3, 32, 32)
        batches = list(data.evaluation_dataloader(split))
        assert torch.equal(torch.cat([batch["image"] for batch in batches]), pixels)
        assert torch.cat([batch["label"] for batch in batches]).tolist() == [
            i for part in parts for i in part["labels"]
        ]
    assert len(data.splits["train"]) == 40


def test_cifar10_without_files_and_network_says_what_to_fetch(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(FileNotFoundError, match=r"cifar-10-python\.tar\.gz") as error:
        CIFAR10(str(tmp_path / "here")).prepare_data()
    assert str(tmp_path / "here") in str(error.value)
    assert not (tmp_path / "here").exists()


def test_cifar100_gives_the_images_of_its_files_back(cifar100_folder):
    data = CIFAR100(str(cifar100_folder), batch_size=4, num_workers=0, val_fraction=0.0)
    data.prepare_data()
    data.setup()
    assert data.num_classes == 100
    for split, name in (("probe", "train"), ("test", "test")):
        part = pickle.loads((cifar100_folder / "cifar-100-python" / name).read_bytes())
        batches = list(data.evaluation_dataloader(split))
        assert torch.equal(
            torch.cat([batch["image"] for batch in batches]), torch.from_numpy(part["data"]).view(-1, 3, 32, 32)
        )
        assert torch.cat([batch["label"] for batch in batches]).tolist() == part["fine_labels"]


def values(batches):
    """What the stand-in's images are filled with."""
    return torch.cat([batch["image"] for batch in batches])[:, 0, 0, 0].tolist()


def test_stl10_pretrains_without_labels_and_probes_with(stl10_folder):
    data = STL10(str(stl10_folder), batch_size=8, num_workers=0, fraction=0.5, val_fraction=0.5)
    data.prepare_data()
    data.setup()
    assert data.num_classes == 10
    assert {name: len(images) for name, images in data.splits.items()} == {
        "train": 20,  # half of 40
        "probe": 10,  # one of the two of each class, whatever `fraction` is
        "val": 10,
        "test": 10,
    }
    probe, val, test = (list(data.evaluation_dataloader(split)) for split in ("probe", "val", "test"))
    assert sorted(values(probe) + values(val)) == list(range(100, 120))
    assert values(test) == list(range(200, 210))
    for batches in (probe, val):
        labels = torch.cat([batch["label"] for batch in batches])
        assert labels.tolist() == [(value - 100) % 10 for value in values(batches)]
        assert labels.unique(return_counts=True)[1].tolist() == [1] * 10
    (first, second) = data.train_dataloader()
    assert set(values([first, second])) <= set(range(40))
    assert (first["label"] == -1).all()
    seen = values([first["probe"], second["probe"]])
    assert set(seen) == set(values(probe))  # 16 turns for 10 images: each has one
    assert first["probe"]["label"].tolist() == [(value - 100) % 10 for value in seen[:8]]


def test_stl10_batches_on_the_device(stl10_folder):
    data = STL10(str(stl10_folder), batch_size=8, num_workers=0, views=MultiView(2, "stl10"))
    data.setup()
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())))
    assert set(batch) == {"views", "label", "index", "probe"}
    assert batch["views"].shape == (2, 8, 3, 64, 64)
    assert batch["probe"]["image"].shape == (8, 3, 64, 64)
    filled = data.views.denormalize(batch["probe"]["image"])[:, 0, 0, 0] * 255
    assert (filled.round().int() - 100).remainder(10).tolist() == batch["probe"]["label"].tolist()


def test_probe_images_are_those_of_one_process_with_the_ranks_batches_together():
    images = Images(TensorDataset(torch.zeros(24, 1), torch.zeros(24)), torch.arange(24), "train")
    probe = Images(TensorDataset(torch.zeros(5, 1), torch.zeros(5)), torch.arange(5), "probe")
    one = TrainLoader(images, 8, seed=3, epoch=lambda: 1, probe=probe)
    ranks = [TrainLoader(images, 4, seed=3, epoch=lambda: 1, probe=probe, rank=r, world_size=2) for r in (0, 1)]
    assert torch.equal(torch.cat([rank.order(1) for rank in ranks], dim=1), one.order(1))
    assert torch.equal(torch.cat([rank.probe_order(1) for rank in ranks], dim=1), one.probe_order(1))
    alone = TrainLoader(images, 8, seed=3, epoch=lambda: 1)
    assert torch.equal(one.order(1), alone.order(1))  # the probe images change nothing
    assert sorted(one.probe_order(1).flatten().tolist())[::5] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_more_than_8_bits_are_refused_not_cut_off(mode, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        pixels = np.arange(256, dtype=np.uint16 if mode == "I;16" else np.float32).reshape(16, 16) * 256
        Image.fromarray(pixels).save(tmp_path / "train" / name / "x.tiff")
    with pytest.raises(ValueError, match=r"x\.tiff cannot be read as an image: it has more than 8 bits"):
        read_folder(tmp_path, dtype="uint8").train_dataloader()


def test_grey_tensors_are_repeated_and_other_channel_counts_kept():
    grey = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8)
    item = Images(TensorDataset(grey, torch.zeros(20)), torch.arange(20), "train")[[3]]
    assert item["image"].shape == (1, 3, 8, 8)
    assert all(torch.equal(channel, grey[3, 0]) for channel in item["image"][0])
    four = TensorDataset(torch.randint(256, (20, 4, 8, 8), dtype=torch.uint8), torch.zeros(20))
    assert torch.equal(Images(four, torch.arange(20), "train")[[5]]["image"], four.tensors[0][[5]])
    last = TensorDataset(torch.zeros(20, 8, 8, 3, dtype=torch.uint8), torch.zeros(20))
    with pytest.raises(ValueError, match=r"uint8 \(8, 8, 3\): expected a PIL image, or a tensor \(C, H, W\)"):
        _ = Images(last, torch.arange(20), "train")[[0]]


class MixedSizes(Dataset):
    """Photographs of several sizes with labels."""

    def __init__(self):
        self.targets = [0, 1] * 4

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return Image.new("RGB", (20 + index, 30), (index, 0, 0)), self.targets[index]


def test_image_size_makes_squares_of_images_of_several_sizes():
    with pytest.raises(ValueError, match="image 1 of train is 30 x 21 pixels, another 30 x 20: image_size"):
        list(from_datasets(MixedSizes(), val_fraction=0.0).train_dataloader())
    data = from_datasets(MixedSizes(), val_fraction=0.0, image_size=16)
    batch = next(iter(data.evaluation_dataloader("probe")))
    assert batch["image"].shape[1:] == (3, 16, 16)
    assert batch["image"][:, 0, 0, 0].tolist() == batch["index"].tolist()
    assert batch["label"].tolist() == [i % 2 for i in batch["index"].tolist()]
    assert data.num_classes == 2


class OfMixedSizes(MultiViewDataModule):
    """A data module of a user, as docs/data.md shows it."""

    def dataset(self, split):
        return None if split == "val" else MixedSizes()


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_every_data_module_takes_image_size_and_window(storage, cifar10_folder):
    kwargs = {"batch_size": 4, "num_workers": 0, "storage": storage, "image_size": 16}
    own, shapes = OfMixedSizes(**kwargs), Shapes(train_images=20, test_images=20, **kwargs)
    for data in (own, shapes, CIFAR10(str(cifar10_folder), window=(0, 9), **kwargs)):
        data.setup()
        assert next(iter(data.train_dataloader()))["image"].shape == (4, 3, 16, 16)
        assert next(iter(data.test_dataloader()))["image"].shape == (4, 3, 16, 16)
    pixels = torch.from_numpy(data.datasets["test"].dataset.data)
    by_hand = [Image.fromarray(image.numpy()).resize((16, 16), Image.Resampling.BILINEAR) for image in pixels[:4]]
    found = next(iter(data.test_dataloader()))["image"].permute(0, 2, 3, 1)
    assert np.array_equal(found, np.stack([np.asarray(image) for image in by_hand]))  # 8 bits have no window


@pytest.mark.parametrize("kind", ["I;16", "I", "F", "uint16", "int32", "float32"])
def test_a_window_makes_8_bits_of_images_of_ones_own(kind):
    values = np.linspace(-100, 1100, 64).clip(0 if "16" in kind else -100).reshape(8, 8)
    values = values.astype({"I;16": "u2", "I": "i4", "F": "f4"}.get(kind, kind))
    image = torch.from_numpy(values)[None] if kind not in ("I;16", "I", "F") else Image.fromarray(values)
    images = [(image, i % 2) for i in range(8)]
    found = next(iter(from_datasets(images, window=(0, 1000), dtype="uint8").evaluation_dataloader("probe")))["image"]
    expected = np.rint(np.clip(values.astype(float) / 1000, 0, 1) * 255)
    assert np.array_equal(found, np.broadcast_to(expected, (4, 3, 8, 8)))
    with pytest.raises(ValueError, match=r"image 0 of train .*\bwindow\b"):
        from_datasets(images, dtype="uint8").train_dataloader()


def test_files_of_16_bits_that_a_data_set_only_opens_are_read_at_16(tmp_path):
    values = np.random.default_rng(0).integers(4096, size=(8, 8, 3))
    write_png(tmp_path / "x.png", values, 2)

    class OpenedImages(PilImages):
        def __getitem__(self, index):
            return Image.open(tmp_path / "x.png"), 0

    found = from_datasets(OpenedImages([(0, 0, 0)] * 8)).images("train")[[0]]["image"][0]
    assert found.dtype == torch.uint16
    assert np.array_equal(found.permute(1, 2, 0), values)


@pytest.mark.parametrize("kwargs", [{"image_size": 0}, {"window": (5, 5)}, {"window": (7, 3)}])
def test_a_wrong_size_or_window_is_refused_by_every_data_module(kwargs):
    for kind in (CIFAR10, ImageFolder, OfMixedSizes):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            kind(**kwargs)


def test_a_concatenation_has_the_labels_of_its_parts():
    both = ConcatDataset([dataset_of(10), dataset_of(10, 4)])
    data = from_datasets(both, val_fraction=0.0)
    batches = list(data.evaluation_dataloader("probe"))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [i % 2 for i in range(10)] + [
        i % 4 for i in range(10)
    ]
    assert data.num_classes == 4


# Rows of Hugging Face's data sets.


class ClassLabel:
    names: ClassVar = ["cat", "dog"]


class HuggingFace:
    """What `datasets.Dataset` shows of itself: rows by position, columns by name."""

    def __init__(self, labels, name="image"):
        self.column = labels
        self.features = {name: None} | ({"label": ClassLabel()} if labels else {})
        self.name = name

    def __len__(self):
        return 40

    def __getitem__(self, key):
        if key == "label":
            return self.column
        row = {self.name: Image.new("RGB", (8, 8), (key, 0, 0))}
        return row | ({"label": self.column[key]} if self.column else {})


@pytest.mark.parametrize("storage", ["memory", "stream"])
@pytest.mark.parametrize("image_size", [None, 6])
def test_rows_of_images_and_labels_are_taken(storage, image_size):
    data = from_datasets(HuggingFace([i % 2 for i in range(40)]), storage=storage, image_size=image_size)
    assert data.num_classes == 2
    assert data.splits["val"].indices.remainder(2).bincount().tolist() == [2, 2]  # class by class
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, image_size or 8, image_size or 8)
    assert batch["image"][:, 0, 0, 0].tolist() == batch["index"].tolist()
    assert batch["label"].tolist() == [i % 2 for i in batch["index"].tolist()]
    assert class_names_of(data.datasets["train"]) == ["cat", "dog"]
    assert class_names_of(Subset(data.datasets["train"], [0, 1])) == ["cat", "dog"]


def test_rows_may_lack_labels_or_some_of_them():
    none = from_datasets(HuggingFace(None))
    assert none.num_classes is None
    assert next(iter(none.train_dataloader()))["label"].tolist() == [-1] * 4
    some = from_datasets(HuggingFace([None, 0, 1, None] * 10), batch_size=16)
    assert some.num_classes == 2
    assert set(next(iter(some.train_dataloader()))["label"].tolist()) == {-1, 0, 1}


def test_rows_of_other_keys_name_those_that_were_found():
    with pytest.raises(ValueError, match="item 0 of train is a dict with the keys 'img', 'label': expected 'image'"):
        from_datasets(HuggingFace([0, 1] * 20, "img")).train_dataloader()
