"""Models, prompts and arithmetic for `step.py`: a student whose completions have lengths that are known beforehand.

All sides of a comparison must write completions of the same lengths, whatever their decode loops look like, so the
lengths are in the weights. An ordinary token with `index` i (1 to 64, from its id) is always followed by one with index
i - 1, and index 0 is EOS alone: the last token of a prompt is the length of its completion. In the residual stream the
index is one of 65 coordinates that no layer writes but the last, whose first 64 neurons move it down by one. Which of
the 768 tokens of an index is drawn stays random. Shapes and costs are those of any model of these dimensions.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from veto_pl.models import CharacterTokenizer, RandomWeights
from veto_pl.seams import ModelSource

VOCAB = 49152
LONGEST = 64
EOS, FIRST = 1, 3
FIRST_CHARACTER = 0x10000
TOKENIZER = CharacterTokenizer("".join(chr(FIRST_CHARACTER + i) for i in range(VOCAB - FIRST)))
COMMON = {
    "vocab_size": VOCAB,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    "bos_token_id": None,
    "tie_word_embeddings": True,
}
STUDENT = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 9, "num_attention_heads": 6}
TEACHER = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 9}


@dataclass(frozen=True)
class Countdown(ModelSource):
    """A Llama with random weights that counts its completions down to EOS."""

    weights: RandomWeights = field(default_factory=lambda: source(STUDENT))

    def config(self):
        return self.weights.config()

    def load(self) -> PreTrainedModel:
        model = self.weights.load()
        with torch.no_grad():
            plant_countdown(model)
        return model


def source(dimensions: dict[str, int], seed: int = 0) -> RandomWeights:
    kv_heads = max(1, dimensions["num_attention_heads"] // 3)
    return RandomWeights("llama", COMMON | dimensions | {"num_key_value_heads": kv_heads}, seed=seed)


def plant_countdown(model: PreTrainedModel) -> None:
    """Strengths make the wanted logit about 30 above all others, and keep the index well above the random weights."""
    indices, neurons = torch.arange(LONGEST + 1), torch.arange(LONGEST)
    embedding, layers = model.get_input_embeddings().weight, model.model.layers
    ids = torch.arange(FIRST, VOCAB)
    embedding[:, indices] = 0.0
    embedding[ids, 1 + (ids - FIRST) % LONGEST] = 8.0
    embedding[EOS, 0] = 8.0
    for layer in layers:
        layer.self_attn.o_proj.weight[indices] = 0.0
        layer.mlp.down_proj.weight[indices] = 0.0
    last = layers[-1].mlp
    for reader in (last.gate_proj.weight, last.up_proj.weight):
        reader[neurons] = 0.0
        reader[neurons, neurons + 1] = 1.0
    last.down_proj.weight[:, neurons] = 0.0
    last.down_proj.weight[neurons, neurons] = 0.2
    last.down_proj.weight[neurons + 1, neurons] = -0.2
    model.model.norm.weight[indices] = 0.25


def geometric_lengths(count: int, mean: float, generator: torch.Generator) -> list[int]:
    """Lengths of completions whose EOS has the same probability at every token, cut at the longest."""
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    lengths = 1 + (uniform.log() / torch.log1p(torch.tensor(-1 / mean, dtype=torch.float64))).floor()
    return [int(length) for length in lengths.clamp(max=LONGEST)]


def prompt(length: int, width: int, generator: torch.Generator) -> str:
    """`width` random characters, the last of which starts a completion of `length` tokens."""
    ids = torch.randint(VOCAB - FIRST, (width,), generator=generator)
    block = (VOCAB - FIRST) // LONGEST
    ids[-1] = length - 1 + LONGEST * int(torch.randint(block, (1,), generator=generator))
    return "".join(chr(FIRST_CHARACTER + i) for i in ids.tolist())


def drawn_lengths(model: PreTrainedModel, prompt_ids: Tensor) -> list[int]:
    """The lengths of completions that transformers' `generate` writes."""
    rows = model.generate(
        prompt_ids, attention_mask=torch.ones_like(prompt_ids), do_sample=True, top_k=0, max_new_tokens=LONGEST
    )[:, prompt_ids.shape[1] :]
    return [row.tolist().index(EOS) + 1 if EOS in row else len(row) for row in rows]


def arithmetic(student: PreTrainedModel, teacher: PreTrainedModel, width: int, lengths: list[int]) -> float:
    """Floating-point operations of the matrix products that one step needs, padding and finished rows left out.

    Rollout, the teacher's and the student's forward pass, and the student's backward pass (twice the forward); the head
    runs on completion tokens only.
    """
    once = [_forward(student, width, length) for length in lengths]
    taught = [_forward(teacher, width, length) for length in lengths]
    return 4 * sum(once) + sum(taught)


def _forward(model: PreTrainedModel, width: int, length: int) -> float:
    config, tokens = model.config, width + length - 1
    weights = sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2)
    attention = 2 * config.num_hidden_layers * config.hidden_size * tokens  # half of all pairs of positions
    return tokens * (2 * weights + attention) + 2 * length * config.vocab_size * config.hidden_size
