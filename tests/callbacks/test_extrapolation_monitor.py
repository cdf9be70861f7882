"""The monitor of extrapolation: what it measures, and what it does about it."""

import json
import math

import lightning as L
import pytest
import torch

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.callbacks import ExtrapolationMonitor, extrapolation
from veto_pl.callbacks.extrapolation import Structure
from veto_pl.data import JsonLines
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.extrapolation import lambda_star
from veto_pl.models import CharacterTokenizer
from veto_pl.objectives import SFT, ListOPD, Phases, Sum
from veto_pl.parts.schedules import Linear
from veto_pl.rollouts import FromDataset, FromStudent, Sampling
from veto_pl.testing.tiny import ALPHABET, tiny_source

WORDS = ["abc", "bca", "cab", "aab", "bbc", "cca"]
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
SAMPLED = FromStudent(Sampling(max_new_tokens=4))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{w}>", "completion": w[::-1]}) + "\n" for w in WORDS))
    return str(path)


def run(rows, folder, monitor, objective=None, reference=None, steps=1, **trainer):
    module = DistillationModule(
        objective or ListOPD(rollout=SAMPLED, extrapolation=1.5, importance_cap=5.0),
        tiny_source(seed=0),
        tiny_source(seed=1, initializer_range=1.0),
        tokenizer=CharacterTokenizer(ALPHABET),
        reference=reference or tiny_source(seed=0),
        evaluation=Sampling(temperature=0.0, max_new_tokens=4),
    )
    data = PromptDataModule(
        JsonLines(train=rows, validation=rows),
        batch_size=2,
        validation_batch_size=4,
        max_prompt_tokens=32,
        max_completion_tokens=32,
    )
    settings = {"max_steps": steps, "accelerator": "cpu", "num_sanity_val_steps": 0, "limit_val_batches": 2}
    runner = L.Trainer(default_root_dir=folder, callbacks=[monitor], use_distributed_sampler=False, **settings, **QUIET)
    runner.fit(module, data, **trainer)
    return module


def by_hand(module, rows):
    """p and b of every token that the teacher prefers somewhere, one row after another."""
    found = {}
    teacher, base = module.models.teacher.model, tiny_source(seed=0).load().eval()
    tokenizer = module.tokenizer
    for word in WORDS:
        prompt, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f"{word}>", word[::-1]))
        ids = torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]])
        with torch.no_grad():
            believed, started = (
                model(ids).logits[0, len(prompt) - 1 : -1, : len(tokenizer)].softmax(-1) for model in (teacher, base)
            )
        for p, b in zip(believed, started, strict=True):
            found.setdefault(tokenizer.decode([int(p.argmax())]), []).append((float(p.max()), float(b[p.argmax()])))
    return found


def test_it_measures_what_a_loop_over_the_rows_finds(rows, tmp_path):
    monitor = ExtrapolationMonitor(certain=0.01)
    with pytest.warns(UserWarning, match=r"`ListOPD\.extrapolation` reaches 1\.5"):
        module = run(rows, tmp_path, monitor)
    expected = by_hand(module, rows)
    assert {s.token: s.count for s in monitor.found} == {token: len(pairs) for token, pairs in expected.items()}
    for structure in monitor.found:
        p, b = (sum(column) / structure.count for column in zip(*expected[structure.token], strict=True))
        assert structure.modal_probability == pytest.approx(p, rel=1e-5)
        assert structure.warm_start_mass == pytest.approx(b, rel=1e-5)
        assert structure.bound == pytest.approx(lambda_star(p, b, 5.0), rel=1e-4)
    written = json.loads((tmp_path / "extrapolation.json").read_text())
    assert [row["bound"] for row in written] == sorted(s.bound for s in monitor.found)


def test_it_measures_at_the_temperature_of_the_loss(rows, tmp_path):
    cool, warm = (ExtrapolationMonitor(certain=0.01) for _ in range(2))
    run(rows, tmp_path, cool, ListOPD(rollout=SAMPLED, extrapolation=1.0))
    run(rows, tmp_path, warm, ListOPD(rollout=SAMPLED, extrapolation=1.0, temperature=100.0))
    assert all(abs(s.modal_probability - 1 / (len(ALPHABET) + 3)) < 0.02 for s in warm.found)
    assert max(s.modal_probability for s in cool.found) > 0.2


def test_named_tokens_are_the_structure(rows, tmp_path):
    every = ExtrapolationMonitor(certain=0.01)
    run(rows, tmp_path, every, ListOPD(rollout=SAMPLED, extrapolation=1.0))
    chosen = every.found[0].token
    monitor = ExtrapolationMonitor(structural=[chosen], rollout=FromDataset())
    run(rows, tmp_path, monitor, ListOPD(rollout=SAMPLED, extrapolation=1.0))
    assert [s.token for s in monitor.found] == [chosen]


def test_tokens_that_never_occur_are_named(rows, tmp_path):
    every = ExtrapolationMonitor(certain=0.01)
    run(rows, tmp_path, every, ListOPD(rollout=SAMPLED, extrapolation=1.0))
    monitor = ExtrapolationMonitor(structural=[every.found[0].token, "zz"])
    with pytest.warns(UserWarning, match=r"`ExtrapolationMonitor.structural` names \['zz'\]"):
        run(rows, tmp_path, monitor, ListOPD(rollout=SAMPLED, extrapolation=1.0))


def test_the_reference_is_the_base(rows, tmp_path):
    same, other = ExtrapolationMonitor(certain=0.01), ExtrapolationMonitor(certain=0.01)
    low = ListOPD(rollout=SAMPLED, extrapolation=1.0)
    run(rows, tmp_path, same, low)
    run(rows, tmp_path, other, low, reference=tiny_source(seed=5))
    assert [s.modal_probability for s in same.found] == [s.modal_probability for s in other.found]
    assert [s.warm_start_mass for s in same.found] != [s.warm_start_mass for s in other.found]


def found(bound=1.2):
    return [Structure("[", 9, 0.99, 0.5, bound), Structure(",", 9, 0.9, 0.5, 2.0)]


def measured(monitor, **changes):
    monitor.load_state_dict({"found": [vars(s) for s in found(**changes)]})
    return monitor


def test_a_resumed_run_keeps_what_was_measured(rows, tmp_path):
    monitor = measured(ExtrapolationMonitor(action="cap"))
    assert ExtrapolationMonitor().state_dict() == {"found": []}
    assert monitor.state_dict()["found"][0]["token"] == "["
    with pytest.warns(UserWarning, match=r"'\[', which the teacher writes.* It is capped at 1\.176"):
        module = run(rows, tmp_path, monitor)
    assert monitor.found == found()
    assert module.objective.guard == pytest.approx(0.98 * lambda_star(0.99, 0.5, 5.0))


def test_a_cap_holds_a_schedule_too(rows, tmp_path):
    objective = ListOPD(rollout=SAMPLED, extrapolation=Linear(1.0, 3.0))
    with pytest.warns(UserWarning, match="capped"):
        module = run(rows, tmp_path, measured(ExtrapolationMonitor(action="cap")), objective, steps=3)
    guard = 0.98 * lambda_star(0.99, 0.5, 5.0)
    assert module.logged["train/capped_extrapolation"] == pytest.approx(guard)


def test_it_watches_over_the_second_phase_too(rows, tmp_path):
    objective = Phases(first=SFT(), then=ListOPD(rollout=SAMPLED, extrapolation=Linear(1.0, 3.0)))
    with pytest.warns(UserWarning, match="capped"):
        module = run(rows, tmp_path, measured(ExtrapolationMonitor(action="cap")), objective, steps=3)
    assert module.objective.first == SFT()
    assert module.objective.then.guard == pytest.approx(0.98 * lambda_star(0.99, 0.5, 5.0))
    assert module.logged["train/capped_extrapolation"] == pytest.approx(module.objective.then.guard)


def test_a_bound_near_1_leaves_the_teacher_within_reach(rows, tmp_path, recwarn):
    """At lambda 1 the student is drawn to the teacher itself, however surely it writes the structure."""
    objective = ListOPD(rollout=SAMPLED, extrapolation=1.0)
    module = run(rows, tmp_path, measured(ExtrapolationMonitor(action="stop"), bound=1.001), objective)
    assert not [w for w in recwarn if "extrapolation" in str(w.message)]
    assert module.objective == objective


@pytest.mark.parametrize(("prompts", "elsewhere", "looked_at"), [(4, False, 4), (4, True, 6), (5, False, 6)])
def test_ranks_look_at_equally_many_batches(prompts, elsewhere, looked_at, rows, tmp_path, monkeypatch):
    """A rank that has enough goes on while another has not: sharded models would wait for it forever."""
    monkeypatch.setattr(
        extrapolation, "sum_over_ranks", lambda value: value if value.dim() else value + float(elsewhere)
    )
    monitor = ExtrapolationMonitor(certain=0.01, prompts=prompts)
    run(rows, tmp_path, monitor, ListOPD(rollout=SAMPLED, extrapolation=1.0))
    assert sum(s.count for s in monitor.found) == looked_at * 4  # three letters and EOS


def test_a_run_that_goes_too_far_is_stopped_before_it_begins(rows, tmp_path):
    with pytest.raises(ConfigurationError, match=r"bounds it by 1\.2.*Lower it to 1\.176"):
        run(rows, tmp_path, measured(ExtrapolationMonitor(action="stop")))


def test_below_the_bound_nothing_is_said(rows, tmp_path, recwarn):
    run(rows, tmp_path, measured(ExtrapolationMonitor(action="stop"), bound=1.6))
    run(rows, tmp_path, measured(ExtrapolationMonitor(action="stop"), bound=math.inf))
    assert not [w for w in recwarn if "extrapolation" in str(w.message)]
    assert json.loads((tmp_path / "extrapolation.json").read_text())[-1]["bound"] is None


TWO = Sum(terms={name: ListOPD(margin=margin, rollout=SAMPLED) for name, margin in (("a", 0.1), ("b", 0.2))})


@pytest.mark.parametrize(
    ("settings", "objective", "message"),
    [
        ({"certain": 1.0}, None, "`certain` in \\(0, 1\\)"),
        ({"margin": 1.0}, None, "`margin` in \\[0, 1\\)"),
        ({"prompts": 0}, None, "`prompts` of at least 1"),
        ({}, SFT(), "watches over one `ListOPD`, got 0 of them in `SFT`"),
        ({}, TWO, "one `ListOPD`, got 2 of them in `Sum`"),
        ({"structural": ["?"]}, None, "found no structural position"),
    ],
)
def test_what_cannot_work_is_named(settings, objective, message, rows, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        run(rows, tmp_path, ExtrapolationMonitor(**settings), objective)
