"""The page of `msssl neighbours`: one HTML file that holds its pictures, and needs neither a network nor scripts."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from PIL import Image
from torch import Tensor

from msssl.wording import counted

SIDE = 128  # of a thumbnail in pixels, at most
QUALITY = 90  # of its JPEG

_STYLE = """\
:root { color-scheme: light dark;
  --text: #1b1d20; --muted: #565b63; --back: #ffffff; --line: #d9dce1; --other: #9c2f00 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e9eb; --muted: #a9aeb7; --back: #16181c; --line: #3a3e46; --other: #ffb38a }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 80rem; padding: 1rem; color: var(--text); background: var(--back);
  font: 1rem/1.5 system-ui, sans-serif }
h1 { margin: 0; font-size: 1.5rem }
p { max-width: 46rem }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .1rem 1rem; margin: 1rem 0 }
dt { color: var(--muted) }
dd { margin: 0; overflow-wrap: anywhere }
section { display: grid; grid-template-columns: 9rem minmax(0, 1fr); gap: 1rem; padding: 1rem 0;
  border-top: 1px solid var(--line) }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); gap: .5rem; margin: 0; padding: 0;
  list-style: none }
figure { margin: 0; min-width: 0 }
img { display: block; width: 100%; height: auto; border-radius: 4px }
figcaption { font-size: .8rem; line-height: 1.3; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.file { display: block; color: var(--muted); overflow: hidden; text-overflow: ellipsis }
.other { color: var(--other); text-decoration: underline dotted }
@media (max-width: 40rem) {
  section { grid-template-columns: minmax(0, 1fr) }
  section > figure { width: 9rem }
  ol { grid-template-columns: repeat(4, minmax(0, 1fr)) }
}
"""


@dataclass(frozen=True)
class Picture:
    """An image on the page.

    Attributes:
        source: the thumbnail, as a data URI.
        path: of the image's file, or what describes it where it has none.
        class_name: the name of its class, or None without a label.
    """

    source: str
    path: str
    class_name: str | None


@dataclass(frozen=True)
class Row:
    """An image with its neighbours.

    Attributes:
        image: the image.
        neighbours: its neighbours, nearest first.
        similarity: their cosine similarities to the image.
    """

    image: Picture
    neighbours: Sequence[Picture]
    similarity: Sequence[float]


@dataclass(frozen=True)
class Header:
    """What stands above the rows.

    Attributes:
        checkpoint: path of the checkpoint.
        sha256: fingerprint of this file.
        written: when this file was written, in seconds since 1970.
        encoder: name of the method that pretrained the encoder.
        epochs: how many epochs it was pretrained for.
        data: the data set and its folder.
        split: the split whose images are shown.
        n_images: the number of images in this split.
        n_searched: the number of images that are searched for neighbours.
        itself: whether these are the same images.
    """

    checkpoint: str
    sha256: str
    written: float
    encoder: str
    epochs: int
    data: str
    split: str
    n_images: int
    n_searched: int
    itself: bool


def thumbnail(image: Tensor) -> str:
    """A data URI of an image, at most `SIDE` pixels wide and high.

    Args:
        image: uint8, shape (3, H, W).
    """
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    picture.save(content, format="JPEG", quality=QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def page(header: Header, rows: Sequence[Row]) -> str:
    """The HTML of a page.

    Args:
        header: what stands above the rows.
        rows: the images with their neighbours; each row has the same number of neighbours.
    """
    title = f"Nearest neighbours: {header.checkpoint}"
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
{_STYLE}</style>
</head>
<body>
<h1>Nearest neighbours</h1>
{_introduction(header, rows)}
<main>
{"".join(map(_section, rows))}</main>
</body>
</html>
"""


def _introduction(header: Header, rows: Sequence[Row]) -> str:
    of_train = ("other image of train", "other images of train") if header.itself else ("training image",)
    searched = counted(len(rows[0].neighbours), *of_train)
    written = datetime.fromtimestamp(header.written, UTC)
    facts = {
        "Checkpoint": f"{header.checkpoint}, written {written:%Y-%m-%d %H:%M} UTC (SHA-256 {header.sha256[:12]})",
        "Encoder": f"{header.encoder}, pretrained for {counted(header.epochs, 'epoch')}",
        "Data": header.data,
        "Shown": f"{len(rows):,} of {header.n_images:,} images of {header.split}, evenly spread",
        "Searched": f"{header.n_searched:,} images of train",
    }
    same = _same_class(rows)
    classes = (
        f"<p>Of the {same[1]:,} neighbours that have a class, {same[0]:,} have the class of their image "
        f"({same[0] / same[1]:.0%}). The others are <span class=other>marked</span>.</p>\n"
        if same[1]
        else ""
    )
    listed = "\n".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"""\
<p>Each row begins with one image. Beside it you see the {searched} whose features are most similar to
its own, nearest first. The number is the cosine similarity of the features: 1 means the same direction, 0 means
unrelated. No labels were used to find the neighbours.</p>
<p>Look for what the images of a row have in common: that is what the encoder has learnt to see. The same kind of object
is a good sign. If they share only the background, the colour or the position, the views change that too little.</p>
{classes}<dl>
{listed}
</dl>"""


def _same_class(rows: Sequence[Row]) -> tuple[int, int]:
    """How many neighbours have the class of their image, and how many have a class where their image has one too."""
    pairs = [(row.image.class_name, picture.class_name) for row in rows for picture in row.neighbours]
    labelled = [(image, neighbour) for image, neighbour in pairs if None not in (image, neighbour)]
    return sum(image == neighbour for image, neighbour in labelled), len(labelled)


def _section(row: Row) -> str:
    items = []
    for rank, (picture, similarity) in enumerate(zip(row.neighbours, row.similarity, strict=True), 1):
        other = None not in (row.image.class_name, picture.class_name) and row.image.class_name != picture.class_name
        alt = f"Neighbour {rank} of {row.image.path}: {_described(picture)}, similarity {similarity:.3f}"
        items.append(f"<li>{_figure(picture, alt, f'{similarity:.3f}', other)}</li>\n")
    file = f"<span class=file>{escape(row.image.path.replace(chr(92), '/').rpartition('/')[2])}</span>"
    return f"""\
<section>
{_figure(row.image, f"Query: {_described(row.image)}", file)}
<ol>
{"".join(items)}</ol>
</section>
"""


def _described(picture: Picture) -> str:
    return picture.path if picture.class_name is None else f"{picture.path}, class {picture.class_name}"


def _figure(picture: Picture, alt: str, caption: str, other: bool = False) -> str:
    """A picture with its caption, which is HTML, and the name of its class."""
    name = picture.class_name
    named = "" if name is None else f" <span{' class=other' if other else ''}>{escape(name)}</span>"
    return (
        f'<figure><img src="{picture.source}" alt="{escape(alt)}" title="{escape(picture.path)}">'
        f"<figcaption>{caption}{named}</figcaption></figure>"
    )
