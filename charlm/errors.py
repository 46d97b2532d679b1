"""The two ways in which charlm ends a program early, each with one sentence for the user."""


class UserError(Exception):
    """The user's mistake: names the key or file, the value given and what would be right. Exit status 2."""


class Failure(Exception):
    """Something broke that no flag would have prevented, such as a diverged run. Exit status 1."""


class Broken(Failure):
    """A failure after which the process can only be left at once: in a normal exit libraries would wait for what has gone, or
    print from their threads what became of it."""
