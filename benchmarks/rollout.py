"""Time of a sampled rollout: the own decode loop, the engine `Transformers`, and transformers' `generate` by itself.

All three run in one process, in turn, on the same prompts with the same number of threads; the table gives medians over
the rounds. Lengths are made, not hoped for: EOS gets a fixed logit, so that the lengths of all three are geometric with
about the same mean, or it is ruled out. The weights are random, and the head is scaled so that the distributions are as
peaked as those of a trained model. `generate` does not return the sampler's log-probabilities; the engines do.

    python benchmarks/rollout.py [--rounds 5] [--threads 1] [--quick]
"""

import argparse
import functools
import math
import statistics
import time
from dataclasses import dataclass

import torch
from measuring import conditions

from veto_pl.models.assemble import load_models
from veto_pl.models.initialisation import RandomWeights
from veto_pl.models.tokenizers import CharacterTokenizer
from veto_pl.rollouts import DecodeLoop, FromStudent, Sampling, Transformers
from veto_pl.seams import PromptBatch, Step

VOCABULARY = 32768
SPREAD = 5.0
"""Standard deviation of the logits."""

SIZES = {
    "2M": {"hidden_size": 56, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4},
    "30M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8},
}


@dataclass(frozen=True)
class Case:
    """What is completed.

    Args:
        name: in the table.
        prompts: number of prompts.
        prompt_tokens: shortest and longest prompt.
        completions: of each prompt.
        limit: the longest completion.
        mean: tokens of a completion on average, if there were no limit; None where none ends early.
        sampling: temperature and truncation.
    """

    name: str
    prompts: int
    prompt_tokens: tuple[int, int]
    limit: int
    completions: int = 1
    mean: int | None = None
    sampling: tuple[tuple[str, float], ...] = ()


CASES = (
    Case("equal lengths", 16, (32, 32), 64),
    Case("geometric lengths", 16, (8, 64), 128, mean=32),
    Case("top-p 0.95", 16, (8, 64), 64, sampling=(("top_p", 0.95),)),
    Case("geometric, 8 completions", 4, (64, 256), 128, completions=8, mean=32),
)


def build(dimensions):
    source = RandomWeights("llama", {"vocab_size": VOCABULARY, "max_position_embeddings": 1024, **dimensions})
    tokenizer = CharacterTokenizer([chr(0x4E00 + i) for i in range(VOCABULARY - 3)]).load()
    models = load_models(source, None, tokenizer)
    head = models.student.model.get_output_embeddings().weight.data
    head.mul_(SPREAD / (head.std() * dimensions["hidden_size"] ** 0.5))
    return models


def fixed_eos(models, batch, mean):
    """Gives EOS a probability of about 1 / mean at every token, or none; the handle takes it away again."""
    eos, level = models.tokenizer.eos_token_id, -math.inf
    if mean is not None:
        with torch.no_grad():
            logits = models.student.model(batch.input_ids, attention_mask=batch.attention_mask.long()).logits[:, -1]
        level = float(logits.logsumexp(-1).mean()) - math.log(mean - 1)

    def set_logit(_, __, logits):
        logits[..., eos] = level
        return logits

    return models.student.model.get_output_embeddings().register_forward_hook(set_logit)


def prompts_of(case):
    generator = torch.Generator().manual_seed(0)
    shortest, longest = case.prompt_tokens
    lengths = torch.randint(shortest, longest + 1, (case.prompts,), generator=generator)
    ids = torch.randint(3, VOCABULARY, (case.prompts, int(lengths.max())), generator=generator)
    mask = torch.arange(ids.shape[1]).flip(0)[None] < lengths[:, None]
    empty = ids[:, :0]
    return PromptBatch(ids * mask, mask, empty, empty.bool())


def contenders(case, models):
    """Each takes a round's number, and returns how many tokens it wrote."""
    batch, shaping = prompts_of(case), dict(case.sampling)
    sampling = Sampling(max_new_tokens=case.limit, num_completions=case.completions, **shaping)

    def engine(chosen, index):
        return int(FromStudent(sampling, chosen)(batch, models, Step(index, 1)).loss_mask.sum())

    def generate(index):
        torch.manual_seed(index)
        model, eos = models.student.model.eval(), models.tokenizer.eos_token_id
        written = model.generate(
            batch.input_ids, attention_mask=batch.attention_mask.long(), max_new_tokens=case.limit, do_sample=True,
            top_k=0, num_return_sequences=case.completions, eos_token_id=eos, pad_token_id=eos, **shaping,
        )[:, batch.input_ids.shape[1] :]  # fmt: skip
        return int(((written == eos).cumsum(1) - (written == eos).long() == 0).sum())

    def in_turn(index):
        """What an accumulation window of four micro-batches takes that is not rolled out as one batch."""
        parts = torch.arange(len(batch)).chunk(4)
        return sum(
            int(FromStudent(sampling)(batch.rows(part), models, Step(index, 1)).loss_mask.sum()) for part in parts
        )

    return {
        "own loop": functools.partial(engine, DecodeLoop()),
        "Transformers": functools.partial(engine, Transformers()),
        "generate": generate,
        "four in turn": in_turn,
    }


def measure(case, models, rounds):
    """Seconds per thousand written tokens of each, round by round."""
    handle = fixed_eos(models, prompts_of(case), case.mean)
    functions = contenders(case, models)
    times = {name: [] for name in functions}
    for index in range(-1, rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            tokens = function(index)
            if index >= 0:
                times[name].append(1e3 * (time.perf_counter() - start) / tokens)
    handle.remove()
    return times


def main(rounds=5, threads=1, quick=False):
    """Prints one table: seconds per thousand tokens, and how many times faster the own loop is."""
    torch.set_num_threads(threads)
    rounds = min(rounds, 2) if quick else rounds
    print(conditions("transformers").replace("processor time", "wall-clock time"), "\n")
    print("| model | case | own loop | Transformers / own | generate / own | four micro-batches in turn / own |")
    print("| :--- | :--- | ---: | ---: | ---: | ---: |")
    for size in list(SIZES)[: 1 if quick else None]:
        models = build(SIZES[size])
        for case in CASES:
            times = {name: statistics.median(column) for name, column in measure(case, models, rounds).items()}
            own, *others = times.values()
            cells = [f"{own:.3f}", *(f"{other / own:.2f}" for other in others)]
            print(f"| {size} | {case.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the small model alone, two rounds")
    main(**vars(parser.parse_args()))
