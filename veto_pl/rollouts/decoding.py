"""The decode loop: one token for every row at a time, with a KV cache for each model that takes part."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from veto_pl.core.sampling import Sampling, uniform_type
from veto_pl.core.transfer import sent
from veto_pl.models.known_masks import known_rows
from veto_pl.models.modes import sampling_mode
from veto_pl.models.sharding import gathered_to_sample
from veto_pl.rollouts.capture import Capture, recorder_for, recording_failed
from veto_pl.rollouts.endings import Endings
from veto_pl.rollouts.fixed_rows import FixedRows, repeats, write_fixed
from veto_pl.rollouts.kept_rows import KeptRows
from veto_pl.rollouts.live_rows import EndChecks, Leave, LiveRows, forget, shared_padding
from veto_pl.rollouts.token_buffer import Draw, TokenBuffer, assemble
from veto_pl.seams import LanguageModel, Media, Models, PromptBatch, Sequences, Step

WORTH_A_PASS = 512
"""Tokens of padding that are worth another forward pass over the prompts."""


def decode(
    prompts: PromptBatch,
    writers: Sequence[LanguageModel],
    draw: Draw,
    sampling: Sampling,
    models: Models,
    step: Step,
    *,
    on_policy: bool,
    drop_at: float = 0.25,
    capture: Capture = "auto",
    recordable: Draw | None = None,
    kept: KeptRows | None = None,
) -> Sequences:
    """Sample `sampling.num_completions` completions of every prompt.

    Collective where a writer is sharded: call it on every rank.

    Every completion has its own sequence of random numbers, a function of the step and of the prompt's number. So it
    does not matter which other rows are in the batch, and whether they have ended.

    Args:
        prompts: B left-padded prompts.
        writers: the models that take part; they are held in evaluation mode meanwhile.
        draw: from the logits of the writers to a token and its log-probability.
        sampling: lengths, counts and stop strings.
        models: names the ids that end a completion and decodes for stop strings.
        step: names the random numbers; the global generators are not touched.
        on_policy: how the rows are marked.
        drop_at: rows that have ended leave the batch and the caches when they are this share of it.
        capture: whether steps are recorded and replayed, where the device can do that.
        recordable: the draw in a form that looks at no value on the host and remembers nothing, so that it can be
            recorded; None where there is none.
        kept: what the call before has read of these rows, and where this one leaves what it has read; None where each
            call is alone.

    Returns:
        B x num_completions rows, the completions of a prompt one after another, with the log-probabilities of the
        sampler. A completion ends with EOS, with the token that completes a stop string, or at `max_new_tokens`.

    Raises:
        ConfigurationError: `capture` is True, and the device or a writer cannot do it.
        DataError: a model's logits hold NaN.
    """
    copies, device = sampling.num_completions, prompts.input_ids.device
    # A rank without prompts writes a row that is thrown away, for as long as the others write.
    read = prompts if len(prompts) else placeholder_prompt(device)
    with ExitStack() as stack:
        for model in writers:
            stack.enter_context(sampling_mode(model))
        in_step = stack.enter_context(gathered_to_sample(*writers))
        recorder = recorder_for(writers, device, capture, sampling.max_new_tokens)
        live = None if kept is None else kept.resumed(read, writers, copies, sampling.max_new_tokens)
        live = live or _prefill(read, writers, copies, sampling.max_new_tokens, grouped=in_step is None)
        live.alive &= len(prompts) > 0
        buffer = TokenBuffer.empty(len(live.rows), sampling.max_new_tokens, device)
        checks, endings = EndChecks(device, in_step), Endings(models, sampling, device, writers)
        uniform = _uniform(read, sampling, step)
        leave = forget if kept is None else kept.leave
        if recorder is None:
            rows: LiveRows | FixedRows = live
            _loop(live, buffer, draw, endings, uniform, drop_at, checks, leave)
        else:
            repeated = repeats(recorder, recording_failed(writers, capture), with_draw=recordable is not None)
            rows = FixedRows.of(live, recordable or draw, endings, uniform)
            write_fixed(rows, buffer, drop_at, checks, repeated, leave)
        if kept is not None:
            kept.end(rows)
    columns = (buffer.ids, buffer.lived, buffer.logp, *(() if buffer.by_teacher is None else (buffer.by_teacher,)))
    ids, lived, *others = (values[: len(prompts) * copies] for values in columns)
    return assemble(prompts, copies, ids, lived, *others, ended=endings.found(ids, lived), on_policy=on_policy)


_PromptGroup = tuple[Tensor, Tensor, int, bool, Media | None]
"""Ids and mask of prompts that are read together, the columns that are padding in all, and whether any other is; their
images, if any of them has some."""


def placeholder_prompt(device: torch.device) -> PromptBatch:
    """Return one prompt of one token, for a rank that has no prompts but must run the models."""
    one, none = torch.zeros(1, 1, dtype=torch.int64, device=device), torch.zeros(1, 0, dtype=torch.int64, device=device)
    return PromptBatch(one, one == 0, none, none.bool())


def _prefill(
    prompts: PromptBatch, writers: Sequence[LanguageModel], copies: int, new_tokens: int, *, grouped: bool
) -> LiveRows:
    """Read every prompt once, whatever the number of its completions; where `grouped`, next to similar prompts."""
    from veto_pl.rollouts.kv_cache import can_drop_columns, new_cache

    host_mask, device = prompts.on_host.attention_mask, prompts.input_ids.device
    lengths, order = host_mask.sum(1).sort(stable=True)
    sizes = [len(lengths)]
    if grouped and all(can_drop_columns(new_cache(model)) for model in writers):
        sizes = prompt_group_sizes(lengths.tolist())
    if len(sizes) == 1:
        order = torch.arange(len(lengths))
    width = int(lengths[-1])
    places = order.tolist()
    host_mask, order = host_mask[order, host_mask.shape[1] - width :], sent(order, device)
    mask = prompts.attention_mask[order, prompts.input_ids.shape[1] - width :].long()
    ids = prompts.input_ids[order, prompts.input_ids.shape[1] - width :]
    used = [int(shared_padding(part)) for part in torch.split(host_mask.long(), sizes)]
    padded = [not bool(part[:, first:].all()) for part, first in zip(torch.split(host_mask, sizes), used, strict=True)]
    images = _images(prompts, places, sizes)
    groups = list(zip(torch.split(ids, sizes), torch.split(mask, sizes), used, padded, images, strict=True))
    logits, caches, following = zip(*(_prefill_groups(model, groups) for model in writers), strict=True)
    if copies > 1:
        for cache in caches:
            cache.batch_repeat_interleave(copies)
    rows = (order[:, None] * copies + torch.arange(copies, device=mask.device)).flatten()
    mask = mask.repeat_interleave(copies, 0)
    return LiveRows(
        writers=writers,
        caches=list(caches),
        logits=[values.repeat_interleave(copies, 0) for values in logits],
        rows=rows,
        mask=torch.cat([mask, mask.new_ones(len(rows), new_tokens)], 1),
        positions=[position.repeat_interleave(copies, 0) for position in following],
        alive=torch.ones_like(rows, dtype=torch.bool),
        width=width,
        padded=not bool(host_mask.all()),
    )


def _images(prompts: PromptBatch, places: Sequence[int], sizes: Sequence[int]) -> list[Media | None]:
    """Return the images of each group of the prompts at `places`, in their order; None for one without any."""
    parts: list[Media | None] = []
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        part = None if prompts.media is None else prompts.media.rows(places[end - size : end])
        parts.append(part if part is not None and part.has_images else None)
    return parts


def prompt_group_sizes(lengths: Sequence[int]) -> list[int]:
    """Return the sizes of groups of prompts that are read together, when `lengths` ascend.

    A group is split off where that saves more than one more pass costs.

    Example:
        >>> prompt_group_sizes([10] * 100 + [100] * 10)
        [100, 10]
        >>> prompt_group_sizes([10] * 10 + [12] * 10)
        [20]
    """
    longest, count = lengths[-1], len(lengths)
    saved, size = max(((longest - lengths[i - 1]) * i, i) for i in range(1, count + 1))
    if saved < WORTH_A_PASS:
        return [count]
    return [*prompt_group_sizes(lengths[:size]), *prompt_group_sizes(lengths[size:])]


def _prefill_groups(model: LanguageModel, groups: Sequence[_PromptGroup]) -> tuple[Tensor, Any, Tensor]:
    """Return the logits after each prompt, [B, V], a cache of all prompts, and [B, 1] the positions of what follows.

    Each group is read without the padding that all of it has.
    """
    from veto_pl.rollouts.kv_cache import merge_caches, new_cache

    logits, caches, following = [], [], []
    for ids, mask, first, padded, media in groups:
        ids, mask = ids[:, first:], mask[:, first:]
        seen, images = mask if padded else None, {} if media is None else {"media": media}
        caches.append(new_cache(model))
        own = None if media is None else model.read_positions(ids, seen, media)
        position = (mask.cumsum(1) - 1).clamp_min(0) if own is None else own
        with known_rows(packed=False, padded=padded):
            logits.append(model.next_logits(ids, seen, caches[-1], position, **images))
        following.append(mask.sum(1, keepdim=True) if own is None else own.amax((0, 2))[:, None] + 1)
    return torch.cat(logits), merge_caches(caches), torch.cat(following)


def _uniform(prompts: PromptBatch, sampling: Sampling, step: Step) -> Tensor:
    """Return [C, R] uniform random numbers in [0, 1): one for each token of each completion."""
    device = prompts.input_ids.device
    drawn = step.uniform("rollout", prompts.on_host.numbers, sampling.num_completions, sampling.max_new_tokens)
    return sent(drawn.flatten(0, 1).T.contiguous().to(uniform_type(device)), device)


def _loop(
    live: LiveRows,
    buffer: TokenBuffer,
    draw: Draw,
    endings: Endings,
    uniform: Tensor,
    drop_at: float,
    checks: EndChecks,
    leave: Leave,
) -> None:
    """Write tokens until every row has ended or the buffer is full."""
    for column in range(1, buffer.ids.shape[1] + 1):
        written = draw(live.logits, uniform[column - 1, live.rows], live.rows)
        buffer.pending.append((written, live.alive))
        drawn = written.ids
        live.alive = live.alive & ~endings(live.rows, drawn, live.alive)
        if checks.due(column):
            survivors = live.alive.nonzero()[:, 0]
            if not checks.goes_on(len(survivors) > 0):
                break
            if 0 < len(survivors) <= len(live.rows) - max(1.0, drop_at * len(live.rows)):
                buffer.flush(live.rows)
                leave(live, survivors)
                drawn = drawn[survivors]
        if column < buffer.ids.shape[1]:
            live.feed(drawn)
    if buffer.pending:
        buffer.flush(live.rows)
