"""The exceptions that veto_pl raises; catch `VetoError` for any of them."""


class VetoError(Exception):
    """Base class of every error that veto_pl raises on purpose."""


class ConfigurationError(VetoError, ValueError):
    """A setting, or a combination of settings, that cannot work; the message says what to change."""


class DataError(VetoError, ValueError):
    """A row, a file or a template that cannot be used; the message names the file, the line and the field."""


class NonFiniteError(VetoError, ArithmeticError):
    """Training stopped because step after step had a loss or gradient that is not finite; the weights are intact."""
