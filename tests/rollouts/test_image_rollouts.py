"""Rollouts of prompts with images: the own loop against `generate`, and what it never writes."""

import types

import pytest
import torch

from tests import vision
from veto_pl.exceptions import ConfigurationError
from veto_pl.objectives import Distill
from veto_pl.rollouts import (
    DecodeLoop,
    FromDataset,
    FromStudent,
    Sampling,
    ServedTeacher,
    TeacherCorrected,
    TeacherMixed,
    TeacherSwitched,
    Transformers,
    Vllm,
    recording,
)
from veto_pl.seams import Step
from veto_pl.testing.pretended_graph import PretendedRecorder
from veto_pl.testing.tiny import tiny_source

STEP = Step(index=3, total=10, seed=7)
ROWS = [
    ([(16, 16, 1)], "what is it>"), ([], "no image>"), ([(8, 16, 2), (28, 20, 3)], "two>"), ([], "x>"),
    ([(28, 28, 4)], "a long text behind an image>"),
]  # fmt: skip
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)


def completions(sequences):
    return [ids.tolist() for ids in sequences.completions()]


def generated(style, models, row, limit):
    """What transformers' greedy `generate` writes for a row alone, asked as its processor asks it."""
    pictures = [vision.picture(*size) for size in row[0]]
    given = {"images": [pictures] if style == "idefics3" else pictures} if pictures else {}
    made = vision.processor(style)(text=[vision.shown(style, row[1], len(pictures))], return_tensors="pt", **given)
    model = models.student.model.eval()
    banned = [[i] for i in models.student.placeholders]
    ids = model.generate(
        **made, max_new_tokens=limit, do_sample=False, eos_token_id=list(models.eos_ids), pad_token_id=0,
        bad_words_ids=banned,
    )[0, made["input_ids"].shape[1] :].tolist()  # fmt: skip
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    return ids[: next((i + 1 for i, token in enumerate(ids) if token in models.eos_ids), limit)]


@pytest.mark.parametrize("style", vision.STYLES)
def test_greedy_completions_are_those_of_generate(style):
    models = vision.models(style)
    expected = [generated(style, models, row, 12) for row in ROWS]
    batch = vision.prompts(style, ROWS)
    for engine in (DecodeLoop(), DecodeLoop(0.0), Transformers()):
        assert completions(FromStudent(GREEDY, engine)(batch, models, STEP)) == expected
    order = torch.tensor([4, 2, 0, 1, 3])
    assert completions(FromStudent(GREEDY)(batch.rows(order), models, STEP)) == [expected[i] for i in order]


@pytest.mark.parametrize("style", ["llava", "qwen3_vl"])
def test_completions_of_one_prompt_are_those_of_the_prompt_alone(style):
    models, sampling = vision.models(style), Sampling(max_new_tokens=8, num_completions=3)
    batch = vision.prompts(style, ROWS)
    whole = FromStudent(sampling)(batch, models, STEP)
    for place in range(len(ROWS)):
        alone = FromStudent(sampling)(batch.rows(torch.tensor([place])), models, STEP)
        assert completions(alone) == completions(whole)[3 * place : 3 * place + 3]


@pytest.mark.parametrize("engine", [DecodeLoop(), Transformers()], ids=["loop", "generate"])
@pytest.mark.parametrize("style", vision.STYLES)
def test_a_placeholder_is_never_written_and_the_others_share_its_probability(style, engine):
    models = vision.models(style)
    ids = vision.tokenizer(style).get_vocab()
    placeholder = ids[vision.CONTROL[style][0]]
    assert placeholder in models.student.placeholders
    head = models.student.model.get_output_embeddings().weight
    bias = torch.zeros(len(head))
    bias[placeholder] = 50.0  # without the rule the model would write nothing else
    models.student.model.get_output_embeddings().register_forward_hook(lambda _, __, logits: logits + bias)
    sequences = FromStudent(Sampling(max_new_tokens=6), engine)(vision.prompts(style, ROWS), models, STEP)
    written = sequences.token_ids()
    assert not torch.isin(written, torch.tensor(models.student.placeholders)).any()
    with torch.no_grad():
        logits = models.student.eval()(sequences, lambda hidden, lm: lm.project(hidden)[0])
    logp = models.student.text_only(logits.clone()).log_softmax(-1).gather(1, written[:, None])[:, 0]
    assert torch.allclose(sequences.sampler_logp[:, 1:][sequences.predictions], logp, atol=1e-4)


def test_generate_remembers_no_positions_of_an_earlier_batch():
    models = vision.models("qwen2_5_vl")
    text = vision.prompts("qwen2_5_vl", [ROWS[1], ROWS[3]])
    first = completions(FromStudent(GREEDY, Transformers())(text, models, STEP))
    FromStudent(GREEDY, Transformers())(vision.prompts("qwen2_5_vl", ROWS), models, STEP)
    assert models.student.model.model.rope_deltas is None
    assert completions(FromStudent(GREEDY, Transformers())(text, models, STEP)) == first
    models.student.model.model.rope_deltas = torch.tensor([[5], [-5]])  # whoever has generated with it before
    assert completions(FromStudent(GREEDY, Transformers())(text, models, STEP)) == first


def test_a_writer_that_reads_images_is_refused_when_the_configuration_is_read():
    source = FromStudent(Sampling(), Vllm())
    for config, told in ((vision.source("llava").config(), 1), (tiny_source().config(), 0)):
        setup = types.SimpleNamespace(
            objective=Distill(rollout=source), evaluation=Sampling(0.0), models={"model.student": config}
        )
        found = [str(mistake) for mistake in source.engine.requirements(setup, "model.objective.init_args.rollout")]
        assert len(found) == told
        assert all("`Vllm` with a model that reads images (`model.student`)" in one for one in found)


def test_prompts_with_images_are_refused_where_ids_alone_are_sent():
    models = vision.models("llava")
    with pytest.raises(ConfigurationError, match="`Vllm` sends ids alone to vLLM, and a row has an image"):
        FromStudent(Sampling(), Vllm())(vision.prompts("llava", [([(8, 8, 1)], "a>")]), models, STEP)
    teacher = ServedTeacher(servers=("http://localhost:1/v1",), model="t", source=FromDataset())
    with pytest.raises(ConfigurationError, match="`ServedTeacher` sends ids alone"):
        teacher(vision.prompts("llava", [([(8, 8, 1)], "a>")]), models, STEP)


WRITTEN = Sampling(max_new_tokens=8, num_completions=2)
MIXED = [TeacherMixed(0.5, WRITTEN), TeacherCorrected(sampling=WRITTEN), TeacherSwitched(1.0, WRITTEN)]


@pytest.mark.parametrize("source", MIXED, ids=lambda source: type(source).__name__)
def test_two_writers_read_the_same_images(source):
    models = vision.models("qwen2_5_vl", "qwen3_vl")
    batch = vision.prompts("qwen2_5_vl", ROWS)
    sequences = source(batch, models, STEP)
    written = sequences.token_ids()
    assert not torch.isin(written, torch.tensor(models.student.placeholders)).any()
    assert torch.isfinite(sequences.sampler_logp).all()
    alone = source(batch.rows(torch.tensor([4])), models, STEP)
    assert completions(alone) == completions(sequences)[8:10]


@pytest.mark.parametrize("style", ["llava", "qwen2_5_vl"])
def test_recorded_steps_behind_images_write_what_the_growing_loop_writes(style, monkeypatch):
    monkeypatch.setitem(recording.RECORDERS, "cpu", PretendedRecorder)
    models, batch = vision.models(style), vision.prompts(style, ROWS)
    sampling = Sampling(max_new_tokens=20, num_completions=2)
    grown, fixed = (FromStudent(sampling, DecodeLoop(capture=how))(batch, models, STEP) for how in (False, True))
    assert completions(fixed) == completions(grown)
    assert torch.allclose(fixed.sampler_logp, grown.sampler_logp, atol=1e-4)
