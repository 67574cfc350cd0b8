"""The errors that msssl raises on purpose, which the command line prints as one line."""


class UserError(ValueError):
    """Something that the user gave cannot be used; the message names the key, file or shape, and says what to do."""


class MissingPackageError(UserError, ImportError):
    """A setting needs an optional package that cannot be imported; the message says how to install it."""
