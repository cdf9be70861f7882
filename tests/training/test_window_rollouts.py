"""An accumulation window that is rolled out as one batch: the rows and updates of micro-batch by micro-batch."""

import json
from dataclasses import replace

import lightning as L
import pytest
import torch

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.core.memory import remembers
from veto_pl.data import ExactMatch, JsonLines
from veto_pl.models import CharacterTokenizer
from veto_pl.objectives import Distill, UniOPD, Veto
from veto_pl.rollouts import FromStudent, Mixture, Replay, Sampling, TeacherMixed
from veto_pl.rollouts.engines import DecodeLoop
from veto_pl.seams import Models, PromptBatch, RolloutSource, Step
from veto_pl.testing.examples import installed
from veto_pl.testing.rows import difference, tiny_prompts
from veto_pl.testing.tiny import ALPHABET, tiny_models, tiny_source
from veto_pl.training.window_rollouts import WindowRollouts

WORDS = ["a", "bcdefgh", "ab", "ponm", "abcdefghij", "ccc", "de", "fghijkl", "mm", "lkji"]
SAMPLED = FromStudent(Sampling(max_new_tokens=5))
ROW_BY_ROW = [source for source in installed(RolloutSource) if not remembers(source)]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{w}>", "completion": w[::-1]}) + "\n" for w in WORDS))
    return str(path)


class Watch(L.Callback):
    """Notes the rows of each micro-batch, and how many prompts each rollout had."""

    def __init__(self, monkeypatch):
        self.rows, self.sizes = [], []
        write, generate = WindowRollouts.write, DecodeLoop.generate

        def writing(*given):
            written = write(*given)
            self.rows += [(sequences, sequences.prompts is given[2]) for sequences in written.values()]
            return written

        def generating(engine, prompts, *given, **named):
            self.sizes.append(len(prompts))
            return generate(engine, prompts, *given, **named)

        monkeypatch.setattr(WindowRollouts, "write", writing)
        monkeypatch.setattr(DecodeLoop, "generate", generating)


def fit(objective, rows, tmp_path, monkeypatch, *, at_once, **trainer):
    with monkeypatch.context() as patched:
        seen = Watch(patched)
        module = DistillationModule(
            objective,
            tiny_source(),
            teacher=tiny_source(seed=1),
            tokenizer=CharacterTokenizer(ALPHABET),
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            roll_out_window=at_once,
        )
        task = JsonLines(train=rows, validation=rows, verifier=ExactMatch())
        settings = {"max_steps": 3, "limit_val_batches": 0, "accumulate_grad_batches": 2, "num_sanity_val_steps": 0}
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        runner = L.Trainer(
            accelerator="cpu", use_distributed_sampler=False, default_root_dir=tmp_path, **settings | quiet | trainer
        )
        runner.fit(module, PromptDataModule(task, batch_size=2, max_prompt_tokens=32, max_completion_tokens=32))
    return module, seen


OBJECTIVES = {
    "veto": Veto(rollout=SAMPLED),
    "a coin for each prompt": Distill(rollout=Mixture(SAMPLED, coin="sample")),
    "two writers": Distill(rollout=TeacherMixed(0.5, Sampling(max_new_tokens=4, num_completions=2))),
    "rewards": UniOPD(rollout=FromStudent(Sampling(max_new_tokens=4, num_completions=2))),
    "a memory": Distill(rollout=Replay(SAMPLED)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_window_at_once_is_the_run_of_micro_batch_by_micro_batch(name, rows, tmp_path, monkeypatch):
    """Ten prompts in batches of two, two a step: the third window has one batch only."""
    (one, at_once), (other, in_turn) = (
        fit(OBJECTIVES[name], rows, tmp_path, monkeypatch, at_once=at_once) for at_once in (True, False)
    )
    assert len(at_once.rows) == len(in_turn.rows) == 5
    for (a, own), (b, _) in zip(at_once.rows, in_turn.rows, strict=True):
        assert own or name == "a memory"
        assert not difference(a, b)
    for a, b in zip(one.student.parameters(), other.student.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_prompts_of_a_window_are_written_together(rows, tmp_path, monkeypatch):
    assert fit(OBJECTIVES["veto"], rows, tmp_path, monkeypatch, at_once=True)[1].sizes == [4, 4, 2]
    assert fit(OBJECTIVES["veto"], rows, tmp_path, monkeypatch, at_once=False)[1].sizes == [2] * 5
    assert set(fit(OBJECTIVES["a memory"], rows, tmp_path, monkeypatch, at_once=True)[1].sizes) == {2}


def test_what_was_written_for_batches_that_do_not_come_is_forgotten(rows, tmp_path, monkeypatch):
    """Three batches an epoch: the second window ends after one, though the loader has two."""
    trained = [
        fit(OBJECTIVES["veto"], rows, tmp_path, monkeypatch, at_once=at_once, limit_train_batches=3, max_steps=4)
        for at_once in (True, False)
    ]
    assert trained[0][1].sizes == [4, 4, 4, 4]
    for a, b in zip(*(module.student.parameters() for module, _ in trained), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("read", [0, 1, 3])
def test_a_run_goes_on_with_what_its_window_has_left(read, rows):
    data = PromptDataModule(JsonLines(train=rows), batch_size=2)
    data.connect(CharacterTokenizer(ALPHABET).load())
    data.setup("fit")
    loader = data.train_dataloader()
    data.start_at(0, 2 * read)
    loader.window = lambda done: 2 - (read + done) % 2
    expected = [(batch % 2 == 0) and batch < 4 for batch in range(read, 5)]
    assert [len(batch.following) for batch in loader] == list(map(int, expected))


@pytest.mark.parametrize("source", ROW_BY_ROW, ids=lambda source: type(source).__name__)
def test_each_source_writes_ahead_what_it_writes_in_turn(source):
    models, step = tiny_models("gpt2"), Step(3, 10)
    whole = tiny_prompts(models)
    parts = [whole.rows(torch.tensor(index)) for index in ([0, 1], [2], [3])]
    written = WindowRollouts(at_once=True)
    for i, part in enumerate(parts):
        batch = replace(part, following=tuple(parts[i + 1 :]))
        (ahead,) = written.write([source], batch, models, step).values()
        in_turn = source(part, models, step)
        assert not difference(ahead, in_turn)
        assert ahead.prompts is batch
        assert ahead.prompt_rows.tolist() == in_turn.prompt_rows.tolist()
        assert torch.equal(ahead.completion_mask.sum(1), in_turn.completion_mask.sum(1))


def test_batches_are_stacked_as_one_collated_batch_would_be():
    models: Models = tiny_models("gpt2")
    whole = tiny_prompts(models)
    parts = [whole.rows(torch.tensor([row])) for row in range(len(whole))]
    shown = [part.attention_mask[0] for part in parts]
    narrow = [
        replace(part, input_ids=part.input_ids[:, mask], attention_mask=part.attention_mask[:, mask])
        for part, mask in zip(parts, shown, strict=True)
    ]
    stacked = PromptBatch.concatenate(narrow)
    for name in ("input_ids", "attention_mask", "completion_ids", "completion_mask", "numbers"):
        assert torch.equal(getattr(stacked, name), getattr(whole, name)), name
    assert stacked.examples == whole.examples
