"""What vLLM is as an engine, wherever it runs: what it is asked for, and how far its arithmetic is from training's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from veto_pl.core.architectures import reads_images
from veto_pl.core.bounds import AboveZero
from veto_pl.core.sampling import Sampling
from veto_pl.rollouts.endings import Endings
from veto_pl.rollouts.engine_gap import compared
from veto_pl.rollouts.vllm_answers import as_sequences, settings_of
from veto_pl.seams import Engine, LanguageModel, Mistake, Models, PromptBatch, Sequences, Setup, Step
from veto_pl.seams.teacher_names import setting_of

HOTTEST = 2.0
"""The highest temperature that vLLM samples at."""
INSTEAD = "Use the engine `DecodeLoop`, which reads images."


@dataclass(frozen=True, kw_only=True)
class VllmEngine(Engine, ABC):
    """vLLM, in this process or behind a server: a class of it says in `answers` how it gets weights and prompts.

    Args:
        largest_gap: a run stops where training's log-probabilities and vLLM's differ by more than this, in nats per
            token on average: then it is not rounding, and the engine samples from another model. Infinity never stops.
    """

    largest_gap: AboveZero = 0.2

    foreign = True
    couples_ranks = True  # its start and the push of weights are collective

    @abstractmethod
    def answers(
        self,
        texts: Sequence[list[int]],
        settings: Sequence[dict[str, Any]],
        model: LanguageModel,
        models: Models,
        step: Step,
    ) -> Sequence[Any]:
        """Let vLLM complete texts by the model's present weights. Collective: call it on every rank.

        Args:
            texts: the ids of each prompt.
            settings: of each request, as `vllm_answers.settings_of` names them.
            model: the writer, as training has it.
            models: all models of the run.
            step: where training stands.

        Returns:
            The answers in the order of the texts, each with `outputs`, in the shape of vLLM's own.
        """

    def generate(
        self,
        prompts: PromptBatch,
        model: LanguageModel,
        sampling: Sampling,
        models: Models,
        step: Step,
        *,
        on_policy: bool,
    ) -> Sequences:
        """Write completions, and compare their probabilities with training's; refuse prompts with images."""
        prompts.refuse_images(f"`{type(self).__name__}` sends ids alone to vLLM", INSTEAD)
        rows = zip(prompts.input_ids.cpu(), prompts.attention_mask.cpu(), strict=True)
        texts, ends = [ids[mask].tolist() for ids, mask in rows], models.ends_of(model)
        settings = [settings_of(sampling, ends, seed >> 32) for seed in step.seeds("rollout", prompts.numbers)]
        answers = self.answers(texts, settings, model, models, step)
        endings = Endings(models, sampling, prompts.input_ids.device, (model,))
        written = as_sequences(prompts, sampling, endings, answers, on_policy=on_policy)
        return compared(written, model, sampling, self, self.largest_gap)

    def new_cache(self, model: LanguageModel) -> None:
        """Return None: weights and caches are in memory that vLLM has set aside, here or on the server's devices."""

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Yield writers that read images, and a rollout by this engine that is hotter than vLLM can sample."""
        writings = [w for source in setup.objective.sources for w in source.writings() if w.engine == self]
        for name in dict.fromkeys(name for writing in writings for name in writing.writers):
            place = "model.student" if name == "student" else setting_of(name)
            config = setup.models.get(place)
            if not isinstance(config, Exception | None) and reads_images(config):
                yield Mistake(path, f"`{type(self).__name__}` with a model that reads images (`{place}`)",
                              "a model of text", INSTEAD)  # fmt: skip
        samplings = [writing.sampling for writing in writings]
        samplings += [setup.evaluation]
        hottest = max((one.temperature for one in samplings if one is not None), default=0.0)
        if hottest > HOTTEST:
            yield Mistake(path, f"`{type(self).__name__}` with `temperature: {hottest:g}`", f"at most {HOTTEST:g}",
                          "vLLM refuses higher ones: lower it, or use the engine `DecodeLoop`.")  # fmt: skip
