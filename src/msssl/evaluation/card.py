"""A page that says what a backbone was trained on, and how good it is."""

import json
from pathlib import Path
from typing import Any

from msssl.checkpoint import sha256_of
from msssl.data import MultiViewDataModule
from msssl.evaluation.subject import epochs_of

ROWS = {
    "test_top1": "test top-1",
    "val_top1": "val top-1",
    "cv_top1": "cross-validated top-1",
    "test_mlp": "test, MLP",
    "test_knn": "test, kNN",
}


def model_card(
    path: Path, checkpoint: dict[str, Any], data: MultiViewDataModule, config: dict[str, Any], lines: list[str]
) -> str:
    """Markdown.

    Args:
        path: of the checkpoint; the reports of `msssl probe` beside it are quoted.
        checkpoint: its content.
        data: what it was pretrained on; need not be set up.
        config: of the export.
        lines: of code that load it.
    """
    n_images = "" if data.pretrained_on is None else f", {len(data.pretrained_on):,} images"
    size = data.pretrained_size or ("?", "?")
    method = checkpoint["hyper_parameters"].get("_class_path", "a MultiViewModule")
    steps = "\n".join(f"  - `{step}`" for step in _steps(data))
    mean, std = (", ".join(f"{value:.4f}" for value in config[name]) for name in ("mean", "std"))
    height, width = config["image_size"]
    code = "\n".join(lines)
    output = f"logits of {', '.join(config['classes'])}" if config["classes"] else f"{config['feature_dim']} features"
    return f"""# {method} on {type(data).__name__}

- Pretrained without labels on {type(data).__name__}{n_images} of {size[0]} x {size[1]} pixels
  for {epochs_of(checkpoint)} epochs ({checkpoint["global_step"]:,} steps).
- {data.views.n_views} views of each image:
{steps}
- Input: RGB, float32, (N, 3, {height}, {width}), values from 0 to 1, minus mean ({mean}), divided by std ({std}).
- Output: {output}.

## Load it

```python
{code}
```

## Accuracy

{_accuracy(path)}
"""


def _steps(data: MultiViewDataModule) -> list[Any]:
    size = data.pretrained_size
    return [] if size is None else [repr(step).replace("\n", " ") for step in data.views.steps((size[0], size[1]))]


def _accuracy(path: Path) -> str:
    parts, sha256 = [], sha256_of(path)
    for file in sorted(path.parent.glob("probe*.json")):
        report = json.loads(file.read_text())
        if report["sha256"] != sha256:
            continue
        lines = [f"| features | {' | '.join(ROWS.values())} |", "|---" * (len(ROWS) + 1) + "|"]
        for row in report["rows"]:
            cells = [f"{row[key]:.3f}" if isinstance(row.get(key), float) else "-" for key in ROWS]
            lines.append(f"| {row['features']} | {' | '.join(cells)} |")
        parts.append(f"On {report['data_class']}: {report['protocol']}.\n\n" + "\n".join(lines))
    return "\n\n".join(parts) or "Not measured: `msssl probe` was not run on this checkpoint."
