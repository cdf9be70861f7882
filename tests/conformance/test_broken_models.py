"""The laws of sources of models and tokenizers can fail: each is broken by somebody, who is reported."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from veto_pl.models import CharacterTokenizer, RandomWeights
from veto_pl.models.initialisation import TINY
from veto_pl.seams import ModelSource, TokenizerSource
from veto_pl.testing import test_models as laws

TRUE = RandomWeights(dimensions=TINY)
NARROW = RandomWeights(dimensions=TINY | {"hidden_size": 8})


@dataclass(frozen=True)
class _Source(ModelSource):
    """A model as it should be, or as it is told."""

    make: Callable = TRUE.load
    settings: Callable = TRUE.config
    plan: Callable = TRUE.skeleton
    in_parts: Callable = lambda: None
    tokenizer: object = None
    ends: tuple = (1,)

    def config(self):
        return self.settings()

    def load(self):
        return self.make()

    def skeleton(self):
        return self.plan()

    def stored(self):
        return self.in_parts()

    def end_ids(self):
        return self.ends

    @property
    def tokenizer_source(self):
        return self.tokenizer


class _Following(_Source):
    """Says nothing of it that it moves."""

    def follow(self, teacher, student, step):
        self.move(teacher, student)


@dataclass(frozen=True)
class _Moving(_Following):
    moves = True
    move: Callable = lambda teacher, student: None


class _Stored:
    """Weights in parts, of which one may be another."""

    def __init__(self, *, known=True, added=0.0):
        self.known, self.added = known, added

    def match(self, model):
        return self.known

    def parts(self, rows):
        yield from ((name, value + self.added) for name, value in TRUE.load().named_parameters())


def noise():
    model = TRUE.load()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        model.lm_head.weight += torch.randn(model.lm_head.weight.shape)
    return model


def drawn():
    torch.rand(())
    return TRUE.load()


def elsewhere():
    model = TRUE.load()
    model.lm_head = nn.Linear(16, 20, bias=False)
    return model


def with_device():
    model, generator = TRUE.load(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.lm_head.weight += torch.randn(model.lm_head.weight.shape, generator=generator)
    return model


def endless():
    model = TRUE.load()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("inf"))
    return model


def further(teacher, student):
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1)


def lost(teacher, student):
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.fill_(float("nan"))


def thaw(teacher, student):
    student.requires_grad_(False)


SAME, CPU = laws.test_a_model_is_the_same_each_time, laws.test_a_model_is_on_the_cpu
SKELETON, CONFIG = laws.test_a_skeleton_has_the_shapes_of_the_model, laws.test_a_configuration_is_that_of_the_model
PREDICTS, STORED = laws.test_a_model_predicts, laws.test_stored_weights_are_those_of_the_model
SAYS, MOVES = laws.test_what_a_source_says_of_texts_can_be_used, laws.test_a_model_that_follows_says_that_it_moves
FOLLOWS = laws.test_a_teacher_follows_the_student_alone
SAME_WORDS, ENDS = laws.test_a_tokenizer_is_the_same_each_time, laws.test_a_tokenizer_ends_and_fills_up_texts
BROKEN = [
    (SAME, "must leave the generators", _Source(drawn)),
    (SAME, "gave other weights the second time.*lm_head", _Source(noise)),
    (CPU, "must be on the CPU.*lm_head", _Source(elsewhere)),
    (CPU, "Say `device='cpu'`", _Source(with_device)),
    (SKELETON, "`skeleton` differs from `load` in .*Override `skeleton`", _Source(plan=NARROW.skeleton)),
    (SKELETON, "bfloat16", _Source(plan=replace(TRUE, dtype="bfloat16").skeleton)),
    (CONFIG, r"`config\(\).hidden_size` is 8, but the model of `load` has 16", _Source(settings=NARROW.config)),
    (PREDICTS, "must be finite", _Source(endless)),
    (STORED, "must know the weights", _Source(in_parts=lambda: _Stored(known=False))),
    (STORED, "has another `", _Source(in_parts=lambda: _Stored(added=1.0))),
    (SAYS, "`tokenizer_source` must be", _Source(tokenizer={"path": "x"})),
    (SAYS, r"must be below 20, got \(20,\)", _Source(ends=(20,))),
    (MOVES, "has a `follow` of its own, but `moves` is False", _Following()),
    (FOLLOWS, "must leave the student alone", _Moving(move=further)),
    (FOLLOWS, "is not finite", _Moving(move=lost)),
    (FOLLOWS, "", _Moving(move=thaw)),
]


@dataclass(frozen=True)
class _Words(TokenizerSource):
    make: Callable

    def load(self):
        return self.make()


COUNT = iter("abcdefgh")
SHARED = CharacterTokenizer("abc").load()


def without_end():
    tokenizer = CharacterTokenizer("abc").load()
    tokenizer.eos_token = None
    return tokenizer


def beyond():
    class _Short(type(SHARED)):
        def __len__(self):
            return 3

    tokenizer = CharacterTokenizer("abc").load()
    tokenizer.__class__ = _Short
    return tokenizer


TOKENIZERS = [
    (SAME_WORDS, "a tokenizer of its own", _Words(lambda: SHARED)),
    (SAME_WORDS, "with other ids the second time", _Words(lambda: CharacterTokenizer(f"xyz{next(COUNT)}").load())),
    (ENDS, "no token that ends a text", _Words(without_end)),
    (ENDS, "must be below 3", _Words(beyond)),
]
RIGHT = {FOLLOWS: _Moving(), SAME_WORDS: CharacterTokenizer("abc"), ENDS: CharacterTokenizer("abc"),
         STORED: _Source(in_parts=_Stored)}  # fmt: skip


@pytest.mark.parametrize(
    ("law", "message", "source"), [*BROKEN, *TOKENIZERS], ids=[law.__name__ for law, *_ in (*BROKEN, *TOKENIZERS)]
)
def test_who_breaks_a_law_is_reported(law, message, source):
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        law(source)


@pytest.mark.parametrize("law", {law: None for law, *_ in (*BROKEN, *TOKENIZERS)}, ids=lambda law: law.__name__)
def test_who_keeps_it_is_not(law):
    law(RIGHT.get(law, _Source()))


def test_each_law_is_broken_by_somebody():
    known = {law for name, law in vars(laws).items() if name.startswith("test_")}
    assert {law for law, *_ in (*BROKEN, *TOKENIZERS)} == known
