"""Curricula of the depth of episodes: their limits are whole episodes, and an expert's turns are only read."""

from dataclasses import dataclass

import pytest
import torch

from tests.data.chat_tokenizers import chat_tokenizer
from veto_pl.data import ChatTemplate, PlainTemplate
from veto_pl.data.collate import Collator
from veto_pl.environments import Abacus, House, Levels, TryAgain
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.models import CharacterTokenizer
from veto_pl.models.assemble import load_models
from veto_pl.objectives import OPD, TCOD
from veto_pl.parts.schedules import Staircase
from veto_pl.rollouts import Played, Sampling
from veto_pl.rollouts.beginnings import behind_expert
from veto_pl.seams import Environment, Episode, Example, Reply, Step
from veto_pl.testing.rows import difference, tiny_prompts
from veto_pl.testing.tiny import tiny_models, tiny_source

ALPHABET = "\n (),.:ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SAMPLING = Sampling(max_new_tokens=8, num_completions=2, stop=tuple("aeiou "))
STEP = Step(0, 100)


@pytest.fixture(scope="module")
def models():
    return tiny_models("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


@pytest.fixture(scope="module", params=["plain", "chat"])
def housed(request):
    """Models and prompts of levels of the house, as plain text and by a chat template."""
    chat = request.param == "chat"
    tokenizer = chat_tokenizer("llama3") if chat else CharacterTokenizer(ALPHABET).load()
    template = ChatTemplate() if chat else PlainTemplate(format="{prompt}\n", reply="{content}\n")
    source = tiny_source("llama", vocab_size=len(tokenizer), max_position_embeddings=4096)
    rows = Levels(train=3).load("train")
    return load_models(source, None, tokenizer), Collator(tokenizer=tokenizer, template=template)(rows)


def house(housed, step=STEP, **settings):
    models, prompts = housed
    return Played(House(), SAMPLING, max_turns=10, **settings)(prompts, models, step)


def test_the_published_depths():
    fives, sixes = Staircase(1, 5), Staircase(1, 6)
    assert [10 - fives(n - 1, 100) for n in (1, 4, 5, 9, 10)] == [9, 9, 8, 8, 7]
    assert [sixes(n - 1, 100) for n in (5, 6, 12)] == [1, 2, 3]
    assert [Staircase(2, 1, 3)(step, 9) for step in range(3)] == [5, 8, 11]


@pytest.mark.parametrize("settings", [{"depth": 10}, {"depth": 99}, {"depth": 10, "begin_at": "back"}], ids=str)
def test_the_full_depth_is_no_curriculum(housed, settings):
    whole, deep = house(housed), house(housed, **settings)
    assert torch.equal(whole.input_ids, deep.input_ids)
    assert not difference(whole, deep)
    assert torch.equal(whole.episodes, deep.episodes)


@pytest.mark.parametrize("depth", [1, 2, Staircase(1, 1)])
def test_from_the_front_the_first_turns_are_those_of_whole_episodes(housed, depth):
    """The same numbers are drawn, so a shallow episode is the beginning of a deep one."""
    whole, short = house(housed), house(housed, depth=depth)
    most = depth if isinstance(depth, int) else 2
    assert short.turn_ids.max() <= most
    for row in range(len(short)):
        mine, its = (rows.input_ids[row][rows.attention_mask[row]] for rows in (short, whole))
        assert torch.equal(mine, its[: len(mine)])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_from_the_back_an_expert_plays_the_beginning(housed, depth):
    models, prompts = housed
    rows = house(housed, depth=depth, begin_at="back")
    seeds = [0] * len(rows)  # of no consequence: the level says it
    for row, prompt in enumerate(rows.prompt_rows.tolist()):
        episode, length = House().begin(prompts.examples[prompt], seeds[row]), 0
        turns = []
        while (said := episode.expert()) is not None:
            episode.reply({"content": said})
            turns.append(said)
            length += 1
        read = models.tokenizer.decode(rows.input_ids[row][rows.attention_mask[row] & (rows.turn_ids[row] == 0)])
        assert read.count("You carry") == length - min(depth, length) + 1
        places = [read.find(said) for said in turns[: length - depth]]
        assert min(places, default=0) >= 0
        assert int(rows.turn_ids[row].max()) <= 10 - (length - depth)
    assert not (rows.loss_mask & (rows.turn_ids == 0)).any()
    assert (rows.turn_ids.amax(1) >= 1).all()


def test_the_expert_leaves_out_its_last_turns():
    example = Example("", row={"level": 5})
    whole = behind_expert(House(), example, 0, left=0, longest=20)
    assert whole.episode.reward() == 1
    for left in (1, 2):
        begun = behind_expert(House(), example, 0, left=left, longest=20)
        assert begun.turns == whole.turns - left
        assert begun.episode.reward() == 0
        assert [m["role"] for m in begun.said] == ["assistant", "user"] * begun.turns


@dataclass(frozen=True)
class Switches(Environment):
    """A tool has to be called twice."""

    tools = ({"type": "function", "function": {"name": "press", "description": "Press.", "parameters": {}}},)

    def begin(self, example, seed):
        return _Switches()


class _Switches(Episode):
    def __init__(self):
        self.pressed = 0

    def reply(self, turn):
        self.pressed += len(turn.get("tool_calls") or ())
        return Reply(({"role": "tool", "name": "press", "content": str(self.pressed)},), done=self.pressed == 2)

    def expert(self):
        return None if self.pressed == 2 else 'So.<tool_call>{"name": "press", "arguments": {"lamp": 1}}</tool_call>'


def test_an_expert_calls_tools():
    """They are calls to the environment, and are shown as the template shows calls."""
    example = Example("Go.")
    begun = behind_expert(Switches(), example, 0, left=1, longest=9)
    assert (begun.episode.pressed, begun.turns) == (1, 1)
    assert [message["role"] for message in begun.said] == ["assistant", "tool"]
    tokenizer = chat_tokenizer("llama3")

    def read(template):
        dialogue = template.dialogue(example, tokenizer, Switches().tools, [tokenizer.eos_token_id])
        return tokenizer.decode(dialogue.read((*dialogue.messages, *begun.said)))

    call = '{"name": "press", "arguments": {"lamp": 1}}'
    assert call in read(ChatTemplate())
    assert f"So.<tool_call>{call}</tool_call>" in read(PlainTemplate(reply="{content}"))
    silent = "{{ tools }}{% for m in messages %}{{ m.role ~ m.content ~ eos_token }}{% endfor %}"
    with pytest.raises(ConfigurationError, match="leaves out calls of tools, such as `press`"):
        read(ChatTemplate(template=silent))


def test_without_an_expert_there_is_no_back(models):
    with pytest.raises(ConfigurationError, match="needs an environment with an expert"):
        behind_expert(Abacus(), Example("1+1?"), 0, left=1, longest=5)
    source = Played(Abacus(), SAMPLING, max_tokens=60, depth=1, begin_at="back")
    with pytest.raises(DataError, match="needs an environment with an expert"):
        source(tiny_prompts(models), models, STEP)


def test_tcod_at_full_depth_is_on_policy_distillation_of_episodes(models):
    settings = {"max_turns": 3, "max_tokens": 90}
    again = TryAgain(said="no>")
    plain = OPD(rollout=Played(again, SAMPLING, **settings), aggregation="turn")
    for depth, begin_at in ((3, "front"), (9, "front"), (2, "back")):
        objective = TCOD(environment=again, sampling=SAMPLING, depth=depth, begin_at=begin_at, **settings)
        losses = []
        for one in (plain, objective):
            rows = one.rollout(tiny_prompts(models), models, STEP)
            losses.append(one.loss({one.rollout: rows}, models, STEP).terms["loss"])
        assert torch.equal(losses[0].total, losses[1].total)
        assert torch.equal(losses[0].weight, losses[1].weight)


class _Odd(Episode):
    """An episode of which something is not what it must be."""

    def __init__(self, said=(), expert="a", opening=()):
        self.said, self.acts, self.first = said, expert, opening

    @property
    def opening(self):
        return self.first

    def reply(self, turn):
        return Reply(self.said)

    def expert(self):
        return self.acts


@dataclass(frozen=True)
class Odd(Environment):
    """Begins what it is given."""

    episode: object = None

    def begin(self, example, seed):
        return self.episode


MESSAGE = {"role": "user", "content": "x"}
ODD = {
    "no episode": (None, r"`Odd.begin` raised TypeError: it must return an `Episode`, got None"),
    "a pair": (("a", 1), r"it must return an `Episode`, got \('a', 1\)"),
    "an opening of text": (_Odd(opening="hello"), r"must say a tuple of messages, .*, got 'hello'"),
    "an opening that is one message": (_Odd(opening=MESSAGE), r"must say a tuple of messages, .*, got \{'role'"),
    "no opening": (_Odd(opening=None), r"must say a tuple of messages, .*, got None"),
    "a reply of text": (_Odd(said="no>"), r"must say a tuple of messages, .*, got 'no>'"),
    "an opening of texts": (_Odd(opening=("x",)), r"must say messages, .*, got 'x'"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_environment_that_gives_something_else_is_told_what(models, name):
    episode, message = ODD[name]
    with pytest.raises((ConfigurationError, DataError), match=message):
        Played(Odd(episode), SAMPLING, max_turns=2, max_tokens=60)(tiny_prompts(models), models, STEP)


def test_an_expert_that_says_no_text_is_told_so(models):
    source = Played(Odd(_Odd(expert=MESSAGE)), SAMPLING, max_tokens=60, depth=1, begin_at="back")
    with pytest.raises(DataError, match=r"`expert` must return a text or None, got \{'role'"):
        source(tiny_prompts(models), models, STEP)
