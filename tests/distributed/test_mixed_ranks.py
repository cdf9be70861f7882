"""A mixture of conversations and single prompts: two ranks and one process log the same, for each set as well."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.data import Chat, ChatTemplate, DataSet, ExactMatch, Mixed, PlainTemplate, Rows
from veto_pl.models import CharacterTokenizer
from veto_pl.objectives import SupervisedKD
from veto_pl.rollouts import Sampling
from veto_pl.testing.ranks import run_ranks
from veto_pl.testing.tiny import ALPHABET, tiny_source

WORDS = ["a", "bcde", "ab", "ponm", "abcdef", "ccc", "de", "fgh", "ko", "p", "mnop", "ghi"]
TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else '>' }}{% endfor %}"
    "{% if add_generation_prompt %}{% endif %}"
)
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def write(folder):
    def said(*words):
        return [m for w in words for m in ({"role": "user", "content": w}, {"role": "assistant", "content": w[::-1]})]

    talk = [{"messages": said(a, b)} for a, b in zip(WORDS[:6], WORDS[6:], strict=True)]
    single = [{"prompt": f"{w}>", "completion": w[::-1]} for w in WORDS]
    for name, rows in (("talk", talk), ("words", single)):
        Path(folder, f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def task_of(folder):
    talk, words = (str(Path(folder, f"{name}.jsonl")) for name in ("talk", "words"))
    rows = Rows(train=words, validation=words, verifier=ExactMatch())
    chat = Chat(train=talk, validation=talk, turns="together", verifier=ExactMatch())
    return Mixed(sets={
        "words": DataSet(task=rows, weight=1.0, template=PlainTemplate()),
        "talk": DataSet(task=chat, weight=2.0),
    })  # fmt: skip


class Losses(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *args):
        self.seen.append([float(trainer.callback_metrics[f"train/{name}"]) for name in ("loss", "grad_norm")])


def train(folder, ranks=1):
    data = PromptDataModule(
        task_of(folder),
        ChatTemplate(template=TEMPLATE),
        batch_size=8 // ranks,
        validation_batch_size=24 // ranks,
        max_prompt_tokens=32,
        max_completion_tokens=32,
    )
    module = DistillationModule(
        SupervisedKD(), tiny_source(), tiny_source(seed=1), tokenizer=CharacterTokenizer(ALPHABET),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        evaluation=Sampling(temperature=0.0, max_new_tokens=4),
    )  # fmt: skip
    losses = Losses()
    trainer = L.Trainer(
        max_steps=4, val_check_interval=2, num_sanity_val_steps=0, use_distributed_sampler=False, accelerator="cpu",
        default_root_dir=folder, gradient_clip_val=1.0, strategy="ddp" if ranks > 1 else "auto", devices=ranks,
        callbacks=[losses], **QUIET,
    )  # fmt: skip
    trainer.fit(module, data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("validation/")}
    return {"losses": torch.tensor(losses.seen), "metrics": metrics}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("mixed"))
    write(folder)
    return folder, train(folder)


def test_each_set_is_measured_by_itself(one):
    metrics = one[1]["metrics"]
    assert {"validation/accuracy", "validation/words/accuracy", "validation/talk/accuracy"} <= metrics.keys()
    assert metrics["validation/words/reverse_kl"] != metrics["validation/talk/reverse_kl"]
    for name in ("mean_reward", "eos_rate"):  # means over completions, of which both sets have twelve
        whole, *parts = (metrics[f"validation/{source}{name}"] for source in ("", "words/", "talk/"))
        assert whole == pytest.approx(sum(parts) / 2)


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_two_ranks_log_what_one_process_logs(one):
    folder, alone = one
    for rank in run_ranks(train, 2, folder, 2):
        torch.testing.assert_close(rank["losses"], alone["losses"], rtol=1e-5, atol=1e-6)
        assert rank["metrics"] == pytest.approx(alone["metrics"], rel=1e-5, abs=1e-6)
