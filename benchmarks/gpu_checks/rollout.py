"""Milliseconds a token of the decode loop, beside `generate` and beside reading the weights once."""

import warnings
from collections.abc import Iterator

import torch
from gpu_checks.place import Place
from gpu_checks.verdict import Verdict

from veto_pl.models.causal_lm import CausalLM
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Models, PromptBatch, Step

MOST = 4.0
"""Times that a token may take of what reading the weights takes."""


def measure(place: Place) -> Iterator[Verdict]:
    network = place.network("0.5B")
    network.generation_config.eos_token_id = None
    models = Models(CausalLM(network, place.ids).eval(), None, place.tokenizer().load())
    read = 2 * sum(weight.numel() for weight in network.parameters()) / place.bandwidth
    new = 8 if place.smoke else 64
    for rows in (4,) if place.smoke else (1, 8, 64):
        prompts = place.prompts(rows, 12 if place.smoke else 256)
        found = {
            "sampled_ms": _own(place, models, prompts, Sampling(max_new_tokens=new)),
            "top_p_ms": _own(place, models, prompts, Sampling(temperature=0.5, top_p=0.5, max_new_tokens=new)),
            "generate_ms": _generate(place, network, prompts, new),
        }
        if not place.smoke:  # compiled, which takes long on a CPU
            found["generate_static_ms"] = _generate(place, network, prompts, new, cache_implementation="static")
        ratio = found["sampled_ms"] / (1e3 * read)
        found |= {"weights_read_once_ms": 1e3 * read, **_counted(place, models, prompts, new, found["sampled_ms"])}
        yield Verdict.judged(f"rollout of {rows}", ratio, most=MOST, smoke=place.smoke, **found)


def _own(place: Place, models: Models, prompts: PromptBatch, sampling: Sampling) -> float:
    source = FromStudent(sampling)
    return 1e3 * place.seconds(lambda: source(prompts, models, Step(0, 1)), 2) / sampling.max_new_tokens


def _generate(place: Place, network: torch.nn.Module, prompts: PromptBatch, new: int, **settings: object) -> float:
    def write() -> None:
        mask = torch.ones_like(prompts.input_ids)
        network.generate(
            prompts.input_ids, attention_mask=mask, max_new_tokens=new, do_sample=True, top_k=0, **settings
        )

    return 1e3 * place.seconds(write, 1 if settings else 2) / new


def _counted(place: Place, models: Models, prompts: PromptBatch, new: int, sampled_ms: float) -> dict[str, float]:
    """Kernels and host waits of a token, and the share of the time in which the GPU computes."""
    if place.smoke:
        return {}
    source = FromStudent(Sampling(max_new_tokens=new))
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        source(prompts, models, Step(0, 1))
        torch.cuda.set_sync_debug_mode("default")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        source(prompts, models, Step(0, 1))
        place.wait()
    kernels = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.device_time for event in kernels) / 1e3 / (sampled_ms * new)
    return {"kernels_a_token": len(kernels) / new, "waits_a_token": len(waits) / new, "busy": busy}
