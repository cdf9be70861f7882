"""What holds for every plan."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.planning.conftest import VOCABULARY, llama, module, on_policy, part, planned
from veto_pl.exceptions import ConfigurationError
from veto_pl.objectives import (
    GKD,
    RLCSD,
    SFT,
    VOPD,
    Distill,
    DistiLLM2,
    MiniLLM,
    Phases,
    SeqKD,
    ShiftMOPD,
    Sum,
    SupervisedKD,
    UniOPD,
    Veto,
)
from veto_pl.parts.own_template import OwnTemplate
from veto_pl.parts.panels import Shifted, Together
from veto_pl.parts.schedules import Linear
from veto_pl.planning.devices import device
from veto_pl.planning.observation import Observation
from veto_pl.planning.placement import Placement
from veto_pl.planning.rollout import Lengths, decode_moments
from veto_pl.planning.run_plan import plan
from veto_pl.planning.simulation import Setting
from veto_pl.planning.stages import stages
from veto_pl.rollouts import DecodeLoop, FromStudent, Sampling, Vllm
from veto_pl.seams import TeacherContext


def optimizer(name, **arguments):
    return lambda parameters: getattr(torch.optim, name)(parameters, lr=0.1, **arguments)


def llama_parameters(width, layers, heads, kv_heads, tied, inner=80, vocabulary=VOCABULARY):
    """Embeddings, four projections of attention, three of the MLP, two norms a layer, the last norm, the head."""
    kv_width = width // heads * kv_heads
    layer = 2 * width * width + 2 * width * kv_width + 3 * width * inner + 2 * width
    return vocabulary * width * (1 if tied else 2) + layers * layer + width


@pytest.mark.parametrize(("tied", "kv_heads"), [(True, 1), (False, 4)])
def test_parameters_follow_the_closed_formula_and_tied_weights_count_once(tied, kv_heads):
    weights = planned(module(llama(kv_heads=kv_heads, tied=tied))).simulated.student
    assert weights.parameters == llama_parameters(32, 2, 4, kv_heads, tied)
    assert weights.trained == 4 * weights.parameters
    assert weights.bytes - weights.trained < 1024  # the frequencies of the positions


@settings(max_examples=2)
@given(prompts=st.integers(1, 4), completion=st.integers(4, 24), layers=st.integers(1, 3))
def test_twice_the_batch_has_twice_the_activations(prompts, completion, layers):
    built = module(llama(layers=layers))
    once, twice = (
        part(planned(built, prompts * factor, completion=completion), "student's forward") for factor in (1, 2)
    )
    assert once.weights == twice.weights
    assert once.state == twice.state
    assert twice.rest / once.rest == pytest.approx(2, abs=0.15)  # positions are shared by all rows


def test_sharding_divides_what_lasts_and_leaves_activations():
    ranks, built = 4, on_policy(new=4)
    whole = planned(built)
    shards = planned(built, placement=Placement("fsdp2", ranks))
    for one, other in zip(whole.memory, shards.memory, strict=True):
        assert other.weights == one.weights // ranks
        assert other.state == one.state // ranks
    forward = part(shards, "student's forward")
    assert forward.gradients == part(whole, "student's forward").gradients // ranks
    assert forward.rest == part(whole, "student's forward").rest
    assert forward.gathered > 0


def test_a_student_that_samples_whole_is_gathered_whole():
    built = on_policy(new=4)
    whole, layered = (
        part(planned(built, placement=Placement("fsdp2", 4, gather_student=gather)), "rollout").gathered
        for gather in (True, False)
    )
    assert whole == planned(built).simulated.student.bytes
    assert layered < whole


def test_ddp_holds_the_gradients_twice_unless_they_live_in_its_buckets():
    built = module()
    single, ddp, views = (
        part(planned(built, placement=placement), "optimizer step").gradients
        for placement in (Placement(), Placement("ddp", 2), Placement("ddp", 2, buckets=False))
    )
    assert single == views
    assert ddp == 2 * single


@settings(max_examples=2)
@given(layers=st.integers(1, 4), completion=st.integers(8, 48), prompts=st.integers(1, 4))
def test_checkpointing_never_needs_more_and_always_computes_more(layers, completion, prompts):
    built = module(llama(layers=layers))
    kept, recomputed = (
        planned(built, prompts, completion=completion, checkpointing=checkpointing) for checkpointing in (False, True)
    )
    assert recomputed.peak.total <= kept.peak.total
    assert part(recomputed, "student's forward").rest <= part(kept, "student's forward").rest
    assert recomputed.simulated.phases["backward"].flops > kept.simulated.phases["backward"].flops


@pytest.mark.parametrize(
    ("chosen", "copies"),
    [
        (optimizer("AdamW"), 2),
        (optimizer("SGD"), 0),
        (optimizer("SGD", momentum=0.9), 1),
        (optimizer("AdamW", amsgrad=True), 3),
        (optimizer("Adagrad"), 1),
    ],
)
def test_the_state_of_an_optimizer_is_what_it_makes_of_it(chosen, copies):
    simulated = planned(module(optimizer=chosen)).simulated
    assert simulated.state == pytest.approx(copies * simulated.student.trained, rel=0.01)


def test_attention_with_dropout_keeps_no_square_on_an_accelerator():
    student = llama()
    dropped = replace(student, dimensions=student.dimensions | {"attention_dropout": 0.1})
    cpu, gpu = ([part(planned(module(source), completion=400, device_name=name), "backward").rest
                 for source in (student, dropped)] for name in ("CPU", "H100-80GB"))  # fmt: skip
    assert cpu[1] > cpu[0] + 2 * 4 * 4 * 4 * 416**2, "layers, rows, heads, bytes"
    assert gpu[1] == gpu[0]


def test_sharded_weights_in_mixed_precision_are_gathered_in_half_and_keep_no_copies():
    built, placement = on_policy(new=4), Placement("fsdp2", 4)
    full, mixed = (planned(built, placement=placement, precision=p) for p in ("32-true", "bf16-mixed"))
    assert part(mixed, "rollout").gathered == pytest.approx(part(full, "rollout").gathered / 2, rel=0.01)
    assert part(mixed, "rollout").weights == part(full, "rollout").weights
    alone = planned(built, precision="bf16-mixed")
    student = full.simulated.student
    copies = student.trained / 2 - student.parameters * 2 * 0.1  # all but the norms and the embedding's lookup
    spared = part(alone, "student's forward").rest - part(mixed, "student's forward").rest
    assert spared == pytest.approx(copies, rel=0.2)


def test_an_optimizers_temporaries_are_divided_by_the_shards():
    built = module(llama(layers=4))
    whole, shards = (
        part(planned(built, placement=placement, device_name="H100-80GB"), "optimizer step")
        for placement in (Placement(), Placement("fsdp2", 4))
    )
    assert shards.rest == whole.rest // 4


def test_an_accelerator_updates_all_weights_at_once():
    built = module(llama(layers=4))
    cpu, gpu = (part(planned(built, device_name=name), "optimizer step").rest for name in ("CPU", "H100-80GB"))
    assert gpu > 2 * cpu


def test_chunks_bound_the_loss_head():
    built = module(llama(vocabulary=3000))
    # The tokenizer knows few ids; the head's other rows are there all the same.
    sizes = [
        part(planned(built, 8, completion=32, chunk_rows=rows, device_name="H100-80GB"), "loss head").rest
        for rows in (64, 256)
    ]
    assert sizes == sorted(sizes)
    assert sizes[1] - sizes[0] >= 4 * 3000 * (256 - 64)


@pytest.mark.parametrize(
    "objective",
    [
        GKD(sampling=Sampling(max_new_tokens=8)),
        MiniLLM(sampling=Sampling(max_new_tokens=8)),
        SeqKD(),
        SupervisedKD(gold_weight=0.5),
        Sum(terms={"one": SupervisedKD(), "two": SupervisedKD(temperature=2.0)}),
        UniOPD(rollout=FromStudent(Sampling(max_new_tokens=4, num_completions=2))),
        RLCSD(rollout=FromStudent(Sampling(max_new_tokens=4, num_completions=2))),
        ShiftMOPD(rollout=FromStudent(Sampling(max_new_tokens=4)), panel=Shifted({"teacher": "teacher"})),
        Distill(panel=Together(combine="target"), context=OwnTemplate()),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_every_objective_can_be_planned(objective):
    built = module(teacher=llama(seed=1), objective=objective, evaluation=Sampling(max_new_tokens=4))
    result = planned(built, accumulate=2, validated=2)
    simulated = result.simulated
    assert result.peak.total > simulated.student.bytes + simulated.frozen["teacher"].bytes + simulated.state
    assert {"teacher's scoring", "student's forward", "backward"} <= {part.phase for part in result.work}


def test_weights_that_change_make_no_stages():
    both = DistiLLM2(beta=Linear(0.5, 1.5))
    assert len(stages(both)) == 1
    assert [set(stage.terms) for stage in stages(DistiLLM2(beta=Linear(0.0, 1.0)))] == [
        {"teacher"},
        {"teacher", "student"},
    ]
    assert stages(Phases(first=SFT(), then=both, switch=0.5))[0] == SFT()


def test_every_phase_of_a_run_is_planned():
    many = VOPD(rollout=FromStudent(Sampling(max_new_tokens=16, num_completions=8)))
    orders = [Phases(first=SFT(), then=many), Phases(first=many, then=SFT()), many]
    peaks = [planned(module(teacher=llama(seed=1), objective=o)).peak.total for o in orders]
    assert peaks[0] == peaks[1] == peaks[2] > planned(module(teacher=llama(seed=1), objective=SFT())).peak.total


def test_terms_that_are_kept_apart_have_a_gradient_each():
    terms = {name: SupervisedKD(temperature=t) for name, t in (("one", 1.0), ("two", 2.0), ("three", 3.0))}
    built = module(teacher=llama(seed=1), objective=Sum(terms=terms))
    joined, apart = (planned(built, accumulate=n) for n in (1, 2))
    extra = apart.simulated.student.trained * len(terms)
    assert part(apart, "backward").rest + part(apart, "backward").gradients >= extra
    assert part(apart, "optimizer step").total > part(joined, "optimizer step").total + extra / 2


def test_half_precision_halves_what_belongs_to_the_student():
    built = module()
    full, half = planned(built).simulated, planned(built, precision="bf16-true").simulated
    assert half.student.trained * 2 == full.student.trained
    assert half.state == pytest.approx(full.state / 2, rel=0.01)


def test_mixed_precision_keeps_the_weights_and_saves_activations():
    built = module(llama(width=64, layers=2))
    full, mixed = (planned(built, 8, completion=64, precision=p) for p in ("32-true", "bf16-mixed"))
    assert mixed.simulated.student == full.simulated.student
    assert part(mixed, "student's forward").rest < part(full, "student's forward").rest


def test_a_cache_grows_with_rows_and_tokens():
    sizes = [{}, {"copies": 4}, {"new": 300}]
    small, more, longer = (part(planned(on_policy(**size), 8), "rollout").rest for size in sizes)
    width, layers, kv_width = 32, 2, 16
    assert longer - small >= 2 * layers * kv_width * 4 * 8 * (300 - 32 - 64)
    assert more > 3 * small
    assert width > kv_width  # grouped heads: the cache is smaller than the hidden states


@dataclass(frozen=True)
class Apart(DecodeLoop):
    """An engine with a tenth of the device's memory, and half of that while nobody samples."""

    def new_cache(self, model):
        return None

    def set_aside(self, memory, weights):
        return memory // 10, memory // 20


def engines_of(built, **settings):
    return {part.phase: part.engines for part in planned(built, validated=4, **settings).memory}


def test_a_validation_is_planned_with_the_engine_that_will_run_it():
    own, apart = on_policy(new=32), on_policy(new=32, evaluation_engine=Apart())
    decoded, given = (planned(one, validated=4).simulated.phases["validation"].flops for one in (own, apart))
    assert 0 < given < 0.9 * decoded  # the completions are read by metrics, and no token is decoded
    assert part(planned(apart), "rollout") == part(planned(own), "rollout")


def test_an_engine_of_rollouts_runs_validations_too():
    source = FromStudent(Sampling(max_new_tokens=32), Apart())
    shared = replace(on_policy().objective, rollout=source)
    built = module(teacher=llama(width=64, seed=1), objective=shared)
    named = module(teacher=llama(width=64, seed=1), objective=shared, evaluation_engine=Apart())
    assert built.answering_engine == Apart()
    assert planned(built, validated=4).memory == planned(named, validated=4).memory


def test_what_engines_set_aside_counts_in_every_part_of_a_step():
    memory = planned(on_policy(new=4)).device.memory
    tenth, half = memory // 10, memory // 20
    assert set(engines_of(on_policy(new=4)).values()) == {0}
    validated = engines_of(on_policy(new=4, evaluation_engine=Apart()))
    assert validated == {name: tenth if name == "validation" else half for name in validated}
    source = FromStudent(Sampling(max_new_tokens=4), Apart())
    both = engines_of(module(teacher=llama(width=64, seed=1), objective=Veto(rollout=source)))
    assert both == {name: tenth if name in ("rollout", "validation") else half for name in both}


@pytest.mark.parametrize(
    ("engine", "awake", "asleep"),
    [
        (Vllm(0.25), 250, 250),
        (Vllm(0.25, sleep=True), 250, 0),
        (Vllm(0.25, cache_bytes=30, tensor_parallel=2), 50, 50),
        (DecodeLoop(), 0, 0),
    ],
)
def test_vllm_takes_its_share_or_its_weights_and_the_cache_that_was_given(engine, awake, asleep):
    assert engine.set_aside(1000, 40) == (awake, asleep)


def test_the_moments_of_a_rollout_follow_the_growth_of_the_cache():
    from veto_pl.rollouts.kv_cache import GrowingLayer

    for prompt, new in ((1, 1), (1, 2), (100, 200), (7, 500)):
        layer, grown = GrowingLayer(), [prompt]
        layer.update(torch.zeros(1, 1, prompt, 1), torch.zeros(1, 1, prompt, 1))
        for held in range(prompt, prompt + new - 1):
            room = layer.room
            layer.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
            if layer.room is not room:
                grown.append(held)
        expected = sorted({prompt, grown[-1], prompt + new - 2}) if new > 1 else []
        assert decode_moments(prompt, new) == expected


def test_observed_bytes_are_those_of_live_tensors():
    with FakeTensorMode():
        before = torch.zeros(100)
        with Observation() as observation, observation.phase("all") as phase:
            kept = torch.zeros(1000)
            view = kept.view(10, 100)[2:]
            before.add_(1).view(10, 10)
            assert observation.alive == 4000
            product = view @ torch.zeros(100, 7)
            assert phase.peak == 4000 + 4 * 700 + 4 * 8 * 7
            del kept
            assert observation.alive == 4000 + 4 * 8 * 7  # the view holds it
            del view, product
            assert observation.alive == 0
            assert phase.flops == 2 * 8 * 100 * 7


def test_saved_activations_live_until_the_backward_pass():
    with FakeTensorMode():
        weight = torch.nn.Parameter(torch.zeros(50, 50))
        weight.register_post_accumulate_grad_hook(lambda p: observation.mark_gradient(p))
        with Observation(shards=2) as observation:
            loss = (torch.zeros(10, 50) @ weight).exp().sum()
            assert observation.alive >= 2 * 4 * 500  # the input and the exponential
            loss.backward()
            del loss
            assert observation.alive == 4 * 2500 // 2  # the gradient, on two devices


def test_a_step_that_depends_on_values_is_refused_by_name():
    class Branching(SupervisedKD):
        def per_token(self, rows):
            return super().per_token(rows) * int(rows.token_ids.max())

        with_gradient = SupervisedKD.by_autograd

    built = module(teacher=llama(seed=1), objective=Branching())
    with pytest.raises(ConfigurationError, match="depends on values"):
        planned(built)


def test_a_context_counts_as_the_same_text():
    @dataclass(frozen=True)
    class Hints(TeacherContext):
        def __call__(self, sequences, models, step):
            raise AssertionError(f"{sequences.prompts.examples}")

    plain, hinted = (planned(module(teacher=llama(seed=1), objective=o)) for o in (
        SupervisedKD(), Sum(terms={"one": SupervisedKD(context=Hints())})
    ))  # fmt: skip
    assert hinted.peak == plain.peak


def test_a_precision_that_is_not_known_is_refused():
    with pytest.raises(ConfigurationError, match=r"trainer\.precision.*'fp8'"):
        planned(module(), precision="fp8")


def test_a_plan_leaves_the_module_as_it_was():
    built = on_policy(new=4, evaluation=Sampling(max_new_tokens=4))
    first, again = (planned(built, validated=2) for _ in range(2))
    assert again.memory == first.memory
    assert again.work == first.work
    assert all(float(metric.weight) == 0 for metric in built.validation_metrics.values())


def test_a_recorded_rollout_has_caches_of_their_final_size_on_an_accelerator():
    """However little is written. Kernel by kernel a cache grows, and on a CPU nothing is recorded."""
    sampling = Sampling(max_new_tokens=300, num_completions=2)
    rest = {}
    for name, engine in (("recorded", DecodeLoop()), ("usual", DecodeLoop(capture=False))):
        built = module(teacher=llama(width=64, seed=1), objective=Veto(rollout=FromStudent(sampling, engine)))
        for longest in (20, 200):
            setting = Setting(Lengths(16, 16, longest), 4, 0)
            for device_name in ("CPU", "H100-80GB"):
                result = plan(built, setting, Placement(), device(device_name))
                rest[name, longest, device_name] = part(result, "rollout").rest
                if device_name != "CPU":
                    launched = result.simulated.phases["rollout"].kernels
                    rest[name, longest, "kernels"] = launched
    layers, kv_width, columns = 2, 16, 320  # 316, in whole eights
    cache = 2 * layers * kv_width * 4 * (4 * 2) * columns
    short, long = (rest["recorded", longest, "H100-80GB"] for longest in (20, 200))
    assert cache < short == long < 1.5 * cache
    assert rest["usual", 20, "H100-80GB"] < short / 2
    assert rest["recorded", 20, "CPU"] == rest["usual", 20, "CPU"]
    assert rest["recorded", 200, "kernels"] < rest["usual", 200, "kernels"] / 2.5
