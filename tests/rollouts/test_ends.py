"""A text ends where any of its writers ends one, and the student's own texts end at the student's ids alone."""

import warnings

import pytest
import torch
from transformers import GenerationConfig

from veto_pl.models import CharacterTokenizer, Pretrained
from veto_pl.models.assemble import load_models, load_tokenizer
from veto_pl.rollouts import (
    BestTeacher,
    DecodeLoop,
    FromStudent,
    FromTeacher,
    Mixture,
    Sampling,
    TeacherCorrected,
    TeacherMixed,
    TeacherSwitched,
    Transformers,
)
from veto_pl.seams import Step
from veto_pl.testing.tiny import ALPHABET, prompt_batch, tiny_source

STEP = Step(index=3, total=10, seed=7)
PROMPTS = ["abc>", "a>", "hgfedcba>", "pp>"] * 6
SAMPLING = Sampling(temperature=2.0, max_new_tokens=16)
EOS, END = 1, ALPHABET.index("f") + 3
ENGINES = (DecodeLoop(), Transformers())


def saved(folder, seed, eos_token_id, eos="<eos>"):
    model = tiny_source(seed=seed).load()
    model.generation_config = GenerationConfig(eos_token_id=eos_token_id)
    model.save_pretrained(folder)
    tokenizer = CharacterTokenizer(ALPHABET).load()
    tokenizer.eos_token = eos
    tokenizer.save_pretrained(folder)
    return Pretrained(str(folder))


@pytest.fixture
def models(tmp_path):
    """A base student and an instruct teacher of its family."""
    student, teacher = saved(tmp_path / "student", 0, EOS), saved(tmp_path / "teacher", 1, [EOS, END])
    with pytest.warns(UserWarning, match=r"the student by '<eos>' \(1\), the teacher by '<eos>' \(1\), 'f' \(9\)"):
        return load_models(student, teacher, load_tokenizer(student))


def goes_on_behind(sequences, end):
    """How many rows hold the id before their last token."""
    return sum(int((ids[:-1] == end).any()) for ids in sequences.completions())


def ends_with(sequences, end):
    return sum(int(ids[-1] == end) for ids in sequences.completions())


WITH_TEACHER = [
    *(FromTeacher(SAMPLING, engine) for engine in ENGINES),
    TeacherMixed(0.5, SAMPLING),
    TeacherCorrected(sampling=SAMPLING, teacher_sampling=SAMPLING),
    TeacherSwitched(sampling=SAMPLING, teacher_sampling=SAMPLING),
    BestTeacher(SAMPLING, FromStudent(SAMPLING), hint="{prompt}{completion}"),
    Mixture(FromTeacher(SAMPLING), FromTeacher(SAMPLING)),
]


@pytest.mark.parametrize("source", WITH_TEACHER, ids=lambda source: type(source).__name__)
def test_what_the_teacher_takes_part_in_ends_where_either_model_ends(models, source):
    sequences = source(prompt_batch(models, PROMPTS, ["abc"] * len(PROMPTS)), models, STEP)
    assert goes_on_behind(sequences, END) == goes_on_behind(sequences, EOS) == 0
    assert ends_with(sequences, END) > 0


@pytest.mark.parametrize("engine", ENGINES, ids=["loop", "transformers"])
def test_the_students_own_texts_end_at_its_own_ids(models, engine):
    for source in (FromStudent(SAMPLING, engine), Mixture(FromStudent(SAMPLING, engine), FromTeacher(SAMPLING), 1.0)):
        sequences = source(prompt_batch(models, PROMPTS), models, STEP)
        assert goes_on_behind(sequences, END) > 0
        assert goes_on_behind(sequences, EOS) == 0
    assert models.eos_ids == (EOS,)


def test_an_end_that_only_the_teachers_tokenizer_knows_is_one_of_its_ends(tmp_path):
    student, teacher = saved(tmp_path / "student", 0, EOS), saved(tmp_path / "teacher", 1, None, eos="f")
    with pytest.warns(UserWarning, match=r"the student by '<eos>' \(1\), the teacher by 'f' \(9\)"):
        models = load_models(student, teacher, load_tokenizer(student))
    assert models.ends_of(models.teacher) == (EOS, END)
    assert models.eos_ids == (EOS,)


def test_equal_ends_are_not_spoken_of(tmp_path):
    student, teacher = saved(tmp_path / "student", 0, [END]), saved(tmp_path / "teacher", 1, [END, EOS])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models = load_models(student, teacher, load_tokenizer(student))
    assert models.eos_ids == models.ends_of(models.teacher) == (EOS, END)


def test_new_weights_have_no_ends_of_their_own():
    """The architecture's default ids are those of another model's tokenizer."""
    models = load_models(tiny_source(), tiny_source("gpt2", bos_token_id=None, eos_token_id=END),
                         CharacterTokenizer(ALPHABET).load())  # fmt: skip
    assert models.eos_ids == (EOS,)
    assert models.ends_of(models.teacher) == (EOS, END)
    assert torch.equal(torch.tensor(models.ends_of(models.student)), torch.tensor([EOS]))
