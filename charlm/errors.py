"""Errors that end a program early. The message of each error is one sentence for the user."""


class UserError(Exception):
    """A mistake of the user. The program ends with exit status 2.

    The message names the key, flag or file, the wrong value, and a correct value.
    """


class Failure(Exception):
    """A failure that is not a mistake of the user, such as a diverged run. The program ends with exit status 1."""


class Broken(Failure):
    """A failure after which the process must exit without Python's normal clean-up.

    During the clean-up, libraries would wait for resources that no longer exist, or their threads would print errors.
    """
