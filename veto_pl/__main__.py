"""The command `veto-pl`, which is also `python -m veto_pl`."""

import os
import signal
import sys
from typing import NoReturn

STOPPED = "veto-pl: stopped."


def main() -> None:
    """Run the command line. An interrupt ends it with 130 and no traceback."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a shell may have told it to ignore interrupts
        signal.signal(signal.SIGINT, _end)
    from veto_pl.commands.main import main as run

    signal.signal(signal.SIGINT, before)
    try:
        run()
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        sys.exit(130)


def _end(*_: object) -> NoReturn:
    """At once: of an exception inside their imports, libraries make other ones."""
    print(STOPPED, file=sys.stderr, flush=True)
    os._exit(130)


if __name__ == "__main__":
    main()
