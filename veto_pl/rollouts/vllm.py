"""vLLM as the engine of a rollout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from veto_pl.core.bounds import Count, PositiveShare
from veto_pl.rollouts.vllm_engine import VllmEngine
from veto_pl.rollouts.vllm_process import RunningEngine, parameters_of, start
from veto_pl.seams import LanguageModel, Models, Step


@dataclass(frozen=True)
class Vllm(VllmEngine):
    """vLLM in this process: its own copy of the weights, which are pushed when the model has changed.

    The engine starts at its first use, from the model's configuration with random weights, and gets the weights before
    it samples, one tensor at a time. Each rank has an engine on its own device, or shares one with others
    (`tensor_parallel`). It computes in the dtype that training computes in. Its arithmetic differs from training's all
    the same, so every row that the student samples is read once more by the trainer: the mean size of the difference is
    logged as `train/engine_gap`, and objectives correct for it (`engine_cap`).

    Needs `pip install "veto_pl[vllm]"`; the page on engines says what has been tried.

    Args:
        gpu_memory_utilization: the share of the GPU's memory that vLLM takes for weights and cache.
        cache_bytes: of the cache of keys and values; None takes what weights leave of the share.
        max_model_len: prompt and completion together; None takes the model's own limit.
        sleep: gives the memory of weights and cache back between rollouts; then the weights are pushed each time.
        enforce_eager: no CUDA graphs: starts faster, runs slower.
        tensor_parallel: ranks that share an engine; they complete their prompts together.
        largest_gap: a run stops where training's log-probabilities and vLLM's differ by more than this, in nats per
            token on average: then it is not rounding, and the engine samples from another model. Infinity never stops.
    """

    gpu_memory_utilization: PositiveShare = 0.3
    cache_bytes: Count | None = None
    max_model_len: Count | None = None
    sleep: bool = False
    enforce_eager: bool = False
    tensor_parallel: Count = 1

    @classmethod
    def examples(cls) -> tuple["Vllm", ...]:
        return ()

    def answers(
        self,
        texts: Sequence[list[int]],
        settings: Sequence[dict[str, Any]],
        model: LanguageModel,
        models: Models,
        step: Step,
    ) -> list[Any]:
        """Push the weights where they have changed, and let vLLM complete the texts."""
        asked = [{"prompt_token_ids": ids} for ids in texts]
        with self._running_engine(model, models).awake(model, step) as engine:
            return engine.complete(asked, [parameters_of(how) for how in settings])

    def set_aside(self, memory: int, weights: int) -> tuple[int, int]:
        """Return vLLM's share of the memory, or weights and cache where the cache has a size of its own."""
        share = int(self.gpu_memory_utilization * memory)
        taken = share if self.cache_bytes is None else weights // self.tensor_parallel + self.cache_bytes
        return taken, 0 if self.sleep else taken

    def _running_engine(self, model: LanguageModel, models: Models) -> RunningEngine:
        engines = _running.setdefault(model, {})
        if self not in engines:
            settings: dict[str, Any] = {
                "gpu_memory_utilization": self.gpu_memory_utilization,
                "kv_cache_memory_bytes": self.cache_bytes,
                "max_model_len": self.max_model_len,
                "enforce_eager": self.enforce_eager,
                "enable_sleep_mode": self.sleep,
                "tensor_parallel_size": self.tensor_parallel,
            }
            engines[self] = start(model, models.tokenizer, settings)
        return engines[self]


_running: WeakKeyDictionary[LanguageModel, dict[Vllm, RunningEngine]] = WeakKeyDictionary()
