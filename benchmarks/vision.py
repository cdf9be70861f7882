"""Does a student that reads images learn of a teacher with images and of a teacher of text, each on its own rows?

    python benchmarks/vision.py      # 12 trainings, about fifteen minutes of one core; a study that was stopped goes on

Two teachers, letter by letter: a LLaVA of 160k parameters (a CLIP tower for 8 x 8 pixels, a projector, a Llama of two
layers) has learnt to name handwritten digits (scikit-learn's, 1,797 images), a Llama like its decoder to spell
words of three or four letters backward (reasoning-gym's `spell_backward`). A student like the first with new weights
reads rows of both in equal parts and writes its own answers; the teacher of a row is the one that its data set names
(`Routed`), and the loss the forward KL at each token that the student wrote. In the other arm the two names are
swapped, and the teacher of text reads rows with images without their images (`WithoutImages`). Tested are 400 held-out
rows of each kind, greedily.

The rule, written before the runs, over seeds 1 to 5, each a start of the student and an order of the rows of its own:

1. one student learns of both, if on both kinds of rows the lower end of the 95% t interval of its accuracy, divided by
   its teacher's, is at least 0.9;
2. it is the images and the routes that do it, if on both kinds the interval of the routed student's accuracy minus that
   of the swapped one lies above 0, and that of the swapped student's share of the teacher's accuracy below 0.9.

The sizes were chosen on seed 0: sums of two or three digits in place of the words were too hard for 800 steps.
"""

from __future__ import annotations

import argparse
import json
import string
from pathlib import Path

import numpy as np
from PIL import Image
from small_study import fitted, llama, quietly, tell_routes

from veto_pl import PromptDataModule
from veto_pl.data import DataSet, ExactMatch, Mixed, PlainTemplate, ReasoningGym, Rows
from veto_pl.models import CharacterTokenizer, Pretrained, PretrainedTokenizer, RandomWeights
from veto_pl.objectives import SFT, Distill
from veto_pl.parts.contexts import SameText
from veto_pl.parts.panels import Routed
from veto_pl.parts.without_images import WithoutImages
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import ModelSource

PLACEHOLDER = "<image>"
PIXELS, PATCH, WIDTH, LAYERS = 8, 2, 64, 2
WORDS = ReasoningGym(
    dataset="spell_backward", size=20_000, seed=1, validation_size=8, test_size=400,
    arguments={"min_word_len": 3, "max_word_len": 4},
)  # fmt: skip
KINDS = ("digits", "words")
ARMS = {
    "routed": (Routed(), SameText()),
    "swapped": (Routed(routes={"digits": "words", "words": "digits"}), WithoutImages()),
}
STEPS = {"digits": 500, "words": 400, "student": 1000}
RATE = 3e-3
SEEDS = (1, 2, 3, 4, 5)


def written_digits(folder: Path) -> dict[str, str]:
    """Write the images and the rows that name them, unless they are there; return the files of the splits."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    splits = {"train": order[408:], "validation": order[:8], "test": order[8:408]}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split, places in splits.items():
        rows = []
        for place in places.tolist():
            file = folder / f"images/{place}.png"
            Image.fromarray((found.images[place] * 15.9375).astype(np.uint8)).save(file)
            rows.append({"prompt": ">", "completion": str(found.target[place]), "images": f"images/{place}.png"})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {split: str(folder / f"{split}.jsonl") for split in splits}


def saved_processor(folder: Path) -> PretrainedTokenizer:
    """Save the processor, an id for each character and one for each patch of an image; return where it is."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    words = CharacterTokenizer(">" + string.digits + string.ascii_letters).load()
    words.add_special_tokens({"additional_special_tokens": [PLACEHOLDER]})
    size = {"height": PIXELS, "width": PIXELS}
    images = CLIPImageProcessorPil(size={"shortest_edge": PIXELS}, crop_size=size)
    LlavaProcessor(
        images, words, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)
    return PretrainedTokenizer(str(folder))


def llava(ids: int, placeholder: int, *, seed: int) -> RandomWeights:
    """A tower for small images, a projector and the decoder of `llama`, all of whose weights are new."""
    text = dict(llama(ids, width=WIDTH, layers=LAYERS, seed=seed).dimensions) | {"model_type": "llama"}
    tower = {
        "model_type": "clip_vision_model", "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
        "projection_dim": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "image_size": PIXELS, "patch_size": PATCH,
    }  # fmt: skip
    given = {"text_config": text, "vision_config": tower, "image_token_index": placeholder}
    return RandomWeights("llava", given | {"vision_feature_layer": -1, "tie_word_embeddings": True}, seed=seed)


class Study:
    """The rows, the tokenizer and where models are kept."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.tokenizer = saved_processor(out / "processor")
        words = self.tokenizer.load()
        self.ids, self.placeholder = len(words.get_vocab()), words.convert_tokens_to_ids(PLACEHOLDER)
        digits = Rows(**written_digits(out / "data"), images="images", verifier=ExactMatch())
        self.sets = {
            "digits": DataSet(task=digits, template=PlainTemplate("<image>{prompt}"), teacher="digits", weight=1.0),
            "words": DataSet(task=WORDS, template=PlainTemplate("{metadata[word]}>"), teacher="words", weight=1.0),
        }

    def rows(self, seed: int, *names: str) -> PromptDataModule:
        """The data module of a seed, with rows of these kinds."""
        return PromptDataModule(
            Mixed(sets={name: self.sets[name] for name in names}), batch_size=64, validation_batch_size=400,
            max_prompt_tokens=48, max_completion_tokens=5, seed=seed,
        )  # fmt: skip

    def reader(self, kind: str, seed: int) -> ModelSource:
        """New weights: of a model that reads images for digits, of a model of text for words."""
        if kind == "digits":
            return llava(self.ids, self.placeholder, seed=seed)
        return llama(self.ids, width=WIDTH, layers=LAYERS, seed=seed)

    def teacher(self, kind: str) -> tuple[Path, float]:
        """Where a teacher is, and its accuracy on its own rows."""
        place, tested, _ = fitted(
            SFT(), self.reader(kind, 0), lambda seed: self.rows(seed, kind), self.out / f"teacher-{kind}",
            steps=STEPS[kind], rate=RATE, seed=0, longest=5, tokenizer=self.tokenizer,
        )  # fmt: skip
        return place, tested[f"test/{kind}/accuracy"]

    def student(self, arm: str, seed: int, teachers: dict[str, Path]) -> dict[str, float]:
        """The accuracies of a student by kind of row."""
        panel, context = ARMS[arm]
        rollout = FromStudent(Sampling(temperature=1.0, max_new_tokens=5))
        _, tested, _ = fitted(
            Distill(rollout=rollout, panel=panel, context=context), self.reader("digits", 100 + seed),
            lambda seed: self.rows(seed, *KINDS), self.out / f"{arm}-{seed}",
            steps=STEPS["student"], rate=RATE, seed=seed, longest=5, tokenizer=self.tokenizer,
            teachers={name: Pretrained(str(place)) for name, place in teachers.items()},
        )  # fmt: skip
        return {kind: tested[f"test/{kind}/accuracy"] for kind in KINDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/vision"), help="where the models are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    given = parser.parse_args()
    quietly()
    study = Study(given.out)
    made = {kind: study.teacher(kind) for kind in KINDS}
    places = {kind: place for kind, (place, _) in made.items()}
    known = {kind: score for kind, (_, score) in made.items()}
    print("teachers:", {kind: f"{score:.1%}" for kind, score in known.items()}, flush=True)
    found: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in ARMS}
    for seed in given.seeds:
        for arm in ARMS:
            found[arm][seed] = study.student(arm, seed, places)
            print(seed, arm, found[arm][seed], flush=True)
    tell_routes(found, known, ("one student learns of both", "by images and routes"))


if __name__ == "__main__":
    main()
