import json

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_beats_pixels_and_the_untrained_encoder(seed, msssl, tmp_path):
    code, _, err = msssl("fit", "--config", "demo.yaml", "--seed_everything", seed)
    assert code == 0, err
    code, _, err = msssl("probe", "--ckpt_path", "last")
    assert code == 0, err
    report = json.loads(next(tmp_path.glob("runs/*/probe.json")).read_text())
    pixels, untrained, pretrained = (row["test_top1"] for row in report["rows"])
    assert pixels < 0.5
    assert pretrained > max(pixels, untrained) + 0.4
    mlp_on_pixels = report["rows"][0]["test_mlp"]
    assert pretrained > mlp_on_pixels + 0.1
