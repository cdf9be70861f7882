"""How many bad inputs there are."""

import pickle

import pytest

from veto_pl.exceptions import ConfigurationError

from .bad_inputs import Bomb, Case, refuse
from .test_bad_models import MODEL_CASES
from .test_bad_rows import ROW_CASES
from .test_bad_settings import SETTINGS
from .test_bad_sources import SOURCE_CASES
from .test_bad_stores import STORE_CASES
from .test_bad_texts import TEXT_CASES


def test_there_are_enough_of_every_kind():
    kinds = [ROW_CASES, TEXT_CASES, MODEL_CASES, SOURCE_CASES, STORE_CASES]
    assert all(len(cases) >= 40 for cases in kinds), [len(cases) for cases in kinds]
    assert sum(map(len, kinds)) >= 400
    assert len(SETTINGS) >= 300


def written(folder):
    (folder / "half").write_text("half of an output")
    raise ConfigurationError("a refusal of at least twenty characters")


@pytest.mark.parametrize(
    ("act", "fault"),
    [
        (lambda _: None, "DID NOT RAISE"),
        (written, "nothing is written"),
        (lambda folder: pickle.loads(pickle.dumps(Bomb(folder))) or written(folder), "code was executed"),
        (lambda _: {}["key"], "'key'"),
    ],
)
def test_the_harness_notices(act, fault, tmp_path):
    """Silence, half an output, an executed payload and an error without a name."""
    with pytest.raises((pytest.fail.Exception, AssertionError, KeyError), match=fault):
        refuse(Case("", lambda folder: None, act), tmp_path)
