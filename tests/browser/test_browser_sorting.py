"""A table is sorted by pressing a heading, by mouse or keyboard, and stands as it was after the third time."""

import pytest
from selenium.webdriver.common.keys import Keys

from browser.reader import contrast
from veto_pl.report import ResultTable, write_report
from veto_pl.report.run import Run

pytestmark = pytest.mark.browser
ROWS = {
    "b": ["1,200", "0.5 \N{RIGHTWARDS ARROW} 2.0"],
    "a": ["\N{MINUS SIGN}3", "9.0 \N{RIGHTWARDS ARROW} 1.0"],
    "c": [None, "0.1 \N{RIGHTWARDS ARROW} 3.0e-5"],
    "d": ["40.5", "7.0"],
}


@pytest.fixture
def page(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.csv").write_text("step,train/loss\n0,1\n1,2\n")
    table = ResultTable(["count", "first to last"], ROWS)
    return write_report([Run.read(folder)], tmp_path / "page.html", title="Sorted", table=table)


def names(reader):
    return [cell.text for cell in reader.all("#results tbody th")]


def test_a_heading_sorts_the_rows_down_up_and_back(reader, page):
    reader.open(page)
    orders = {
        0: ["dcba", "abcd"], 1: ["bdac", "adbc"], 2: ["dbac", "cabd"],  # what has no number comes last
    }  # fmt: skip
    for column, (down, up) in orders.items():
        for expected, state in ((down, "descending"), (up, "ascending"), ("bacd", "none")):
            reader.all("#results thead button")[column].click()
            assert names(reader) == list(expected)
            states = [head.get_attribute("aria-sort") for head in reader.all("#results thead th")]
            assert states == [state if i == column else "none" for i in range(3)]


def test_the_keyboard_reaches_a_heading_and_presses_it(reader, page):
    reader.open(page)
    body = reader.one("body")
    for _ in range(4):
        body.send_keys(Keys.TAB) if _ == 0 else reader.driver.switch_to.active_element.send_keys(Keys.TAB)
        focused = reader.driver.switch_to.active_element
        if focused.tag_name == "button":
            break
    assert focused.text.startswith("run")
    outline = reader.driver.execute_script("return getComputedStyle(arguments[0]).outlineStyle", focused)
    assert outline == "solid", "it is seen where the keyboard is"
    for expected in ("dcba", "abcd", "bacd"):
        focused.send_keys(Keys.SPACE)
        assert names(reader) == list(expected)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_headings_stand_out(reader, page, dark):
    reader.show(dark=dark, width=1280)
    reader.open(page)
    reader.all("#results thead button")[1].click()
    found = reader.contrasts("#results thead *")
    assert len(found) == 3
    assert [item for item in found if item[2] < 4.5] == []
    assert contrast([0, 0, 0], [255, 255, 255]) == pytest.approx(21)
