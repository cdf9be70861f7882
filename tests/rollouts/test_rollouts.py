"""Who writes, and how tokens are drawn."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.divergences import log_mixture
from veto_pl.parts.schedules import Linear
from veto_pl.rollouts import FromDataset, FromStudent, FromTeacher, Mixture, Sampling, TeacherMixed, Transformers
from veto_pl.seams import Example, Step, Task
from veto_pl.testing.tiny import prompt_batch, tiny_models

STEP = Step(index=3, total=10, seed=7)
PROMPTS = ["abc>", "a>", "hgfedcba>", "pp>"]


def sampled_counts(source, models, draws=6000):
    """How often each first token was drawn after one prompt."""
    batch = prompt_batch(models, ["abc>"] * draws)
    sequences = source(batch, models, STEP)
    first = sequences.input_ids[:, batch.input_ids.shape[1]]
    return torch.bincount(first, minlength=models.student.vocab_size).double() / draws, sequences


def next_logp(model, batch):
    """The model's distribution after the prompt, by its plain forward pass."""
    with torch.no_grad():
        logits = model.model.eval()(batch.input_ids, attention_mask=batch.attention_mask.long()).logits[:, -1]
    return logits[..., : model.vocab_size].double().log_softmax(-1)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=1),
        Sampling(temperature=0.5, max_new_tokens=1),
        Sampling(temperature=2.0, top_k=3, max_new_tokens=1),
        Sampling(top_p=0.6, max_new_tokens=1),
    ],
)
def test_sampled_tokens_follow_the_shaped_distribution(sampling):
    models = tiny_models()
    frequency, _ = sampled_counts(FromStudent(sampling), models)
    logp = next_logp(models.student, prompt_batch(models, ["abc>"]))[0]
    probability = (logp / sampling.temperature).softmax(-1)
    if sampling.top_k:
        probability[probability.argsort(descending=True)[sampling.top_k :]] = 0
    if sampling.top_p < 1:
        order = probability.argsort(descending=True)
        reached = probability[order].cumsum(0)
        cut = int((reached < sampling.top_p).sum()) + 1
        probability[order[cut:]] = 0
    probability /= probability.sum()
    assert (frequency[probability == 0] == 0).all()
    deviation = (probability * (1 - probability) / 6000).sqrt()
    assert ((frequency - probability).abs() <= 5 * deviation + 1e-12).all()


def test_teacher_mixed_tokens_follow_the_mixture():
    models = tiny_models()
    frequency, sequences = sampled_counts(TeacherMixed(0.3, Sampling(max_new_tokens=1)), models)
    batch = prompt_batch(models, ["abc>"])
    mixture = log_mixture(next_logp(models.teacher, batch), next_logp(models.student, batch), 0.3)[0]
    deviation = (mixture.exp() * (1 - mixture.exp()) / 6000).sqrt()
    assert ((frequency - mixture.exp()).abs() <= 5 * deviation).all()
    drawn = sequences.input_ids[:, batch.input_ids.shape[1]]
    assert torch.allclose(sequences.sampler_logp[:, -1].double(), mixture[drawn], atol=1e-5)


def test_the_samplers_log_probabilities_are_those_of_a_forward_pass():
    models = tiny_models()
    sampling = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=6)
    sequences = FromStudent(sampling)(prompt_batch(models, PROMPTS), models, STEP)
    model = models.student.eval()
    logits = model(sequences, lambda hidden, lm: lm.project(hidden)[0])
    shaped = sampling.shape(logits.log_softmax(-1)).gather(1, sequences.token_ids()[:, None])[:, 0]
    assert torch.allclose(shaped, sequences.sampled_logp()[sequences.predictions], atol=1e-4)
    assert (sequences.sampler_logp[~sequences.loss_mask] == 0).all()


def test_completions_of_a_prompt_stand_together_and_differ():
    models = tiny_models()
    sequences = FromStudent(Sampling(max_new_tokens=8, num_completions=5))(prompt_batch(models, PROMPTS), models, STEP)
    assert sequences.prompt_rows.tolist() == [row for row in range(4) for _ in range(5)]
    texts = {tuple(ids.tolist()) for ids in sequences.completions()[:5]}
    assert len(texts) > 1
    assert sequences.on_policy.all()


@dataclass(frozen=True)
class Ending(Task):
    """Ends where `text` is complete, and judges all completions at once."""

    text: str

    def load(self, split):
        return []

    def reward(self, example, completion):
        raise AssertionError("completions are judged together")

    def rewards(self, examples, completions):
        return [float(example.prompt in text) for example, text in zip(examples, completions, strict=True)]

    @property
    def stop(self):
        return (self.text,)


@pytest.mark.parametrize("source", [FromStudent, FromTeacher, TeacherMixed])
def test_a_task_names_stop_strings_beside_those_of_the_sampling(source):
    models = tiny_models()
    batch = prompt_batch(models, PROMPTS * 4)
    free = source(sampling=Sampling(max_new_tokens=10))(batch, models, STEP)
    texts = models.tokenizer.batch_decode(free.completions(), skip_special_tokens=True)
    first, second = (next(text[i : i + 2] for text in texts if len(text) > 6) for i in (1, 3))
    asked = Sampling(max_new_tokens=10, stop=(first,))
    both = source(sampling=replace(asked, stop=(first, second)))(batch, models, STEP)
    told = source(sampling=asked)(replace(batch, task=Ending(second)), models, STEP)
    assert torch.equal(both.input_ids, told.input_ids)
    assert torch.equal(both.loss_mask, told.loss_mask)
    assert not torch.equal(free.loss_mask, told.loss_mask)


def test_completions_are_judged_together():
    examples = tuple(Example(text) for text in ("a", "b"))
    batch = replace(prompt_batch(tiny_models(), PROMPTS[:2]), task=Ending("x"), examples=examples)
    assert batch.score(["ab", "ab", "cc"], [0, 1, 1]) == [1.0, 1.0, 0.0]


def test_a_stop_string_ends_a_completion():
    models = tiny_models()
    batch = prompt_batch(models, PROMPTS * 8)
    free = FromStudent(Sampling(max_new_tokens=10))(batch, models, STEP)
    texts = models.tokenizer.batch_decode(free.completions(), skip_special_tokens=True)
    stop = next(text[2:4] for text in texts if len(text) > 6)
    stopped = FromStudent(Sampling(max_new_tokens=10, stop=(stop,)))(batch, models, STEP)
    after = models.tokenizer.batch_decode(stopped.completions(), skip_special_tokens=True)
    assert any(text.endswith(stop) for text in after)
    assert all(text.find(stop) in (-1, len(text) - len(stop)) for text in after)


def test_sampling_leaves_modes_and_global_generators_alone():
    models = tiny_models()
    models.student.train()
    models.student.model.base_model.layers[0].eval()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    FromStudent(Sampling(max_new_tokens=4))(prompt_batch(models, PROMPTS), models, STEP)
    assert torch.equal(before, torch.get_rng_state())
    assert models.student.training
    assert not models.student.model.base_model.layers[0].training


def test_dropout_is_off_while_sampling():
    models = tiny_models(attention_dropout=0.9)
    models.student.train()
    batch = prompt_batch(models, PROMPTS)
    source = FromStudent(Sampling(temperature=0.0, max_new_tokens=8))
    first, second = source(batch, models, Step(0, 1)), source(batch, models, Step(1, 1))
    assert torch.equal(first.input_ids, second.input_ids)


def written(source, batch, models, step):
    return [tuple(ids.tolist()) for ids in source(batch, models, step).completions()]


def test_draws_depend_on_seed_and_step_and_not_on_the_rank_or_the_micro_batch():
    models = tiny_models()
    batch = prompt_batch(models, PROMPTS * 4)
    source = FromStudent(Sampling(max_new_tokens=8))
    drawn = written(source, batch, models, STEP)
    assert (
        len({tuple(drawn), *(tuple(written(source, batch, models, s)) for s in (Step(4, 10, 7), Step(3, 10, 8)))}) == 3
    )
    for same in (STEP, Step(3, 10, 7, rank=1), Step(3, 10, 7, micro=1)):
        assert written(source, batch, models, same) == drawn


def test_a_row_draws_the_same_in_every_batch_that_holds_it():
    """Other ranks and other micro-batches are other batches."""
    models = tiny_models()
    batch = prompt_batch(models, PROMPTS * 4)
    for source in (
        FromStudent(Sampling(max_new_tokens=8, num_completions=2)),
        TeacherMixed(0.4, Sampling(max_new_tokens=8)),
    ):
        whole = written(source, batch, models, STEP)
        copies = len(whole) // len(batch)
        for part in (torch.arange(1, len(batch), 2), torch.arange(4).flip(0), torch.tensor([5])):
            alone = written(source, batch.rows(part), models, STEP)
            assert alone == [whole[int(row) * copies + copy] for row in part for copy in range(copies)]


@pytest.mark.parametrize("source", [FromStudent(), FromStudent(engine=Transformers()), TeacherMixed(), FromDataset()])
def test_no_prompt_gives_no_row(source):
    models = tiny_models()
    nothing = prompt_batch(models, ["ab>"], ["ba"]).rows(torch.tensor([], dtype=torch.int64))
    assert len(source(nothing, models, STEP)) == 0
    assert len(Mixture(source, FromDataset(), coin="sample")(nothing, models, STEP)) == 0


@pytest.mark.parametrize("coin", ["batch", "sample"])
def test_a_mixture_tosses_the_same_coins_on_every_rank_and_has_the_right_share(coin):
    models = tiny_models()
    batch = prompt_batch(models, ["ab>"] * 8, ["ba"] * 8)
    source = Mixture(FromTeacher(Sampling(max_new_tokens=2)), FromDataset(), fraction=0.3, coin=coin)
    share = []
    for index in range(120):
        choices = [source._toss(batch, 0.3, Step(index, 120, rank=rank, micro=rank)) for rank in range(2)]
        assert torch.equal(*choices)
        if coin == "sample":
            assert torch.equal(
                source._toss(batch.rows(torch.tensor([6, 1])), 0.3, Step(index, 120)), choices[0][[6, 1]]
            )
        share.append(choices[0].double().mean())
    deviation = math.sqrt(0.3 * 0.7 / (120 if coin == "batch" else 960))
    assert abs(torch.stack(share).mean() - 0.3) < 4 * deviation
    assert source(batch, models, STEP).prompt_rows.tolist() == list(range(8))


def test_a_mixture_inside_a_mixture_tosses_its_own_coins():
    models = tiny_models()
    batch = prompt_batch(models, ["ab>"] * 32, ["ba"] * 32)
    written = [FromTeacher(Sampling(max_new_tokens=1)), FromDataset(), FromStudent(Sampling(max_new_tokens=3))]
    for coin in ("sample", "batch"):
        source = Mixture(Mixture(written[0], written[1], coin=coin), written[2], coin=coin)
        seen = set()
        for index in range(12):
            rows = source(batch, models, Step(index, 12))
            seen |= {(bool(own), int(mask.sum()) > 1) for own, mask in zip(rows.on_policy, rows.loss_mask, strict=True)}
        assert {(False, False), (False, True)} <= seen, "the teacher's one token, and the reference's three"
        assert any(own for own, _ in seen)


def test_a_mixture_keeps_prompts_and_completions_together():
    models = tiny_models()
    batch = prompt_batch(models, ["a>", "bc>", "def>", "g>"], ["p", "cb", "fed", None])
    student = FromStudent(Sampling(max_new_tokens=5, num_completions=2))
    for index in range(6):
        mixed = Mixture(student, FromDataset(), coin="sample")(batch, models, Step(index, 6))
        assert mixed.prompts is batch
        prompts = mixed.attention_mask & ~mixed.loss_mask
        columns = (mixed.prompt_rows.tolist(), mixed.on_policy.tolist(), mixed.input_ids, prompts)
        for row, on_policy, ids, mask in zip(*columns, strict=True):
            assert models.tokenizer.decode(ids[mask]) == batch.examples[row].prompt
            if not on_policy and batch.examples[row].completion:
                assert batch.examples[row].completion in models.tokenizer.decode(ids)


def test_fractions_follow_schedules_and_ends_are_pure():
    models = tiny_models()
    batch = prompt_batch(models, ["ab>"] * 4, ["ba"] * 4)
    source = Mixture(FromStudent(Sampling(max_new_tokens=2)), FromDataset(), fraction=Linear(1.0, 0.0))
    assert source(batch, models, Step(0, 10)).on_policy.all()
    assert not source(batch, models, Step(10, 10)).on_policy.any()
    pure = TeacherMixed(0.0, Sampling(max_new_tokens=6))(batch, models, STEP)
    assert torch.equal(pure.input_ids, FromStudent(Sampling(max_new_tokens=6))(batch, models, STEP).input_ids)


def test_reference_completions_count_up_to_eos():
    models = tiny_models()
    sequences = FromDataset()(prompt_batch(models, ["abc>", "a>"], ["cba", None]), models, STEP)
    eos = models.tokenizer.eos_token_id
    assert [ids.tolist() for ids in sequences.completions()] == [[*models.tokenizer("cba")["input_ids"], eos], []]
    # The first completion token is predicted at the last prompt position.
    assert sequences.predictions[0].nonzero()[0].item() == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "be at least 0"),
        ({"top_p": 1.5}, "lie in"),
        ({"top_k": -1}, "be at least 0"),
        ({"max_new_tokens": 0}, "be at least 1"),
        ({"num_completions": 0}, "be at least 1"),
        ({"stop": ("",)}, "hold no empty string"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Sampling(**settings)
