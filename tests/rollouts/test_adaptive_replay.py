"""DistiLLM's rollouts: who writes at a step, what a validation changes, and that a run goes on exactly."""

import json
import math
import warnings
from dataclasses import replace

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.core.memory import Memories
from veto_pl.data import ExactMatch, JsonLines
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer
from veto_pl.objectives import DistiLLM
from veto_pl.rollouts import AdaptiveReplay, FromCache, FromDataset, FromStudent, Sampling
from veto_pl.rollouts.adaptive import AdaptiveMemory
from veto_pl.seams import Step
from veto_pl.testing.tiny import ALPHABET, prompt_batch, tiny_models, tiny_source

PROMPTS, REFERENCES = ["a>", "bcd>", "ef>", "ghij>"], ["a", "dcb", "fe", "jihg"]
SAMPLED = FromStudent(Sampling(max_new_tokens=4))
LOSS = "validation/forward_kl"


def coin(step):
    return float(step.uniform("adaptive replay", torch.zeros(1, dtype=torch.int64)))


def writer(sequences):
    """Whose rows they are."""
    if sequences.age is None:
        return "dataset"
    return "student" if sequences.on_policy.all() else "replay"


def memory_of(models, source):
    return models.memories.of(source)


@pytest.mark.parametrize("phi", [0.0, 0.5, 1.0])
def test_who_writes_is_decided_by_one_number_for_each_step(phi):
    models, source = tiny_models(), AdaptiveReplay(SAMPLED, start=phi, capacity=6)
    batch = prompt_batch(models, PROMPTS, REFERENCES)
    filled, seen = False, set()
    for index in range(24):
        step = Step(index, 24)
        fresh = coin(step) < phi * (1 - index / 24) or (coin(step) < phi and not filled)
        expected = "student" if fresh else "replay" if coin(step) < phi else "dataset"
        for micro in range(2):
            assert writer(source(batch, models, replace(step, micro=micro))) == expected
        models.memories.end_step()
        filled |= fresh
        seen.add(expected)
    assert seen == {0.0: {"dataset"}, 0.5: {"dataset", "student", "replay"}, 1.0: {"student", "replay"}}[phi]
    assert len(memory_of(models, source).buffer) == (6 if phi else 0)


def test_replayed_rows_know_their_age():
    models, source = tiny_models(), AdaptiveReplay(SAMPLED, start=1.0)
    batch = prompt_batch(models, PROMPTS, REFERENCES)
    assert source(batch, models, Step(0, 9)).age.tolist() == [0.0] * 4
    models.memories.end_step()
    assert source(batch, models, Step(9, 9)).age.tolist() == [9.0] * 4


LOSSES = st.lists(st.floats(0, 3) | st.sampled_from([math.nan, math.inf]), max_size=12)


@settings(deadline=None)
@given(losses=LOSSES, increment=st.floats(0, 1), tolerance=st.floats(0, 0.5))
def test_phi_grows_where_a_validation_is_worse_than_the_last_that_moved_it(losses, increment, tolerance):
    source = AdaptiveReplay(start=0.2, increment=increment, tolerance=tolerance)
    memory, phi, compared = AdaptiveMemory(source), 0.2, None
    for loss in losses:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            memory.observe({LOSS: loss, "validation/accuracy": 0.0})
        assert bool(said) != math.isfinite(loss), "one that cannot be compared is passed over, and said"
        if not math.isfinite(loss):
            pass
        elif compared is None:
            compared = loss
        elif loss >= compared + tolerance:
            phi, compared = min(1.0, phi + increment), loss
        assert memory.phi == phi


def test_a_validation_within_a_window_counts_from_the_next_one_on():
    memory = AdaptiveMemory(AdaptiveReplay(tolerance=0.0))
    memory.observe({LOSS: 1.0})
    assert memory.phi_of(Step(0, 9)) == 0.0
    memory.observe({LOSS: 1.0})
    assert (memory.phi_of(Step(0, 9, micro=1)), memory.numbers()) == (0.0, {"phi": 0.0})
    assert (memory.phi_of(Step(1, 9)), memory.numbers()) == (0.1, {"phi": 0.1})


def test_without_the_metric_that_it_watches_the_run_stops():
    memory = AdaptiveMemory(AdaptiveReplay())
    with pytest.raises(ConfigurationError, match=r"`AdaptiveReplay\.monitor` .*forward_kl`; there are validation/eos"):
        memory.observe({"validation/eos_rate": 1.0})


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_goes_on_exactly_from_its_checkpoint(ranks, tmp_path, monkeypatch):
    source = AdaptiveReplay(SAMPLED, start=0.7, increment=0.2, tolerance=0.0)

    def steps(models, indices):
        batch, rows = prompt_batch(models, PROMPTS, REFERENCES), []
        for index in indices:
            if index % 3 == 2:
                models.memories.observe({LOSS: 1.0})
            written = source(batch, models, Step(index, 12))
            rows.append((writer(written), written.input_ids.tolist(), models.memories.numbers()))
            models.memories.end_step()
        return rows

    models = tiny_models()
    steps(models, range(6))
    torch.save(models.memories.states() * ranks, tmp_path / "saved")
    saved = torch.load(tmp_path / "saved", weights_only=True)
    expected = steps(models, range(6, 12))
    assert {row[0] for row in expected} >= {"replay"}
    assert expected[-1][2] == {"phi": pytest.approx(1.0)}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: ranks > 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        other = tiny_models()
        other.memories.restore(saved)
        assert steps(other, range(6, 12)) == expected


def test_a_plan_and_an_explanation_know_both_writers():
    source = AdaptiveReplay(SAMPLED, start=0.25)
    assert source.writings() == (*SAMPLED.writings(), *FromDataset().writings())
    student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.1, 0.9]).log()
    drawn = source.token_distribution(student, teacher, Step(0, 9))
    torch.testing.assert_close(drawn.exp(), torch.tensor([0.2, 0.8]))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: AdaptiveReplay(start=1.1), "start"),
        (lambda: AdaptiveReplay(increment=-0.1), "increment"),
        (lambda: AdaptiveReplay(tolerance=math.nan), "tolerance"),
        (lambda: AdaptiveReplay(capacity=0), "capacity"),
    ],
)
def test_settings_out_of_range_are_named(make, named):
    with pytest.raises(ConfigurationError, match=rf"`AdaptiveReplay\.{named}`"):
        make()


def test_a_stored_teacher_is_refused(monkeypatch):
    monkeypatch.setattr(FromDataset, "stored_teacher", True)
    with pytest.raises(ConfigurationError, match="cannot hold `FromDataset`"):
        AdaptiveReplay()
    assert FromCache.stored_teacher


def test_a_fit_shows_its_validations_to_the_memories_before_it_saves(tmp_path, monkeypatch):
    """With weights that stand still, every validation is as bad as the one before."""
    rows, seen, observe = tmp_path / "rows.jsonl", [], Memories.observe
    pairs = zip(PROMPTS, REFERENCES, strict=True)
    rows.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs))
    monkeypatch.setattr(Memories, "observe", lambda self, metrics: (seen.append(metrics), observe(self, metrics))[1])
    source = AdaptiveReplay(SAMPLED, tolerance=0.0, increment=0.25)
    module = DistillationModule(
        DistiLLM(rollout=source),
        tiny_source(),
        tiny_source(seed=1),
        CharacterTokenizer(ALPHABET),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        evaluation=Sampling(temperature=0.0, max_new_tokens=4),
    )
    saving = ModelCheckpoint(tmp_path / "saved", "{step}", save_top_k=-1, save_on_train_epoch_end=False)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        max_steps=4, val_check_interval=1, num_sanity_val_steps=1, use_distributed_sampler=False,
        default_root_dir=tmp_path, callbacks=[saving], **quiet,
    )  # fmt: skip
    trainer.fit(
        module,
        PromptDataModule(
            JsonLines(train=str(rows), validation=str(rows), verifier=ExactMatch()),
            batch_size=4,
            max_prompt_tokens=32,
            max_completion_tokens=32,
        ),
    )
    assert len(seen) == 4, "one for each validation, none for the sanity check"
    assert seen[-1][LOSS] == pytest.approx(float(trainer.callback_metrics[LOSS]))
    assert module.logged["train/phi"] == 0.5, "what the last step began with"
    phis = []
    for step in range(1, 5):
        (state,) = torch.load(tmp_path / "saved" / f"step={step}.ckpt", weights_only=True)["veto_pl_memories"]
        phis.append(state[repr(source)]["phi"])
    assert phis == [0.0, 0.25, 0.5, 0.75]
