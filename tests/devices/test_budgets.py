"""What a unit of work costs a device, counted: budgets.json has the golden numbers, which may only fall.

Counts are differences of two runs that differ in one unit, so whatever happens once is not in them.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.debug_runs import debug_run
from tests.marks import fast
from veto_pl.core.sampling import Sampling
from veto_pl.models import CharacterTokenizer
from veto_pl.models.assemble import load_models
from veto_pl.module import DistillationModule
from veto_pl.objectives import Veto
from veto_pl.rollouts import DecodeLoop, FromDataset, FromStudent, TeacherSwitched
from veto_pl.seams import Step
from veto_pl.testing.pretended_gpu import PRETENDED, counted
from veto_pl.testing.tiny import prompt_batch, tiny_models, tiny_source

BUDGETS = Path(__file__).parent / "budgets.json"


def cost(work, units=1, **per):
    """What a unit costs: kernels, waits, and bytes per what `per` names."""
    numbers = {"kernels": work.kernels.total() / units, "waits": work.waits.total() / units}
    moved = {f"bytes per {name.replace('_', ' ')}": round(work.moved.total() / n) for name, n in per.items()}
    return numbers | moved


def within_budget(name, measured, work):
    budget = json.loads(BUDGETS.read_text())[name]
    assert measured.keys() == budget.keys(), (measured, budget)
    risen = [key for key in budget if measured[key] > budget[key]]
    assert not risen, f"{name} costs more than before: {measured}, not {budget}. Most of all:\n{work.table()}"
    assert measured == budget, f"{name} costs less than before. Lower its numbers in {BUDGETS.name} to {measured}."


PROMPTS = {"equal": ("abc>", "bcd>", "cde>"), "ragged": ("abcdefgh>", "bcd>", "c>")}
RECORDED, USUAL = DecodeLoop(capture=True), DecodeLoop(capture=False)
STOP = Sampling(stop=("never",))
DECODED = {
    "a decoded token": ("equal", FromStudent(engine=RECORDED)),
    "a decoded token, with a stop string": ("equal", FromStudent(STOP, RECORDED)),
    "a decoded token of two writers that take turns": ("equal", TeacherSwitched()),
    "a decoded token, kernel by kernel": ("equal", FromStudent(engine=USUAL)),
    "a decoded token, kernel by kernel, ragged prompts": ("ragged", FromStudent(engine=USUAL)),
    "a decoded token, kernel by kernel, greedy": ("equal", FromStudent(Sampling(temperature=0.0), USUAL)),
    "a decoded token, kernel by kernel, of a nucleus": (
        "equal",
        FromStudent(Sampling(temperature=0.5, top_p=0.5), USUAL),
    ),
    "a decoded token, kernel by kernel, with a stop string": ("equal", FromStudent(STOP, USUAL)),
}


@pytest.mark.parametrize("name", DECODED)
def test_a_decoded_token(name):
    """Two layers of Qwen2. The host looks every few columns who has ended; no row ends here."""
    prompts, chosen = DECODED[name]
    models = tiny_models("qwen2")
    for model in (models.student, models.teacher):
        model.to("gpu:0")
    batch = prompt_batch(models, PROMPTS[prompts]).to("gpu:0")

    def written(tokens):
        source = replace(chosen, sampling=replace(chosen.sampling, max_new_tokens=tokens))
        with pytest.MonkeyPatch.context() as patch, counted() as work:
            patch.setattr(type(models), "ends_of", lambda *_: (-1,))
            rows = source(batch, models, Step(0, 1))
        assert rows.loss_mask.sum(1).tolist() == [tokens] * 3
        return work

    written(24)  # facts about the architecture are found out once
    tokens = written(40).without(written(24))
    within_budget(name, cost(tokens, 16), tokens)


def test_a_chunk_of_the_loss_head():
    """Veto with the metrics that are always logged, in bfloat16 as under autocast."""
    alphabet = "".join(map(chr, range(0x4E00, 0x4E00 + 4093)))
    tokenizer = CharacterTokenizer(alphabet).load()
    ids = len(tokenizer)
    sources = [tiny_source(seed=seed, vocab_size=ids, initializer_range=0.02) for seed in (0, 1)]
    models = load_models(*sources, tokenizer)
    for model in (models.student, models.teacher):
        model.to("gpu:0", torch.bfloat16)

    def scored(rows):
        batch = prompt_batch(models, [alphabet[:1]] * rows, [alphabet[1:16]] * rows).to("gpu:0")
        objective = Veto(chunk_rows=128)
        sequences = FromDataset()(batch, models, Step(0, 1))
        with counted() as work:
            objective.loss({objective.rollout: sequences}, models, Step(0, 1))
        assert int(sequences.loss_mask.sum()) == 16 * rows
        return work

    scored(8)  # facts about the architecture are found out once
    chunk = scored(16).without(scored(8))
    within_budget("a chunk of the loss head", cost(chunk, row_and_id=128 * ids), chunk)


SAMPLING = ("veto", "minillm")


def fitted(tmp_path, objective, accumulated, steps):
    """What a run costs from its first batch to its end, rollouts that sample aside."""
    options = (
        f"--trainer.accelerator={PRETENDED}", f"--trainer.strategy={PRETENDED}", f"--trainer.max_steps={steps}",
        f"--trainer.accumulate_grad_batches={accumulated}", "--trainer.limit_val_batches=0", "--validate_first=false",
        "--export.folder=null", "--data.batch_size=4", "--checkpoint.save_last=false",
    )  # fmt: skip
    roll_out, aside = DistillationModule.roll_out, []

    def rolling_out(*arguments):
        with counted() as work:
            rollouts = roll_out(*arguments)
        aside.append(work)
        return rollouts

    with pytest.MonkeyPatch.context() as patch, counted() as work:
        patch.setattr(DistillationModule, "roll_out", rolling_out)
        debug_run(objective, tmp_path / f"{accumulated}-{steps}", *options)
    assert len(aside) == accumulated * steps
    for rollout in aside if objective in SAMPLING else ():
        work = work.without(rollout)
    return work


@pytest.mark.parametrize("objective", fast(("veto", "supervised_kd", "minillm"), "veto"))
def test_a_micro_batch_and_an_optimizer_step(objective, tmp_path):
    """Of a whole run with its callbacks; losses of the data set with all that comes before, added and coupled ones."""
    short, wide, long = (fitted(tmp_path, objective, *size) for size in ((2, 2), (3, 2), (2, 4)))
    two = wide.without(short)  # a micro-batch in each of the two steps
    step = long.without(short).without(two).without(two)
    within_budget(f"a micro-batch of {objective}", cost(two, 2), two)
    within_budget(f"an optimizer step of {objective}", cost(step, 2), step)
