"""Where the checks run, in which sizes, and how they measure."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from veto_pl.models import CharacterTokenizer, RandomWeights
from veto_pl.seams import PromptBatch

FIRST_CHARACTER = 0x10000
QWEN2_HALF = {
    "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32_768, "tie_word_embeddings": True,
}  # fmt: skip
QWEN2_SEVEN = {
    "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
}  # fmt: skip
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip


@dataclass(frozen=True)
class OnDevice(RandomWeights):
    """Random weights that are made on the default device, where 7 billion take seconds; Lightning's is the GPU."""

    def load(self) -> Any:
        return self.skeleton()


@dataclass
class Place:
    """A device, and sizes that fit it.

    Args:
        device: the first GPU, or the CPU in a smoke run.
        bandwidth: bytes a second that a copy reads and writes; measured by the check `environment`.
        rate: floating-point operations a second of a large bfloat16 product; measured there, too.
    """

    device: torch.device
    bandwidth: float = 1e12
    rate: float = 1e14

    @classmethod
    def find(cls, *, smoke: bool) -> "Place":
        if smoke:
            return cls(torch.device("cpu"))
        if not torch.cuda.is_available():
            raise SystemExit("No GPU was found. `--smoke` runs every check on the CPU, in small sizes.")
        return cls(torch.device("cuda", 0))

    @property
    def smoke(self) -> bool:
        return self.device.type == "cpu"

    @property
    def ids(self) -> int:
        """The tokenizer's ids; the models have more rows."""
        return 500 if self.smoke else 151_646

    @property
    def dimensions(self) -> dict[str, dict[str, Any]]:
        """Those of the models, by their names."""
        if not self.smoke:
            return {"0.5B": QWEN2_HALF, "7B": QWEN2_SEVEN}
        return {
            "0.5B": QWEN2_HALF | TINY | {"vocab_size": 512},
            "7B": QWEN2_SEVEN | TINY | {"vocab_size": 520, "hidden_size": 48},
        }

    def source(self, name: str, dtype: str = "bfloat16", seed: int = 0, **changed: Any) -> OnDevice:
        """A source of random models of the shape of `name`."""
        return OnDevice("qwen2", self.dimensions[name] | changed, seed, dtype)

    def network(self, name: str, dtype: str = "bfloat16", **changed: Any) -> Any:
        """A transformers model on the device."""
        with self.device:
            torch.manual_seed(0)
            return self.source(name, dtype, **changed).load().to(self.device)

    def tokenizer(self) -> CharacterTokenizer:
        """One character for each id but three special ones."""
        return CharacterTokenizer("".join(chr(FIRST_CHARACTER + i) for i in range(self.ids - 3)))

    def prompts(self, rows: int, length: int) -> PromptBatch:
        """Random prompts of equal length, without completions."""
        ids = torch.randint(4, self.ids, (rows, length), device=self.device)
        none = torch.zeros(rows, 0, dtype=torch.int64, device=self.device)
        return PromptBatch(ids, torch.ones_like(ids).bool(), none, none.bool())

    def randn(self, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=dtype) * scale

    def wait(self) -> None:
        if not self.smoke:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repeat: int = 3) -> float:
        """The median time of a call, after one that is not counted."""
        work()
        times = []
        for _ in range(repeat):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def peak(self, work: Callable[[], object]) -> int:
        """Bytes above what was allocated before the call; 0 on the CPU, which is not measured here."""
        if self.smoke:
            work()
            return 0
        self.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        self.wait()
        return torch.cuda.max_memory_allocated() - before

    def empty_cache(self) -> None:
        gc.collect()
        if not self.smoke:
            torch.cuda.empty_cache()
