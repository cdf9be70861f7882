"""Floating-point operations against closed formulas for llama."""

from dataclasses import replace

import pytest

from tests.planning.conftest import VOCABULARY, llama, module, on_policy, planned
from veto_pl.objectives import Veto
from veto_pl.planning.arithmetic import step_work
from veto_pl.planning.devices import DEVICES
from veto_pl.rollouts import FromStudent, Replay, Sampling

WIDTH, LAYERS, HEADS, KV_HEADS, INNER = 32, 2, 4, 2, 80


def linear(width=WIDTH):
    """Weights that every token is multiplied with, without embeddings and head."""
    return LAYERS * (2 * width * width + 2 * width * (width // HEADS * KV_HEADS) + 3 * width * INNER)


def backbone(rows, tokens, context=None, width=WIDTH):
    """Two operations for a weight and a token; queries by keys and probabilities by values in every layer."""
    return rows * (2 * linear(width) * tokens + LAYERS * 4 * width * tokens * (context or tokens))


@pytest.fixture(scope="module")
def phases():
    return planned(on_policy(new=24), prompts=3, prompt=10).simulated.phases


def test_the_forward_pass(phases):
    assert phases["student's forward"].flops == backbone(3, 34)
    # The teacher is twice as wide, and only the tokens of the completion are read out.
    assert phases["teacher's scoring"].flops == backbone(3, 34, width=2 * WIDTH)


def test_the_backward_pass(phases):
    # Attention is computed again, and has four products more.
    attention = 3 * LAYERS * 2 * WIDTH * 34 * 34
    assert phases["backward"].flops == 2 * 3 * 2 * linear() * 34 + 5 * attention


def test_the_loss_head(phases):
    tokens = 3 * 24
    student, teacher = 2 * tokens * WIDTH * VOCABULARY, 2 * tokens * 2 * WIDTH * VOCABULARY
    assert phases["loss head"].flops == 3 * student + teacher


def test_many_rows_cost_as_much_as_all_of_them():
    """The head is shown some rows only."""
    phases = planned(module(), prompts=20, completion=100).simulated.phases
    assert phases["loss head"].flops == pytest.approx(3 * 2 * 20 * 100 * WIDTH * VOCABULARY)


def test_the_rollout_is_the_sum_over_its_steps(phases):
    head = 2 * 3 * WIDTH * VOCABULARY
    read = backbone(3, 10) + head
    written = sum(backbone(3, 1, context=10 + i + 1) + head for i in range(23))
    assert phases["rollout"].flops == pytest.approx(read + written)


def test_every_prompt_is_read_once_for_all_its_completions():
    one, four = (planned(on_policy(new=4, copies=n), prompt=40).simulated.phases["rollout"].flops for n in (1, 4))
    assert one < four < 2 * one


def test_work_counts_all_micro_batches_and_no_validation():
    one, three = (planned(module(), accumulate=n).work for n in (1, 3))
    assert "validation" not in {part.phase for part in one}
    assert [part.flops * 3 for part in one if part.flops] == [part.flops for part in three if part.flops]


def test_a_window_is_rolled_out_at_once_unless_a_source_remembers_or_it_is_switched_off():
    sampled = FromStudent(Sampling(max_new_tokens=12))
    teacher = llama(width=64, seed=1)
    window, batches, remembering = (
        planned(module(teacher=teacher, objective=Veto(rollout=source), **settings), prompts=2, accumulate=3)
        for source, settings in ((sampled, {}), (sampled, {"roll_out_window": False}), (Replay(sampled), {}))
    )
    together = planned(on_policy(new=12), prompts=6)
    assert window.simulated.phases["rollout"] == together.simulated.phases["rollout"]
    assert window.simulated.reads == together.simulated.reads
    for repeated in (batches, remembering):
        assert repeated.simulated.reads == 3 * window.simulated.reads
        assert repeated.simulated.phases["rollout"].kernels > 2.5 * window.simulated.phases["rollout"].kernels
        assert repeated.simulated.phases["rollout"].flops == pytest.approx(window.simulated.phases["rollout"].flops)
        assert repeated.simulated.phases["rollout"].rest < window.simulated.phases["rollout"].rest


def test_a_known_device_takes_as_long_as_its_peak_allows():
    work = planned(module(llama(tied=False)), device_name="A100-40GB").work
    for part in work:
        if part.phase != "rollout":
            assert part.seconds == pytest.approx(part.flops / (0.4 * DEVICES["A100-40GB"].single))
    assert all(part.seconds is None for part in planned(module()).work)


def sampling_seconds(result, device):
    return next(part for part in step_work(result.simulated, result.setting, device) if part.phase == "rollout").seconds


def test_sampling_takes_at_least_as_long_as_reading_the_weights():
    result = planned(on_policy(), prompts=1, device_name="H100-80GB")
    device = replace(DEVICES["H100-80GB"], launch=None)
    expected = 32 * result.simulated.student.bytes / (0.4 * device.bandwidth)
    assert sampling_seconds(result, device) == pytest.approx(expected)


def test_sampling_takes_at_least_as_long_as_starting_its_kernels():
    """About 40 for each layer, 70 for the rest of a token, whatever the number of rows."""
    few, many = (planned(on_policy(new=15), prompts=rows, device_name="H100-80GB") for rows in (1, 8))
    per_token = few.simulated.phases["rollout"].kernels / 15
    assert 2 * 30 + 30 < per_token < 2 * 50 + 90
    assert many.simulated.phases["rollout"].kernels == pytest.approx(15 * per_token, rel=0.1)
    seconds = sampling_seconds(few, DEVICES["H100-80GB"])
    assert seconds == pytest.approx(15 * per_token * DEVICES["H100-80GB"].launch)


@pytest.mark.parametrize(
    ("dtype", "precision", "rate"),
    [("float32", "32-true", "single"), ("bfloat16", "32-true", "half"), ("float32", "bf16-mixed", "half")],
)
def test_products_take_the_rate_of_what_they_are_computed_in(dtype, precision, rate):
    device = DEVICES["A100-40GB"]
    built = module(replace(llama(), dtype=dtype), teacher=replace(llama(seed=1), dtype="bfloat16"), objective=Veto())
    result = planned(built, precision=precision, device_name="A100-40GB")
    work = {part.phase: part for part in result.work}
    assert work["backward"].seconds == pytest.approx(work["backward"].flops / (0.4 * getattr(device, rate)))
    assert work["teacher's scoring"].seconds == pytest.approx(work["teacher's scoring"].flops / (0.4 * device.half))
