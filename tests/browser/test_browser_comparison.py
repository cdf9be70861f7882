import dataclasses
from itertools import pairwise

import pytest
from compare.comparisons import SEARCHES
from selenium.webdriver.common.keys import Keys

from browser.reader import contrast
from veto_pl.compare.comparison_page import write_page
from veto_pl.compare.results import Answer

pytestmark = pytest.mark.browser
METHODS = ("SFT", "GKD", "Veto", "a method with " + "a_very_long_name_" * 6)
HARD = ("<b>", "\n", "\t", " שלום", " 👩\u200d🔬", "\x1b", "x" * 300, " 42")


@pytest.fixture
def page(make, tmp_path):
    def write(**changes):
        given = {"searches": SEARCHES, "failures": {"Veto, seed 4": "Error: " + "long" * 200}} | changes
        comparison = make(METHODS, (0, 1, 2), steps=60, tokens=30, **given)
        kept = tuple(trial for trial in comparison.trials if (trial.method, trial.seed) != ("Veto", 2))
        return write_page(dataclasses.replace(comparison, trials=kept), tmp_path / "page.html")

    return write


def test_the_contents_lead_to_the_sections(reader, page):
    reader.open(page())
    links = reader.all("nav a")
    assert len(links) == 10
    for link in links:
        link.click()
        section = reader.one(f"section[id='{link.get_attribute('href').partition('#')[2]}']")
        assert section.find_element("css selector", "h2").text == link.text
        assert reader.driver.execute_script("return arguments[0].getBoundingClientRect().top < 900", section)


def test_a_box_hides_and_shows_everything_of_its_method(reader, page):
    reader.open(page())
    for i, name in enumerate(METHODS):
        others = len(reader.shown(f".m{(i + 1) % 4}"))
        assert len(reader.shown(f".m{i}")) >= 20
        reader.one(f"#method-{i}").click()
        assert reader.shown(f".m{i}") == []
        assert name not in reader.one("#results table").text
        assert len(reader.shown(f".m{(i + 1) % 4}")) == others
        reader.one(f"#method-{i}").click()
        assert len(reader.shown(f".m{i}")) >= 20


def test_a_button_shows_its_prompt_alone(reader, page):
    reader.open(page())
    for j in (1, 2, 0):
        reader.one(f"#prompt-{j}").click()
        (card,) = reader.shown("article")
        assert f"Row {j}: how much" in card.text
        assert len([column for column in reader.shown(".answers > div") if column.text]) == 4


def test_a_button_chooses_the_kl_that_is_coloured(reader, page):
    reader.open(page())
    ground = "rgba(0, 0, 0, 0)"
    deep = {letter: f".prompt-0 .{letter}8:not([class*='{other}8'])" for letter, other in ("fr", "rf")}
    deepest = reader.background(".ramp .f8")
    for chosen in ("r", "none", "f"):
        reader.one(f"#kl-{chosen}").click()
        assert reader.background(deep[chosen] if chosen != "none" else ".ramp .f8") == deepest
        expected = [] if chosen == "none" else [chosen]
        assert [letter for letter in "fr" if reader.background(deep[letter]) == deepest] == expected
        assert [letter for letter in "fr" if reader.shown(f".scale-{letter}")] == expected
        plain = [letter for letter in "fr" if letter != chosen]
        assert chosen != "none" or {reader.background(deep[letter]) for letter in plain} == {ground}


def test_what_is_folded_unfolds(reader, page):
    reader.open(page())
    folded = reader.all("details")
    assert len(folded) > 10
    assert not any(element.get_attribute("open") for element in folded)
    for element in folded:
        summary = element.find_element("css selector", "summary")
        if summary.is_displayed():
            (inside,) = element.find_elements("css selector", ":scope > :last-child")
            assert not inside.is_displayed()
            summary.click()
            assert inside.is_displayed()
    lines = reader.shown(".completion pre")[0].text.split("\n")
    assert lines[0].split() == ["forward", "KL", "reverse", "KL"]
    assert len(lines) == 1 + 30
    assert all(float(number) >= 0 for line in lines[1:] for number in line.split()[:2])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_stands_out(reader, page, dark):
    reader.show(dark=dark, width=1280)
    reader.open(page())
    reader.unfold()
    found = reader.contrasts()
    assert len(found) > 500
    assert [item for item in found if item[2] < 4.5] == []
    for chosen in "fr":
        reader.one(f"#kl-{chosen}").click()
        tokens = reader.contrasts(".completion .text span")
        assert {name[:2] if chosen == "f" else name[3:] for _, name, _ in tokens if "8" in name} >= {f"{chosen}8"}
        assert [item for item in tokens if item[2] < 4.5] == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_deeper_colours_are_further_from_the_page(reader, page, dark):
    reader.show(dark=dark, width=1280)
    reader.open(page())
    shades = [reader.background(f".ramp .f{level}") for level in range(1, 9)]
    numbers = [[float(part) for part in shade[4:-1].split(",")] for shade in shades]
    panel = [float(part) for part in reader.background(".completion")[4:-1].split(",")]
    distances = [contrast(shade, panel) for shade in numbers]
    assert all(b > 1.04 * a for a, b in pairwise(distances))
    assert distances[-1] > 2


def hard(*_, **__):
    return Answer("p" * 400 + " שלום", "r", 0.0, HARD * 40, (0.3,) * 320, (0.1,) * 320)


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_sticks_out_on_any_screen(reader, page, width):
    reader.show(dark=False, width=width)
    reader.open(page(answer=hard, command="veto-pl compare " + "--option=value " * 40))
    assert reader.overflow() == 0
    reader.unfold()
    assert reader.overflow() == 0
    assert reader.out_of_reach() == []
    smallest = reader.driver.execute_script(
        "return Math.min(...[...document.querySelectorAll('.chart text')].filter(t => t.checkVisibility())"
        ".map(t => t.getBoundingClientRect().height))"
    )
    assert smallest >= 8


@pytest.mark.parametrize("width", [360, 1280])
def test_no_texts_of_a_picture_meet(reader, page, width):
    reader.show(dark=False, width=width)
    reader.open(page())
    script = """
    const met = [];
    for (const svg of document.querySelectorAll("svg.chart")) {
      const boxes = [...svg.querySelectorAll("text")].filter(t => t.checkVisibility())
        .map(t => [t.textContent, t.getBoundingClientRect()]);
      boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
        if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
          met.push([one, other]);
      }));
    }
    return met;
    """
    assert reader.driver.execute_script(script) == []


@pytest.mark.parametrize("width", [360, 1280])
def test_no_name_leaves_its_picture(reader, make, tmp_path, width):
    names = ("on-policy KD", "REOPOLD", "AdaSwitch", "MMWW WWMM", "DISTILLM-2", "SKD", "mmwm " * 12, "方法方法", "EOPD")
    reader.show(dark=False, width=width)
    reader.open(write_page(make(names, range(5), steps=60), tmp_path / "page.html"))
    reader.unfold()
    assert reader.beyond_pictures() == []


def test_every_control_is_reached_by_tab_and_works_by_keys(reader, page):
    reader.open(page())
    stops = reader.tab_stops()
    wanted = reader.shown("a, summary, input[type=checkbox], input[type=radio]:checked, [tabindex='0']")
    assert {element.id for element in wanted} <= {element.id for element in stops}
    first = reader.one("#kl-f")
    first.send_keys(Keys.ARROW_RIGHT)
    assert reader.one("#kl-r").is_selected()
    box = reader.one("#method-0")
    box.send_keys(Keys.SPACE)
    assert reader.shown(".m0") == []
