import re
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from veto_pl.data import ChatTemplate, PlainTemplate, PromptDataModule
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Example, PromptBatch, Task


@dataclass(frozen=True)
class Numbers(Task):
    """Prompts `a`, `aa`, ... and their lengths."""

    train: int = 10
    validation: int = 5
    test: int = 0

    def load(self, split):
        return [Example("a" * (i + 1), str(i)) for i in range(getattr(self, split))]

    def reward(self, example, completion):
        return float(completion == example.completion)


def connected(tokenizer, stage="fit", task=None, world=None, **options):
    data = PromptDataModule(task or Numbers(), **{"batch_size": 4} | options)
    if world is not None:
        rank, size = world
        settings = {"limit_train_batches": 1.0, "limit_val_batches": 1.0, "check_val_every_n_epoch": 1}
        settings["strategy"] = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=size, lightning_module=None, **settings)
    data.connect(tokenizer)
    data.setup(stage)
    return data


def seen(loader):
    return [int(example.completion) for batch in loader for example in batch.examples]


def test_batches_carry_the_task_and_score(tokenizer):
    data = connected(tokenizer, shuffle=False)
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, PromptBatch)
    assert batch.input_ids.shape == (4, 4)
    assert batch.score(["0", "7", "2"], [0, 1, 2]) == [1.0, 0.0, 1.0]


def test_training_is_shuffled_by_epoch_and_every_row_is_seen(tokenizer):
    loader = connected(tokenizer).train_dataloader()
    epochs = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        epochs.append(seen(loader))
    assert len(loader) == 3
    assert all(sorted(order) == list(range(10)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3
    assert seen(connected(tokenizer).train_dataloader()) == epochs[0]
    assert seen(connected(tokenizer, shuffle=False).train_dataloader()) == list(range(10))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_train_on_equal_disjoint_shares_and_validate_on_everything(tokenizer, size):
    ranks = [connected(tokenizer, world=(rank, size)) for rank in range(size)]
    trained = [seen(data.train_dataloader()) for data in ranks]
    assert {len(share) for share in trained} == {10 // size}
    order = seen(connected(tokenizer).train_dataloader())
    assert [row for rounds in zip(*trained, strict=True) for row in rounds] == order[: 10 - 10 % size]
    validated = [data.val_dataloader() for data in ranks]
    assert sorted(chain(*(seen(loader) for loader in validated))) == list(range(5))
    assert len({len(loader) for loader in validated}) == 1


def test_fewer_training_rows_than_ranks_are_refused(tokenizer):
    with pytest.raises(DataError, match=r"10 training rows, .* 11 ranks"):
        connected(tokenizer, world=(0, 11)).train_dataloader()


def test_test_and_predict_read_the_test_split_or_else_validation(tokenizer):
    own, borrowed = (connected(tokenizer, "test", Numbers(test=rows)) for rows in (7, 0))
    assert seen(own.test_dataloader()) == seen(own.predict_dataloader()) == list(range(7))
    assert seen(borrowed.test_dataloader()) == list(range(5))


def test_limits_take_the_first_rows(tokenizer):
    data = connected(tokenizer, train_limit=3, validation_limit=2)
    assert sorted(seen(data.train_dataloader())) == [0, 1, 2]
    assert seen(data.val_dataloader()) == [0, 1]
    assert seen(connected(tokenizer, "predict", validation_limit=2).predict_dataloader()) == [0, 1]


def test_validation_has_its_own_batch_size(tokenizer):
    data = connected(tokenizer, validation_batch_size=2)
    assert [len(batch) for batch in data.val_dataloader()] == [2, 2, 1]
    assert [len(batch) for batch in connected(tokenizer).val_dataloader()] == [4, 1]


def test_a_task_without_validation_rows_turns_validation_off(tokenizer):
    assert connected(tokenizer, task=Numbers(validation=0)).val_dataloader() == []


@pytest.mark.parametrize(("stage", "task"), [("fit", Numbers(train=0)), ("test", Numbers(validation=0))])
def test_a_split_without_rows_is_refused(tokenizer, stage, task):
    with pytest.raises(DataError, match="no rows for the split"):
        connected(tokenizer, stage, task)


def test_overlong_prompts_are_dropped_and_counted(tokenizer):
    with pytest.warns(UserWarning, match=r"3 of 10 prompts \(train\) exceed max_prompt_tokens=7: dropped"):
        data = connected(tokenizer, max_prompt_tokens=7)
    assert sorted(seen(data.train_dataloader())) == list(range(7))


@pytest.mark.filterwarnings("ignore:4 of 5 prompts .validation.")
def test_overlong_prompts_keep_their_last_tokens(tokenizer):
    options = {"overlong": "truncate_left", "max_prompt_tokens": 2, "template": PlainTemplate(format="{prompt}>")}
    with pytest.warns(UserWarning, match=r"9 of 10 prompts \(train\) exceed max_prompt_tokens=2"):
        data = connected(tokenizer, **options)
    last = tokenizer.convert_tokens_to_ids(["a", ">"])
    assert all(row == last for batch in data.train_dataloader() for row in batch.input_ids.tolist())


def test_overlong_prompts_can_be_an_error(tokenizer):
    with pytest.raises(DataError, match=r"3 of 10 prompts \(train\) exceed max_prompt_tokens=7, the longest has 10"):
        connected(tokenizer, max_prompt_tokens=7, overlong="error")


def test_dropping_every_row_is_an_error(tokenizer):
    template = PlainTemplate(format="{prompt}>>>")
    with pytest.raises(DataError, match=r"10 of 10 prompts"):
        connected(tokenizer, max_prompt_tokens=3, template=template)


def test_fitting_prompts_are_silent(tokenizer, recwarn):
    connected(tokenizer, max_prompt_tokens=10)
    assert [str(w.message) for w in recwarn] == []


def test_without_a_tokenizer_the_remedy_is_named():
    with pytest.raises(ConfigurationError, match=r"`tokenizer` on the Lightning module.*`connect`"):
        PromptDataModule(Numbers()).setup("fit")


def test_connecting_another_tokenizer_tokenises_anew(tokenizer, make_tokenizer):
    data = connected(tokenizer)
    other = make_tokenizer()
    other.chat_template = "{{ messages[0].content }}="
    data.template = ChatTemplate()
    data.connect(other)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).input_ids[0, -1] == other.convert_tokens_to_ids("=")


def test_rows_are_tokenised_once(tokenizer, monkeypatch):
    data = connected(tokenizer)
    monkeypatch.setattr(Numbers, "load", lambda *_: pytest.fail("loaded again"))
    data.setup("fit")
    data.setup("validate")
    assert seen(data.val_dataloader()) == list(range(5))


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"validation_batch_size": 0}, {"max_prompt_tokens": 0}, {"max_completion_tokens": 0},
     {"train_limit": 0}, {"validation_limit": -1}, {"num_workers": -1}],
)  # fmt: skip
def test_sizes_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=re.escape(f"`PromptDataModule.{name}` must be")):
        PromptDataModule(Numbers(), **wrong)


def test_loading_does_not_touch_the_global_generator(tokenizer):
    data = connected(tokenizer)
    before = torch.random.get_rng_state()
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert torch.equal(before, torch.random.get_rng_state())


def test_loader_processes_see_the_same_batches(tokenizer):
    alone, helped = (connected(tokenizer, num_workers=n).train_dataloader() for n in (0, 1))
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert one.examples == other.examples


class Recorder(LightningModule):
    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.rows = {"train": [], "validation": [], "predict": []}

    def _note(self, kind, batch):
        self.rows[kind].append([int(example.completion) for example in batch.examples])

    def training_step(self, batch, _):
        self._note("train", batch)
        return self.weight * batch.input_ids.sum()

    def validation_step(self, batch, _):
        self._note("validation", batch)

    def predict_step(self, batch, _):
        self._note("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_takes_the_modules_tokenizer_and_sets_the_epoch(tokenizer, tmp_path):
    module, data = Recorder(tokenizer), PromptDataModule(Numbers(), batch_size=5)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", max_epochs=2, num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet)
    trainer.fit(module, data)
    trainer.predict(module, data)
    first, second = (list(chain(*module.rows["train"][i : i + 2])) for i in (0, 2))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert module.rows["validation"] == [list(range(5))] * 2
    assert module.rows["predict"] == [list(range(5))]
