"""Says in words how the trials of a sweep ended."""

import collections
from collections.abc import Mapping

from charlm import measures
from charlm.sweeps.launch import TrialStatus


def best_in_words(statuses: Mapping[str, TrialStatus]) -> str | None:
    """The trial with the lowest loss so far, with its state and its loss. None if no trial has been evaluated yet.

    The trial may be unfinished, for example if it was stopped or pruned.
    """
    evaluated = [(status.best, name, status.state) for name, status in statuses.items() if status.best]
    if not evaluated:
        return None
    best, name, state = min(evaluated, key=lambda trial: trial[0]["nats"])
    return f"{name} ({state}): {measures.best_in_words(best)}"


def ended_in_words(name: str, status: TrialStatus) -> str:
    """Why a trial ended in its state, and at which step a stopped trial is."""
    if status.state != "stopped":
        return f"{status.state}: {name}" + (f": {status.message}" if status.message else "")
    step = f"step {status.step}" + (f" of {status.total_steps}" if status.total_steps else "")
    return f"{name} was stopped at {step}" + (f" ({status.message})." if status.message else ".")


def count_states(statuses: dict[str, TrialStatus], **words: str) -> str:
    """Returns the number of trials in each state, such as `1 done, 2 to resume`.

    Args:
      words: state → the text that is printed instead of the state's name.
    """
    counts = collections.Counter(words.get(status.state, status.state) for status in statuses.values())
    return ", ".join(f"{number} {state}" for state, number in counts.items()) or "none"
