"""What the models can hold, and what they are measured by."""

from __future__ import annotations

from collections.abc import Iterator

from veto_pl.checks.setup import RunSetup
from veto_pl.core.mistakes import Mistake, shorten
from veto_pl.exceptions import VetoError
from veto_pl.models.trainable import quantisation
from veto_pl.rollouts import Sampling
from veto_pl.seams import Panel

SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings",
)  # fmt: skip
"""Names that transformers gives to sizes of a model that cannot be 0."""


def room_to_answer(setup: RunSetup) -> Iterator[Mistake]:
    """Check that prompt and answer together fit into the positions of each model."""
    known = {path: getattr(config, "max_position_embeddings", None) for path, config in setup.text_parts.items()}
    positions, path = min(((n, path) for path, n in known.items() if isinstance(n, int) and n > 0), default=(None, ""))
    # Of equal ones the shortest name: a text of two writers has the lengths of `sampling`, not of `teacher_sampling`.
    setting, answer = max(_answers(setup), key=lambda known: (known[1], -len(known[0])), default=("no answer", 0))
    prompt = setup.data.max_prompt_tokens
    if positions is not None and prompt + answer > positions:
        room = positions - answer
        remedy = f"Set it to at most {room}" if room > 0 else f"Lower `{setting}`"
        yield Mistake("data.max_prompt_tokens", f"{prompt}, and {answer} for `{setting}`",
                      f"together at most the {positions} positions of `{path}`",
                      f"{remedy}, or take a model with more positions.")  # fmt: skip


def readable_models(setup: RunSetup) -> Iterator[Mistake]:
    """Check that the architecture of each model can be read."""
    for path, config in setup.models.items():
        if isinstance(config, VetoError):
            yield Mistake(path, "a source that cannot be read", "a model", shorten(config, 500))


def quantised_student(setup: RunSetup) -> Iterator[Mistake]:
    """Check that the student's weights are not stored quantised, since those cannot be trained."""
    config = setup.models["model.student"]
    if setup.module.student_source.frozen_base is not None:
        return
    if not isinstance(config, VetoError) and (method := quantisation(config)) is not None:
        yield Mistake("model.student", f"a quantised model ({method})", "weights that can be trained", "Name the model "
                      "that it was made from, with `dtype: bfloat16` where memory is short, or make it the `source` of "
                      "a `Lora`. A teacher may be quantised.")  # fmt: skip


def positive_sizes(setup: RunSetup) -> Iterator[Mistake]:
    """Check that the vocabulary, layers and widths of each model are not 0."""
    for path, config in setup.text_parts.items():
        aliases = getattr(config, "attribute_map", {})
        for name in SIZES:
            value = getattr(config, name, None)
            if isinstance(value, int) and value < 1:
                yield Mistake(path, f"`{aliases.get(name, name)}: {value}`", "1 or more", "Correct it.")


def completions_per_prompt(setup: RunSetup) -> Iterator[Mistake]:
    """Check that a metric of several completions per prompt has several, and that they are not greedy."""
    count = setup.module.evaluation.num_completions
    for metric in setup.module.validation_metrics.values():
        if getattr(metric, "needs_group", False) and count == 1:
            yield Mistake("model.evaluation.num_completions", f"1, with the metric `{type(metric).__name__}`",
                          "at least 2", "With one completion per prompt the metric says nothing.",
                          fatal=False)  # fmt: skip
    if count > 1 and setup.module.evaluation.temperature == 0:
        yield Mistake("model.evaluation.temperature", f"0 with {count} completions per prompt", "more than 0",
                      "Greedy completions of a prompt are all the same.", fatal=False)  # fmt: skip


def _answers(setup: RunSetup) -> Iterator[tuple[str, int]]:
    """Yield the settings that limit the length of an answer, each with its limit in tokens."""
    if setup.stage != "fit" or setup.validates:
        yield "model.evaluation.max_new_tokens", setup.module.evaluation.max_new_tokens
    if setup.stage != "fit":
        return
    # What a panel lets teachers write, the panel checks.
    panels = tuple(f"{path}." for path, part in setup.parts() if isinstance(part, Panel))
    for path, part in setup.parts():
        if isinstance(part, Sampling) and not path.startswith(panels):
            yield f"{path}.max_new_tokens", part.max_new_tokens
    if setup.references_for:
        yield "data.max_completion_tokens", setup.data.max_completion_tokens
