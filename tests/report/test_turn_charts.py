"""What is logged of each turn is one picture over the turns, however many there are."""

from veto_pl.charts.curve import Curve
from veto_pl.report import Run, write_report
from veto_pl.report.columns import Quantity
from veto_pl.report.turn_charts import _over_turns, by_turn

TURNS = 30


def run_of(tmp_path, name, reached=TURNS):
    folder = tmp_path / name
    folder.mkdir()
    names = ["train/loss", *(f"{of}/turn_{k}/{kl}" for of, kl in (("train", "kl"), ("validation", "reverse_kl"))
                             for k in range(1, TURNS + 1))]  # fmt: skip
    rows = [[step, 1.0 / step, *([float(k * step if k <= reached else 0) for k in range(1, TURNS + 1)] * 2)]
            for step in range(1, 21)]  # fmt: skip
    lines = [",".join(["step", *names]), *(",".join(map(str, row)) for row in rows)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return Run.read(folder, name)


def page(runs, tmp_path):
    return write_report(runs, tmp_path / "report.html", title="Report").read_text()


def test_thirty_turns_are_one_picture_of_each_quantity(tmp_path):
    text = page([run_of(tmp_path, "one")], tmp_path)
    assert text.count("<svg") == 3
    assert "Training: KL to the teacher, turn by turn" in text
    assert "Validation: reverse kl, turn by turn" in text
    assert "first steps" in text
    assert "last steps" in text


def test_several_runs_are_compared_at_their_ends(tmp_path):
    text = page([run_of(tmp_path, "one"), run_of(tmp_path, "other")], tmp_path)
    assert text.count("<svg") == 3
    assert "first steps" not in text


def test_values_are_means_of_a_tenth_and_turns_that_nobody_reached_are_left_out():
    turns = by_turn(Quantity.of(f"validation/turn_{k}/reverse_kl") for k in (1, 2, 3))["validation/reverse_kl"]
    steps = tuple(map(float, range(20)))
    curves = {of.column: Curve(steps, tuple(k * s if k < 3 else 0.0 for s in steps)) for k, of in turns.items()}
    assert _over_turns(turns, curves, end=True) == Curve((1.0, 2.0), (18.5, 37.0))
    assert _over_turns(turns, curves, end=False) == Curve((1.0, 2.0), (0.5, 1.0))
    none = {of.column: Curve((1.0,), (0.0,)) for of in turns.values()}
    assert _over_turns(turns, none, end=True).values == (0.0, 0.0, 0.0)


def test_a_single_turn_is_a_curve_over_the_steps():
    assert by_turn([Quantity.of("train/turn_1/kl"), Quantity.of("train/kl")]) == {}
