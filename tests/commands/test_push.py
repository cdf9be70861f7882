"""`veto-pl push` against a stand-in of the hub: what arrives there, what the card tells, and what is refused."""

import shutil
from pathlib import Path

import pytest
import yaml
from cli.conftest import tiny_config
from hub_server import Hub, serving
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from veto_pl.commands.main import main
from veto_pl.report.hub_card import HubCard, without_paths
from veto_pl.storage.checksums import SUMS, damaged, read_sums

REPO = "me/reverser"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with an export; its data have an absolute path."""
    folder = tmp_path_factory.mktemp("pushed")
    (folder / "config.yaml").write_text(yaml.safe_dump(tiny_config(folder)))
    options = ("--trainer.max_steps=1", "--trainer.val_check_interval=1", "--trainer.enable_model_summary=false")
    main(["fit", "--config", str(folder / "config.yaml"), *options])
    return folder / "run"


@pytest.fixture
def export(run, tmp_path):
    shutil.copytree(run / "export", tmp_path / "export")
    return tmp_path / "export"


@pytest.fixture
def hub(monkeypatch):
    """A function that begins a hub for this test; the client asks it, and has a token."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    opened = []

    def begin(*args, **kwargs):
        opened.append(serving(Hub(*args, **kwargs)))
        found = opened[-1].__enter__()
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        return found

    yield begin
    for one in opened:
        one.__exit__(None, None, None)


def test_an_export_arrives_whole_and_private(run, hub, tmp_path, capsys):
    here = hub()
    main(["push", str(run / "export"), REPO, "--license=apache-2.0"])
    assert capsys.readouterr().out.splitlines()[-1] == f"{here.address}/{REPO}/commit/0"
    assert here.repositories == {REPO: True}, "private"
    assert all(headers["authorization" if "authorization" in headers else "Authorization"] == "Bearer hf_test"
               for headers, (method, _) in zip(here.headers, here.asked, strict=True) if method != "PUT")  # fmt: skip
    for name, content in here.files.items():
        (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / name).write_bytes(content)
    sums = read_sums(tmp_path / "there")
    assert damaged(tmp_path / "there", sums, sums) == [], "the new card has its new checksum"
    assert sums.keys() | {SUMS} == here.files.keys()
    AutoModelForCausalLM.from_pretrained(tmp_path / "there")


def test_the_card_tells_configuration_data_metrics_and_licence_and_no_path_of_this_machine(run, hub):
    here = hub()
    main(["push", str(run / "export"), REPO, "--license=apache-2.0"])
    card = here.files["README.md"].decode()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    assert yaml.safe_load(front)["tags"] == ["knowledge-distillation", "veto_pl"]
    assert "# reverser\n" in body
    assert f'model="{REPO}"' in body
    assert "The task `JsonLines` (train `.../train.jsonl`, validation `.../train.jsonl`)." in body
    assert "After 1 optimizer steps" in body
    assert "| accuracy (%) |" in body
    config = yaml.safe_load(body.partition("```yaml\n")[2].partition("```")[0])
    assert config["data"]["task"]["init_args"]["train"] == ".../train.jsonl"
    assert config["model"]["objective"]["class_path"].endswith("SFT")
    everything = b"".join(here.files[name] for name in here.files if not name.endswith("safetensors")).decode()
    assert str(run.parent) not in everything


def test_the_metrics_are_those_of_the_weights_that_were_exported(tmp_path):
    """Of the best checkpoint, where that one was exported."""
    (tmp_path / "metrics.csv").write_text("step,validation/kl\n0,9\n5,1\n10,3\n")
    settings = {"checkpoint": {"monitor": "validation/kl", "mode": "min"}, "export": {"which": "best"}}
    from veto_pl.report import Run

    for chosen, step in ((settings, 5), (settings | {"export": {"which": "last"}}, 10)):
        written = f"---\nx: 1\n---\n# export\n\n## Training configuration\n\n```yaml\n{yaml.safe_dump(chosen)}\n```\n"
        assert f"After {step} optimizer steps" in HubCard(written, REPO, run=Run.read(tmp_path)).text()


def test_what_the_student_began_as_and_read_is_named_where_the_hub_has_it():
    settings = {
        "model": {"student": {"class_path": "Pretrained", "init_args": {"path": "Qwen/Qwen2-0.5B"}}},
        "data": {
            "task": {"class_path": "veto_pl.data.GSM8K", "init_args": {"hub": "openai/gsm8k", "train_path": None}}
        },
    }
    written = f"# export\n\n## Training configuration\n\n```yaml\n{yaml.safe_dump(settings)}\n```\n"
    front = yaml.safe_load(HubCard(written, REPO).text().split("---\n")[1])
    assert (front["base_model"], front["datasets"]) == ("Qwen/Qwen2-0.5B", ["openai/gsm8k"])
    settings["data"]["task"]["init_args"]["train_path"] = "/data/mine.jsonl"
    settings["model"]["student"]["init_args"]["path"] = "/models/qwen"
    written = f"# export\n\n## Training configuration\n\n```yaml\n{yaml.safe_dump(settings)}\n```\n"
    assert not {"base_model", "datasets"} & yaml.safe_load(HubCard(written, REPO).text().split("---\n")[1]).keys()


NAMES = st.text("abc ü-._", min_size=1, max_size=6).filter(lambda name: name.strip(" .") == name)
PATHS = st.tuples(st.sampled_from(["/", "~/"]), st.lists(NAMES, min_size=2, max_size=5)).map(
    lambda p: p[0] + "/".join(p[1])
)


@given(PATHS, st.recursive(st.none() | st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=4))
def test_no_path_of_a_machine_is_left(path, beside):
    found = without_paths({"a": [path, {"b": path}], "beside": beside})
    assert found == {"a": [f".../{path.rpartition('/')[2]}", {"b": f".../{path.rpartition('/')[2]}"}], "beside": beside}
    assert without_paths(f"--data={path.replace(' ', '')} and more").startswith("--data=...")


@given(
    st.sampled_from(["openai/gsm8k", "runs/mine/export", "https://hub.example/a/b", "a / b", "/no_think", "1/2", ""])
)
def test_other_texts_stay(text):
    assert without_paths(text) == text


def refused(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["push", *map(str, arguments)])
    said = str(ended.value.code)
    assert "\n" not in said
    return said


def test_a_public_repository_is_no_surprise(export, hub):
    here = hub({REPO: False})
    assert "`me/reverser` is public, so everybody could read the export. Add `--public`" in refused(str(export), REPO)
    assert here.files == {}
    main(["push", str(export), REPO, "--public"])
    assert "model.safetensors" in here.files


def test_a_new_repository_may_be_public(export, hub):
    here = hub()
    main(["push", str(export), REPO, "--public"])
    assert here.repositories == {REPO: False}


def test_files_of_an_earlier_export_go_and_others_stay(export, hub):
    here = hub({REPO: True})
    here.files = {"model-00001-of-00002.safetensors": b"", "notes.md": b"mine", ".gitattributes": b""}
    main(["push", str(export), REPO])
    assert "model-00001-of-00002.safetensors" not in here.files
    assert {"notes.md", ".gitattributes", "model.safetensors"} <= here.files.keys()


def test_without_a_token_nothing_is_asked(export, hub, monkeypatch):
    here = hub()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "there is no token. Run `hf auth login`, or set the environment variable HF_TOKEN" in refused(
        str(export), REPO
    )
    assert here.asked == []


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "Nothing was pushed: the token is not accepted. Run `hf auth login`"),
        (403, "Nothing was pushed: the token may not write to `me/reverser`."),
        (404, "Nothing was pushed: there is no `me/reverser`, and it cannot be made: `me` is no name of"),
        (400, "Nothing was pushed: the hub answers with 400."),
    ],
)
def test_what_the_hub_refuses_is_told_in_a_sentence(status, said, export, hub):
    hub(status=status)
    assert said in refused(str(export), REPO)


def test_a_hub_that_cannot_be_reached_is_told(export, hub, monkeypatch):
    hub()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "Nothing was pushed: http://127.0.0.1:9 cannot be reached" in refused(str(export), REPO)


def test_a_name_that_is_none_is_told(export, hub):
    hub()
    assert "`a/b/c`: expected the name of a repository" in refused(str(export), "a/b/c")


def test_only_whole_exports_are_pushed(export, run, hub, tmp_path):
    here = hub()
    assert "expected the folder of an export" in refused(str(run), REPO)
    assert "expected the folder of an export" in refused(str(tmp_path / "nowhere"), REPO)
    (export / "config.json").write_text("{}")
    assert "is damaged: `config.json` is not what was written" in refused(str(export), REPO)
    assert here.asked == []
    assert Path(export, "README.md").is_file()
