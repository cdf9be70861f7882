"""The command `veto-pl`: which of its commands is meant, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from veto_pl.cli.streams import hide_noise, lasting_output
from veto_pl.cli.training_commands import TRAINING
from veto_pl.commands.parsers import OWN, commands, print_help
from veto_pl.core.mistakes import did_you_mean, shorten
from veto_pl.exceptions import ConfigurationError, VetoError
from veto_pl.plugins import find_classes_here, load_plugins

INTERRUPTED = 128 + 2
"""The exit code after Ctrl-C."""


def _refusal(given: Sequence[str]) -> ConfigurationError:
    """Return the error for a command that is missing or unknown."""
    known = (*commands(), *TRAINING)
    shown_name = f"`{shorten(given[0])}`" if given else "no command"
    remedy = (did_you_mean(given[0], known) if given else "") or "`veto-pl --help` explains them."
    return ConfigurationError(f"given {shown_name}, expected one of {', '.join(sorted(known))}. {remedy}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a `VetoError` exits with its message and no traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    hide_noise()
    find_classes_here()
    with lasting_output():
        _run(given)


def _run(given: list[str]) -> None:
    try:
        _call(given)
    except VetoError as error:
        sys.exit(f"veto-pl: {error}")
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):  # which Lightning has turned into an exit with 1
            sys.exit(INTERRUPTED)
        raise
    except Exception as error:
        if not isinstance(error, _misconfiguration()):
            raise
        sys.exit(f"veto-pl: the settings do not go together. Lightning says: {shorten(error, 500)}")


def _call(given: list[str]) -> None:
    """Call the command; each imports what it needs, which takes seconds for those that train."""
    name = given[0] if given else ""
    if name in ("-h", "--help"):
        print_help()
    elif name in TRAINING or name.startswith("-"):
        from veto_pl.cli.build import VetoCLI

        load_plugins()
        VetoCLI(given)
    elif (command := OWN.get(name) or commands().get(name)) is not None:
        command(given[1:])
    else:
        raise _refusal(given)


def _misconfiguration() -> tuple[type[Exception], ...]:
    """Return the error by which Lightning refuses a setting, at whatever moment; nothing if it was not imported."""
    known = sys.modules.get("lightning.fabric.utilities.exceptions")
    return () if known is None else (known.MisconfigurationException,)
