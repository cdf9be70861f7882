"""Plans of runs whose teacher has another tokenizer: its own vocabulary and its own lengths."""

import copy

import pytest

from tests.planning.conftest import TOKENIZER, llama, module, planned
from veto_pl.models import InMemory
from veto_pl.models.vocabulary import real_ids
from veto_pl.objectives import OPD, SimCT, SimpleOPD, Sum
from veto_pl.parts.panels import Together
from veto_pl.planning.own_ids import lengths_ratio
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.testing.tokenizer_kinds import tokenizer_of

NEW, PROMPT, PROMPTS, WIDTH = 32, 16, 4, 64
ROLLOUT = FromStudent(Sampling(max_new_tokens=NEW))
OBJECTIVES = {
    "OPD": OPD(rollout=ROLLOUT),
    "SimpleOPD": SimpleOPD(rollout=ROLLOUT),
    "SimCT": SimCT(rollout=ROLLOUT),
    "one to one": SimCT(rollout=ROLLOUT, units="one_to_one"),
    "a sum": Sum(terms={"units": SimCT(rollout=ROLLOUT), "spread": OPD(rollout=ROLLOUT)}),
}
each = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def with_more_ids(tokenizer, number):
    """The same tokenizer with ids for words that the specimen does not have."""
    more = copy.deepcopy(tokenizer)
    more.add_tokens([f"@@{word}@@" for word in range(number)])
    return more


def stranger(tokenizer, width=WIDTH):
    return InMemory(llama(width=width, seed=1, vocabulary=real_ids(tokenizer)).load(), tokenizer)


def flops(objective, tokenizer, **settings):
    result = planned(module(teacher=stranger(tokenizer), objective=objective), PROMPTS, PROMPT, **settings)
    return {work.phase: work.flops for work in result.work}


@each
def test_a_run_with_two_tokenizers_is_planned(objective):
    built = module(teacher=stranger(tokenizer_of("bytes")), objective=objective)
    result = planned(built, PROMPTS, PROMPT, validated=2)
    assert {"rollout", "teacher's scoring", "loss head", "backward", "validation"} <= {p.phase for p in result.memory}
    assert result.simulated.frozen["teacher"].parameters == sum(
        p.numel() for p in built.teacher_source.model.parameters()
    )


def test_the_products_of_the_teachers_head_have_its_own_vocabulary_and_its_own_rows():
    tokenizer = tokenizer_of("bytes")
    few, many = (flops(OPD(rollout=ROLLOUT), one) for one in (tokenizer, with_more_ids(tokenizer, 50)))
    rows = PROMPTS * round(lengths_ratio(TOKENIZER.load(), tokenizer) * NEW)
    assert many["loss head"] - few["loss head"] == pytest.approx(2 * rows * WIDTH * 50)
    assert many["teacher's scoring"] == few["teacher's scoring"]


def test_a_teacher_that_reads_more_tokens_costs_more():
    short, long = tokenizer_of("bytes"), tokenizer_of("characters")
    ratios = [lengths_ratio(TOKENIZER.load(), one) for one in (short, long)]
    assert ratios[0] < ratios[1]
    one, other = (flops(OPD(rollout=ROLLOUT), tokenizer)["teacher's scoring"] for tokenizer in (short, long))
    assert one != other


def test_only_the_teachers_with_other_tokenizers_read_other_lengths():
    tokenizer = tokenizer_of("bytes")
    together = OPD(rollout=ROLLOUT, panel=Together())
    teachers = {"other": stranger(tokenizer)}
    result = planned(module(teacher=llama(seed=2), objective=together, teachers=teachers), PROMPTS, PROMPT)
    alone = planned(module(teacher=llama(seed=2), objective=OPD(rollout=ROLLOUT)), PROMPTS, PROMPT)
    assert set(result.simulated.frozen) == {"teacher", "other"}
    scoring = [next(w.flops for w in one.work if w.phase == "teacher's scoring") for one in (result, alone)]
    assert scoring[0] > scoring[1]
