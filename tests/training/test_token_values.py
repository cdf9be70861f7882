"""Values of each token: metrics see the ids that were written, and callbacks what was found at each, if they ask."""

import json

import lightning as L
import pytest
import torch

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.data import JsonLines
from veto_pl.functional.divergences import reverse_kl
from veto_pl.metrics import ReverseKL, StudentEntropy, TokenMetric
from veto_pl.models import CharacterTokenizer
from veto_pl.objectives import OPD, SFT, Distill, Sum
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Step
from veto_pl.testing.tiny import ALPHABET, prompt_batch, tiny_models, tiny_source
from veto_pl.training.evaluation import Evaluation

FOUR = Sampling(max_new_tokens=4)


class Rank(TokenMetric):
    """The rank of the written token under the teacher."""

    name, needs_ids = "rank", True

    def per_token(self, student_logp, teacher_logp, token_ids):
        return 1 + (teacher_logp > teacher_logp.gather(1, token_ids[:, None])).sum(1)


class OwnUpdate(TokenMetric):
    """Written before metrics could see ids."""

    name = "own_update"

    def update(self, student_logp, teacher_logp):
        self._add(self.per_token(student_logp, teacher_logp))

    def per_token(self, student_logp, teacher_logp):
        return reverse_kl(student_logp, teacher_logp)


class Looking(L.Callback):
    """Keeps what it is handed."""

    def __init__(self, asks):
        self.reads_tokens = asks
        self.train, self.validation = [], []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.train.append(outputs)

    def on_validation_batch_end(self, trainer, module, outputs, *_):
        self.validation.append(outputs["evaluation"])


def logits(model, rows):
    """[V] log-probabilities in front of each token that counts, by a loop over plain rows."""
    found = []
    for row in range(len(rows)):
        ids = rows.input_ids[row][rows.attention_mask[row]]
        counted = int(rows.predictions[row].sum())
        with torch.no_grad():
            logp = model.model(ids[None]).logits[0, :, : model.vocab_size].double().log_softmax(-1)
        found += [(logp[place - 1], int(ids[place])) for place in range(len(ids) - counted, len(ids))]
    return found


def fit(folder, objective, asks=True):
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{a}>", "completion": a}) + "\n" for a in "abcdefgh"))
    module = DistillationModule(objective, tiny_source(), tiny_source(seed=9), CharacterTokenizer(ALPHABET),
                                evaluation=FOUR, metrics=[ReverseKL(), StudentEntropy()])  # fmt: skip
    data = PromptDataModule(JsonLines(train=str(rows), validation=str(rows)), batch_size=4, max_prompt_tokens=8,
                            max_completion_tokens=8)  # fmt: skip
    looking = Looking(asks)
    L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=2,
              enable_checkpointing=False, num_sanity_val_steps=0, callbacks=[looking],
              default_root_dir=str(folder)).fit(module, data)  # fmt: skip
    return module, looking


def test_a_metric_sees_what_was_written_and_older_ones_go_on():
    models = tiny_models()
    batch = prompt_batch(models, ["abc>", "d>", "efg>"])
    metrics = [Rank(), OwnUpdate(), ReverseKL()]
    evaluation = Evaluation.sample(batch, models, FOUR, Step(0, 1)).update(metrics)
    ranks, divergences = [], []
    for (student, _), (teacher, written) in zip(
        logits(models.student, evaluation.sequences), logits(models.teacher, evaluation.sequences), strict=True
    ):
        ranks.append(1 + sum(float(other) > float(teacher[written]) for other in teacher))
        divergences.append(float((student.exp() * (student - teacher)).sum()))
    rank, own, built_in = (float(metric.compute()) for metric in metrics)
    assert rank == pytest.approx(sum(ranks) / len(ranks))
    assert own == built_in == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)
    assert evaluation.tokens is None, "nobody has asked"


def test_values_of_a_validation_are_those_of_the_distributions(tmp_path):
    module, looking = fit(tmp_path, SFT())
    tokens = looking.validation[-1].tokens
    expected = [
        (float(student[i]), float(teacher[i]), float((student.exp() * (student - teacher)).sum()), i)
        for (student, i), (teacher, _) in zip(
            logits(module.models.student, tokens.sequences),
            logits(module.models.teacher, tokens.sequences),
            strict=True,
        )
    ]
    names = ("student_logp", "teacher_logp", "reverse_kl")
    columns = [*(tokens.values[name].tolist() for name in names), tokens.ids.tolist()]
    for column, of_loop in zip(columns, zip(*expected, strict=True), strict=True):
        assert column == pytest.approx(list(of_loop), abs=1e-4)
    assert tokens.rows.tolist() == sorted(tokens.rows.tolist())


def test_values_of_a_step_add_up_to_what_is_logged(tmp_path):
    objective = Sum(terms={"kd": Distill(rollout=FromStudent(FOUR)), "policy": OPD(rollout=FromStudent(FOUR))})
    module, looking = fit(tmp_path, objective)
    tokens = looking.train[-1]["tokens"]
    assert set(tokens) == {"kd/loss", "policy/loss"}
    kd = tokens["kd/loss"]
    assert len(kd.ids) == len(kd.rows) == int(kd.sequences.predictions.sum())
    for name in ("kl", "entropy", "agreement"):
        assert float(kd.values[name].mean()) == pytest.approx(module.logged[f"train/kd/{name}"], rel=1e-5)
    assert float(kd.values["loss"].mean()) == pytest.approx(module.logged["train/kd/loss"], rel=1e-5)
    assert not any(value.requires_grad for value in kd.values.values())


def test_nothing_is_kept_where_nobody_asks(tmp_path):
    _, looking = fit(tmp_path, SFT(), asks=False)
    assert [set(outputs) for outputs in looking.train] == [{"loss"}] * 2
    assert [evaluation.tokens for evaluation in looking.validation] == [None] * len(looking.validation)
