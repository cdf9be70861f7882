"""Tokens a second of recorded steps beside the same steps kernel by kernel, and whether they write the same."""

from collections.abc import Iterator
from functools import partial

from gpu_checks.place import Place
from gpu_checks.verdict import Verdict

from veto_pl.models.causal_lm import CausalLM
from veto_pl.rollouts import DecodeLoop, FromStudent, Sampling
from veto_pl.rollouts.recording import RECORDERS
from veto_pl.seams import Models, PromptBatch, Sequences, Step
from veto_pl.testing.pretended_graph import PretendedRecorder

MOST = 0.6
"""Of the time kernel by kernel that a recorded rollout may take, its recording included."""
HOW = ("usual", "recorded")
SAME = 0.98
"""The share of greedy tokens that have to agree, in float32; sums in another order may turn a tie."""


def measure(place: Place) -> Iterator[Verdict]:
    if place.smoke:
        RECORDERS["cpu"] = PretendedRecorder
    try:
        yield from _speed(place)
        yield _agreement(place)
    finally:
        RECORDERS.pop("cpu", None)


def _models(place: Place, dtype: str) -> Models:
    network = place.network("0.5B", dtype)
    network.generation_config.eos_token_id = None
    return Models(CausalLM(network, place.ids).eval(), None, place.tokenizer().load())


def _written(models: Models, prompts: PromptBatch, sampling: Sampling, *, recorded: bool) -> Sequences:
    return FromStudent(sampling, DecodeLoop(capture=recorded))(prompts, models, Step(0, 1))


def _speed(place: Place) -> Iterator[Verdict]:
    models = _models(place, "bfloat16")
    sampling = Sampling(max_new_tokens=16 if place.smoke else 256)
    for rows in (4,) if place.smoke else (1, 8, 64):
        prompts = place.prompts(rows, 12 if place.smoke else 256)
        writing = {how: partial(_written, models, prompts, sampling, recorded=how == "recorded") for how in HOW}
        seconds = {how: place.seconds(write, 2) for how, write in writing.items()}
        peaks = {how: place.peak(write) for how, write in writing.items()}
        speeds = {f"{name}_tokens_a_second": rows * sampling.max_new_tokens / s for name, s in seconds.items()}
        bytes_ = {f"{name}_peak_bytes": size for name, size in peaks.items()}
        ratio = seconds["recorded"] / seconds["usual"]
        yield Verdict.judged(f"recorded rollout of {rows}", ratio, most=MOST, smoke=place.smoke, **speeds, **bytes_)


def _agreement(place: Place) -> Verdict:
    """Greedy, in float32, with padding."""
    models, prompts = _models(place, "float32"), place.prompts(4, 12 if place.smoke else 64)
    prompts.attention_mask[1, :5] = False
    sampling = Sampling(temperature=0.0, max_new_tokens=16 if place.smoke else 64)
    usual, recorded = (_written(models, prompts, sampling, recorded=how) for how in (False, True))
    same = (usual.input_ids == recorded.input_ids)[usual.loss_mask].float().mean()
    apart = (usual.sampler_logp - recorded.sampler_logp).abs().max()
    return Verdict.judged(
        "recorded rollout writes the same", float(same), least=SAME, smoke=place.smoke, logp_apart=float(apart)
    )
