"""Packages that only some parts need, and that a plain installation leaves out."""

from importlib.util import find_spec

from veto_pl.exceptions import ConfigurationError


def require_extra(package: str, *, extra: str, needed_by: str) -> None:
    """Check that an optional package is installed, without importing it.

    Args:
        package: the name that it is imported by.
        extra: the extra of this package that installs it.
        needed_by: what needs it, for the message.

    Raises:
        ConfigurationError: it is not installed.

    Example:
        >>> require_extra("no_such_package", extra="judge", needed_by="`ChatJudge`")
        Traceback (most recent call last):
        veto_pl.exceptions.ConfigurationError: `ChatJudge` needs no_such_package: pip install "veto_pl[judge]"
    """
    try:
        found = find_spec(package) is not None
    except ValueError:  # something else has this name, such as None in `sys.modules`
        found = False
    if not found:
        raise ConfigurationError(f'{needed_by} needs {package}: pip install "veto_pl[{extra}]"')
