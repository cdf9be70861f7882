"""What it gains to keep what was read of an episode from turn to turn (docs/adr/0050).

Greedy episodes by the decode loop, with its session and with one that reads each context from the start, by turns in
one process and on one thread: `python benchmarks/reread.py`, some minutes.
"""

import time
from dataclasses import replace

import torch

from veto_pl.models import CharacterTokenizer
from veto_pl.models.assemble import load_models
from veto_pl.rollouts import DecodeLoop, Sampling
from veto_pl.rollouts.episode_rows import behind_contexts
from veto_pl.seams import Engine, Step
from veto_pl.testing.tiny import prompt_batch, tiny_source

ROWS, TURNS, ROUNDS = 8, 8, 3
SIZES = {"2 layers, width 64": (2, 64, 64), "4 layers, width 256": (4, 256, 1000)}
EPISODES = ((100, 16, 30), (300, 60, 60), (300, 20, 200))
"""Tokens of the opening, of a turn, and of a reply, which is between half as long and half as long again."""


class Anew(DecodeLoop):
    """The same loop, which reads every context from the start."""

    session = Engine.session


def loaded(layers, width, vocabulary):
    heads = width // 64
    sizes = {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 8192,
    }  # fmt: skip
    return load_models(tiny_source("llama", **sizes), None, CharacterTokenizer("abcdefgh").load())


def seconds(engine, models, opening, turn, reply):
    """CPU seconds of the turns of episodes of uneven lengths, and what was written."""
    draws = torch.Generator().manual_seed(0)
    ids = lambda count: torch.randint(4, models.student.vocab_size, (count,), generator=draws).tolist()  # noqa: E731
    length = lambda: int(reply * (0.5 + torch.rand((), generator=draws)))  # noqa: E731
    rows, told = prompt_batch(models, ["a"] * ROWS), [ids(opening) for _ in range(ROWS)]
    sampling, began = Sampling(temperature=0.0, max_new_tokens=turn), time.process_time()
    with engine.session(models.student, models, on_policy=True) as session:
        for number in range(TURNS):
            prompts = replace(behind_contexts(rows, range(ROWS), told), numbers=torch.arange(ROWS))
            written = session.generate(prompts, sampling, Step(number, TURNS), range(ROWS)).completion_ids()
            told = [[*read, *said, *ids(length())] for read, said in zip(told, written, strict=True)]
    return time.process_time() - began, told


def main():
    torch.set_num_threads(1)
    for name, size in SIZES.items():
        models = loaded(*size)
        for lengths in EPISODES:
            runs = [[seconds(engine, models, *lengths) for engine in (Anew(), DecodeLoop())] for _ in range(ROUNDS)]
            assert all(anew[1] == kept[1] for anew, kept in runs), "both write the same"
            ratios = sorted(anew[0] / kept[0] for anew, kept in runs)
            anew, kept = (min(run[i][0] for run in runs) for i in (0, 1))
            print(
                f"{name}, {lengths}: anew {anew:.2f} s, kept {kept:.2f} s, ratio {ratios[ROUNDS // 2]:.2f}", flush=True
            )


if __name__ == "__main__":
    main()
