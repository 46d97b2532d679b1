"""The two ways in which charlm ends a program early, each with one sentence for the user."""


class UserError(Exception):
    """The user's mistake: names the key or file, the value given and what would be right. Exit status 2."""


class Failure(Exception):
    """Something broke that no flag would have prevented, such as a diverged run. Exit status 1."""
