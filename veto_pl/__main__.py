"""`python -m veto_pl` is `veto-pl`."""

from veto_pl.cli import main

if __name__ == "__main__":
    main()
