"""How two tokenizers divide texts into units, and how the walk that was published with SimCT divides them.

Two byte-level BPE tokenizers are trained on texts of Reasoning Gym: a student's of 600 ids, whose digits stand alone,
and a teacher's of 1,200 ids. Texts are divided by common byte boundaries (`functional/units.py`), and by a walk over
the texts of single tokens, as the authors' code is described: a segment ends where the texts so far are the same and
the next tokens as well, and includes these. Tokens behind the last such place are lost.

    python benchmarks/alignment.py [--texts 202] [--rounds 20]
"""

import argparse
from collections.abc import Iterable, Sequence
from itertools import islice, zip_longest

import torch
from measuring import clock, conditions, markdown_table
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from veto_pl.data.translator import Translator
from veto_pl.functional.units import Units

DATASETS = (
    "leg_counting", "family_relationships", "knights_knaves", "gsm_symbolic", "chain_sum", "simple_equations",
    "spell_backward", "word_sorting",
)  # fmt: skip
FOREIGN = "東京は雨です。 서울은 맑음 🙂 x = 42"


def texts_of(number: int, datasets: Sequence[str] = DATASETS) -> list[str]:
    """Questions with their answers, the data sets in turn."""
    import reasoning_gym

    made = [reasoning_gym.create_dataset(name, size=-(-number // len(datasets)), seed=0) for name in datasets]
    items = (item for some in zip_longest(*made) for item in some if item is not None)
    return [f"{item['question']} {item['answer']}" for item in islice(items, number)]


def trained(texts: Iterable[str], ids: int, *, single_digits: bool) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer."""
    core = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(r"\d"), "isolated")] if single_digits else []
    core.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    core.decoder = decoders.ByteLevel()
    settings = {"vocab_size": ids, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    core.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=["<eos>"], **settings))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", clean_up_tokenization_spaces=False)


def walked(mine: Sequence[str], theirs: Sequence[str]) -> list[tuple[int, int]]:
    """The tokens of each segment of the published walk, of the student and of the teacher."""
    segments, starts, places, read = [], (0, 0), [0, 0], ["", ""]
    while places[0] < len(mine) and places[1] < len(theirs):
        if read[0] == read[1] and mine[places[0]] == theirs[places[1]]:
            steps = (0, 1)
        else:
            steps = (0,) if len(read[0]) + len(mine[places[0]]) <= len(read[1]) + len(theirs[places[1]]) else (1,)
        for side in steps:
            read[side] += (mine, theirs)[side][places[side]]
            places[side] += 1
        if len(steps) == 2:
            segments.append((places[0] - starts[0], places[1] - starts[1]))
            starts = (places[0], places[1])
    return segments


def counted(units: Iterable[Units]) -> tuple[int, int, int]:
    """Units, those of one token on both sides, and the student's tokens in any."""
    units = list(units)
    parts = ((one.count, int(one.single.sum()), int((one.student >= 0).sum())) for one in units)
    return tuple(map(sum, zip(*parts, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=202)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    texts = texts_of(given.texts)
    student, teacher = trained(texts, 600, single_digits=True), trained(texts, 1200, single_digits=False)
    translator = Translator(student, teacher, [student.eos_token_id], [teacher.eos_token_id])
    rows = []
    for name, some in (("reasoning-gym", texts), ("Japanese, Korean, emoji", [FOREIGN])):
        ids = [student(text)["input_ids"] for text in some]
        found = translator(ids)
        walks = [
            walked(*([one.decode([i]) for i in side] for one, side in ((student, mine), (teacher, theirs))))
            for mine, (theirs, _) in zip(ids, found, strict=True)
        ]
        tokens = sum(map(len, ids)), sum(len(theirs) for theirs, _ in found)
        count, single, covered = counted(units for _, units in found)
        segments = [segment for walk in walks for segment in walk]
        whole = sum(mine for mine, _ in segments)
        rows += [
            [name, "units", *tokens, count, single, f"{1 - covered / tokens[0]:.1%}"],
            [name, "walk", *tokens, len(segments), segments.count((1, 1)), f"{1 - whole / tokens[0]:.1%}"],
        ]
    ids, begin = [student(text)["input_ids"] for text in texts], clock()
    for _ in range(given.rounds):
        translator(ids)
    seconds = (clock() - begin) / given.rounds
    print(conditions("transformers"), "\n")
    print(markdown_table(["texts", "by", "student", "teacher", "parts", "one to one", "lost"], rows), "\n")
    print(f"{seconds / sum(map(len, ids)) * 1e6:.2f} µs a token, the teacher's tokenizer included")


if __name__ == "__main__":
    main()
