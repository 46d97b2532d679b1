"""Errors that end a program early. The message of each error is one sentence for the user."""


class UserError(Exception):
    """A mistake of the user. Exit status 2.

    The message names the key, flag or file, the wrong value, and what would be right.
    """


class Failure(Exception):
    """A failure that is not a mistake of the user, such as a diverged run. Exit status 1."""


class Broken(Failure):
    """A failure after which the process must exit without Python's normal clean-up.

    In the clean-up, libraries would wait for resources that no longer exist, or their threads would print errors.
    """
