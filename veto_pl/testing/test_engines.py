"""Every installed engine: what it samples is what the model says. The laws of sources hold for it too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from veto_pl.plugins import load_plugins
from veto_pl.rollouts import Sampling
from veto_pl.rollouts.episode_rows import behind_contexts
from veto_pl.seams import Ending, Engine, Models, Sequences, Step
from veto_pl.testing.examples import SHORT, installed
from veto_pl.testing.rows import TOTAL, tiny_prompts
from veto_pl.testing.tiny import tiny_models

load_plugins()

STEP = Step(3, TOTAL)
PLAIN = Sampling(max_new_tokens=SHORT, num_completions=2)
SHAPED = replace(PLAIN, temperature=0.7, top_p=0.95)
GREEDY = replace(PLAIN, temperature=0.0, num_completions=1)
each = pytest.mark.parametrize("engine", installed(Engine), ids=lambda engine: type(engine).__name__)


@pytest.fixture(scope="module")
def models() -> Models:
    """Return models that all tests share, since none trains them."""
    return tiny_models("gpt2")


def written(engine: Engine, models: Models, sampling: Sampling, *, on_policy: bool = True) -> Sequences:
    """Return what the student writes to the tiny prompts."""
    return engine.generate(tiny_prompts(models), models.student, sampling, models, STEP, on_policy=on_policy)


def told(models: Models, ids: Tensor) -> Tensor:
    """Return the student's [T - 1, V] log-probabilities of what may follow each token of a row without padding."""
    student = models.student
    student.eval()
    with torch.no_grad():
        logits = student.model(ids[None], use_cache=False).logits[0, :-1, : student.vocab_size]
    return torch.log_softmax(logits.float(), -1)


@each
@pytest.mark.parametrize("on_policy", [True, False])
def test_every_prompt_has_its_completions_in_order(engine: Engine, models: Models, on_policy: bool) -> None:
    """Check that prompts have `num_completions` rows each, in their order, marked as the caller says."""
    rows = written(engine, models, PLAIN, on_policy=on_policy)
    assert rows.prompt_rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3], (
        f"Each of four prompts must have two completions, in order, got `prompt_rows` {rows.prompt_rows.tolist()}."
    )
    assert rows.on_policy.tolist() == [on_policy] * len(rows), "`on_policy` must be what the caller says."


@each
@pytest.mark.parametrize("sampling", [PLAIN, SHAPED], ids=["plain", "shaped"])
def test_log_probabilities_are_those_of_the_model(engine: Engine, models: Models, sampling: Sampling) -> None:
    """Check that `sampler_logp`, with the gap of an engine that computes otherwise, is what the model says."""
    rows = written(engine, models, sampling)
    assert rows.sampler_logp is not None, "An engine must say by `sampler_logp` how likely each token was."
    claimed = rows.sampler_logp if rows.engine_log_ratio is None else rows.sampler_logp + rows.engine_log_ratio
    for row, there in enumerate(rows.attention_mask):
        ids, counts = rows.input_ids[row][there], rows.completion_mask[row][there][1:]
        true = sampling.shape(told(models, ids)).gather(1, ids[1:, None])[:, 0][counts]
        found = claimed[row][there][1:][counts]
        assert torch.allclose(found, true, rtol=0, atol=1e-3), (
            f"`sampler_logp` of row {row} is {found.tolist()}, but by the model it is {true.tolist()}."
        )


@each
def test_greedy_decoding_takes_the_likeliest_id(engine: Engine, models: Models) -> None:
    """Check that at temperature 0 every token is the model's likeliest."""
    rows = written(engine, models, GREEDY)
    for row, there in enumerate(rows.attention_mask):
        ids, counts = rows.input_ids[row][there], rows.completion_mask[row][there][1:]
        logp = told(models, ids)[counts]
        gap = logp.amax(-1) - logp.gather(1, ids[1:][counts][:, None])[:, 0]
        assert (gap < 1e-4).all(), f"Row {row} is not greedy: its tokens are {gap.tolist()} nats below the likeliest."


@each
def test_a_stop_string_ends_a_completion(engine: Engine, models: Models) -> None:
    """Check that the token that completes a stop string is the last one, and that the string is not judged."""
    stops = tuple("bcfghijlm")  # not those of `<unk>` and the like
    rows = written(engine, models, replace(PLAIN, stop=stops))
    raw = models.tokenizer.batch_decode(rows.completions(), skip_special_tokens=True)
    for row, (text, judged) in enumerate(zip(raw, rows.texts(models.tokenizer), strict=True)):
        assert not set(text[:-1]) & set(stops), f"Row {row} goes on behind a stop string: {text!r}, with {stops}."
        assert not set(judged) & set(stops), f"The text of row {row} that is judged has a stop string: {judged!r}."
        if rows.ending is not None:
            stopped = text[-1:] in stops and bool(text)
            assert (rows.ending[row] == Ending.STOP) == stopped, f"`ending` of row {row}, {text!r}: {rows.ending[row]}."


@each
def test_rows_that_go_on_are_written_as_without_what_is_kept(engine: Engine, models: Models) -> None:
    """Check that calls of a session, each behind what the one before has written, write what `generate` writes."""
    with engine.session(models.student, models, on_policy=True) as session:
        prompts = tiny_prompts(models)
        for turn in range(3):
            kept = session.generate(prompts, GREEDY, STEP, range(len(prompts)), is_last=turn == 2)
            anew = engine.generate(prompts, models.student, GREEDY, models, STEP, on_policy=True)
            same = [one == other for one, other in zip(kept.completion_ids(), anew.completion_ids(), strict=True)]
            assert all(same), f"A session must write what `generate` does, but call {turn + 1} differs in some row."
            ids, mask = kept.input_ids, kept.attention_mask
            grown = [[*line[there].tolist(), *line[there][-2:].tolist()] for line, there in zip(ids, mask, strict=True)]
            prompts = behind_contexts(prompts, range(len(prompts)), grown)


@each
def test_a_plan_can_count_the_memory_of_an_engine(engine: Engine, models: Models) -> None:
    """Check the types of what an engine says of its memory."""
    engine.new_cache(models.student)
    assert isinstance(engine.fixes_cache(models.student), bool), "`fixes_cache` must be True or False."
    sampling, between = engine.set_aside(10**9, 10**6)
    assert 0 <= between <= sampling <= 10**9, (
        f"`set_aside` of 10**9 bytes must lie within them, got {sampling, between}."
    )
