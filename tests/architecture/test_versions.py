"""The versions that are claimed are those that are tried."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text()
PYTHONS = re.search(r"^PYTHONS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()


def next_minor(version):
    major, minor = version.split(".")
    return f"{major}.{int(minor) + 1}"


def test_the_pythons_that_are_claimed_are_those_that_are_tried():
    oldest, newest = PYTHONS[0], PYTHONS[-1]
    assert re.findall(r"Python :: (3\.\d+)", PROJECT) == PYTHONS
    assert f'requires-python = ">={oldest},<{next_minor(newest)}"' in PROJECT
    assert f"Python {', '.join(PYTHONS[:-1])} or {newest}" in (ROOT / "README.md").read_text()
    gate = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"test-python-(3\.\d+)", gate) == [oldest, newest]


def test_each_python_has_one_version_of_each_package():
    """`pip` would name no file and no line if two constraints excluded each other."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    found = [re.fullmatch(r'([\w.-]+)==([\w.]+)(?:; python_version (<|>=) "(3\.\d+)")?', line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    for python in PYTHONS:
        minor = int(python.split(".")[1])
        names = [match[1] for match in found if chosen(match, minor)]
        assert len(names) == len(set(names)), python
        assert len(set(names)) == len({match[1] for match in found}), python


def chosen(match, minor):
    if match[3] is None:
        return True
    bound = int(match[4].split(".")[1])
    return minor < bound if match[3] == "<" else minor >= bound


def test_packages_whose_private_names_are_used_have_an_upper_bound():
    wanted = dict(
        re.findall(r'^  "([\w-]+)(?:\[\w+\])?([^"]*)",', PROJECT.partition("dependencies = [")[2], re.MULTILINE)
    )
    for name in ("torch", "lightning", "transformers", "jsonargparse"):
        assert re.search(r"<\d", wanted[name]), f"{name}{wanted[name]}"
