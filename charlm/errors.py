"""The errors that end a program early, each with one sentence for the user."""


class UserError(Exception):
    """A mistake of the user. It names the key, flag or file, the value, and what would be right. Exit status 2."""


class Failure(Exception):
    """A failure that is no mistake of the user, such as a diverged run. Exit status 1."""


class Broken(Failure):
    """A failure after which the process must end at once.

    At a normal exit, libraries would wait for what no longer exists, or print errors from their threads.
    """
