"""Debates of teachers: who reads what, how much each counts, and what becomes of those who say nothing."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rollouts.debates import FORMATS, STEP, WORDS, Scripted, batch_of, models_of, read, rollout_of, scripted
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.confidence import confidence_weights
from veto_pl.objectives import MADOPD, Distill
from veto_pl.objectives.voices import attended
from veto_pl.parts.contexts import Privileged, SameText
from veto_pl.parts.divergences import GeneralizedJSD
from veto_pl.parts.panels import OneTeacher, Together
from veto_pl.rollouts import Debate, FromDataset, FromStudent, Sampling


@pytest.fixture(scope="module")
def models():
    return models_of()


def texts_of(models, sequences):
    """What stands in each row, without padding."""
    return models.tokenizer.batch_decode(
        [ids[mask] for ids, mask in zip(sequences.input_ids, sequences.attention_mask, strict=True)]
    )


def update(objective, models, rows):
    models.student.zero_grad()
    output = objective.loss({objective.rollout: rows}, models, STEP)
    output.terms["loss"].total.backward()
    return output, torch.cat([p.grad.flatten() for p in models.student.parameters()])


def test_without_rounds_it_is_together(models):
    rows = rollout_of(models)
    plain = Distill(rollout=FromDataset(), aggregation="sequence", divergence=GeneralizedJSD(0.5))
    one = update(replace(plain, panel=Together()), models, rows)
    two = update(replace(plain, panel=Debate(rounds=0)), models, rows)
    assert torch.equal(one[1], two[1])
    assert set(one[0].metrics) == set(two[0].metrics)


def test_the_transcript_has_all_rounds_and_each_reads_it_in_its_role(models):
    panel = scripted(models, {"alpha": "ac90", "beta": "bc30"}, reading="{debate}{expert}>{state}")
    found = read(panel, models, rollout_of(models, ["abc", "d"]))
    debate = "11ac90>12bc30>21ac90>22bc30>"
    assert texts_of(models, found["alpha"].sequences) == [f"{debate}1>abc>cba<eos>", f"{debate}1>d>d<eos>"]
    assert texts_of(models, found["beta"].sequences) == [f"{debate}2>abc>cba<eos>", f"{debate}2>d>d<eos>"]
    assert found["alpha"].weights.tolist() == pytest.approx([0.6457] * 6, abs=5e-5)
    assert found["beta"].weights.tolist() == pytest.approx([0.3543] * 6, abs=5e-5)


def test_a_round_is_written_behind_the_rounds_before_and_nobody_sees_the_answer(models):
    panel = scripted(models, {"alpha": "a", "beta": "b"})
    for words in (["abc", "d"], ["abc", "d"]):
        rows = rollout_of(models, words)
        rows = replace(rows, input_ids=rows.input_ids.where(~rows.loss_mask, rows.input_ids.flip(1)))
        read(panel, models, rows)
    alpha, beta = models.teachers.values()
    first, second = ["p>abc>", "p>d>"], [f"11a>12b>{{}}>{word}>" for word in ("abc", "d")]
    once = [
        (alpha, first, [5, 8]),
        (beta, first, [5, 8]),
        (alpha, [text.format(1) for text in second], [5, 8]),
        (beta, [text.format(2) for text in second], [5, 8]),
    ]
    assert panel.engine.calls == once * 2


@settings(deadline=None, max_examples=25)
@given(
    told=st.lists(
        st.tuples(*[st.sampled_from(["", "a", "ac0", "ac55", "c100", "c101", "!"])] * 2), min_size=4, max_size=4
    ),
    temperature=st.sampled_from([0.1, 1.0]),
)
def test_the_weights_of_a_token_add_up_to_one(told, temperature, models):
    """Whatever is told in each row; an exclamation mark is a text without an end."""
    names = {model: place for place, model in enumerate(models.teachers.values())}

    def script(model, text):
        row = next(i for i, word in enumerate(WORDS) if text.endswith(f"{word}>"))
        said = told[row][names[model]]
        return ("ac9", False) if said == "!" else (said, True)

    panel = scripted(models, {"alpha": "", "beta": ""}, engine=Scripted(script), temperature=temperature)
    rows = rollout_of(models)
    found = panel(rows, SameText(), models, STEP)
    kept, _ = attended(rows, found, "Debate")  # refuses weights that do not add up
    lost = [{"", "!"} >= set(said) for said in told]
    assert kept.loss_mask.any(1).tolist() == [not out for out in lost]
    for place, one in enumerate(found):
        for row, said in enumerate(one.said):
            confidences = [float(t[t.index("c") + 1 :]) / 100 if "c" in t else None for t in told[row]]
            inside = [t not in ("", "!") for t in told[row]]
            expected = weights_by_loops(confidences, inside, temperature)[place]
            assert said[0]["weight"] == pytest.approx(expected, abs=1e-6)


def weights_by_loops(confidences, inside, temperature):
    """The weights as the text says them, number by number."""
    told = [c for c, there in zip(confidences, inside, strict=True) if there]
    if not told:
        return [0.0, 0.0]
    if any(c is None or c > 1 for c in told):
        return [float(there) / len(told) for there in inside]
    powers = [
        2.718281828459045 ** ((c or 0) / temperature) * there for c, there in zip(confidences, inside, strict=True)
    ]
    return [power / sum(powers) for power in powers]


def test_the_published_weights():
    told = torch.tensor([0.9, 0.3], dtype=torch.float64)
    both = torch.tensor([True, True])
    assert confidence_weights(told, both).tolist() == pytest.approx([0.6457, 0.3543], abs=5e-5)
    most = confidence_weights(torch.tensor([1.0, 0.0]), both)
    assert most.tolist() == pytest.approx([0.7311, 0.2689], abs=5e-5)


@pytest.mark.parametrize(
    ("text", "confidence", "weight"),
    [
        ("c10c90", 0.9, 0.6457),  # the last one counts
        ("c100", 1.0, 0.6682),
        ("c101", None, 0.5),  # above the scale
        ("c", None, 0.5),
        ("abc", None, 0.5),
    ],
)
def test_the_last_confidence_counts_and_a_missing_one_makes_all_weights_equal(text, confidence, weight, models):
    panel = scripted(models, {"alpha": text, "beta": "c30"})
    (row,) = read(panel, models, rollout_of(models, ["abc"]))["alpha"].said
    assert (row[0]["confidence"], row[0]["texts"]) == (confidence, [text, text])
    assert row[0]["weight"] == pytest.approx(weight, abs=5e-5)


def test_one_hot_weights_are_that_teacher(models):
    panel = scripted(models, {"alpha": "c0", "beta": "c100"}, temperature=1e-3)
    rows = rollout_of(models)
    objective = Distill(rollout=FromDataset(), divergence=GeneralizedJSD(0.5), panel=panel)
    both = update(objective, models, rows)
    told = read(panel, models, rows)["beta"].sequences
    # The same rows for the student, and the debate in front of them for the one teacher.
    alone = update(replace(objective, panel=OneTeacher("beta"), context=Fixed(told)), models, rows)
    torch.testing.assert_close(both[1], alone[1], rtol=1e-5, atol=1e-7)


class Fixed(SameText):
    """Gives rows that are known beforehand."""

    is_neutral = False

    def __init__(self, rows):
        object.__setattr__(self, "rows", rows)

    def __call__(self, sequences, models, step):
        return self.rows


FAULTS = {
    "silent": ("", "silent"),
    "blanks": (" ", "silent"),
    "too long": (("abcdef", False), "cut off"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_teacher_that_says_nothing_or_no_end_is_out_of_the_debate(fault, models):
    said, why = FAULTS[fault]
    panel = scripted(models, {"alpha": said, "beta": "bc30"})
    rows = rollout_of(models, ["abc", "d"])
    with pytest.warns(UserWarning, match="`Debate`: the teacher `alpha` is left out of some debates"):
        found = read(panel, models, rows)
    assert len(found["alpha"].places) == 0
    assert found["beta"].weights.tolist() == [1.0] * 6
    assert [row[0]["out"] for row in found["alpha"].said] == [why] * 2
    assert texts_of(models, found["beta"].sequences)[0] == "12bc30>22bc30>o>abc>cba<eos>"
    metrics = {name: float(stat.mean()) for name, stat in found["alpha"].metrics.items()}
    assert metrics == {"weight": 0.0, "left_out": 1.0, "unsure": 0.0, "confidence": 0.0}
    # It is asked once, and in later rounds with no row, so that ranks stay in step.
    alpha = models.teachers["alpha"]
    assert [len(asked) for model, asked, _ in panel.engine.calls if model is alpha] == [2, 0]


def test_texts_without_an_end_may_be_kept(models):
    panel = scripted(models, {"alpha": ("ac90", False), "beta": "bc30"}, keep_cut=True)
    assert read(panel, models, rollout_of(models))["alpha"].weights.tolist() == pytest.approx([0.6457] * 14, abs=5e-5)


def test_a_row_that_all_are_out_of_is_not_trained_on(models):
    panel = scripted(models, {"alpha": "", "beta": ""})
    output, gradient = update(MADOPD(rollout=FromDataset(), panel=panel), models, rollout_of(models))
    assert output.metrics["unread"].mean() == 1
    assert (output.terms["loss"].total, output.terms["loss"].weight, gradient.abs().max()) == (0, 0, 0)


def test_room_is_looked_for_before_anybody_writes():
    models = models_of(max_position_embeddings=48)
    # 2 x 2 texts of 6 tokens with labels of 3 take 36 tokens; `o>d>` and `d` with its end take 6 more.
    panel = scripted(models, {"alpha": "ac90", "beta": "bc30"})
    rows = rollout_of(models, ["d", "abcdefg"])
    with pytest.warns(UserWarning, match="may be longer than its positions"):
        found = read(panel, models, rows)
    assert [[row[0].get("out") for row in one.said] for one in found.values()] == [[None, "no room"]] * 2
    assert {len(asked) for _, asked, _ in panel.engine.calls} == {1}


def test_the_student_reads_what_it_has_read_before(models, monkeypatch):
    """No text of a debate is among the student's ids, whatever the teachers read."""
    rows, seen = FromStudent(Sampling(max_new_tokens=4))(batch_of(models), models, STEP), []
    before = rows.input_ids.clone(), rows.prompts.input_ids.clone()
    forward = type(models.student).forward

    def watching(model, sequences, readout):
        seen.extend(sequences.input_ids.tolist() if model is models.student else [])
        return forward(model, sequences, readout)

    monkeypatch.setattr(type(models.student), "forward", watching)
    panel = scripted(models, {"alpha": "nnnc90", "beta": "nnnc30"})
    update(MADOPD(panel=panel, rollout=FromStudent()), models, rows)
    assert seen == before[0].tolist()
    assert torch.equal(rows.prompts.input_ids, before[1])


REAL = Debate(sampling=Sampling(max_new_tokens=5), keep_cut=True, **FORMATS)


def test_a_debate_does_not_depend_on_its_batch(models):
    rows = rollout_of(models)
    whole = read(REAL, models, rows)
    assert any(row[0]["texts"] for row in whole["alpha"].said)
    again = read(REAL, models, rows)
    assert again["alpha"].said == whole["alpha"].said
    alone = batch_of(models).rows(torch.tensor([2]))
    one = read(REAL, models, FromDataset()(alone, models, STEP))
    for name in models.teachers:
        assert one[name].said[0] == whole[name].said[2]


def test_completions_of_a_prompt_share_its_debate(models):
    rows = FromStudent(Sampling(max_new_tokens=4, num_completions=3))(batch_of(models), models, STEP)
    said = read(REAL, models, rows)["alpha"].said
    assert len(said) == 12
    assert [said[3 * i] == said[3 * i + 2] for i in range(4)] == [True] * 4
    assert said[0] != said[3]


def test_a_context_is_told_behind_the_debate(models):
    panel = scripted(models, {"alpha": "a", "beta": "b"}, rounds=1)
    found = read(panel, models, rollout_of(models, ["abc"]), Privileged("{completion}>{prompt}"))
    assert texts_of(models, found["alpha"].sequences) == ["cba>11a>12b>o>abc>cba<eos>"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reading": "{state}"}, r"`Debate\.reading` must show `\{debate\}`, got '\{state\}'"),
        ({"entry": "{round}"}, r"`Debate\.entry` must show `\{text\}`"),
        ({"first": "{"}, r"`Debate\.first` is malformed"),
        ({"confidence": r"\d+"}, r"`Debate\.confidence` needs a group for the number"),
        ({"confidence": "("}, r"`Debate\.confidence` is no regular expression"),
        ({"sampling": Sampling(num_completions=2)}, r"`Debate\.sampling\.num_completions` must be 1, got 2"),
        ({"teachers": ("a", "a")}, r"`Debate\.teachers` must name each teacher once"),
        ({"temperature": 0.0}, r"`Debate\.temperature` must be above 0"),
    ],
)
def test_a_debate_that_cannot_be_held_is_refused(wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        Debate(**wrong)


def test_a_field_that_no_row_has_is_named(models):
    panel = scripted(models, {"alpha": "a", "beta": "b"}, first="{nobody}{state}")
    with pytest.raises(ConfigurationError, match=r"`Debate\.first` names the field `nobody`"):
        read(panel, models, rollout_of(models))
