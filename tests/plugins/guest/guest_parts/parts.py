"""A part behind each seam, written as the documentation of version 0.1.0 told its readers to. It stays as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from veto_pl.contexts import behind, check_room, retold
from veto_pl.generations import Generations
from veto_pl.memory import Memory, State
from veto_pl.types import Example, Models, PromptBatch, Sequences, Step, pad_right

from veto_pl.metrics import CompletionMetric
from veto_pl.objectives import Distill, TokenRows
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Divergence, ModelSource, Reward, RolloutSource, Target, Task, TeacherContext


@dataclass(frozen=True)
class GuestDivergence(Divergence):
    """Squared Hellinger distance.

    Args:
        scale: multiplies the distance.
    """

    scale: float = 1.0

    def __call__(self, student_logp: Tensor, target_logp: Tensor) -> Tensor:
        return self.scale * -(0.5 * (student_logp + target_logp)).logsumexp(-1).expm1()


@dataclass(frozen=True)
class GuestTarget(Target):
    """The teacher, sharpened.

    Args:
        power: of the teacher's probabilities.
    """

    power: float = 2.0

    def __call__(self, teacher_logp: Tensor, student_logp: Tensor, step: Step) -> Tensor:
        return (self.power * teacher_logp).log_softmax(-1)


@dataclass(frozen=True)
class GuestSource(RolloutSource):
    """The student's own answers, each prompt's last right one where there is one.

    Args:
        sampling: how the student samples; one completion of each prompt.
    """

    sampling: Sampling = Sampling()

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        memory: Answers = models.memories.of(self)
        written = FromStudent(self.sampling)(prompts, models, step)
        rewards = prompts.rewarded(written, models.tokenizer).rewards
        numbers, texts = prompts.numbers.tolist(), [ids.cpu() for ids in written.completions()]
        memory.found |= {
            n: text for n, text, reward in zip(numbers, texts, rewards.tolist(), strict=True) if reward == 1
        }
        ids, mask = pad_right([memory.right.get(n, text) for n, text in zip(numbers, texts, strict=True)])
        fresh = torch.tensor([n not in memory.right for n in numbers], dtype=torch.bool)
        ids, mask, fresh = (part.to(prompts.input_ids.device) for part in (ids, mask, fresh))
        return Sequences.join(prompts, ids, mask, on_policy=fresh)

    def new_memory(self) -> Memory:
        return Answers()


class Answers(Memory):
    """The last right answer to each prompt, by its number."""

    def __init__(self) -> None:
        self.right: dict[int, torch.Tensor] = {}
        self.found: dict[int, torch.Tensor] = {}

    def end_step(self, *, done: bool) -> None:
        self.right |= self.found if done else {}
        self.found = {}

    def state(self) -> State:
        return {"right": dict(self.right)}

    def restore(self, states: Sequence[State], rank: int) -> None:
        self.right = {n: ids for state in states for n, ids in state["right"].items()}


@dataclass(frozen=True)
class GuestContext(TeacherContext):
    """The teacher reads an instruction in front of the prompt.

    Args:
        instruction: the text, with the space behind it.
    """

    instruction: str = "0+"

    def __call__(self, sequences: Sequences, models: Models, step: Step) -> Sequences:
        prompts = sequences.prompts
        texts = [self.instruction + example.prompt for example in prompts.examples]
        told = retold(prompts, texts, models.tokenizer, None, "GuestContext").rows(sequences.prompt_rows)
        rows = behind(told, sequences)
        check_room(rows, models.required_teacher(), "GuestContext")
        return rows


@dataclass(frozen=True, kw_only=True)
class GuestObjective(Distill):
    """A distance to a sharpened teacher who has been told more, and the likelihood of what was right.

    Args:
        likelihood: weight of the likelihood.
    """

    rollout: RolloutSource = GuestSource()
    context: TeacherContext = GuestContext()
    divergence: Divergence | None = GuestDivergence()
    target: Target = GuestTarget()
    likelihood: float = 0.1

    def per_token(self, rows: TokenRows) -> Tensor:
        return super().per_token(rows) - self.likelihood * rows.token_logp()


@dataclass(frozen=True)
class GuestReward(Reward):
    """1 where the reference occurs in the completion."""

    def __call__(self, example: Example, completion: str) -> float:
        return float((example.completion or "") in completion)


@dataclass(frozen=True)
class GuestTask(Task):
    """Sums of two digits.

    Args:
        limit: upper bound of the numbers.
        verifier: judges completions.
    """

    limit: int = 4
    verifier: Reward = GuestReward()

    def load(self, split: str) -> Sequence[Example]:
        pairs = [(a, b) for a in range(self.limit) for b in range(self.limit) if (a + b) % 2 == (split != "train")]
        return [Example(f"{a}+{b}=", str(a + b)) for a, b in pairs]

    def reward(self, example: Example, completion: str) -> float:
        return self.verifier(example, completion)


class GuestMetric(CompletionMetric):
    """Completions that are numbers."""

    name = "guest_numbers"

    def update(self, generations: Generations) -> None:
        self._add(torch.tensor([float(text.isdigit()) for text in generations.texts]))


@dataclass(frozen=True)
class GuestModel(ModelSource):
    """A model with noise on its weights.

    Args:
        source: the model.
        scale: of the noise, relative to the mean size of each weight.
        seed: of the noise.
    """

    source: ModelSource
    scale: float = 0.1
    seed: int = 0

    def config(self) -> PretrainedConfig:
        return self.source.config()

    def load(self) -> PreTrainedModel:
        model, generator = self.source.load(), torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for weight in model.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight += (self.scale * weight.abs().mean() * noise).to(weight.dtype)
        return model

    @property
    def tokenizer_source(self) -> Mapping[str, Any] | None:
        return self.source.tokenizer_source
