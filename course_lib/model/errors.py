"""The one exception of loading: its text is a sentence a person can act on."""


class CheckpointError(Exception):
    """A model's files cannot be used: says what was found, what was expected, and what to do."""
