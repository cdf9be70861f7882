"""What runs a model to sample from it: the own loop, or transformers' `generate`."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn.functional import pad

from veto_pl.core.bounds import UnitInterval
from veto_pl.core.sampling import Sampling
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.modes import sampling_mode
from veto_pl.models.randomness import global_draws
from veto_pl.models.sharding import gathered
from veto_pl.models.vision import image_inputs, mismatch_errors, positions_forgotten
from veto_pl.rollouts.batched_generate import grouping_for, without_padding
from veto_pl.rollouts.capture import Capture, capture_obstacle, planned_obstacle, unrecorded
from veto_pl.rollouts.decoding import decode, placeholder_prompt
from veto_pl.rollouts.endings import Endings
from veto_pl.rollouts.kept_rows import KeepingSession, KeptRows
from veto_pl.rollouts.token_buffer import Drawn, assemble
from veto_pl.seams import Engine, LanguageModel, Law, Mistake, Models, PromptBatch, Sequences, Session, Setup, Step

_warned: WeakSet[LanguageModel] = WeakSet()


@dataclass(frozen=True)
class DecodeLoop(Engine):
    """The loop of this package: a KV cache that is always on, and rows that leave the batch when they have ended.

    A model that it cannot run (recurrent, or with a cache of another kind) is given to `Transformers`, with a warning.
    Of rows that grow from call to call (`session`) only what is new is read, but for models with sliding windows.

    Args:
        drop_at: rows that have ended leave when they are at least this share of the batch, in [0, 1]; 0 drops each at
            once, 1 none before the last has ended. Where steps are recorded, at least half of the batch leaves at once.
        capture: whether the step of a token is recorded and replayed as a CUDA graph, with caches of a fixed size;
            `auto` does so where the device and the model allow it, and true refuses others.
    """

    drop_at: UnitInterval = 0.25
    capture: Capture = field(default="auto", repr=False)  # a mixture's coin is named by what it mixes

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Check that a recording that is asked for is possible, as far as the settings tell."""
        if self.capture is True and (reason := unrecorded(setup)):
            yield Mistake(f"{path}.capture", "true", "`auto` or false", f"Nothing can be recorded: {reason}.")

    def generate(
        self,
        prompts: PromptBatch,
        model: LanguageModel,
        sampling: Sampling,
        models: Models,
        step: Step,
        *,
        on_policy: bool,
    ) -> Sequences:
        from veto_pl.rollouts.kv_cache import obstacle

        if reason := obstacle(model):
            _warn_once(model, reason)
            return Transformers().generate(prompts, model, sampling, models, step, on_policy=on_policy)

        return self._write(prompts, sampling, step, model=model, models=models, on_policy=on_policy)

    def session(self, model: LanguageModel, models: Models, *, on_policy: bool) -> Session:
        """Return calls that keep keys and values of their rows in between, where the model's cache allows it."""
        from veto_pl.rollouts.kv_cache import can_resume

        plain = super().session(model, models, on_policy=on_policy)
        if not can_resume(model):
            return plain
        return KeepingSession(plain.write, partial(self._write, model=model, models=models, on_policy=on_policy))

    def _write(
        self,
        prompts: PromptBatch,
        sampling: Sampling,
        step: Step,
        kept: KeptRows | None = None,
        *,
        model: LanguageModel,
        models: Models,
        on_policy: bool,
    ) -> Sequences:
        def draw(logits: Sequence[Tensor], uniform: Tensor, rows: Tensor, *, unread: bool = False) -> Drawn:
            return Drawn(*sampling.draw(logits[0], uniform, unread=unread))

        return decode(
            prompts, (model,), draw, sampling, models, step, on_policy=on_policy, drop_at=self.drop_at,
            capture=self.capture, recordable=partial(draw, unread=True), kept=kept,
        )  # fmt: skip

    def new_cache(self, model: LanguageModel) -> Any:
        """Return a cache with room at its end; raise `ConfigurationError` for a model that the loop cannot run."""
        from veto_pl.rollouts.kv_cache import cache_obstacle, new_cache

        if reason := cache_obstacle(model):
            raise ConfigurationError(f"The decode loop cannot run {type(model.model).__name__}: {reason}.")
        return new_cache(model)

    def fixes_cache(self, model: LanguageModel) -> bool:
        """Return whether steps of this model are recorded on a CUDA device, which takes caches of a fixed size."""
        return self.capture is not False and not planned_obstacle(model)

    def obstacle(self, model: LanguageModel) -> str:
        """Return why steps of this model cannot be recorded, whatever the device; an empty string where they can."""
        return capture_obstacle(model)


@dataclass(frozen=True)
class Transformers(Engine):
    """`generate` of transformers: for models that the own loop cannot run, and to compare it with.

    Every setting comes from `Sampling`; the model's own generation settings are not read. The global generator is
    seeded from the step's for the call and put back afterwards. What a row draws depends on the batch that it is in, so
    other splits into ranks and micro-batches sample other completions. A sharded model is gathered for the call. A
    model that writes other texts behind padding completes only prompts of equal length together, and one that does so
    in any batch writes row by row.
    """

    laws = Engine.laws - {Law.SPLIT_INVARIANT}

    def generate(
        self,
        prompts: PromptBatch,
        model: LanguageModel,
        sampling: Sampling,
        models: Models,
        step: Step,
        *,
        on_policy: bool,
    ) -> Sequences:
        if not len(prompts):  # sharded models need every rank all the same
            one = self.generate(
                placeholder_prompt(prompts.input_ids.device), model, sampling, models, step, on_policy=on_policy
            )
            return replace(one.rows(torch.arange(0, device=one.input_ids.device)), prompts=prompts)
        parts = []
        with (
            sampling_mode(model),
            gathered(model),
            global_draws(step, "rollout", prompts.input_ids.device),
        ):
            with _without_own_settings(model):
                grouping = grouping_for(model)
            for rows, copies in grouping(prompts, sampling.num_completions):
                part, drawn = without_padding(prompts.rows(rows)), replace(sampling, num_completions=copies)
                written = _generated(part, model, drawn, models, on_policy=on_policy)
                parts.append(written.continuing(prompts, rows))
        return parts[0] if len(parts) == 1 else Sequences.concatenate(parts).in_prompt_order()


def _generated(
    prompts: PromptBatch, model: LanguageModel, sampling: Sampling, models: Models, *, on_policy: bool
) -> Sequences:
    copies = sampling.num_completions
    record = _SamplingRecord(model, sampling, Endings(models, sampling, prompts.input_ids.device, (model,)))
    # Not `num_return_sequences`, which greedy decoding refuses.
    repeated = prompts.rows(torch.arange(len(prompts)).repeat_interleave(copies))
    with _without_own_settings(model), positions_forgotten(model.model), mismatch_errors():
        written: Tensor = model.model.generate(
            repeated.input_ids,
            attention_mask=repeated.attention_mask.long(),
            **_images_of(repeated, model),
            max_new_tokens=sampling.max_new_tokens,
            do_sample=sampling.temperature > 0,
            top_k=0,
            logits_processor=[record.shape],
            stopping_criteria=[record.ended],
        )
    ids = written[:, -len(record.lived) :]
    logp, lived = record.logp(ids), torch.stack(record.lived, 1)
    ended = record.endings.found(ids, lived)
    return assemble(prompts, copies, ids, lived, logp, ended=ended, on_policy=on_policy)


def _images_of(prompts: PromptBatch, model: LanguageModel) -> dict[str, Any]:
    """Return what `generate` takes beside the ids of these prompts."""
    if prompts.media is None or not prompts.media.has_images:
        return {}
    return image_inputs(model.model, prompts.input_ids, prompts.media)


class _SamplingRecord:
    """Shapes the distribution, and remembers what was drawn from it and which rows lived."""

    def __init__(self, model: LanguageModel, sampling: Sampling, endings: Endings) -> None:
        self.model, self.sampling, self.endings = model, sampling, endings
        self.previous: Tensor | None = None
        self.drawn: list[Tensor] = []
        self.lived: list[Tensor] = []
        self.alive: Tensor | None = None

    def shape(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Shape the distribution [R, V]; this is a logits processor.

        The head's padding rows are left out, and what stands for no text.
        """
        if self.previous is not None:
            self.drawn.append(self.previous.gather(1, input_ids[:, -1:]))
        shaped = self.sampling.shape(self.model.text_only(scores[:, : self.model.vocab_size].float()))
        self.previous = pad(shaped, (0, scores.shape[1] - self.model.vocab_size), value=-torch.inf)
        return self.previous

    def ended(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Return [R] bool, True on rows that have ended; this is a stopping criterion."""
        drawn = input_ids[:, -1]
        alive = torch.ones_like(drawn, dtype=torch.bool) if self.alive is None else self.alive
        self.lived.append(alive)
        rows = torch.arange(len(drawn), device=drawn.device)
        self.alive = alive & ~self.endings(rows, drawn, alive)
        return ~self.alive

    def logp(self, ids: Tensor) -> Tensor:
        """Return the log-probability of each token under the distribution that it was drawn from, [R, C]."""
        assert self.previous is not None
        return torch.cat([*self.drawn, self.previous.gather(1, ids[:, -1:])], 1)


def require_decode_loop(name: str, writers: Sequence[LanguageModel]) -> None:
    """Raise `ConfigurationError` where `name`, which needs the own loop, is given a model that it cannot run."""
    from veto_pl.rollouts.kv_cache import obstacle

    for model in writers:
        if reason := obstacle(model):
            raise ConfigurationError(
                f"`{name}` reads two models token by token in the own decode loop, which cannot run "
                f"{type(model.model).__name__}: {reason}. Use `Mixture` of `FromTeacher` and `FromStudent` instead, or "
                "a model with a cache of keys and values."
            )


def _warn_once(model: LanguageModel, reason: str) -> None:
    if model not in _warned:
        _warned.add(model)
        warnings.warn(
            f"The own decode loop cannot run {type(model.model).__name__}: {reason}. transformers' `generate` samples "
            "instead. Set `engine: Transformers` on the rollout to choose it yourself.",
            stacklevel=4,
        )


@contextmanager
def _without_own_settings(model: LanguageModel) -> Iterator[None]:
    """Hide the model's generation settings, which `generate` would merge into the given ones."""
    from transformers import GenerationConfig

    saved = model.model.generation_config
    model.model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.model.generation_config = saved
