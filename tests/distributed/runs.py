"""Small runs that ranks and single processes make alike."""

import json
import logging
import multiprocessing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.callbacks import ExtrapolationMonitor
from veto_pl.data import ExactMatch, JsonLines, PlainTemplate
from veto_pl.data.sampler import RankSampler
from veto_pl.models import CharacterTokenizer, Lora, MovingAverage, Pretrained, StudentBase
from veto_pl.models.sharding import full_weights
from veto_pl.objectives import (
    MADOPD,
    OPD,
    SFT,
    Distill,
    MiniLLM,
    Phases,
    SimCT,
    Sum,
    Veto,
)
from veto_pl.parts.advantages import FutureLogRatio
from veto_pl.parts.own_template import OwnTemplate
from veto_pl.parts.panels import Routed, Together
from veto_pl.rollouts import Debate, FromDataset, FromStudent, Mixture, Played, Sampling
from veto_pl.seams import Environment, Episode, Reply, RolloutSource
from veto_pl.testing.examples import first_examples
from veto_pl.testing.tiny import ALPHABET, tiny_source
from veto_pl.training.fsdp import FullyShard
from veto_pl.training.optimizer_groups import OptimizerGroups, ParameterGroup

WORDS = ["a", "bcdefgh", "ab", "ponm", "abcdefghij", "ccc", "de", "fghijkl", "ko", "p", "mnop", "ghi"] * 4
SAMPLING = Sampling(max_new_tokens=6)
SAMPLED = FromStudent(SAMPLING)


@dataclass(frozen=True)
class EvenOnly(RolloutSource):
    """Leaves nothing of every second row: the second of two ranks has no completion token, or no row at all."""

    source: RolloutSource
    drop: bool = False

    def __call__(self, prompts, models, step):
        sequences = self.source(prompts, models, step)
        even = prompts.numbers[sequences.prompt_rows] % 2 == 0
        if self.drop:
            return sequences.rows(even)
        return replace(sequences, loss_mask=sequences.loss_mask & even[:, None])


@dataclass(frozen=True)
class Garbled(RolloutSource):
    """Begins every second row with an id that stands for no text: of two ranks one shares no unit with its teacher."""

    source: RolloutSource

    def __call__(self, prompts, models, step):
        sequences = self.source(prompts, models, step)
        odd = prompts.numbers[sequences.prompt_rows] % 2 == 1
        first = sequences.completion_mask & (sequences.completion_mask.cumsum(1) == 1) & odd[:, None]
        return replace(sequences, input_ids=sequences.input_ids.masked_fill(first, models.tokenizer.unk_token_id))


@dataclass(frozen=True)
class Uneven(Environment):
    """Says much about every second row, and nothing about the others: of two ranks one has a turn, the other many."""

    def begin(self, example, seed):
        return Talking(example.prompt.removesuffix(">") in WORDS[1::2])


class Talking(Episode):
    def __init__(self, talks):
        self.talks = talks

    def reply(self, turn):
        return Reply(({"role": "user", "content": "no>"},) if self.talks else ())

    def reward(self):
        return float(self.talks)


FAMILY = first_examples(longest=6)
"""Every objective that is installed, by the name of its class."""
FOUR = FromStudent(Sampling(max_new_tokens=3, num_completions=4))
LETTERS = Sampling(max_new_tokens=6, num_completions=2, stop=tuple("acegikmo"))
TURNED = Sampling(temperature=0.0, max_new_tokens=6, stop=LETTERS.stop)
PLAYED = Played(Uneven(), LETTERS, max_turns=9, max_tokens=90)
OBJECTIVES = FAMILY | {
    "MiniLLM, not whitened": MiniLLM(sampling=SAMPLING, advantage=FutureLogRatio(whitened=False)),
    "SFT per sequence": SFT(aggregation="sequence"),
    "coin per sample": Distill(rollout=Mixture(SAMPLED, FromDataset(), coin="sample")),
    "sum": Sum(terms={"veto": Veto(rollout=SAMPLED), "sft": SFT()}, weights={"sft": 0.3}),
    "OPD, rewarded": OPD(rollout=FOUR, reward_weight=0.5),
    "episodes": OPD(rollout=PLAYED, reward_weight=0.5, aggregation="turn"),
    "phases": Phases(first=SFT(), then=OPD(rollout=SAMPLED), switch=0.5),
    "SFT, no token": SFT(rollout=EvenOnly(FromDataset())),
    "SFT, no row": SFT(rollout=EvenOnly(FromDataset(), drop=True)),
    "Veto, no token": Veto(rollout=EvenOnly(SAMPLED)),
    "Veto, no row": Veto(rollout=EvenOnly(SAMPLED, drop=True)),
}
ROUTES = {"to": "teacher", "half": "teacher"}, {"to": "other", "half": ""}
"""Which teacher the rows of each of two ranks name, where they are not shuffled."""
HINTED = replace(FAMILY["SDFT"], panel=Routed(column="to"))
DEBATE = Debate(
    sampling=Sampling(max_new_tokens=5), first="a>{state}", following="{debate}{state}", reading="{debate}b>{state}",
    entry="{text}>", keep_cut=True,
)  # fmt: skip
PANELS = {
    "routed": Veto(rollout=SAMPLED, panel=Routed(column="to")),
    "routed policy gradient": OPD(rollout=FOUR, reward_weight=0.5, panel=Routed(column="to")),
    "routed, hinted": HINTED,
    "half of the rows": Veto(rollout=SAMPLED, aggregation="sequence", panel=Routed(column="half", otherwise="leave")),
    "together": Distill(rollout=SAMPLED, panel=Together({"teacher": 0.3, "other": 0.7})),
    "mixture": Distill(rollout=SAMPLED, panel=Together({"teacher": 0.3, "other": 0.7}, combine="target")),
    "its own template": Distill(
        rollout=SAMPLED, panel=Routed(column="to"), context=OwnTemplate({"other": PlainTemplate("ab{prompt}")})
    ),
    "debate": MADOPD(rollout=SAMPLED, panel=DEBATE),
    "debate, no row": MADOPD(rollout=EvenOnly(SAMPLED, drop=True), panel=DEBATE),
    "debate, no token": MADOPD(rollout=EvenOnly(SAMPLED), panel=DEBATE, aggregation="token"),
    "debate of turns": MADOPD(rollout=PLAYED, panel=replace(DEBATE, rounds=1), aggregation="turn"),
    "one hot": Distill(rollout=SAMPLED, panel=Together({"teacher": 0.0, "other": 1.0})),
}
"""Objectives with two teachers, one of which a rank may not need."""
OBJECTIVES |= PANELS
STRANGERS = {
    "spread": OPD(rollout=FOUR, reward_weight=0.5),
    "units": SimCT(rollout=SAMPLED),
    "spread, no unit": OPD(rollout=Garbled(SAMPLED)),
    "units, no unit": SimCT(rollout=Garbled(SAMPLED)),
    "spread, adapter": OPD(rollout=SAMPLED),
}
"""Objectives whose teacher has another tokenizer."""
PANELS["spread, routed"] = OPD(rollout=SAMPLED, panel=Routed(column="to"))
OBJECTIVES |= STRANGERS | PANELS
LORA = Lora(tiny_source(), rank=2, dora=True, seed=3)
ADAPTED = {
    "adapter": (LORA, tiny_source(seed=1)),
    "adapter and its base": (LORA, StudentBase()),
    "adapter and its average": (LORA, MovingAverage(LORA, decay=0.5)),
}
"""Students with an adapter, and their teachers."""
MATRICES = ParameterGroup(dimensions=2, excluding="embed|lm_head", optimizer=partial(torch.optim.Muon, lr=0.02))
OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "Muon and AdamW": partial(OptimizerGroups, main=partial(torch.optim.AdamW, lr=0.01), groups=[MATRICES]),
    "fused AdamW": partial(torch.optim.AdamW, lr=0.01, fused=True),
}
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Curve(L.Callback):
    """Loss and gradient norm of every step."""

    def __init__(self):
        self.points = []
        self.step = 0

    def on_train_start(self, trainer, *args):
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self.points.append([float(trainer.callback_metrics[f"train/{name}"]) for name in ("loss", "grad_norm")])


class Dealt(PromptDataModule):
    """One process that reads, one after another, the micro-batches that two ranks read side by side."""

    def train_dataloader(self):
        rows = self._rows["train"]
        order = list(RankSampler(len(rows), seed=self.seed, shuffle=self.shuffle))
        size = self.batch_size
        windows = [order[i : i + 2 * size] for i in range(0, len(order), 2 * size)]
        batches = [window[rank::2] for window in windows for rank in range(2)]
        return DataLoader(rows, batch_sampler=batches, collate_fn=self.collator.pad)


def prepare(folder: str) -> None:
    """The rows, and a stored student and teacher."""
    rows = [{"prompt": f"{w}>", "completion": w[::-1], **ROUTES[place % 2]} for place, w in enumerate(WORDS)]
    Path(folder, "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for role, seed in (("student", 0), ("teacher", 1)):
        tiny_source("qwen2", seed).load().save_pretrained(Path(folder, role), max_shard_size="4KB")
        CharacterTokenizer(ALPHABET).load().save_pretrained(Path(folder, role))
    words = merging_letters()
    tiny_source("qwen2", 1, vocab_size=len(words.get_vocab()) + 2).load().save_pretrained(Path(folder, "stranger"))
    words.save_pretrained(Path(folder, "stranger"))


def merging_letters() -> PreTrainedTokenizerBase:
    """A tokenizer that has merged pairs of letters of the alphabet."""
    core = Tokenizer(BPE())
    core.pre_tokenizer, core.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    pairs = [one + other for one in ALPHABET[1:] for other in ALPHABET[1::3]]
    settings = {"vocab_size": 256 + 1 + len(pairs), "initial_alphabet": ByteLevel.alphabet(), "show_progress": False}
    core.train_from_iterator(pairs, BpeTrainer(special_tokens=["<eos>"], **settings))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", clean_up_tokenization_spaces=False)


def train(
    folder: str,
    objective: str,
    *,
    batch_size: int = 8,
    dealt: bool = False,
    shuffle: bool = True,
    source: str | dict[str, Any] = "llama",
    strategy: str = "auto",
    gather: tuple[bool, bool] = (True, False),
    watched: bool = False,
    rows: int | None = None,
    validated: int = 24,
    workers: int = 0,
    optimizer: str = "SGD",
    **trainer: Any,
) -> dict[str, Any]:
    """Four steps, with a validation after two; what they logged and the weights in the end."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    file = str(Path(folder, "rows.jsonl"))
    if workers:  # else each rank would start a server for them, which imports everything once more
        multiprocessing.set_start_method("fork", force=True)
    data = (Dealt if dealt else PromptDataModule)(
        JsonLines(train=file, validation=file, verifier=ExactMatch()),
        max_prompt_tokens=32,
        max_completion_tokens=32,
        batch_size=batch_size,
        validation_batch_size=24 if strategy == "auto" else 12,
        train_limit=rows,
        validation_limit=validated,
        shuffle=shuffle,
        num_workers=workers,
    )
    module = DistillationModule(
        OBJECTIVES[objective],
        *_sources(folder, source),
        tokenizer=CharacterTokenizer(ALPHABET),
        optimizer=OPTIMIZERS[optimizer],
        evaluation=TURNED if objective == "episodes" else Sampling(temperature=0.0, max_new_tokens=4),
        reference=tiny_source(seed=2) if OBJECTIVES[objective].needs_reference else None,
        roll_out_window="precision" not in trainer,  # on some processors bf16 rounds a larger batch otherwise
        teachers={"other": tiny_source(seed=5)} if objective in PANELS else None,
    )
    curve, monitor = Curve(), ExtrapolationMonitor(certain=0.01, prompts=100, action="cap")
    settings = {
        "max_steps": 4, "val_check_interval": 2 * trainer.get("accumulate_grad_batches", 1), "num_sanity_val_steps": 0,
        "use_distributed_sampler": False, "default_root_dir": folder, "accelerator": "cpu", "gradient_clip_val": 1.0,
        "strategy": FullyShard(*gather) if strategy == "fsdp2" else strategy,
        "callbacks": [curve, *([monitor] if watched else [])],
        "devices": 1 if strategy == "auto" else 2,
    }  # fmt: skip
    runner = L.Trainer(**(settings | QUIET | trainer))
    runner.fit(module, data)
    metrics = {name: float(value) for name, value in runner.callback_metrics.items()}
    weights = {name: weight.clone() for name, weight in full_weights(module.student).items()}
    bounds = {structure.token: structure.bound for structure in monitor.found}
    return {"curve": torch.tensor(curve.points), "weights": weights, "metrics": metrics, "bounds": bounds}


def train_all(folder: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One run after another, in the same processes."""
    return [train(folder, **case) for case in cases]


def _sources(folder: str, source: str | dict[str, Any]) -> tuple[Any, Any]:
    if source in ("stranger", "adapter and a stranger"):
        return tiny_source() if source == "stranger" else LORA, Pretrained(str(Path(folder, "stranger")))
    if source == "untied":
        return tiny_source(tie_word_embeddings=False), tiny_source(seed=1, tie_word_embeddings=False)
    if isinstance(source, str) and source in ADAPTED:
        return ADAPTED[source]
    if isinstance(source, str):
        return tiny_source(source), tiny_source(seed=1)
    return tuple(Pretrained(str(Path(folder, role)), **source) for role in ("student", "teacher"))
