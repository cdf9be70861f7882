"""`veto-pl new`: a package for each seam, which keeps the laws of its seam and can be installed."""

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.processes import ROOT, python
from veto_pl.cli.class_index import SEAM_NAMES
from veto_pl.commands.main import main
from veto_pl.commands.new import SINGULAR, USES, new_package
from veto_pl.exceptions import ConfigurationError

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

NAME = "all-of-it"
PARTS = {seam: f"AllOfIt{one.capitalize()}" for one, seam in SINGULAR.items()}
LONGEST = 30
"""Lines of a part."""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package with a part of every seam, laid out as pip installs it."""
    folder = new_package(NAME, [*SEAM_NAMES], tmp_path_factory.mktemp("new"))
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    metadata = folder / "all_of_it-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    entries = project["entry-points"]["veto_pl.plugins"]
    (metadata / "entry_points.txt").write_text(
        "[veto_pl.plugins]\n" + "".join(f"{name} = {module}\n" for name, module in entries.items())
    )
    return folder


@pytest.fixture(scope="module")
def results(package):
    """By the name of a part, how each law of the suite ended for it."""
    done = python(
        "-m", "pytest", "--pyargs", "veto_pl.testing", "-v", "-p", "no:cacheprovider", "-k", "AllOfIt",
        cwd=package.parent, path=[package],
    )  # fmt: skip
    found = re.findall(r"::(\w+)\[(.+)\] (PASSED|FAILED|ERROR)", done.stdout)
    assert found, done.stdout + done.stderr
    return {part: {law: end for law, case, end in found if part in case} for part in PARTS.values()}


@pytest.mark.parametrize("part", PARTS.values())
def test_a_new_part_keeps_the_laws_of_its_seam(results, part):
    assert {law for law, end in results[part].items() if end != "PASSED"} == set()
    of_all = {law for law, _ in results[PARTS["judges"]].items()} & {
        law for law, _ in results[PARTS["supports"]].items()
    }
    assert results[part].keys() - of_all, "laws of its own seam, beside those of all"


@pytest.mark.parametrize("seam", SEAM_NAMES)
def test_a_new_part_is_short(package, seam):
    text = (package / "all_of_it" / f"{seam.removesuffix('s')}.py").read_text()
    code = text[text.index("class AllOfIt") :].splitlines()
    assert 8 <= len([line for line in code if line.strip()]) <= LONGEST


def test_new_parts_are_listed_and_named_in_runs(package, tmp_path):
    script = f"""
from veto_pl.cli.listing import print_listing
from veto_pl.plugins import load_plugins
print_listing([])
load_plugins()
from veto_pl.cli.build import VetoCLI
base = ["--config=configs/quickstart/base.yaml", "--config=configs/quickstart/veto.yaml", "--run_dir={tmp_path}"]
for seam, option in {USES!r}.items():
    given = [*option.split(), {PARTS!r}[seam]]
    if seam == "models":
        given += ["--model.student.source", "RandomWeights"]
    if seam == "contexts":
        given += ["--model.objective.context.instruction", "Think. "]
    VetoCLI([*base, *given], run=False)
    print("built with", {PARTS!r}[seam])
"""
    done = python("-c", script, cwd=ROOT, path=[package])
    assert done.returncode == 0, done.stderr[-2000:]
    listed, *built = done.stdout.split("built with ")
    assert [part for part in PARTS.values() if part not in listed] == []
    assert [line.strip() for line in built] == [PARTS[seam] for seam in USES]


def test_the_command_says_what_comes_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["new", "my-methods", "--seam", "objective", "rewards"])
    assert "cd my-methods && pip install -e '.[testing]' && pytest" in capsys.readouterr().out
    files = [path for path in Path("my-methods").rglob("*") if path.is_file()]
    assert sorted(path.relative_to("my-methods").as_posix() for path in files) == [
        "README.md",
        "my_methods/__init__.py",
        "my_methods/objective.py",
        "my_methods/reward.py",
        "pyproject.toml",
        "tests/test_conformance.py",
    ]
    readme = Path("my-methods/README.md").read_text()
    assert "veto-pl fit --config run.yaml --model.objective MyMethodsObjective" in readme
    assert "veto-pl list objectives rewards" in readme


@pytest.mark.parametrize(
    "name", ["My-Methods", "3d", "a b", "../up", "a/b", "", "my--methods", "class", "json", "torch", "veto-pl"]
)
def test_a_name_that_no_new_package_can_have_is_refused(name, tmp_path):
    with pytest.raises(ConfigurationError, match=f"given `{name}`, expected the name of a new package.*`my-methods`"):
        new_package(name, ["objective"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_seam_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"given `objektive`, expected one of objective, .*Did you mean `objective`"
    ):
        new_package("my-methods", ["reward", "objektive"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    new_package("my-methods", ["reward"], tmp_path)
    mine = tmp_path / "my-methods" / "my_methods" / "reward.py"
    mine.write_text("mine")
    for there in ("my-methods", "taken"):
        (tmp_path / "taken").touch()
        with pytest.raises(ConfigurationError, match=rf"{there}` is there already, and nothing is overwritten"):
            new_package(there, ["reward"], tmp_path)
    assert mine.read_text() == "mine"


@pytest.mark.slow
def test_a_new_package_is_installed_and_passes_its_own_tests(tmp_path):
    """In an environment of its own, which finds the libraries of this one."""
    folder, environment = new_package("my-methods", ["divergence"], tmp_path), tmp_path / "venv"
    venv.create(environment)
    interpreter = str(environment / "bin" / "python")
    site = subprocess.check_output(
        [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    Path(site.strip(), "these.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    pip = [sys.executable, "-m", "pip", "--python", interpreter, "install", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--editable", folder], check=True, capture_output=True)
    listed = subprocess.check_output([interpreter, "-m", "veto_pl", "list", "divergences"], text=True, cwd=tmp_path)
    assert "MyMethodsDivergence" in listed
    done = subprocess.run([interpreter, "-m", "pytest", "-q"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
