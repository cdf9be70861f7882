"""Earlier import paths, as plug-ins and saved configurations name them."""

import importlib

import pytest

from veto_pl.moved import MOVED

TOLD = {
    "veto_pl.models.causal_lm": "sampling_mode",
    "veto_pl.normalisation": "GradientLedger",
    "veto_pl.optimizers": "default_optimizer",
    "veto_pl.sequences": "Sequences",
    "veto_pl.tokens": "TokenGrid",
    "veto_pl.types": "Step",
}
"""Names that the documentation of version 0.1.0 imported from where they no longer are."""


@pytest.mark.parametrize("path", sorted(MOVED))
def test_an_earlier_path_gives_the_module_of_today(path):
    assert importlib.import_module(path) is importlib.import_module(MOVED[path])


@pytest.mark.parametrize("path", sorted(TOLD))
def test_what_plug_ins_were_told_to_import_is_there(path):
    assert hasattr(importlib.import_module(path), TOLD[path])
