"""The documentation keeps its promises: examples run, links resolve, commands and configs exist and parse."""

import doctest
import importlib
import json
import re
import sys
import types
from pathlib import Path

import pytest
import yaml

from tests.processes import ROOT, python

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
BASE = ROOT / "configs" / "quickstart" / "base.yaml"


def name(path):
    return str(path.relative_to(ROOT))


def prose(path):
    """The text without code, in which a bracket is no link and `#` no heading."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL))


def anchors(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = [re.sub(r"[`*]|\[(.*?)\]\(.*?\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def examples(path):
    """The page's doctest; a closing fence is no output."""
    text = re.sub(r"^```.*$", "", path.read_text(), flags=re.MULTILINE)
    return doctest.DocTestParser().get_doctest(text, {}, name(path), str(path), 0)


def blocks(language, paths=PAGES):
    return [
        (path, title, code)
        for path in paths
        for kind, title, code in FENCE.findall(path.read_text())
        if kind == language
    ]


@pytest.mark.parametrize("path", [path for path in DOCS if examples(path).examples], ids=name)
def test_examples_run(path):
    result = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(examples(path))
    assert result.failed == 0
    assert result.attempted > 0


def test_the_notebook_runs_and_draws(monkeypatch, tmp_path):
    """In this process, since a kernel would need Jupyter; it is kept without outputs."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "study", types.ModuleType("study"))  # where its classes live
    names = vars(sys.modules["study"])
    for cell in json.loads((ROOT / "docs" / "study.ipynb").read_text())["cells"]:
        assert not cell.get("outputs")
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("steps=30", "steps=3"), names)
    drawn = [len(axes.lines) + len(axes.collections) for axes in names["figure"].axes]
    assert drawn == [len(names["METHODS"])] * 2
    assert all(len(set(values)) == len(names["SEEDS"]) for values in names["finals"].values())


def test_numerics_backs_each_statement():
    sections = re.split(r"^## ", (ROOT / "docs" / "numerics.md").read_text(), flags=re.MULTILINE)[1:]
    assert sections
    assert [section.partition("\n")[0] for section in sections if ">>>" not in section] == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_resolve(path):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        if not page.exists() or (anchor and anchor not in anchors(page)):
            broken.append(target)
    assert broken == []


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert [name(path) for path in DOCS if path.relative_to(ROOT / "docs").as_posix() not in navigation] == []


def test_files_and_names_of_the_package_exist():
    """Not in the decision records, which say what was decided then."""
    texts = {path: path.read_text() for path in PAGES if path.parent.name != "adr"}
    folders = [ROOT / folder for folder in ("veto_pl", "tests", "benchmarks", "docs")]
    files = [f"/{name(path)}" for folder in folders for path in folder.rglob("*.py")]
    named = {file for text in texts.values() for file in re.findall(r"`((?:\w+/)*\w+\.py)`", text)}
    named |= set(re.findall(r"  (\w+/\w+\.py)$", texts[ROOT / "docs" / "tour.md"], re.MULTILINE))
    assert "functional/reduction.py" in named
    assert sorted(file for file in named if not any(known.endswith(f"/{file}") for known in files)) == []
    dotted = {path for text in texts.values() for path in re.findall(r"\b(veto_pl(?:\.[A-Za-z]\w*)+)", text)}
    assert sorted(path for path in dotted if not resolves(path)) == []


def resolves(dotted):
    """Whether a path leads to a module, or to something in one."""
    module, _, name = dotted.rpartition(".")
    try:
        importlib.import_module(dotted)
    except ImportError:
        return bool(module) and resolves(module) and hasattr(importlib.import_module(module), name)
    return True


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "reference").glob("*.md")), ids=name)
def test_a_page_of_the_reference_is_about_its_folder(path):
    assert f"::: veto_pl.{path.stem}\n" in path.read_text()


def test_commands_name_files_that_exist():
    code = [body.replace("\\\n", " ") for _, _, body in blocks("bash")]
    commands = [line for body in code for line in body.splitlines() if line.strip().startswith("veto-pl")]
    named = {file for line in commands for file in re.findall(r"(configs/\S+\.yaml)", line)}
    assert BASE.relative_to(ROOT).as_posix() in named
    assert [file for file in sorted(named) if not (ROOT / file).is_file()] == []


def test_commands_exist():
    from veto_pl.commands.main import TRAINING
    from veto_pl.commands.parsers import OWN

    code = "\n".join(body for _, _, body in blocks("bash"))
    used = set(re.findall(r"^veto-pl ([\w-]+)", code, re.MULTILINE))
    assert used <= {*OWN, *TRAINING}
    assert used >= set(OWN)


@pytest.mark.parametrize(
    "code", [pytest.param(code, id=f"{name(p)}-{i}") for i, (p, _, code) in enumerate(blocks("yaml"))]
)
def test_configs_build(code, tmp_path):
    from veto_pl.cli.build import VetoCLI
    from veto_pl.compare.study_file import load_study
    from veto_pl.plugins import load_plugins

    load_plugins()
    file = tmp_path / "page.yaml"
    file.write_text(code)
    if "methods" in yaml.safe_load(code):
        assert load_study(file).baseline in yaml.safe_load(code)["methods"]
        return
    arguments = ["--config", str(BASE), "--config", str(ROOT / "configs/quickstart/veto.yaml"), "--config", str(file)]
    model = VetoCLI([*arguments, "--run_dir", str(tmp_path)], run=False).model
    named = yaml.safe_load(code).get("model", {}).get("objective", {}).get("class_path")
    assert named in (None, type(model.objective).__name__)


@pytest.fixture
def plugin(tmp_path):
    """The modules of both pages on plug-ins, laid out as an installed package with entry points."""
    pages = [ROOT / "docs" / page for page in ("plugins.md", "parts.md", "teachers.md")]
    files = {title: code for _, title, code in blocks("python", pages) if title}
    for title, code in files.items():
        (tmp_path / title).parent.mkdir(exist_ok=True)
        (tmp_path / title).write_text(code)
    entries = [f"{Path(title).stem} = {Path(title).parent}.{Path(title).stem}" for title in files]
    metadata = tmp_path / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[veto_pl.plugins]\n" + "\n".join(entries) + "\n")
    (tmp_path / "my_package" / "__init__.py").touch()
    return tmp_path


def test_the_plugin_pages_sources_of_rows_work(tmp_path, monkeypatch):
    rows = [{"text": "one"}, {"text": "two"}]
    monkeypatch.setattr("datasets.load_dataset", lambda name, split, streaming: rows)
    (tmp_path / "pairs.tsv").write_text("2+2=\t4\n3+3=\t6\n")
    names = {}
    for _, title, code in blocks("python", [ROOT / "docs" / "plugins.md"]):
        if not title and ("-> ExampleStream" in code or "source_key" in code):
            exec(code, names)
    stored, stream = names["pairs"](str(tmp_path / "pairs.tsv")), names["openings"]("texts")
    assert [(row.prompt, row.completion) for row in stored] == [("2+2=", "4"), ("3+3=", "6")]
    for _ in range(2):
        assert [row.prompt for row in stream] == ["one", "two"]


def test_the_plugin_page_trains(plugin):
    """In a process of its own, so that the page's classes do not join the seams of other tests."""
    script = """
import torch
from veto_pl.plugins import load_plugins
load_plugins()
from veto_pl.cli.build import VetoCLI
from veto_pl.functional.divergences import reverse_kl
base = ["--config=configs/quickstart/base.yaml", "--config=configs/quickstart/veto.yaml", "--run_dir=unused"]
built = VetoCLI([*base, "--model.objective.divergence=Hellinger", "--model.objective.divergence.scale=2"], run=False)
p, q = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.1, 0.9, 0.0]]).log()
print(round(built.model.objective.divergence(p, q).item(), 4), built.model.objective.divergence(p, p).item() == 0)

sums = VetoCLI([*base, "--data.task=Sums", "--data.task.verifier=Contains", "--data.template=PlainTemplate"], run=False)
task = sums.datamodule.task
splits = [{e.prompt for e in task.load(s)} for s in ("train", "validation", "test")]
print(len(set.union(*splits)) == sum(map(len, splits)), task.reward(task.load("test")[0], "none"))

from my_package.baseline import BaselinePolicyGradient
from veto_pl.objectives import TokenRows
from veto_pl.seams import Step
z = torch.zeros(3, requires_grad=True)
teacher = torch.tensor([0.5, 0.3, 0.2]).log()
gradients = []
for token in range(3):
    rows = TokenRows(z.log_softmax(-1)[None], teacher[None], torch.tensor([token]), torch.tensor([0]), Step(0, 1))
    gradients.append(torch.autograd.grad(BaselinePolicyGradient().per_token(rows).sum(), z)[0])
exact = torch.autograd.grad(reverse_kl(z.log_softmax(-1), teacher), z)[0]
print(torch.allclose(torch.stack(gradients).mean(0), exact, atol=1e-6))

more = ["--model.objective.rollout=RandomCut", "--model.objective.rollout.shortest=0.5", "--model.teacher=Noisy"]
more += ["--model.teacher.source=RandomWeights", "--model.objective.context=Instructed"]
module = VetoCLI([*base, *more, "--model.objective.context.instruction=Think. "], run=False).model
print(module.objective.rollout.shortest, repr(module.objective.context.instruction))
from veto_pl.testing.tiny import tiny_source
plain, noisy = (dict(s.load().named_parameters()) for s in (tiny_source(), type(module.teacher_source)(tiny_source())))
size = lambda name: float(plain[name].abs().mean())
print(all(abs(float((noisy[name] - plain[name]).std()) / size(name) - 0.1) < 0.05 for name in plain))
"""
    done = python("-c", script, cwd=ROOT, path=[plugin])
    assert done.returncode == 0, done.stderr
    squared_hellinger = 1 - (0.5 * 0.1) ** 0.5 - (0.5 * 0.9) ** 0.5
    printed = [f"{round(2 * squared_hellinger, 4)} True", "True 0.0", "True", "0.5 'Think. '", "True"]
    assert done.stdout.splitlines()[-5:] == printed


def test_the_plugin_pages_conform(plugin):
    parts = {
        name
        for file in (plugin / "my_package").glob("*.py")
        for name, base in re.findall(r"^class (\w+)\((\w+)\)", file.read_text(), re.MULTILINE)
        if base not in ("Memory", "Episode")
    }
    assert len(parts) > 15
    conformance = ("-m", "pytest", "--pyargs", "veto_pl.testing", "-v", "-p", "no:cacheprovider")
    laws = python(*conformance, "-k", " or ".join(parts), cwd=ROOT, path=[plugin])
    assert laws.returncode == 0, laws.stdout
    assert [name for name in parts if f"[{name}" not in laws.stdout.replace("-", "[")] == []
