"""Rollout time of veto_pl's decode loop against transformers' `generate`: same model, prompts, sampling and lengths.

Both run in one process, interleaved, and the ratio is the median of the pairs. EOS is never drawn, so that both write
the same number of tokens; what a loop saves on rows that end early is not measured here.

    python benchmarks/rollout.py [--rounds 7]
"""

import argparse
import statistics
import time

import torch

from veto_pl.data.collate import Collator
from veto_pl.models import CharacterTokenizer, RandomWeights
from veto_pl.models.assemble import load_models
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.types import Example, Step

SIZES = {
    "d64 x 2": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    "d256 x 4": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8},
}


def build(dimensions):
    source = RandomWeights("llama", {"vocab_size": 64, "max_position_embeddings": 256, **dimensions})
    models = load_models(source, None, CharacterTokenizer("abcdefgh>").load())
    models.student.model.generation_config.eos_token_id = None
    models.tokenizer.eos_token = None
    return models


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(models, batch, tokens, rounds):
    source = FromStudent(Sampling(max_new_tokens=tokens))
    model = models.student.model.eval()
    arguments = {"max_new_tokens": tokens, "do_sample": True, "top_k": 0, "pad_token_id": 0}

    def ours():
        source(batch, models, Step(0, 1))

    def theirs():
        model.generate(batch.input_ids, attention_mask=batch.attention_mask.long(), **arguments)

    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*pairs, strict=True)], statistics.median(
        b / a for a, b in pairs
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("| model | prompts | tokens | veto_pl (s) | generate (s) | generate / veto_pl |")
    print("| :--- | ---: | ---: | ---: | ---: | ---: |")
    for name, dimensions in SIZES.items():
        models = build(dimensions)
        for size, tokens in ((8, 32), (64, 32)):
            collate = Collator(tokenizer=models.tokenizer)
            batch = collate([Example("abcdefgh"[: 1 + i % 8] + ">") for i in range(size)])
            (ours, theirs), ratio = compare(models, batch, tokens, rounds)
            print(f"| {name} | {size} | {tokens} | {ours:.3f} | {theirs:.3f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
