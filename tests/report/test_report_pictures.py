"""Reports of denoising runs: pictures of samples over the steps, beside the targets."""

import re

import pytest
import torch

from veto_pl.diffusion import picture
from veto_pl.exceptions import DataError
from veto_pl.report import Run, write_report
from veto_pl.report.columns import Quantity, Shown
from veto_pl.report.run_report import GRIDS

IMAGE = re.compile(
    r'<img src="(data:image/png;base64,[^"]+)" width="(\d+)" height="(\d+)" alt="([^"]+)"( class="small")?>'
)


def run_with(folder, steps, name="stripes", size=4):
    (folder / "samples").mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch,step,validation/energy_distance\n0,0,2.0\n0,8,1.0\n")
    for file in ("targets", *(f"step-{step:06}" for step in steps)):
        picture(torch.rand(3, 1, size, size), 2).save(folder / "samples" / f"{file}.png")
    return Run.read(folder, name)


def page_of(tmp_path, *runs):
    return write_report(list(runs), tmp_path / "page.html", title="Report").read_text()


def test_samples_stand_behind_their_targets_in_the_order_of_the_steps(tmp_path):
    page = page_of(tmp_path, run_with(tmp_path / "a", (0, 8, 1200)))
    shown = IMAGE.findall(page)
    titles = ["Targets of stripes", *(f"Samples of stripes, step {step}" for step in ("0", "8", "1,200"))]
    assert [alt for *_, alt, _ in shown] == titles
    assert {(width, height, bool(small)) for _, width, height, _, small in shown} == {("10", "10", True)}
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page), "a page needs nothing else"
    assert "samples.jsonl" not in page, "completions are not missed where there are pictures"


@pytest.mark.parametrize("count", [1, 2, 6, 7, 40])
def test_of_many_steps_some_are_shown_with_the_first_and_the_last(count, tmp_path):
    page = page_of(tmp_path, run_with(tmp_path / "a", range(count)))
    steps = [int(n) for n in re.findall(r'alt="Samples of stripes, step (\d+)"', page)]
    assert steps[0] == 0
    assert steps[-1] == count - 1
    assert len(steps) == len(set(steps)) == min(count, GRIDS - 1)


def test_large_pictures_are_shown_smoothly_and_made_smaller(tmp_path):
    assert picture(torch.rand(9, 3, 256, 256)).size == (1024, 256)
    assert not IMAGE.search(page_of(tmp_path, run_with(tmp_path / "a", (1,), size=512)))[5]


def test_a_name_cannot_end_its_attribute(tmp_path):
    page = page_of(tmp_path, run_with(tmp_path / "a", (1,), name='"><script>'))
    assert '"><script>' not in page.partition("<body>")[2].partition("<script>")[0]


def test_a_damaged_picture_is_named(tmp_path):
    run = run_with(tmp_path / "a", (1,))
    (run.folder / "samples" / "step-000001.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"step-000001\.png: expected a PNG file"):
        Run.read(run.folder)


def test_a_run_tells_how_what_it_logs_in_training_is_shown():
    told = {"train/loss": Shown(title="loss", unit="mean square"), "loss": Shown(title="other")}
    assert Quantity.of("train/on/loss", told).label == "loss (mean square)"
    assert Quantity.of("train/loss").label == "loss (nats/token)"
    assert Quantity.of("validation/loss", told).label == "other"
