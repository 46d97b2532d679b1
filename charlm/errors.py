"""Errors that end a program early. The message of each error is one sentence for the user."""


class UserError(Exception):
    """A mistake of the user. Exit status 2.

    The message names the key, flag or file, the wrong value, and a right value.
    """


class Failure(Exception):
    """A failure that is not a mistake of the user, such as a diverged run. Exit status 1."""


class Broken(Failure):
    """A failure after which the process must end at once, without the usual clean-up of Python.

    During the clean-up, libraries could wait forever for a process that has ended, or print errors from their threads.
    """
