import pytest

from veto_pl.explain import Scene, respond, write_explanation
from veto_pl.objectives import REOPOLD, SDPO, Veto

pytestmark = pytest.mark.browser
SCENE = Scene(points=9)


@pytest.fixture
def page(tmp_path):
    objectives = {"Veto": Veto(), "SDPO": SDPO(), "REOPOLD": REOPOLD()}
    responses = {name: respond(objective, SCENE) for name, objective in objectives.items()}
    return write_explanation(responses, SCENE, tmp_path / "page.html", described=dict.fromkeys(objectives, "x" * 300))


@pytest.mark.parametrize("width", [320, 360, 390, 1280])
def test_nothing_sticks_out_and_a_phone_shows_whole_tables(reader, page, width):
    reader.show(dark=False, width=width)
    reader.open(page)
    reader.unfold()
    assert reader.overflow() == 0
    assert reader.out_of_reach() == [] or width == 320
    assert reader.beyond_pictures() == []
    tables = "return [...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)"
    assert reader.driver.execute_script(tables) == [0, 0, 0] or width == 320


def test_a_heading_keeps_away_from_the_table_above_it(reader, page):
    reader.open(page)
    script = """
    const bottom = e => e.getBoundingClientRect().bottom;
    return [...document.querySelectorAll(".scroll + h3")].map(h => h.getBoundingClientRect().top
      - bottom(h.previousElementSibling));
    """
    gaps = reader.driver.execute_script(script)
    assert len(gaps) == 2
    assert min(gaps) >= 20


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_stands_out(reader, page, dark):
    reader.show(dark=dark, width=1280)
    reader.open(page)
    reader.unfold()
    found = reader.contrasts()
    assert len(found) > 100
    assert [item for item in found if item[2] < 4.5] == []
