"""`msssl neighbours`: a page of images beside those whose features are nearest to their own."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import NARROW, TINY_IMAGES, fitted_in
from PIL import Image

from msssl import ImageFolder, MultiViewModule, neighbours
from msssl.evaluation.neighbours.page import SIDE, thumbnail

FIT = ["fit", "--config", "demo.yaml", *NARROW, *TINY_IMAGES, "--trainer.max_steps=1", "--data.views.n_views=2"]
FIT += ["--online_probe=null", "--rank_monitor=null", "--trainer.logger=false"]
ODD = ["<b>&amp;.png", '"quoted" onerror=alert(1).png', "Füße ✚.png", "a'b.png"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a run on drawn images of 32 pixels."""
    return fitted_in(tmp_path_factory.mktemp("trained"), FIT)


@pytest.fixture
def run(trained, tmp_path):
    """The same checkpoint, without features that an earlier test has kept beside it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "last.ckpt").write_bytes(trained.read_bytes())
    return folder / "last.ckpt"


def draw(path, generator):
    """A smooth image of 32 x 32 pixels, which a JPEG hardly changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(generator.integers(256, size=(3, 3, 3), dtype=np.uint8))
    small.resize((32, 32), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def labelled(tmp_path):
    """A folder of 2 classes, 8 training images and 3 test images of each; some have odd names."""
    generator = np.random.default_rng(0)
    for name in ("cat & <dog>", "other"):
        for i in range(8):
            draw(tmp_path / "labelled" / "train" / name / (ODD[i] if i < len(ODD) else f"{i}.png"), generator)
        for i in range(3):
            draw(tmp_path / "labelled" / "test" / name / f"{i}.png", generator)
    return tmp_path / "labelled"


@pytest.fixture
def unlabelled(tmp_path):
    """A folder of 6 copies of one image, and of 4 other images."""
    generator = np.random.default_rng(1)
    folder = tmp_path / "unlabelled"
    draw(folder / "copy0.png", generator)
    for i in range(1, 6):
        (folder / f"copy{i}.png").write_bytes((folder / "copy0.png").read_bytes())
    for i in range(4):
        draw(folder / f"other{i}.png", generator)
    return folder


class Page(HTMLParser):
    """What a page holds: all attributes of all tags, and a list of pictures with their captions for each row."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.rows, self.text, self.open = [], [], "", []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []  # each tag is closed

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("img", "meta"):
            self.open.append(tag)
        if tag == "section":
            self.rows.append([])
        if tag == "img":
            self.rows[-1].append({**dict(attributes), "caption": "", "other": False})
        if tag == "span" and "figure" in self.open:
            self.rows[-1][-1]["other"] |= dict(attributes).get("class") == "other"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "figcaption" in self.open:
            self.rows[-1][-1]["caption"] += data


def picture(image):
    """The pixels of a picture on the page."""
    kind, _, content = image["src"].partition(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))), dtype=float)


@torch.no_grad()
def similarities(run, folder):
    """Cosine similarity of the features of each two images of a folder, by path, in float64."""
    module = MultiViewModule.load_from_checkpoint(run).eval()
    paths = sorted(map(str, folder.rglob("*.png")))
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths])).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    features = module((pixels / 255 - mean) / std).double().numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return paths, features @ features.T


def data_of(folder, **options):
    return ImageFolder(str(folder), num_workers=0, batch_size=4, val_fraction=0.0, **options)


def assert_nearest(rows, run, folder, searched, k):
    """Each row has the k nearest of the searched images, without itself, in order, with their similarity."""
    paths, similarity = similarities(run, folder)
    number = {path: i for i, path in enumerate(paths)}
    for query, *shown in rows:
        others = [number[path] for path in searched if path != query["title"]]
        largest = np.sort(similarity[number[query["title"]], others])[::-1][:k]
        found = [similarity[number[query["title"]], number[image["title"]]] for image in shown]
        assert len({image["title"] for image in shown}) == k
        assert {image["title"] for image in shown} <= {paths[i] for i in others}
        np.testing.assert_allclose(found, largest, atol=1e-5)  # copies have equal ones, in any order
        np.testing.assert_allclose([float(image["caption"].split()[0]) for image in shown], largest, atol=6e-4)


def test_neighbours_are_the_nearest_training_images(run, labelled, tmp_path):
    neighbours(str(run), data_of(labelled), out=str(tmp_path / "page.html"), n_images=5, n_neighbours=4)
    page = Page(tmp_path / "page.html")
    train, test = (sorted(map(str, (labelled / name).rglob("*.png"))) for name in ("train", "test"))
    assert [row[0]["title"] for row in page.rows] == [test[i] for i in (0, 1, 2, 3, 5)]  # evenly spread
    assert_nearest(page.rows, run, labelled, train, 4)
    assert {image["title"].rpartition("/")[2] for row in page.rows for image in row[1:]} & {*ODD}
    assert "5 of 6 images of test" in page.text
    assert "16 images of train" in page.text


def test_pictures_are_those_of_the_files_and_have_their_classes(run, labelled, tmp_path):
    neighbours(str(run), data_of(labelled), out=str(tmp_path / "page.html"), n_neighbours=8)
    page = Page(tmp_path / "page.html")
    same = 0
    for row in page.rows:
        classes = [image["title"].split("/")[-2] for image in row]
        for image, name in zip(row, classes, strict=True):
            pixels = np.asarray(Image.open(image["title"]), dtype=float)
            assert np.abs(picture(image) - pixels).mean() < 4
            assert image["caption"].endswith(name)
            assert image["title"] in image["alt"]
            assert f"class {name}" in image["alt"]
            assert image["other"] == (name != classes[0])
        same += classes[1:].count(classes[0])
    assert f"Of the 48 neighbours that have a class, {same} have the class of their image" in " ".join(
        page.text.split()
    )


def test_a_page_needs_nothing_else(run, labelled, tmp_path):
    neighbours(str(run), data_of(labelled), out=str(tmp_path / "page.html"))
    page = Page(tmp_path / "page.html")
    names = {name for _, attributes in page.tags for name in attributes}
    assert names <= {"lang", "charset", "name", "content", "http-equiv", "class", "src", "alt", "title"}
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "b"}  # the last is that of a file's name
    assert "url(" not in page.text
    assert "prefers-color-scheme: dark" in page.text


def test_images_without_labels_or_splits_are_not_their_own_neighbours(run, unlabelled, tmp_path):
    neighbours(str(run), data_of(unlabelled), out=str(tmp_path / "page.html"), n_neighbours=3)
    page = Page(tmp_path / "page.html")
    paths = sorted(map(str, unlabelled.glob("*.png")))
    assert [row[0]["title"] for row in page.rows] == paths
    assert_nearest(page.rows, run, unlabelled, paths, 3)
    assert "class" not in page.rows[0][0]["alt"]
    assert "3 other images of train" in page.text
    assert "neighbours that have a class" not in page.text


def test_the_second_page_is_the_same_to_the_byte_and_extracts_no_features(run, labelled, tmp_path, monkeypatch):
    from msssl.evaluation.probe import subject

    def extract(*args):
        pytest.fail("features are extracted again")

    neighbours(str(run), data_of(labelled), out=str(tmp_path / "first.html"))
    monkeypatch.setattr(subject, "extract", extract)
    neighbours(str(run), data_of(labelled), out=str(tmp_path / "second.html"))
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "second.html").read_bytes()


def test_the_command_shows_the_images_of_a_run(msssl, run):
    code, out, err = msssl(
        "neighbours", "--ckpt_path", run, "--n_images", "6", "--n_neighbours", "5", "--out", "a.html"
    )
    assert code == 0, err
    assert "6 of 20 images of test, each beside its 5 nearest training images: open a.html" in out
    assert [len(row) for row in Page(run.parents[1] / "a.html").rows] == [6] * 6


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--out", "page.pdf"], 2, "out is page.pdf: expected the name of a page, such as neighbours.html"),
        (["--out", "folder.html"], 1, "folder.html cannot be written: it is a folder|Is a directory"),
        (["--n_images", "0"], 2, "n_images is 0: expected at least 1"),
        (["--n_neighbours", "0"], 2, "n_neighbours is 0: expected at least 1"),
    ],
)
def test_what_is_wrong_is_one_line_before_any_work(flags, code, message, msssl, tmp_path):
    (tmp_path / "folder.html").mkdir()
    returned, _, err = msssl("neighbours", "--ckpt_path", "nothing.ckpt", *flags)
    assert (returned, len(err.splitlines())) == (code, 1)
    assert re.search(message, err)


def test_too_few_images_are_one_line(msssl, run, unlabelled):
    images = ["--data", "ImageFolder", "--data.data_dir", unlabelled, "--data.val_fraction", "0"]
    code, _, err = msssl("neighbours", "--ckpt_path", run, *images, "--data.num_workers=0", "--n_neighbours", "10")
    assert code == 2
    line = f"n_neighbours is 10, but ImageFolder in {unlabelled} has 9 training images to search: lower it"
    assert err.splitlines()[-1] == f"msssl: error: {line}"


def test_large_images_become_small_pictures():
    image = torch.zeros(3, 300, 600, dtype=torch.uint8)
    image[0, :, 300:] = 255  # the right half is red
    pixels = picture({"src": thumbnail(image)})
    assert pixels.shape == (SIDE // 2, SIDE, 3)
    assert np.abs(pixels[:, : SIDE // 2 - 4]).max() < 10
    assert np.abs(pixels[:, SIDE // 2 + 4 :] - [255, 0, 0]).max() < 10
