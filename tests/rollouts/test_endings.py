"""Why a completion ends is known where it is written, and everything that reads the row agrees with it."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.core.memory import Memories
from veto_pl.data.rewards import ExactMatch
from veto_pl.data.tasks import JsonLines
from veto_pl.metrics.rollout_numbers import rollout_numbers
from veto_pl.rollouts import (
    AdaptiveReplay,
    BestTeacher,
    DecodeLoop,
    FromDataset,
    FromStudent,
    FromTeacher,
    Mixture,
    Replay,
    Sampling,
    TeacherCorrected,
    TeacherMixed,
    TeacherSwitched,
    Transformers,
)
from veto_pl.rollouts.endings import Endings
from veto_pl.seams import Ending, Example, RolloutSource, Sequences, Step, Task
from veto_pl.testing.tiny import prompt_batch, tiny_models
from veto_pl.testing.tokenizer_kinds import CONTROL, tokenizer_of
from veto_pl.training.evaluation import Evaluation

PROMPTS = ["abc>", "a>", "hgfedcba>", "pp>"] * 4
STEP = Step(3, 20)
STOP = ("b", "ja", "<pad>")
SAMPLING = Sampling(max_new_tokens=9, stop=STOP)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def written_until_it_ends(tokenizer, ids, stop):
    """The row of a rollout that draws `ids`, one after the other, and its `Endings`."""
    models = SimpleNamespace(ends_of=lambda: (tokenizer.eos_token_id,), tokenizer=tokenizer)
    endings = Endings(models, Sampling(stop=stop), CPU, ())
    row, alive = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool)
    count = next((i for i, token in enumerate(ids, 1) if bool(endings(row, torch.tensor([token]), alive))), len(ids))
    kept = torch.tensor([ids[:count]])
    prompt = torch.zeros(1, 1, dtype=torch.int64)
    ending, unjudged = endings.found(kept, torch.ones_like(kept, dtype=torch.bool))
    rows = Sequences(
        torch.cat([prompt, kept], 1), torch.ones(1, count + 1, dtype=torch.bool),
        torch.tensor([[False] + [True] * count]), row, alive, ending=ending, unjudged=unjudged,
    )  # fmt: skip
    return kept[0].tolist(), rows


@pytest.mark.parametrize("kind", ["bytes", "characters", "metaspace nowhere"])
@given(data=st.data())
def test_the_judged_text_is_what_stands_before_the_stop_string(kind, data):
    """Whatever the tokens: a stop string may begin and end within tokens, and may be or hold a special token."""
    tokenizer = tokenizer_of(kind)
    stop = data.draw(st.lists(st.sampled_from(["\nQ", "is", "T", " t", *CONTROL, ".<|im_end|>", "<|im_"]), max_size=3))
    pool = st.integers(0, len(tokenizer) - 1) | st.sampled_from(
        tokenizer("is Q\nis it. <|im_end|></s>", add_special_tokens=False)["input_ids"]
    )
    ids, rows = written_until_it_ends(tokenizer, data.draw(st.lists(pool, min_size=1, max_size=12)), tuple(stop))
    whole = tokenizer.decode(ids)
    start = min((place for text in stop if (place := whole.find(text)) >= 0), default=None)
    eos = ids[-1] == tokenizer.eos_token_id
    expected = Ending.EOS if eos else Ending.LIMIT if start is None else Ending.STOP
    assert rows.ending.tolist() == [expected]
    (judged,) = rows.texts(tokenizer)
    if expected == Ending.STOP:
        kept = whole[:start]
        for word in tokenizer.all_special_tokens:
            kept = kept.replace(word, "")
        assert judged == kept
    else:
        assert judged == tokenizer.decode(ids, skip_special_tokens=True)
    assert rows.finished(()).tolist() == [expected != Ending.LIMIT]


def test_an_end_that_is_no_special_token_is_not_judged():
    """Instruct models list ends in their generation settings that their tokenizers know as ordinary tokens."""
    tokenizer = tokenizer_of("bytes")
    ids = tokenizer("Paris.", add_special_tokens=False)["input_ids"]
    models = SimpleNamespace(ends_of=lambda: (ids[-1],), tokenizer=tokenizer)
    grid = torch.tensor([ids])
    ending, unjudged = Endings(models, Sampling(), CPU, ()).found(grid, grid >= 0)
    rows = Sequences(grid, grid >= 0, grid >= 0, torch.zeros(1).long(), grid[:, 0] >= 0, ending=ending)
    assert rows.texts(tokenizer) == ["Paris"]
    assert unjudged.tolist() == [0]


SOURCES = {
    "own loop": FromStudent(SAMPLING),
    "own loop, several": FromStudent(replace(SAMPLING, num_completions=3), DecodeLoop(drop_at=0.0)),
    "generate": FromStudent(SAMPLING, Transformers()),
    "teacher": FromTeacher(SAMPLING),
    "mixed": TeacherMixed(0.5, SAMPLING),
    "corrected": TeacherCorrected(3, SAMPLING),
    "switched": TeacherSwitched(1.0, SAMPLING),
    "mixture": Mixture(FromStudent(SAMPLING), FromDataset(), coin="sample"),
    "replayed": Replay(FromStudent(SAMPLING), fraction=1.0),
    "adaptively replayed": AdaptiveReplay(FromStudent(SAMPLING), start=1.0),
    "best": BestTeacher(SAMPLING, FromStudent(SAMPLING), hint="{completion}>{prompt}"),
    "references": FromDataset(),
}


def expected_of(ids, models, limit):
    """Why a text of characters ends, and what is judged of it."""
    tokenizer = models.tokenizer
    text = tokenizer.decode(ids)
    places = [text.find(stop) for stop in STOP if stop in text]
    judged = text[: min(places)] if places else text
    why = Ending.EOS if ids[-1] in models.eos_ids else Ending.STOP if places else Ending.LIMIT
    assert why != Ending.LIMIT or len(ids) == limit
    return why, "".join(c for c in tokenizer.tokenize(judged) if c not in tokenizer.all_special_tokens)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_source_carries_why_its_completions_end(source, models):
    models = replace(models, memories=Memories())
    models.memories.claim([source])
    # References hold no stop string.
    batch = prompt_batch(models, PROMPTS, ["cd", "d", "edcefgh", "kk"] * 4)
    seen = set()
    for index in range(3):
        rows = source(batch, models, Step(index, 20))
        models.memories.end_step()
        texts = rows.texts(models.tokenizer)
        for row, ids in enumerate(rows.completions()):
            why, judged = expected_of(ids.tolist(), models, SAMPLING.max_new_tokens)
            assert (int(rows.ending[row]), texts[row]) == (why, judged)
            seen.add(why)
        assert rows.finished(models.eos_ids).tolist() == [end != Ending.LIMIT for end in rows.ending.tolist()]
    assert Ending.EOS in seen
    assert isinstance(source, FromDataset) or seen == {Ending.LIMIT, Ending.EOS, Ending.STOP}


def test_vllm_says_why_its_completions_end(models):
    from veto_pl.rollouts.vllm_answers import endings_of

    def said(text, finish, stop):
        ids = models.tokenizer(text, add_special_tokens=False)["input_ids"]
        return SimpleNamespace(token_ids=tuple(ids), finish_reason=finish, stop_reason=stop)

    written = [
        said("cdb", "stop", "b"), said("cj<eos>", "stop", 1), said("cdefghijk", "length", None),
        said("cd<pad>", "stop", "<pad>"), said("a", "abort", None), said("cd<eos>", "stop", None),
    ]  # fmt: skip
    ending, unjudged = endings_of(written, Endings(models, SAMPLING, CPU, (models.student,)))
    assert ending.tolist() == [2, 1, 0, 2, 0, 1]
    assert unjudged.tolist() == [1, 0, 0, 0, 0, 0]


@dataclass(frozen=True)
class Answered(Task):
    """A completion is right if it is the reference."""

    end: tuple[str, ...] = ()

    def load(self, split):
        return []

    def reward(self, example, completion):
        return ExactMatch()(example, completion)

    @property
    def stop(self):
        return self.end


@pytest.mark.parametrize("by_task", [False, True])
def test_a_stop_string_costs_no_reward(models, by_task):
    """The reference is what the student writes before it, in evaluation and in training."""
    stop = ("b", "<pad>")
    sampling = Sampling(max_new_tokens=40, stop=() if by_task else stop)
    batch = prompt_batch(models, PROMPTS)
    task = Answered(stop if by_task else ())
    rows = FromStudent(sampling)(replace(batch, task=task), models, STEP)
    examples = tuple(Example(p, text) for p, text in zip(PROMPTS, rows.texts(models.tokenizer), strict=True))
    batch = replace(batch, task=task, examples=examples)
    assert Ending.STOP in rows.ending
    assert batch.rewarded(rows, models.tokenizer).rewards.tolist() == [1.0] * len(PROMPTS)
    evaluation = Evaluation.sample(batch, models, sampling, STEP)
    assert evaluation.generations.rewards.flatten().tolist() == [1.0] * len(PROMPTS)
    assert [row["completion"] for row in evaluation.rows()] == [example.completion for example in examples]
    assert evaluation.generations.finished.flatten().tolist() == (rows.ending != Ending.LIMIT).tolist()
    cut = float((rows.ending == Ending.LIMIT).float().mean())
    assert float(rollout_numbers([rows], models.eos_ids)["unfinished"].mean()) == pytest.approx(cut)


@dataclass(frozen=True)
class Silent(RolloutSource):
    """A third party's source, which says nothing about ends."""

    source: RolloutSource

    def __call__(self, prompts, models, step):
        return replace(self.source(prompts, models, step), ending=None, unjudged=None)


def test_a_source_that_says_nothing_is_read_from_its_tokens(models):
    free = FromStudent(Sampling(max_new_tokens=9))
    batch = prompt_batch(models, PROMPTS)
    told, silent = free(batch, models, STEP), Silent(free)(batch, models, STEP)
    assert torch.equal(silent.finished(models.eos_ids), told.finished(models.eos_ids))
    assert silent.texts(models.tokenizer) == told.texts(models.tokenizer)
    one, other = (rollout_numbers([rows], models.eos_ids)["unfinished"] for rows in (told, silent))
    assert (float(one.total), float(one.weight)) == (float(other.total), float(other.weight))
    joined = Sequences.concatenate([told, silent])
    assert joined.ending.tolist() == [*told.ending.tolist(), *[Ending.UNKNOWN] * len(silent)]
    assert torch.equal(joined.finished(models.eos_ids), told.finished(models.eos_ids).repeat(2))


def test_a_stop_string_within_a_special_token_leaves_nothing_of_it():
    tokenizer = tokenizer_of("bytes")
    ids = tokenizer("Paris<|im_end|> is", add_special_tokens=False)["input_ids"]
    kept, rows = written_until_it_ends(tokenizer, ids, ("im_end",))
    assert len(kept) < len(ids)
    assert rows.texts(tokenizer) == ["Paris"]


def test_rows_of_nobody_have_no_texts(models):
    rows = FromStudent(SAMPLING)(prompt_batch(models, PROMPTS).rows(torch.arange(0)), models, STEP)
    assert rows.texts(models.tokenizer) == []
    assert len(rows.finished(models.eos_ids)) == 0


def test_json_lines_judge_what_stands_before_the_stop_string(tmp_path):
    """The remedy that docs/judging.md names."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "2+2=", "completion": "4"}\n')
    task = JsonLines(train=str(rows), verifier=ExactMatch(), stop=("\nQ",))
    tokenizer = tokenizer_of("bytes")
    ids, sequences = written_until_it_ends(
        tokenizer, tokenizer("4\nQ: more", add_special_tokens=False)["input_ids"], task.stop
    )
    assert len(ids) < 8
    assert task.rewards(task.load("train"), sequences.texts(tokenizer)) == [1.0]
