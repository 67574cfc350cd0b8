"""Writes the model card of an export: what the backbone was trained on, how to use it, and how accurate it is."""

import json
from pathlib import Path
from typing import Any

from msssl.data import MultiViewDataModule
from msssl.evaluation.export.preparation import code, description, normalization
from msssl.evaluation.rebuild import data_state, epochs_of
from msssl.evaluation.table import number
from msssl.run.files import sha256_of
from msssl.views import Preprocess
from msssl.wording import counted

ROWS = {
    "test_top1": "test top-1",
    "val_top1": "val top-1",
    "cv_top1": "cross-validated top-1",
    "test_mlp": "test, MLP",
    "test_knn": "test, kNN",
}


def model_card(
    path: Path, checkpoint: dict[str, Any], preprocess: Preprocess, config: dict[str, Any], lines: list[str]
) -> str:
    """The text of the model card, in markdown.

    Args:
        path: of the checkpoint; the reports of `msssl probe` beside it are quoted.
        checkpoint: content of the checkpoint.
        preprocess: how images are prepared for evaluation, with their size.
        config: content of the export's `config.json`.
        lines: lines of code that load the exported file.
    """
    indices = data_state(checkpoint).get("pretrained_on")
    n_images = "" if indices is None else f", {len(indices):,} images"
    size = preprocess.image_size or ("?", "?")
    method = checkpoint["hyper_parameters"].get("_class_path", "a MultiViewModule")
    data = _name_of_data(checkpoint)
    steps = "\n".join(f"  - `{step}`" for step in preprocess.recipe)
    preparation = "\n".join(f"- {line}" for line in description(preprocess))
    height, width = config["image_size"]
    load, prepare = "\n".join(lines), "\n".join(code(preprocess, as_tensor=config["format"] != "onnx"))
    output = f"logits of {', '.join(config['classes'])}" if config["classes"] else f"{config['feature_dim']} features"
    channels = len(preprocess.mean)
    kind = "RGB" if channels == 3 else counted(channels, "channel")
    return f"""# {method} on {data}

- Pretrained without labels on {data}{n_images} of {size[0]} x {size[1]} pixels
  for {counted(epochs_of(checkpoint), "epoch")} ({counted(checkpoint["global_step"], "step")}).
- {preprocess.n_views} views of each image:
{steps}
{_finetuned(checkpoint)}\
- Input: {kind}, float32, (N, {channels}, {height}, {width}), {normalization(preprocess)};
  see below how an image is prepared.
- Output: {output}.

## Load it

```python
{load}
```

## Prepare an image

{preparation}

```python
{prepare}
```

## Accuracy

{_accuracy(path)}
"""


def _name_of_data(checkpoint: dict[str, Any]) -> str:
    arguments = checkpoint.get(MultiViewDataModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
    name: str = arguments.get("_class_path", "").rpartition(".")[2]
    return "data sets given in Python" if name in ("", "FromDatasets") else name


def _finetuned(checkpoint: dict[str, Any]) -> str:
    tuned = checkpoint.get("finetuned")
    if tuned is None:
        return ""
    low, high = tuned["interval"]
    return (
        f"- Fine-tuned on the labels of {tuned['n_labels']:,} images: test top-1 {number(tuned['top1'])} "
        f"({number(low)} to {number(high)}); {tuned['protocol']}.\n"
    )


def _accuracy(path: Path) -> str:
    parts, sha256 = [], sha256_of(path)
    for file in sorted(path.parent.glob("probe*.json")):
        try:
            report = json.loads(file.read_text())
        except ValueError:  # damaged, or of another program
            continue
        if not isinstance(report, dict) or report.get("sha256") != sha256:
            continue
        lines = [f"| features | {' | '.join(ROWS.values())} |", "|---" * (len(ROWS) + 1) + "|"]
        lines += [
            f"| {' | '.join([row['features'], *(number(row.get(key)) for key in ROWS)])} |" for row in report["rows"]
        ]
        parts.append(f"On {report['data_class']}: {report['protocol']}.\n\n" + "\n".join(lines))
    return "\n\n".join(parts) or "Not measured: `msssl probe` was not run on this checkpoint."
