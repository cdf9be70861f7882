"""The harness of the bad inputs can fail."""

import pickle

import pytest

from veto_pl.exceptions import ConfigurationError

from .bad_inputs import Bomb, Case, refuse


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
