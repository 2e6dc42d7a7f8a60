"""The audit of masks with a model: figures under changed masks, the page, the verb."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from flawmap.cli import main
from flawmap.images.folder import find
from flawmap.run.coarse import OFFSETS, changed
from flawmap.run.evaluate import evaluate
from flawmap.run.masks import BANDS, depends, masks_audit
from flawmap.run.model import Model


@pytest.fixture(scope="module")
def bundle(crossed: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crossed.save(tmp_path_factory.mktemp("saved") / "model.flaw")


@pytest.fixture(scope="module")
def second(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the masks, two pixels wider."""
    root = tmp_path_factory.mktemp("second") / "ground_truth"
    (root / "square").mkdir(parents=True)
    for number in range(3):
        mask = np.array(Image.open(world / f"ground_truth/square/{number:03}_mask.png")) > 0
        Image.fromarray(changed(mask, 2)).save(root / f"square/{number:03}_mask.png")
    return root


def _masks(world: Path) -> dict[str, np.ndarray]:
    samples = [s for s in find(world) if s.split == "test"]
    return {s.name: np.zeros((64, 64), bool) if s.mask is None else np.array(Image.open(s.mask)) > 0 for s in samples}


def test_the_figures_of_each_change_are_those_of_the_changed_masks(
    crossed: Model, bundle: Path, world: Path, second: Path, tmp_path: Path
) -> None:
    samples = find(world)
    hangs = depends(bundle, samples, second)
    assert set(hangs.found) == {*(("offset", by) for by in OFFSETS), *(("band", by) for by in BANDS), ("second", 0)}
    row = evaluate(crossed, world, tmp_path / "evaluation").metrics
    for metric in ("p_auroc", "p_ap", "pro"):
        assert hangs.found["offset", 0][metric] == pytest.approx(row[metric], abs=1e-9)
    masks = _masks(world)
    maps = {name: crossed.predict(world / name)[1] for name in masks}
    for change in (("offset", 4), ("offset", -2), ("band", 2), ("band", 4), ("second", 0)):
        truth, values = [], []
        for name, mask in masks.items():
            band = np.zeros_like(mask)
            if change[0] == "offset":
                mask = changed(mask, change[1])
            if change[0] == "band" and mask.any():
                band = changed(mask, change[1]) & ~changed(mask, -change[1])
            if change[0] == "second" and (other := second / f"{name[5:-4]}_mask.png").exists():
                mask = np.array(Image.open(other)) > 0
            truth.append(mask[~band])
            values.append(maps[name][~band])
        expected = roc_auc_score(np.concatenate(truth), np.concatenate(values))
        assert hangs.found[change]["p_auroc"] == pytest.approx(expected, abs=1e-9)
    assert (hangs.left_out["offset", -8], hangs.left_out["offset", 8]) == (6, 0)
    told = json.loads(json.dumps(hangs.to_dict(), allow_nan=False))
    assert told["offset"]["-8"]["p_auroc"] is None
    assert told["offset"]["-8"]["left_out"] == 6
    assert told["band"]["2"]["pro"] == hangs.found["band", 2]["pro"]
    assert told["second"]["components"] == 6


def test_a_defect_without_a_mask_leaves_the_figures_undefined_and_the_audit_goes_on(
    bundle: Path, world: Path, tmp_path: Path
) -> None:
    root = tmp_path / "square"
    shutil.copytree(world, root)
    (root / "ground_truth/square/000_mask.png").unlink()
    found, hangs, page = masks_audit(root, bundle=bundle, out=tmp_path / "out")
    assert [finding.code for finding in found.findings] == ["mask-missing"]
    assert hangs is not None
    assert "test/square/000.png: a defect without a mask" in hangs.to_dict()["why"]
    assert "undefined: test/square/000.png" in "\n".join(hangs.lines())
    assert page is not None
    assert "Undefined: test/square/000.png" in page.read_text()


class _Read(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_is_whole_asks_for_nothing_and_escapes_names(
    bundle: Path, world: Path, second: Path, tmp_path: Path
) -> None:
    root = tmp_path / "a <b> & c"
    shutil.copytree(world, root)
    mask = np.array(Image.open(root / "ground_truth/square/005_mask.png"))
    mask[2:4, 2:4] = 255
    mask[50:, 50:] = 128
    name = "<img src=x onerror=alert(1)>"
    (root / "ground_truth/square/005_mask.png").unlink()
    Image.fromarray(mask).save(root / f"ground_truth/square/{name}_mask.png")
    (root / "test/square/005.png").rename(root / f"test/square/{name}.png")
    found, _, page = masks_audit(root, second, bundle, tmp_path / "out")
    assert page is not None
    text = page.read_text()
    read = _Read()
    read.feed(text)
    assert "default-src 'none'" in text
    assert "script" not in {tag for tag, _ in read.found}
    assert text.count("<title>Masks of a &lt;b&gt; &amp; c</title>") == 1
    links = [v for _, attrs in read.found for key, v in attrs.items() if key in ("src", "href") and v]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert not any(tag == "img" and "onerror" in attrs for tag, attrs in read.found)
    assert "mask in the data; hatched: ignored" not in text  # the picture with a band has no second mask
    assert "mask; hatched: ignored" in text
    assert text.count("second mask") >= 3
    assert sum(tag == "polyline" for tag, _ in read.found) == 6
    assert "mask-specks" in text
    assert found.agreements[0].hausdorff95_px is not None


def test_the_verb_tells_and_says_by_its_exit_code_what_spoils(
    bundle: Path, world: Path, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["masks", "audit", str(world), "--second", str(second), "--model", str(bundle)]
    assert main([*words, "--out", str(tmp_path / "page"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["spoils"], told["pictures"], told["masks"]) == (False, 6, 6)
    assert told["second"]["pictures"] == 3
    assert told["second"]["each"][0]["area_px"][0] == 196
    assert told["depends"]["model"] == "PatchCore (model.flaw)"
    assert Path(told["page"]).name == "masks.html"
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "two people, 3 pictures, IoU 0." in out
    assert re.search(r"^as given +0\.\d{4}", out, re.MULTILINE)
    assert main([*words, "--out", str(tmp_path / "page")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["masks", "audit", str(world), "--speck", "0"]) == 2
    root = tmp_path / "square"
    shutil.copytree(world, root)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(root / "ground_truth/square/001_mask.png")
    assert main(["masks", "audit", str(root)]) == 3
    assert "error    mask-empty: 1 picture of a defect" in capsys.readouterr().out
    shutil.rmtree(root / "ground_truth")
    assert main(["masks", "audit", str(root)]) == 3
    assert "no picture has a mask" in capsys.readouterr().err
