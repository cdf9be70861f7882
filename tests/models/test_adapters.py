"""Students with an adapter of peft: what is trained, what the model is without it, and what it is merged."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer, InMemory, Lora, MovingAverage, Pretrained, Pruned, StudentBase
from veto_pl.models.adapters import adapter_names
from veto_pl.models.assemble import load_models, load_student
from veto_pl.models.merging import Rounding, whole_weights
from veto_pl.models.probes import probe_logits
from veto_pl.models.twins import with_own_adapter, without_adapter
from veto_pl.seams import Step
from veto_pl.testing.tiny import ALPHABET, DIMENSIONS, tiny_source

TOKENIZER = CharacterTokenizer(ALPHABET).load()
TARGETS = {
    "all-linear": "all-linear",
    "ends of names": ("o_proj", "c_proj", "up_proj"),
    "whole names": r".*layers\.1\..*proj|.*h\.1\..*",
    "embedding": ("embed_tokens", "wte"),
}


def targets_of(family, kind):
    """The targets that this architecture has."""
    named = TARGETS[kind]
    if isinstance(named, str):
        return named
    known = {name.rpartition(".")[2] for name, _ in tiny_source(family).skeleton().named_modules()}
    return tuple(name for name in named if name in known)


def adapted(family="llama", *, scale=0.1, source=None, **lora):
    """A student whose adapter says something, as after some training."""
    student = load_student(Lora(source or tiny_source(family), rank=3, **lora), TOKENIZER)
    generator = torch.Generator().manual_seed(5)
    for weight in (weight for weight in student.parameters() if weight.requires_grad):
        weight.data += scale * torch.randn(weight.shape, generator=generator, dtype=torch.float32).to(weight.dtype)
    return student.eval()


@settings(max_examples=8, deadline=None)
@given(
    family=st.sampled_from(sorted(DIMENSIONS)),
    kind=st.sampled_from(sorted(TARGETS)),
    dora=st.booleans(),
    tied=st.booleans(),
    head=st.booleans(),
)
def test_an_adapter_is_a_layer_over_a_base_that_stays(family, kind, dora, tied, head):
    """Without it the model is the base to the bit; merged it says what it says; and its start changes nothing."""
    source = tiny_source(family, tie_word_embeddings=tied)
    lora = {"targets": targets_of(family, kind), "dora": dora, "modules_to_save": ("lm_head",) if head else ()}
    base = load_student(source, TOKENIZER).eval()
    start = load_student(Lora(source, rank=3, **lora), TOKENIZER).eval()
    torch.testing.assert_close(probe_logits(start), probe_logits(base), rtol=1e-4, atol=1e-4)
    student = adapted(source=source, **lora)
    assert not torch.allclose(probe_logits(student), probe_logits(base), atol=1e-2)
    assert torch.equal(probe_logits(without_adapter(student)), probe_logits(base))
    names = {name for name, _ in base.model.named_parameters()}
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    merged = dict(whole_weights(student))
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())
    assert names <= set(merged)
    assert {*merged} - names <= {"lm_head.weight"}, "a tied head that an adapter has set apart"
    if "lm_head.weight" in {*merged} - names:
        base.model.lm_head.weight = nn.Parameter(torch.empty_like(base.model.lm_head.weight))
    base.model.load_state_dict(merged, strict=False)
    torch.testing.assert_close(probe_logits(base), probe_logits(student), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("stabilised", [False, True])
def test_merged_weights_are_the_formula_in_float64(dora, stabilised):
    student = adapted(alpha=5.0, dora=dora, rank_stabilised=stabilised)
    merged = dict(whole_weights(student))
    for name, layer in student.model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        a, b, w = (m.weight.double() for m in (layer.lora_A["default"], layer.lora_B["default"], layer.base_layer))
        expected = w + 5.0 / (math.sqrt(3) if stabilised else 3) * b @ a
        if dora:
            expected *= (layer.lora_magnitude_vector["default"].weight.double() / expected.norm(dim=1))[:, None]
        torch.testing.assert_close(merged[f"{name}.weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_only_the_adapter_is_trained_and_the_head_gets_no_gradient():
    student = adapted(modules_to_save=("norm",))
    names = {name for name, weight in student.model.named_parameters() if weight.requires_grad}
    assert names == adapter_names(student.model)
    assert {name for name in names if "lora_" not in name} == {"model.norm.modules_to_save.default.weight"}
    head = student.head()
    assert [weight.requires_grad for weight in head.parameters] == [False]
    half = load_student(Lora(replace(tiny_source(), dtype="bfloat16")), TOKENIZER)
    assert {w.dtype for w in half.parameters() if w.requires_grad} == {torch.float32}


@pytest.mark.parametrize("lora", [{"modules_to_save": ("lm_head",)}, {"targets": ("lm_head",)}])
def test_a_trained_head_has_the_gradient_of_the_whole_model(lora):
    """The loss head reads a copy that is trained like any matrix, and calls a layer with an adapter."""
    from veto_pl.functional.chunked import linear_divergence
    from veto_pl.functional.divergences import reverse_kl

    student = adapted(**lora)
    hidden, teacher = torch.randn(7, 16), torch.randn(7, 16)
    head = student.head()
    goal = torch.log_softmax(teacher @ student.model.get_input_embeddings().weight.T, -1)
    stat = linear_divergence(hidden, head, teacher, student.model.get_input_embeddings().weight.detach(), reverse_kl)
    stat.total.backward()
    found = {n: w.grad.clone() for n, w in student.named_parameters() if w.grad is not None}
    student.zero_grad()
    logp = torch.log_softmax(student.model.get_output_embeddings()(hidden).double(), -1)
    (logp.exp() * (logp - goal.double())).sum().backward()
    assert found
    for name, weight in student.named_parameters():
        assert (weight.grad is None) == (name not in found)
        if name in found:
            torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-5)


def test_the_seed_of_an_adapter_leaves_the_generators_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, other = (load_student(Lora(tiny_source(), seed=seed), TOKENIZER).state_dict() for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    drawn = [name for name in one if "lora_A" in name]
    assert drawn
    assert not any(torch.equal(one[name], other[name]) for name in drawn)


def test_a_skeleton_has_the_names_and_shapes_of_the_model():
    for lora in ({"dora": True}, {"modules_to_save": ("lm_head",)}):
        source = Lora(tiny_source("gpt2"), **lora)
        with torch.device("meta"):
            skeleton = source.skeleton()
        loaded = source.load()
        assert {n: (w.shape, w.requires_grad) for n, w in skeleton.named_parameters()} == {
            n: (w.shape, w.requires_grad) for n, w in loaded.named_parameters()
        }
        assert all(weight.is_meta for weight in skeleton.parameters())


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: Lora(tiny_source(), targets=("q_proj", "vproj")).load(), "no module has. Did you mean `v_proj`"),
        (lambda: Lora(tiny_source(), modules_to_save=("head",)).load(), "`Lora.modules_to_save` names `head`"),
        (lambda: Lora(tiny_source(), targets="q_proj").load(), "`q_proj`, which matches the whole name of no layer"),
        (lambda: Lora(tiny_source(), targets="(q_proj"), r"must be a regular expression, got `\(q_proj`"),
        (lambda: Lora(tiny_source(), targets=()), "must name a layer, or be `all-linear`"),
        (lambda: Lora(Lora(tiny_source())), "`Lora.source` is a `Lora`, which has an adapter already"),
        (lambda: Lora(InMemory(adapted().model)).load(), "has an adapter already"),
        (lambda: Lora(tiny_source(), rank=0), "`Lora.rank` must be at least 1"),
        (lambda: Lora(tiny_source(), start="/no/adapter").load(), "No adapter could be read from `/no/adapter`"),
        (lambda: StudentBase().config(), "belongs to the student of a run"),
        (lambda: StudentBase().resolved(tiny_source()), "but `model.student` is a `RandomWeights`"),
    ],
)  # fmt: skip
def test_mistakes_are_named(mistake, message):
    with pytest.raises(ConfigurationError, match=message):
        mistake()


def test_a_missing_peft_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigurationError, match=r'`Lora` needs peft: pip install "veto_pl\[peft\]"'):
        Lora(tiny_source()).load()


def test_the_students_own_base_is_its_memory():
    lora = Lora(tiny_source(), rank=2)
    models = load_models(lora, StudentBase().resolved(lora), TOKENIZER, reference=StudentBase().resolved(lora))
    own = {weight.data_ptr() for weight in models.student.parameters()}
    assert {weight.data_ptr() for weight in models.teacher.parameters()} < own
    assert not any(weight.requires_grad for weight in models.teacher.parameters())
    assert any(weight.requires_grad for weight in models.student.parameters())
    assert models.student.training
    assert not models.teacher.training
    before = probe_logits(models.teacher)
    for weight in models.student.parameters():
        if weight.requires_grad:
            weight.data += 1.0
    assert torch.equal(probe_logits(models.teacher), before)
    assert models.student.training
    models.teacher.model.generation_config.eos_token_id = 7
    assert models.student.model.generation_config.eos_token_id != 7


def test_dropout_of_the_student_does_not_reach_its_base():
    lora = Lora(tiny_source(attention_dropout=0.9), dropout=0.9)
    models = load_models(lora, StudentBase().resolved(lora), TOKENIZER)
    assert torch.equal(probe_logits(models.teacher), probe_logits(load_student(lora.source, TOKENIZER).eval()))


def test_a_base_that_is_trained_is_nobodys_teacher():
    models = load_models(lora := Lora(tiny_source()), None, TOKENIZER)
    models.student.model.model.norm.weight.requires_grad_(True)
    with pytest.raises(ConfigurationError, match=r"1 of its weights are trained, for instance `model\.model\.norm"):
        StudentBase().resolved(lora).beside(models.student)


def test_an_average_of_an_adapter_shares_the_base_and_follows():
    lora = Lora(tiny_source(), rank=2)
    source = MovingAverage(lora, decay=0.25).resolved(lora)
    models = load_models(lora, source, TOKENIZER)
    own = {weight.data_ptr() for weight in models.student.parameters()}
    apart = {name for name, weight in models.teacher.named_parameters() if weight.data_ptr() not in own}
    assert apart == {name for name, weight in models.student.named_parameters() if weight.requires_grad}
    start = {name: weight.clone() for name, weight in models.teacher.named_parameters()}
    with torch.no_grad():
        for weight in models.student.parameters():
            if weight.requires_grad:
                weight += 1.0
    source.follow(models.teacher, models.student, Step(0, 10))
    for name, weight in models.teacher.named_parameters():
        torch.testing.assert_close(weight, start[name] + (0.75 if name in apart else 0.0))
    assert MovingAverage(lora).resolved(Lora(tiny_source(seed=1))) == MovingAverage(lora), "another base is loaded"


def test_merging_into_few_bits_says_how_much_it_loses():
    source = replace(tiny_source(), dtype="bfloat16")
    shares = []
    for scale in (0.1, 3e-4):
        list(whole_weights(adapted(source=source, scale=scale), rounding := Rounding()))
        shares.append(rounding.share)
    assert shares[0] < 0.1 < 0.5 < shares[1]
    list(whole_weights(adapted(scale=3e-4), rounding := Rounding()))
    assert rounding.share == 0.0


def test_copies_with_an_adapter_of_their_own_are_apart():
    student = adapted()
    twin = with_own_adapter(student)
    assert torch.equal(probe_logits(twin), probe_logits(student))
    for weight in student.parameters():
        if weight.requires_grad:
            weight.data.zero_()
    assert not torch.allclose(probe_logits(twin), probe_logits(student), atol=1e-2)


def test_an_adapter_goes_on_from_files_of_peft(tmp_path):
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(tiny_source().load(), LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"]))
    nn.init.normal_(wrapped.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    wrapped.save_pretrained(tmp_path)
    settings = {"rank": 3, "alpha": 6.0, "targets": ("q_proj",)}
    found = load_student(Lora(tiny_source(), start=str(tmp_path), **settings), TOKENIZER).eval()
    assert torch.equal(probe_logits(found), probe_logits(load_student(InMemory(wrapped), TOKENIZER).eval()))
    with pytest.raises(ConfigurationError, match="has other settings than `Lora`: r 3 instead of 4"):
        Lora(tiny_source(), start=str(tmp_path), **settings | {"rank": 4}).load()
    with pytest.raises(ConfigurationError, match="has not the layers that `Lora` names"):
        Lora(tiny_source(), start=str(tmp_path), **settings | {"targets": ("v_proj",)}).load()


def test_a_pruned_model_and_a_folder_take_adapters(tmp_path):
    tiny_source().load().save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    for source in (Pruned(tiny_source(), keep_layers=(1,)), Pretrained(str(tmp_path))):
        student = adapted(source=source)
        base = load_student(source, TOKENIZER).eval()
        assert torch.equal(probe_logits(without_adapter(student)), probe_logits(base))
    assert Lora(str(tmp_path)) == Lora(Pretrained(str(tmp_path)))
