import json

import pytest

from veto_pl.report import Run, write_report

pytestmark = pytest.mark.browser


@pytest.fixture
def page(make, tmp_path):
    runs = []
    for i, name in enumerate(("SFT", "Veto with a long name " * 4)):
        folder = make.run(name, i, 200, 0.5).folder
        samples = [
            {"step": 9, "prompt": f"p{j}", "completion": "x\t<b>\x1b" * 50, "reference": "r", "reward": j % 2}
            for j in range(3)
        ]
        said = [
            {"role": "user", "content": "x " * 300},
            {"role": "assistant", "content": "<b>" * 99, "turn": 1, "counts": True, "thought": "well",
             "calls": [{"name": "look", "arguments": {"at": "x" * 99}}], "problem": "gave no answer"},
            {"role": "tool", "name": "look", "content": "x" * 999, "turn": 1},
        ]  # fmt: skip
        samples.append(samples[0] | {"dialogue": said})
        (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)))
        (folder / "config.yaml").write_text("model: {beta: 0.5}\n" * 30)
        runs.append(Run.read(folder, name))
    return write_report(runs, tmp_path / "report.html", title="A report", intro="What was done.")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_stands_out(reader, page, dark):
    reader.show(dark=dark, width=1280)
    reader.open(page)
    reader.unfold()
    found = reader.contrasts()
    assert len(found) > 100
    assert [item for item in found if item[2] < 4.5] == []


def test_configurations_unfold(reader, page):
    reader.open(page)
    assert reader.shown("details pre") == []
    reader.unfold()
    assert [block.text.count("beta: 0.5") for block in reader.shown("details pre")] == [30, 30]


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_sticks_out_on_any_screen(reader, page, width):
    reader.show(dark=False, width=width)
    reader.open(page)
    reader.unfold()
    assert reader.overflow() == 0
    assert reader.out_of_reach() == []


def test_all_that_scrolls_or_unfolds_is_reached_by_tab(reader, page):
    reader.open(page)
    stops = {stop.id for stop in reader.tab_stops()}
    assert {element.id for element in reader.shown("summary, [tabindex='0']")} <= stops
