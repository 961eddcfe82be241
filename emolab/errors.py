"""The one error that emolab raises for bad input."""


class EmolabError(ValueError):
    """Bad input or a broken promise: the message says what was wrong, what was expected and what to do.

    >>> raise EmolabError("unknown emotion 'jo'; these vectors hold anger, joy; check the spelling")
    Traceback (most recent call last):
    ...
    emolab.errors.EmolabError: unknown emotion 'jo'; these vectors hold anger, joy; check the spelling
    """
