"""Builds the models of a run from their sources: one tokenizer, one vocabulary, a trained student, frozen others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from veto_pl.core.special_ids import end_ids, state_special_ids
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.causal_lm import CausalLM
from veto_pl.models.offloading import OffloadedLM
from veto_pl.models.own_tokenizers import own_tokenizers
from veto_pl.models.tokenizers import read_tokenizer
from veto_pl.models.trainable import check_full_precision, check_numbers
from veto_pl.models.tying import say_whether_tied
from veto_pl.models.vocabulary import compare_ends, real_ids
from veto_pl.models.weights import load_sharded
from veto_pl.seams import LanguageModel, Models, ModelSource, Objective, ScoreSource, TeacherSource, TokenizerSource
from veto_pl.seams.teacher_names import TEACHER, setting_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from veto_pl.core.ranks import Sharding


def load_tokenizer(source: ModelSource, tokenizer: TokenizerSource | None = None) -> PreTrainedTokenizerBase:
    """Load the given tokenizer, or the one that belongs to the model.

    Raises:
        ConfigurationError: neither exists, or the place that was named holds no tokenizer.
    """
    if tokenizer is not None:
        loaded = tokenizer.load()
    elif source.own_tokenizer is not None:
        loaded = source.own_tokenizer
    elif source.tokenizer_source is not None:
        loaded = read_tokenizer(source.tokenizer_source)
    else:
        raise ConfigurationError(
            f"`{type(source).__name__}` brings no tokenizer. Name one under `model.tokenizer`, for instance "
            "`PretrainedTokenizer` or `CharacterTokenizer`."
        )
    if loaded.pad_token_id is None:
        # Only a filler: every mask comes from lengths.
        loaded.pad_token = loaded.eos_token
    # For whoever generates with the exported student. Of what is set in memory only this mapping is saved.
    loaded.padding_side = loaded.init_kwargs["padding_side"] = "left"
    return loaded


def load_student(source: ModelSource, tokenizer: PreTrainedTokenizerBase, *, empty: bool = False) -> CausalLM:
    """Load the student, restricted to the tokenizer's ids, in training mode.

    Args:
        source: where it comes from.
        tokenizer: names the real ids.
        empty: only the architecture, with arbitrary weights.
    """
    check_full_precision(source)
    student = CausalLM(_made(source, empty=empty), real_ids(tokenizer))
    _check_rows("student", student)
    check_numbers(student)
    return student.train()


def load_models(
    student: ModelSource,
    teacher: ModelSource | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    empty: bool = False,
    sharding: Callable[[str], Sharding] | None = None,
    reference: ModelSource | None = None,
    teachers: Mapping[str, TeacherSource] | None = None,
    objective: Objective | None = None,
) -> Models:
    """Load the student and the frozen models, and bring all to the same vocabulary, or the teacher to its own.

    Args:
        student: where the student comes from.
        teacher: where the teacher comes from, if there is one.
        tokenizer: of the student, and of all that have no other.
        empty: only the architectures; on the meta device this costs no memory.
        sharding: how the ranks share a model, by its role; each rank holds it whole by default.
        reference: where another frozen model comes from, if there is one.
        teachers: where further teachers come from, by name; `teacher` may be among them instead. Of those that tell
            scores nothing is loaded.
        objective: what reads the teacher; a tokenizer of its own is kept where the objective `aligns_tokenizers`.

    Raises:
        ConfigurationError: a model has fewer rows than its tokenizer has ids, or the tokenizers differ and are not
            aligned; found before any weights are read.
    """

    def load(role: str, source: ModelSource) -> CausalLM:
        ids = real_ids(apart.get(role, tokenizer))
        if sharding is not None:
            model = load_sharded(source, ids, sharding(role))
        else:
            kind = OffloadedLM if source.offloads else CausalLM
            model = kind(_made(source, empty=empty), ids)
        _check_rows(role, model)
        return model

    tellers = {name: source for name, source in (teachers or {}).items() if isinstance(source, ScoreSource)}
    named = _models_of(teacher, teachers or {})
    given = named if reference is None else named | {"reference": reference}
    own = {role: load_tokenizer(source) for role, source in given.items() if _has_tokenizer(source)}
    apart = own_tokenizers(tokenizer, own, named, objective)
    check_full_precision(student)
    trained = load("student", student).train()
    check_numbers(trained)
    beside = {role: source.beside(trained) for role, source in given.items() if role not in apart}
    loaded = {role: beside.get(role) or load(role, source) for role, source in given.items()}
    _check_apart(trained, loaded)
    _share_placeholders([trained, *(model for role, model in loaded.items() if role not in apart)])
    frozen = {role: model.requires_grad_(False).eval() for role, model in loaded.items()}
    _check_teachers(named, trained, frozen, tokenizer, own, apart)
    for model in (trained, *frozen.values()) if sharding is not None else ():
        model.probe()
    brought = {name: own[name] for name in named if name in own and name not in apart}
    models = Models(trained, frozen.get(TEACHER), tokenizer, tokenizers=apart, brought=brought)
    others = {name: frozen[name] for name in named if name != TEACHER}
    return replace(models, reference=frozen.get("reference"), teachers=others, tellers=tellers)


def _models_of(teacher: ModelSource | None, teachers: Mapping[str, TeacherSource]) -> dict[str, ModelSource]:
    """Return the sources of the teachers that have a model, by name."""
    first = {} if teacher is None else {TEACHER: teacher}
    return first | {name: source for name, source in teachers.items() if isinstance(source, ModelSource)}


def _check_teachers(
    named: Mapping[str, ModelSource],
    student: LanguageModel,
    frozen: Mapping[str, LanguageModel],
    tokenizer: PreTrainedTokenizerBase,
    own: Mapping[str, PreTrainedTokenizerBase],
    apart: Mapping[str, PreTrainedTokenizerBase],
) -> None:
    """Say to each teacher what ends its texts, and check that it fits the student.

    Args:
        named: where the teachers come from.
        student: with the ids of `tokenizer`.
        frozen: the teachers, among others.
        tokenizer: of the student.
        own: tokenizers that teachers bring.
        apart: those of them that are kept.
    """
    for name, source in named.items():
        # A tokenizer with the student's ids is not kept, but what ends its texts is.
        model, its_own = frozen[name].model, own.get(name, tokenizer)
        state_special_ids(model, its_own)
        if name not in apart:
            compare_ends(end_ids(tokenizer, student.model), end_ids(its_own, model), tokenizer)
        if source.moves:
            _check_alike(student, frozen[name], setting_of(name))


def _has_tokenizer(source: ModelSource) -> bool:
    return source.own_tokenizer is not None or source.tokenizer_source is not None


def _check_apart(student: LanguageModel, frozen: Mapping[str, LanguageModel]) -> None:
    """Raise `ConfigurationError` where a frozen model is the object that is trained."""
    for role, model in frozen.items():
        if model.model is student.model:
            raise ConfigurationError(
                f"The {role} is the same model in memory as the student, which is trained. Give the {role} "
                "`InMemory(model, copied=True)`, or load it anew."
            )


def _made(source: ModelSource, *, empty: bool) -> PreTrainedModel:
    if empty:
        return source.skeleton()
    model = source.load()
    say_whether_tied(model)
    return model


def _share_placeholders(models: Sequence[LanguageModel]) -> None:
    """Let nobody write an id that stands for an image to any of the models, which all read the same ids."""
    shared = tuple(sorted({i for model in models for i in model.placeholders if i < models[0].vocab_size}))
    for model in models:
        model.placeholders = shared


def _check_alike(student: LanguageModel, teacher: LanguageModel, setting: str) -> None:
    ours, theirs = ([tuple(p.shape) for p in model.parameters()] for model in (student, teacher))
    if ours != theirs:
        raise ConfigurationError(
            "A teacher that follows the student must have its architecture, but their weights differ in shape. Give "
            f"`{setting}.source` what `model.student` has."
        )


def _check_rows(role: str, model: LanguageModel) -> None:
    if model.head_rows < model.vocab_size:
        raise ConfigurationError(
            f"The {role} has {model.head_rows} vocabulary rows, but the tokenizer has {model.vocab_size} ids. Use the "
            f"tokenizer that belongs to the model, or set its `vocab_size` to at least {model.vocab_size}."
        )
