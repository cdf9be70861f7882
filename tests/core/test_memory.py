"""What a run remembers: replayed rollouts, and a teacher that follows the student."""

import json
from dataclasses import replace

import pytest
import torch

from veto_pl.core.memory import Memories
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import MovingAverage, RandomWeights
from veto_pl.models.assemble import load_models
from veto_pl.parts.schedules import Linear
from veto_pl.rollouts import FromDataset, FromStudent, Replay, Sampling
from veto_pl.rollouts.replay import ReplayBuffer
from veto_pl.seams import Example, Step
from veto_pl.testing.tiny import prompt_batch, tiny_models, tiny_source

PROMPTS, REFERENCES = ["a>", "bcd>", "ef>", "ghij>"], ["a", "dcb", "fe", "jihg"]
SAMPLED = FromStudent(Sampling(max_new_tokens=5))


def texts(models, sequences):
    return models.tokenizer.batch_decode(
        [ids[mask] for ids, mask in zip(sequences.input_ids, sequences.attention_mask, strict=True)]
    )


def scores(sequences):
    return [row[mask].tolist() for row, mask in zip(sequences.sampler_logp, sequences.loss_mask, strict=True)]


def test_a_step_is_replayed_with_its_log_probabilities_and_its_own_prompts():
    models = tiny_models()
    source = Replay(SAMPLED, fraction=1.0)
    fresh = source(prompt_batch(models, PROMPTS, REFERENCES), models, Step(0, 9))
    models.memories.end_step()
    others = prompt_batch(models, ["k>", "lm>", "n>", "op>"])
    again = source(others, models, Step(1, 9))
    assert fresh.on_policy.all()
    assert not again.on_policy.any()
    assert sorted(zip(texts(models, again), scores(again), strict=True)) == sorted(
        zip(texts(models, fresh), scores(fresh), strict=True)
    )
    named = {example.prompt: example.completion for example in again.prompts.examples}
    assert named == dict(zip(PROMPTS, REFERENCES, strict=True))
    for row, text in zip(again.prompt_rows.tolist(), texts(models, again), strict=True):
        assert text.startswith(again.prompts.examples[row].prompt)


def groups(models, sequences):
    """The texts of each prompt of a rollout, in order."""
    found = {}
    for prompt, text in zip(sequences.prompt_rows.tolist(), texts(models, sequences), strict=True):
        found.setdefault(sequences.prompts.examples[prompt].prompt, []).append(text)
    return found


def test_the_completions_of_a_prompt_are_replayed_together():
    """Peers, shifts and mean rewards are looked for among the completions of one prompt."""
    models = tiny_models()
    source = Replay(FromStudent(Sampling(max_new_tokens=6, num_completions=3)), fraction=1.0)
    fresh = source(prompt_batch(models, PROMPTS, REFERENCES), models, Step(0, 9))
    models.memories.end_step()
    again = source(prompt_batch(models, ["k>", "lm>", "n>"]), models, Step(1, 9))
    written, found = groups(models, fresh), groups(models, again)
    assert len(found) == len(again.prompts) == 3
    assert found.items() <= written.items()
    assert again.age.tolist() == [1.0] * 9
    for row, text in zip(again.prompt_rows.tolist(), texts(models, again), strict=True):
        assert text.startswith(again.prompts.examples[row].prompt)


@pytest.mark.parametrize(("capacity", "left"), [(1, 1), (3, 1), (5, 1), (6, 2), (11, 3), (12, 4)])
def test_the_completions_of_a_prompt_go_together(capacity, left):
    models = tiny_models()
    buffer = ReplayBuffer(capacity)
    sampled = FromStudent(Sampling(max_new_tokens=6, num_completions=3))
    fresh = sampled(prompt_batch(models, PROMPTS, REFERENCES), models, Step(0, 9))
    buffer.add(fresh, Step(0, 9))
    buffer.end_step(done=True)
    again = buffer.draw(prompt_batch(models, PROMPTS * 2), Step(1, 9))
    kept = PROMPTS[4 - left :]
    assert groups(models, again).keys() == set(kept)
    assert len(again) == len(buffer) == 3 * left


def test_what_a_window_wrote_is_replayed_after_its_step_only():
    models = tiny_models()
    source, batch = Replay(SAMPLED, fraction=1.0), prompt_batch(models, PROMPTS)
    for micro in range(3):
        assert source(batch, models, Step(0, 9, micro=micro)).on_policy.all()
    models.memories.end_step()
    assert not source(batch, models, Step(1, 9)).on_policy.any()


def test_rows_of_a_step_that_was_left_out_are_forgotten():
    models = tiny_models()
    source, batch = Replay(SAMPLED, fraction=1.0), prompt_batch(models, PROMPTS)
    source(batch, models, Step(0, 9))
    models.memories.end_step(done=False)
    assert source(batch, models, Step(1, 9)).on_policy.all()
    models.memories.end_step()
    assert len(source(prompt_batch(models, PROMPTS * 3), models, Step(2, 9))) == 4


def test_the_share_of_replayed_steps_and_the_oldest_rows_go():
    models = tiny_models()
    source, batch = Replay(FromDataset(), fraction=0.3, capacity=6), prompt_batch(models, PROMPTS, REFERENCES)
    buffer = models.memories.of(source)
    fresh = 0
    for index in range(200):
        before = list(buffer._groups)
        rows = source(batch, models, Step(index, 200))
        models.memories.end_step()
        is_fresh = buffer._groups != before
        fresh += is_fresh
        assert len(rows) == 4
        if is_fresh and index:
            assert buffer._groups == [*before, *buffer._groups[-4:]][-6:]
        assert len(buffer) == (4 if index == 0 else 6) or not is_fresh
    assert 0.6 < fresh / 200 < 0.8


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_buffer_goes_on_from_a_checkpoint_on_any_number_of_ranks(ranks, tmp_path, monkeypatch):
    models = tiny_models()
    example = replace(prompt_batch(models, PROMPTS, REFERENCES), examples=tuple(
        Example(p, c, {"nested": [1, {"x": None}], "odd": {1, 2}}) for p, c in zip(PROMPTS, REFERENCES, strict=True)
    ))  # fmt: skip
    source = Replay(SAMPLED, fraction=1.0)
    source(example, models, Step(0, 9))
    models.memories.end_step()
    torch.save(models.memories.states() * 2, tmp_path / "saved")  # as two ranks would
    saved = torch.load(tmp_path / "saved", weights_only=True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)
    drawn = []
    for rank in range(ranks):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        other = tiny_models()
        other.memories.restore(saved)
        drawn.append(texts(other, source(prompt_batch(other, PROMPTS * 4), other, Step(1, 9))))
    if ranks == 2:
        assert sorted(drawn[0]) == sorted(drawn[1])
    assert sorted(row for rows in drawn for row in rows) == sorted(
        2 * texts(models, source(example, models, Step(1, 9)))
    )


def test_a_memory_that_nobody_has_asked_for_is_saved_again():
    models, other = tiny_models(), Memories()
    source = Replay(FromDataset())
    source(prompt_batch(models, PROMPTS, REFERENCES), models, Step(0, 9))
    models.memories.end_step()
    other.restore(models.memories.states())
    assert json.dumps(repr(other.states())) == json.dumps(repr(models.memories.states()))


def test_the_average_follows_the_student():
    source = MovingAverage(tiny_source(), decay=Linear(0.5, 1.0))
    models = load_models(tiny_source(), source, tiny_models().tokenizer)
    start = [p.clone() for p in models.teacher.parameters()]
    with torch.no_grad():
        for p in models.student.parameters():
            p.add_(1.0)
    source.follow(models.teacher, models.student, Step(5, 10))
    for before, now, goal in zip(start, models.teacher.parameters(), models.student.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * before + 0.25 * goal)
        assert not now.requires_grad


def test_an_average_of_another_architecture_is_refused():
    source = MovingAverage(RandomWeights("llama", tiny_source().dimensions | {"hidden_size": 32}))
    with pytest.raises(ConfigurationError, match="architecture"):
        load_models(tiny_source(), source, tiny_models().tokenizer)
    with pytest.raises(ConfigurationError, match="decay"):
        MovingAverage(tiny_source(), decay=1.5)
