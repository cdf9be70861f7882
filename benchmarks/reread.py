"""What reading the context of an episode anew at each turn costs, beside reading what is new (docs/adr/0044).

Greedy episodes of one process and one thread: `python benchmarks/reread.py`, some minutes.
"""

import time

import torch

from veto_pl.models import CharacterTokenizer
from veto_pl.models.assemble import load_models
from veto_pl.models.known_masks import known_rows
from veto_pl.models.modes import sampling_mode
from veto_pl.rollouts.kv_cache import new_cache
from veto_pl.testing.tiny import tiny_source

ROWS, TURNS = 8, 8
SIZES = {"2 layers, width 64": (2, 64, 64), "4 layers, width 256": (4, 256, 1000)}
EPISODES = ((100, 16, 30), (300, 60, 60), (300, 20, 200))
"""Tokens of the opening, of a turn, and of a reply."""


def student(layers, width, vocabulary):
    heads = width // 64
    sizes = {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 8192,
    }  # fmt: skip
    return load_models(tiny_source("llama", **sizes), None, CharacterTokenizer("abcdefgh").load()).student


def logits_of(model, cache, ids, start):
    position = torch.arange(start, start + ids.shape[1]).expand(len(ids), -1)
    with torch.no_grad(), sampling_mode(model), known_rows(packed=False, padded=False):
        return model.next_logits(ids, None, cache, position)


def seconds(model, opening, turn, reply, *, kept):
    """CPU seconds of reading and of writing the turns of episodes."""
    draws, cache, start, reading, writing = torch.Generator().manual_seed(0), None, 0, 0.0, 0.0
    ids = torch.randint(0, model.vocab_size, (ROWS, opening), generator=draws)
    for _ in range(TURNS):
        if cache is None or not kept:
            cache, start = new_cache(model), 0
        began = time.process_time()
        logits = logits_of(model, cache, ids[:, start:], start)
        read, start = time.process_time(), ids.shape[1]
        for written in range(turn):
            drawn = logits.argmax(1, keepdim=True)
            ids = torch.cat([ids, drawn], 1)
            if written < turn - 1:
                logits, start = logits_of(model, cache, drawn, start), start + 1
        reading, writing = reading + read - began, writing + time.process_time() - read
        ids = torch.cat([ids, torch.randint(0, model.vocab_size, (ROWS, reply), generator=draws)], 1)
    return reading, writing


def best(model, lengths, *, kept):
    """The better of two runs."""
    return min((seconds(model, *lengths, kept=kept) for _ in range(2)), key=sum)


def main():
    torch.set_num_threads(1)
    for name, size in SIZES.items():
        model = student(*size)
        for lengths in EPISODES:
            anew, kept = (
                min((seconds(model, *lengths, kept=kept) for _ in range(2)), key=sum) for kept in (False, True)
            )
            print(f"{name}, {lengths}: anew {anew}, kept {kept}, ratio {sum(anew) / sum(kept):.2f}")


if __name__ == "__main__":
    main()
