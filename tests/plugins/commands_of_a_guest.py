"""Runs commands on the parts of the guest, one after another, and writes down what each says."""

import contextlib
import io
import json
from pathlib import Path

RELAY, GUEST_SOURCE = "--model.objective.rollout=GuestRelay", "--model.objective.rollout=GuestSource"
SHORT = "--model.objective.rollout.sampling.max_new_tokens=6"
ELSEWHERE = "--model.objective.rollout.engine=GuestEngine"
TINY = {
    "class_path": "RandomWeights",
    "init_args": {"model_type": "llama", "dimensions": {
        "vocab_size": 16, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32,
    }},
}  # fmt: skip
CONFIG = {
    "trainer": {"accelerator": "cpu", "max_steps": 3, "val_check_interval": 3, "check_val_every_n_epoch": None},
    "data": {
        "task": {"class_path": "GuestTask"}, "template": {"class_path": "PlainTemplate"}, "batch_size": 4,
        "max_prompt_tokens": 8, "max_completion_tokens": 8,
    },
    "model": {
        "objective": {"class_path": "GuestObjective", "init_args": {
            "rollout": {"class_path": "GuestSource", "init_args": {"sampling": {"max_new_tokens": 6}}},
        }},
        "student": TINY,
        "teacher": {"class_path": "GuestModel", "init_args": {"source": TINY, "scale": 2.0}},
        "tokenizer": {"class_path": "CharacterTokenizer", "init_args": {"alphabet": "0123456789+="}},
        "metrics": [{"class_path": "GuestMetric"}, {"class_path": "Accuracy"}],
        "evaluation": {"max_new_tokens": 4},
    },
    "run_dir": "run",
    "samples": {"show": False},
}  # fmt: skip
WIDER = {
    **TINY,
    "init_args": {**TINY["init_args"], "dimensions": {**TINY["init_args"]["dimensions"], "hidden_size": 32}},
}
DISTILL = {**CONFIG, "model": {**CONFIG["model"], "objective": {"class_path": "Distill"}, "teacher": WIDER}}
PLAN = ("plan", "--config=distill.yaml", "--device=H100-80GB", "--json")
CASES = {
    "fit": ("fit", "--config=config.yaml"),
    "report": ("report", "run", "--out=report.html"),
    "plan of the run": ("plan", "--config=config.yaml", "--device=CPU"),
    "plan of the guest's source": (*PLAN, GUEST_SOURCE, SHORT),
    "plan of the student": (*PLAN, "--model.objective.rollout=FromStudent", SHORT),
    "plan of the relay": (*PLAN, RELAY, SHORT),
    "plan of the teacher": (*PLAN, "--model.objective.rollout=FromTeacher", SHORT),
    "plan of an engine elsewhere": (*PLAN, RELAY, SHORT, ELSEWHERE),
    "explain": ("explain", "--objective", "GuestObjective", "--out=explain.html"),
    "explain the relay": ("explain", "--objective", "SFT", "--objective.rollout=GuestRelay", "--out=relay.html"),
    "explain few ids": ("explain", "--objective", "Distill", "--objective.support=GuestSupport", "--out=few.html"),
    "too many ids": ("fit", "--config=distill.yaml", "--model.objective.support=GuestSupport", "--run_dir=refused"),
    "too few steps": ("fit", "--config=distill.yaml", RELAY, "--trainer.max_steps=1", "--run_dir=refused"),
    "no verifier": ("fit", "--config=config.yaml", "--model.objective=OPD", "--model.objective.reward_weight=1",
                    "--data.task.verifier=NoReward", "--run_dir=refused"),
    "greedy": ("fit", "--config=distill.yaml", GUEST_SOURCE, SHORT, "--model.objective.rollout.sampling.top_k=1",
               "--run_dir=greedy"),
    "list": ("list",),
    "greet": ("greet", "you"),
    "greeet": ("greeet",),
    "help": ("--help",),
}  # fmt: skip


def run(main, arguments):
    """What a command prints, and the message that it ends with."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main(list(arguments))
            ended = ""
        except SystemExit as error:
            ended = str(error.code or "")
    return {"printed": printed.getvalue(), "ended": ended}


if __name__ == "__main__":
    from veto_pl.commands.main import main

    for name, content in (("config.yaml", CONFIG), ("distill.yaml", DISTILL)):
        Path(name).write_text(json.dumps(content))
    said = {name: run(main, arguments) for name, arguments in CASES.items()}
    said["metrics"] = Path("run/metrics.csv").read_text() if Path("run/metrics.csv").is_file() else ""
    said["pages"] = {file.stem: file.read_text() for file in sorted(Path().glob("*.html"))}
    Path("said.json").write_text(json.dumps(said))
