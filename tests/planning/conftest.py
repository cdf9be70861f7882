"""Small models that plans are made for."""

from veto_pl.models import CharacterTokenizer, RandomWeights
from veto_pl.module import DistillationModule
from veto_pl.objectives import SFT, Veto
from veto_pl.planning.devices import device
from veto_pl.planning.placement import Placement
from veto_pl.planning.rollout import Lengths
from veto_pl.planning.run_plan import plan
from veto_pl.planning.simulation import Setting
from veto_pl.rollouts import FromStudent, Sampling

VOCABULARY = 40
TOKENIZER = CharacterTokenizer(alphabet="abcdefghijklmnopqrstuvwxyzABCDEFGHIJK")


def llama(width=32, layers=2, heads=4, kv_heads=2, tied=True, seed=0, vocabulary=VOCABULARY, inner=80):
    return RandomWeights(
        "llama",
        {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 512,
            "tie_word_embeddings": tied,
        },
        seed,
    )


def module(student=None, teacher=None, objective=None, **settings):
    student = student or llama()
    return DistillationModule(objective or SFT(), student, teacher, tokenizer=TOKENIZER, **settings)


def on_policy(new=32, copies=1, **settings):
    sampling = Sampling(max_new_tokens=new, num_completions=copies)
    return module(teacher=llama(width=64, seed=1), objective=Veto(rollout=FromStudent(sampling)), **settings)


def planned(built, prompts=4, prompt=16, completion=16, placement=None, device_name="CPU", validated=0, **settings):
    setting = Setting(Lengths(prompt, completion), prompts, validated, **settings)
    return plan(built, setting, placement or Placement(), device(device_name))


def part(result, phase):
    return next(part for part in result.memory if part.phase == phase)
