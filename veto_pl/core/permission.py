"""Programs that a model has written run only where somebody has said so."""

from veto_pl.exceptions import ConfigurationError


def check_permission(name: str, allowed: bool) -> None:
    """Raise `ConfigurationError` where a class that runs programs has not been allowed to.

    Args:
        name: of the class, whose field `allow_code_execution` says it.
        allowed: what it says.
    """
    if allowed is not True:
        raise ConfigurationError(
            f"`{name}` runs programs that a model has written, and `{name}.allow_code_execution` is "
            f"{str(allowed).lower()}. Read what docs/sandbox.md says about the protection of this machine, then set it "
            "to true."
        )
