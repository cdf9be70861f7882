"""Laws of the engines: what is sampled does not depend on what runs the model, on other rows or on their order."""

import math
import warnings
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processes import python
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.models.assemble import load_models
from veto_pl.models.initialisation import RandomWeights
from veto_pl.models.probes import cache_keyword
from veto_pl.models.tokenizers import CharacterTokenizer
from veto_pl.rollouts import DecodeLoop, FromStudent, FromTeacher, Sampling, TeacherMixed, Transformers, decoding
from veto_pl.rollouts.kv_cache import obstacle
from veto_pl.seams import Models, Step
from veto_pl.testing.tiny import ALPHABET, DIMENSIONS, prompt_batch, tiny_models

STEP = Step(index=3, total=10, seed=7)
RAGGED = ["abc>", "a>", "hgfedcba>", "pp>", "abcdefghijklmnop>", "dd>"]
EVEN = ["abc>", "bcd>", "cde>", "efg>", "ppp>", "aaa>"]
GREEDY = Sampling(temperature=0.0, max_new_tokens=24)
GEMMA3 = DIMENSIONS["gemma2"] | {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA3.pop("final_logit_softcapping")
EOS_BIAS = {"llama": 1.0, "qwen2": 1.0, "gpt2": 1.5, "gemma2": 3.0, "gemma3_text": 3.0}
TYPES = {
    "llama": {},
    "qwen2": {},
    "gpt2": {},
    "gemma2": {"sliding_window": 6},
    "gemma3_text": GEMMA3,
}


def models_of(model_type, seed=0, eos_bias=0.0):
    """A student whose rows end at different times: EOS is made likely in some contexts only."""
    dimensions = {"vocab_size": len(ALPHABET) + 3, "initializer_range": 0.4} | DIMENSIONS.get(model_type, {})
    source = RandomWeights(model_type, dimensions | TYPES.get(model_type, {}), seed=seed)
    models = load_models(source, None, CharacterTokenizer(ALPHABET).load())
    if eos_bias:
        add_to_eos(models, eos_bias)
    return models


def add_to_eos(models, bias):
    def add(_, __, logits):
        column = torch.zeros(logits.shape[-1])
        column[models.tokenizer.eos_token_id] = bias
        return logits + column

    models.student.model.get_output_embeddings().register_forward_hook(add)


def completions(sequences):
    return [ids.tolist() for ids in sequences.completions()]


def generated(models, batch, limit, copies=1):
    """What transformers' own greedy `generate` writes, up to EOS."""
    written = models.student.model.eval().generate(
        batch.input_ids, attention_mask=batch.attention_mask.long(), max_new_tokens=limit, do_sample=False,
        eos_token_id=list(models.eos_ids), pad_token_id=0,
    )[:, batch.input_ids.shape[1] :].tolist()  # fmt: skip
    ends = [next((i + 1 for i, token in enumerate(row) if token in models.eos_ids), limit) for row in written]
    return [row[:end] for row, end in zip(written, ends, strict=True) for _ in range(copies)]


@pytest.mark.parametrize("prompts", [RAGGED, EVEN], ids=["ragged", "even"])
@pytest.mark.parametrize("model_type", TYPES)
def test_greedy_equals_transformers_whatever_is_dropped(model_type, prompts):
    lengths = set()
    for seed in range(2):
        models = models_of(model_type, seed, EOS_BIAS[model_type])
        batch = prompt_batch(models, prompts)
        expected = generated(models, batch, 24)
        lengths |= {len(row) for row in expected}
        for engine in (DecodeLoop(), DecodeLoop(0.0), Transformers()):
            assert completions(FromStudent(GREEDY, engine)(batch, models, STEP)) == expected
    assert len(lengths) > 2, "the rows should end at different times"


@pytest.mark.parametrize(
    ("model_type", "engine"), [("llama", DecodeLoop(0.0)), ("gemma2", DecodeLoop(0.0)), ("gpt2", Transformers())]
)
def test_greedy_completions_of_one_prompt_are_equal_and_in_prompt_order(model_type, engine):
    models = models_of(model_type, eos_bias=EOS_BIAS[model_type])
    batch = prompt_batch(models, RAGGED)
    sampling = Sampling(temperature=0.0, max_new_tokens=12, num_completions=3)
    sequences = FromStudent(sampling, engine)(batch, models, STEP)
    assert completions(sequences) == generated(models, batch, 12, copies=3)
    assert sequences.prompt_rows.tolist() == [row for row in range(len(RAGGED)) for _ in range(3)]
    prompts = [ids[mask].tolist() for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    before = sequences.attention_mask & ~sequences.loss_mask
    found = [ids[mask].tolist() for ids, mask in zip(sequences.input_ids, before, strict=True)]
    assert found == [prompt for prompt in prompts for _ in range(3)]


MODELS = {name: models_of(name, eos_bias=4.0) for name in ("llama", "gemma2")}
TEXTS = st.lists(st.text(ALPHABET, min_size=1, max_size=14), min_size=1, max_size=6)


@settings(max_examples=25)
@given(texts=TEXTS, name=st.sampled_from(sorted(MODELS)), drop_at=st.sampled_from([0.0, 0.25]), data=st.data())
def test_dropping_and_order_never_change_greedy_rows(texts, name, drop_at, data):
    models = MODELS[name]
    batch = prompt_batch(models, texts)
    order = data.draw(st.permutations(range(len(texts))))
    plain = completions(FromStudent(GREEDY, DecodeLoop(1.0))(batch, models, STEP))
    dropped = completions(FromStudent(GREEDY, DecodeLoop(drop_at))(batch.rows(torch.tensor(order)), models, STEP))
    assert dropped == [plain[i] for i in order]


@pytest.mark.parametrize("model_type", TYPES)
def test_dropping_never_changes_what_is_sampled(model_type):
    models = models_of(model_type, eos_bias=2.0)
    batch = prompt_batch(models, RAGGED * 3)
    sampling = Sampling(temperature=1.5, max_new_tokens=20, num_completions=2)
    whole, *others = (FromStudent(sampling, DecodeLoop(share))(batch, models, STEP) for share in (1.0, 0.0, 0.25))
    assert len({len(ids) for ids in completions(whole)}) > 3
    for other in others:
        assert torch.equal(whole.input_ids, other.input_ids)
        assert torch.allclose(whole.sampler_logp, other.sampler_logp, atol=1e-4)


def test_a_higher_limit_only_continues():
    models = models_of("llama", eos_bias=1.0)
    batch = prompt_batch(models, RAGGED)
    short, long = (completions(FromStudent(Sampling(max_new_tokens=n))(batch, models, STEP)) for n in (5, 15))
    assert [row[:5] for row in long] == short


SHAPES = [
    Sampling(max_new_tokens=10),
    Sampling(temperature=0.7, top_p=0.8, max_new_tokens=10, num_completions=2),
    Sampling(temperature=2.0, top_k=4, top_p=0.9, max_new_tokens=10),
    Sampling(temperature=0.0, max_new_tokens=10),
]


@pytest.mark.parametrize(
    ("engine", "sampling", "model_type"),
    [
        (engine, sampling, ("llama", "gemma2")[(i + j) % 2])
        for i, engine in enumerate((DecodeLoop(), DecodeLoop(0.0), Transformers()))
        for j, sampling in enumerate(SHAPES)
    ],
)
def test_sampler_logp_is_that_of_a_teacher_forced_pass(model_type, sampling, engine):
    models = models_of(model_type, eos_bias=2.0)
    sequences = FromStudent(sampling, engine)(prompt_batch(models, RAGGED), models, STEP)
    with torch.no_grad():
        logits = models.student.eval()(sequences, lambda hidden, lm: lm.project(hidden)[0]).double()
    forced = sampling.shape(logits).gather(1, sequences.token_ids()[:, None])[:, 0]
    assert torch.allclose(forced, sequences.sampled_logp()[sequences.predictions].double(), atol=1e-4)
    assert (sequences.sampler_logp[~sequences.loss_mask] == 0).all()
    assert (sequences.input_ids[~sequences.attention_mask] == 0).all()


def chi_square(counts, probability):
    expected = probability * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1


@pytest.mark.parametrize("engine", [DecodeLoop(0.0), DecodeLoop(), Transformers()], ids=str)
def test_tokens_after_others_have_ended_follow_the_distribution(engine):
    """Of the rows whose first token is the most frequent one, the second is distributed as the model says."""
    models = models_of("llama", eos_bias=3.0)
    batch = prompt_batch(models, ["abc>", "pa>"] * 3000)
    sequences = FromStudent(Sampling(temperature=1.5, max_new_tokens=2), engine)(batch, models, STEP)
    width = batch.input_ids.shape[1]
    first, second = sequences.input_ids[:, width], sequences.input_ids[:, width + 1]
    eos = models.tokenizer.eos_token_id
    assert 0.02 < (first == eos).double().mean() < 0.9
    ours = (torch.arange(6000) % 2 == 0) & (first != eos)
    token = first[ours].mode().values
    chosen = ours & (first == token)
    prefix = torch.cat([batch.input_ids[0][batch.attention_mask[0]], token[None]])
    with torch.no_grad():
        logits = models.student.model.eval()(prefix[None]).logits[0, -1, : models.student.vocab_size].double()
    probability = (logits / 1.5).softmax(-1)
    counts = torch.bincount(second[chosen], minlength=len(probability)).double()
    common = probability * counts.sum() > 5
    rest = (counts[~common].sum()[None], probability[~common].sum()[None])
    statistic, freedom = chi_square(torch.cat([counts[common], rest[0]]), torch.cat([probability[common], rest[1]]))
    assert counts.sum() > 200
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("engine", [DecodeLoop(), Transformers()], ids=["loop", "transformers"])
def test_stop_strings_end_rows_in_every_engine(engine):
    models = models_of("llama")
    batch = prompt_batch(models, RAGGED * 4)
    free = FromStudent(Sampling(max_new_tokens=10), engine)(batch, models, STEP)
    texts = models.tokenizer.batch_decode(free.completions())
    stop = next(
        text[2:4] for text in texts if len(text) > 6 and "<" not in text[:4] and text[2:4] not in "<eos><unk><pad>"
    )
    sequences = FromStudent(Sampling(max_new_tokens=10, stop=(stop,)), engine)(batch, models, STEP)
    after = models.tokenizer.batch_decode(sequences.completions())
    assert any(text.endswith(stop) for text in after)
    assert all(text.find(stop) in (-1, len(text) - len(stop)) for text in after)


def test_gradient_checkpointing_does_not_cost_the_cache():
    models = models_of("llama")
    batch = prompt_batch(models, RAGGED)
    expected = completions(FromStudent(GREEDY)(batch, models, STEP))
    models.student.model.gradient_checkpointing_enable()
    models.student.train()
    lengths = []
    backbone = models.student.model.base_model
    backbone.register_forward_pre_hook(lambda _, __, kw: lengths.append(kw["input_ids"].shape[1]), with_kwargs=True)
    assert completions(FromStudent(GREEDY)(batch, models, STEP)) == expected
    assert set(lengths[1:]) == {1}
    assert models.student.training


def test_every_prompt_is_read_once_and_ended_rows_are_not_read_again():
    models = models_of("llama", eos_bias=3.0)
    shapes = []
    backbone = models.student.model.base_model
    batch = prompt_batch(models, RAGGED)
    source = FromStudent(Sampling(max_new_tokens=40, num_completions=8), DecodeLoop(0.0))
    source(batch, models, STEP)  # the loop looks at the model once
    backbone.register_forward_pre_hook(lambda _, __, kw: shapes.append(kw["input_ids"].shape), with_kwargs=True)
    sequences = source(batch, models, STEP)
    assert shapes[0] == batch.input_ids.shape
    lengths = sequences.loss_mask.sum(1)
    alive = [int((lengths > column).sum()) for column in range(1, int(lengths.max()))]
    assert [rows for rows, _ in shapes[1:]] == [rows for rows in alive if rows]


@pytest.mark.parametrize("model_type", ["gpt2", "gemma2"])
def test_padding_columns_that_nobody_needs_are_not_read(model_type):
    """A part of a batch keeps the padding of the whole; greedy results are those of the part alone."""
    models = models_of(model_type)
    whole = prompt_batch(models, RAGGED)
    part = whole.rows(torch.tensor([1, 3]))
    alone = prompt_batch(models, [RAGGED[1], RAGGED[3]])
    assert part.input_ids.shape[1] > alone.input_ids.shape[1]
    first, second = (completions(FromStudent(GREEDY)(batch, models, STEP)) for batch in (part, alone))
    assert first == second


@pytest.mark.parametrize(("model_type", "copies"), [("llama", 1), ("qwen2", 3), ("gpt2", 1)])
def test_reading_prompts_of_similar_length_together_changes_nothing(model_type, copies, monkeypatch):
    models = models_of(model_type, eos_bias=EOS_BIAS[model_type])
    batch = prompt_batch(models, RAGGED + RAGGED[::-1])
    shapes = []
    sampling = Sampling(max_new_tokens=16, num_completions=copies)
    together = FromStudent(sampling)(batch, models, STEP)
    handle = models.student.model.base_model.register_forward_pre_hook(
        lambda _, __, kw: shapes.append(tuple(kw["input_ids"].shape)), with_kwargs=True
    )
    monkeypatch.setattr(decoding, "WORTH_A_PASS", 1)
    grouped = FromStudent(sampling)(batch, models, STEP)
    handle.remove()
    assert len({columns for _, columns in shapes}) > 2, "there should be several groups"
    assert sum(rows for rows, columns in shapes if columns > 1) == len(batch)
    assert torch.equal(grouped.input_ids, together.input_ids)
    assert torch.equal(grouped.prompt_rows, together.prompt_rows)
    assert torch.allclose(grouped.sampler_logp, together.sampler_logp, atol=1e-4)
    greedy = completions(FromStudent(GREEDY)(batch, models, STEP))
    assert greedy == generated(models, batch, 24)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=40).map(sorted))
def test_groups_of_similar_length_cover_all_rows_and_save_padding(lengths):
    sizes = decoding.prompt_group_sizes(lengths)
    assert sum(sizes) == len(lengths)
    assert min(sizes) > 0
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    read = sum(size * lengths[end - 1] for size, end in zip(sizes, ends, strict=True))
    assert read <= len(lengths) * lengths[-1] - (len(sizes) - 1) * decoding.WORTH_A_PASS


def test_the_models_generation_settings_and_global_generators_do_not_matter_to_transformers():
    models = models_of("llama", eos_bias=2.0)
    batch = prompt_batch(models, RAGGED)
    source = FromStudent(Sampling(max_new_tokens=12), Transformers())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    expected = source(batch, models, STEP)
    assert torch.equal(before, torch.get_rng_state())
    generation = models.student.model.generation_config
    generation.update(temperature=0.01, top_k=1, repetition_penalty=5.0, max_length=3, num_beams=2)
    torch.manual_seed(2)
    assert torch.equal(source(batch, models, STEP).input_ids, expected.input_ids)
    assert models.student.model.generation_config is generation
    assert not torch.equal(source(batch, models, Step(4, 10, 7)).input_ids, expected.input_ids)


@pytest.mark.parametrize("engine", [DecodeLoop(), Transformers()], ids=["loop", "transformers"])
def test_padding_rows_of_the_head_are_never_drawn(engine):
    models = load_models(RandomWeights("llama", DIMENSIONS["llama"] | {"vocab_size": 90}), None,
                         CharacterTokenizer(ALPHABET).load())  # fmt: skip
    sequences = FromStudent(Sampling(max_new_tokens=30), engine)(prompt_batch(models, RAGGED * 3), models, STEP)
    assert int(sequences.input_ids.max()) < models.student.vocab_size


def mamba():
    dimensions = {"vocab_size": len(ALPHABET) + 3, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4,
                  "initializer_range": 0.4}  # fmt: skip
    return load_models(RandomWeights("mamba", dimensions), None, CharacterTokenizer(ALPHABET).load())


def test_a_recurrent_model_falls_back_and_says_so_once():
    models = mamba()
    batch = prompt_batch(models, EVEN)
    with pytest.warns(UserWarning, match=r"MambaForCausalLM: it remembers a recurrent state.*engine: Transformers"):
        sequences = FromStudent(GREEDY)(batch, models, STEP)
    assert completions(sequences) == generated(models, batch, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = FromStudent(GREEDY)(batch, models, STEP)
    assert torch.equal(sequences.input_ids, again.input_ids)


def with_forward(models, wrap):
    """Gives the student's backbone another signature: `wrap(call)` makes its forward, `call` reads tokens."""
    backbone, forward = models.student.model.base_model, models.student.model.base_model.forward
    name = cache_keyword(models.student)

    def call(input_ids, attention_mask, position_ids, cache):
        given = {} if cache is None else {name: cache}
        return forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=True, **given
        )

    backbone.forward = wrap(call)
    return models


def named_cache(call):
    def forward(input_ids, attention_mask=None, position_ids=None, cache=None, use_cache=None):
        return call(input_ids, attention_mask, position_ids, cache)

    return forward


def named_past_key_values(call):
    def forward(input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        return call(input_ids, attention_mask, position_ids, past_key_values)

    return forward


def swallowing(name):
    def wrap(call):
        def forward(*_, **given):
            return call(given["input_ids"], given.get("attention_mask"), given.get("position_ids"), given.get(name))

        return forward

    return wrap


SPELLINGS = {
    "cache": named_cache,
    "past_key_values": named_past_key_values,
    "cache-swallowed": swallowing("cache"),
    "past_key_values-swallowed": swallowing("past_key_values"),
}


@pytest.mark.parametrize("wrap", SPELLINGS.values(), ids=SPELLINGS)
def test_whatever_a_forward_calls_its_cache_the_loop_runs_it(wrap):
    """transformers 5.24 renamed the argument; wrappers and adapters take any name and hand it on."""
    models = with_forward(models_of("llama", eos_bias=1.0), wrap)
    batch = prompt_batch(models, RAGGED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = FromStudent(GREEDY)(batch, models, STEP)
    expected = FromStudent(GREEDY)(batch, models_of("llama", eos_bias=1.0), STEP)
    assert torch.equal(ours.input_ids, expected.input_ids)
    assert not obstacle(models.student)
    assert len(TeacherMixed(0.5, GREEDY)(batch, replace(models, teacher=models.student), STEP)) == len(RAGGED)


@pytest.mark.parametrize(
    ("forgetful", "reason"),
    [
        (swallowing("memory"), "ignores"),
        (lambda call: lambda input_ids, use_cache=None: call(input_ids, None, None, None), "does not take a mask"),
        (lambda call: lambda **kw: swallowing("cache")(call)(**kw | {"attention_mask": None}), "otherwise than alone"),
    ],
    ids=["no-cache", "no-names", "no-mask"],
)
def test_a_model_that_cannot_do_what_the_loop_needs_falls_back(forgetful, reason):
    models = with_forward(models_of("llama"), forgetful)
    assert reason in obstacle(models.student)
    batch = prompt_batch(models, EVEN)
    source = FromStudent(Sampling(max_new_tokens=1))
    with pytest.warns(UserWarning, match=f"LlamaForCausalLM: .*{reason}"), suppress(TypeError):
        source(batch, models, STEP)  # `generate` hands a mask on, which one of them does not take
    with pytest.raises(ConfigurationError, match=reason):
        TeacherMixed()(batch, replace(models, teacher=models.student), STEP)


def test_mixing_token_by_token_needs_the_loop():
    recurrent, teacher = mamba(), tiny_models().teacher
    models = Models(recurrent.student, teacher, recurrent.tokenizer)
    with pytest.raises(ConfigurationError, match=r"cannot run MambaForCausalLM.*Use `Mixture`"):
        TeacherMixed()(prompt_batch(models, EVEN), models, STEP)


def test_teacher_mixed_rows_do_not_depend_on_dropping():
    """The mixture ends rows at different times; its log-probabilities are those of a teacher-forced mixture."""
    models = tiny_models()
    add_to_eos(models, 2.0)
    batch = prompt_batch(models, RAGGED * 4)
    sequences = TeacherMixed(0.4, Sampling(temperature=0.8, max_new_tokens=16))(batch, models, STEP)
    assert len({len(ids) for ids in completions(sequences)}) > 3
    logps = []
    for model in (models.teacher, models.student):
        with torch.no_grad():
            logits = model.eval()(sequences, lambda hidden, lm: lm.project(hidden)[0])
        logps.append((logits.double() / 0.8).log_softmax(-1).gather(1, sequences.token_ids()[:, None])[:, 0])
    mixture = torch.logaddexp(logps[0] + math.log(0.4), logps[1] + math.log(0.6))
    assert torch.allclose(mixture, sequences.sampled_logp()[sequences.predictions].double(), atol=1e-4)


def test_the_teacher_samples_by_the_engine_that_is_named():
    models = tiny_models()
    batch = prompt_batch(models, RAGGED)
    ours, theirs = (FromTeacher(GREEDY, engine)(batch, models, STEP) for engine in (DecodeLoop(), Transformers()))
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert not ours.on_policy.any()


def test_nan_is_an_error_and_not_a_token():
    models = models_of("llama")
    models.student.model.get_output_embeddings().weight.data.fill_(torch.nan)
    for engine in (DecodeLoop(), Transformers()):
        with pytest.raises((DataError, RuntimeError), match=r"NaN|nan"):
            FromStudent(Sampling(max_new_tokens=3), engine)(prompt_batch(models, EVEN), models, STEP)


def test_engines_are_values():
    assert {FromStudent(), FromStudent(engine=DecodeLoop()), FromStudent(engine=Transformers())} == {
        FromStudent(), FromStudent(engine=Transformers()),
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"DecodeLoop.drop_at"):
        DecodeLoop(1.5)


def test_an_engine_is_chosen_in_a_config(tmp_path):
    rollout = {"class_path": "FromStudent", "init_args": {"engine": {"class_path": "DecodeLoop",
                                                                     "init_args": {"drop_at": 0.5}}}}  # fmt: skip
    objective = {"class_path": "Veto", "init_args": {"rollout": rollout}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"model": {"objective": objective}}))
    result = python("-m", "veto_pl", "fit", "--config", "run.yaml", "--print_config", cwd=tmp_path)
    chosen = yaml.safe_load(result.stdout)["model"]["objective"]["init_args"]["rollout"]["init_args"]["engine"]
    assert chosen == {"class_path": "veto_pl.rollouts.DecodeLoop", "init_args": {"drop_at": 0.5, "capture": "auto"}}


DECODER = {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "init_std": 0.4}
OTHERS = {
    "bart": DECODER | {"pad_token_id": 0},
    "pegasus": DECODER | {"pad_token_id": 0},
    "rwkv": {"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16, "intermediate_size": 32},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.4},
}


@pytest.mark.parametrize("model_type", OTHERS)
def test_a_fallback_writes_the_same_beside_longer_prompts(model_type):
    """Some architectures count positions from the padding on, or let it into their state."""
    dimensions = OTHERS[model_type] | {"vocab_size": len(ALPHABET) + 3}
    models = load_models(RandomWeights(model_type, dimensions), None, CharacterTokenizer(ALPHABET).load())
    batch = prompt_batch(models, RAGGED)
    source = FromStudent(Sampling(temperature=0.0, max_new_tokens=8, num_completions=2))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        together = source(batch, models, STEP)
    told = any("writes other texts" in str(one.message) for one in said)
    assert told or model_type == "mamba"  # it reads masks since some version of transformers 5
    alone = [source(prompt_batch(models, [prompt]), models, STEP) for prompt in RAGGED]
    assert completions(together) == [row for one in alone for row in completions(one)]
    assert together.prompt_rows.tolist() == [row for row in range(len(RAGGED)) for _ in range(2)]
    assert model_type == "mamba" or len({tuple(row) for row in completions(together)}) > 1
    sampled = FromStudent(Sampling(max_new_tokens=8))(batch, models, STEP)
    with torch.no_grad():
        logits = models.student.eval()(sampled, lambda hidden, lm: lm.project(hidden)[0])
    forced = logits.log_softmax(-1).gather(1, sampled.token_ids()[:, None])[:, 0]
    assert torch.allclose(forced, sampled.sampled_logp()[sampled.predictions], atol=1e-3)
