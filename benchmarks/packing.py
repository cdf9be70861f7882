"""What packing saves: forward and backward pass of a model over sequences of different lengths.

The same model and sequences, packed without padding as `CausalLM` does it, and with one row per sequence, padded on the
right to the longest. Lengths are geometric behind prompts of equal length (an on-policy batch), or uniform (supervised
rows). Time is the median ratio over interleaved rounds.

    python benchmarks/packing.py [--rounds 5] [--threads 1] [--quick]
"""

import argparse

import torch
from measuring import conditions, interleaved, markdown_table
from step_models import STUDENT, geometric_lengths, source

from veto_pl.models.causal_lm import CausalLM
from veto_pl.models.packing import Packing
from veto_pl.seams import Sequences

BATCH = 16


def sequences_of(lengths: list[int], prompt: int) -> Sequences:
    """Random tokens: `prompt` and then a completion of each length."""
    width = prompt + max(lengths)
    mask = torch.arange(width) < torch.tensor([prompt + length for length in lengths])[:, None]
    ids = torch.randint(3, 49152, mask.shape, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(len(lengths))
    return Sequences(ids, mask, mask & (torch.arange(width) >= prompt), rows, torch.ones_like(rows, dtype=torch.bool))


def passes(model: CausalLM, sequences: Sequences, packs: bool) -> None:
    model._supports_packing = packs
    model(sequences, lambda hidden, _: hidden.square().mean()).backward()
    model.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_const", dest="rounds", const=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    generator = torch.Generator().manual_seed(0)
    model = CausalLM(source(STUDENT).load(), 49152)
    cases = {
        "on-policy: 64 + geometric, mean 24": sequences_of(geometric_lengths(BATCH, 24.0, generator), 64),
        "supervised: 16 + uniform, 1 to 240": sequences_of(torch.randint(1, 241, (BATCH,)).tolist(), 16),
    }
    assert model.supports_packing
    rows = []
    for name, sequences in cases.items():
        packing = Packing.of(sequences, model._attention_cost())
        found = interleaved(
            {"packed": lambda s=sequences: passes(model, s, True)},
            given.rounds,
            lambda s=sequences: passes(model, s, False),
        )["packed"]
        shape = f"{packing.input_ids.shape[0]} x {packing.input_ids.shape[1]}"
        padded = f"{len(sequences)} x {sequences.input_ids.shape[1]}"
        used = float(sequences.attention_mask.float().mean())
        rows.append([name, f"{1 - used:.0%}", padded, shape, found.seconds, 1 / found.ratio])
    print(conditions("transformers"), "\n")
    print(markdown_table(["batch of 16", "padding", "padded", "packed", "packed (s)", "padded / packed"], rows))


if __name__ == "__main__":
    main()
