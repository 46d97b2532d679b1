"""Says in words how the trials of a sweep ended."""

import collections
from collections.abc import Mapping

from charlm import measures
from charlm.sweeps.status import TrialStatus


def best_in_words(statuses: Mapping[str, TrialStatus]) -> str | None:
    """The name, the state and the loss of the trial with the lowest loss so far. None if no trial has been evaluated yet.

    This trial may be unfinished, for example if it was stopped or pruned.
    """
    evaluated = [(status.best, name, status.state) for name, status in statuses.items() if status.best]
    if not evaluated:
        return None
    best, name, state = min(evaluated, key=lambda trial: trial[0]["nats"])
    return f"{name} ({state}): {measures.best_in_words(best)}"


def ended_in_words(name: str, status: TrialStatus) -> str:
    """The state in which a trial ended, and the reason. For a stopped trial, also the step at which it stopped."""
    if status.state != "stopped":
        return f"{status.state}: {name}" + (f": {status.message}" if status.message else "")
    step = f"step {status.step}" + (f" of {status.total_steps}" if status.total_steps else "")
    return f"{name} was stopped at {step}" + (f" ({status.message})." if status.message else ".")


def count_states(statuses: dict[str, TrialStatus], **words: str) -> str:
    """The number of trials in each state as text, such as `1 done, 2 to resume`.

    Args:
      words: state → the text that stands for this state in the result. Other states are called by their names.
    """
    counts = collections.Counter(words.get(status.state, status.state) for status in statuses.values())
    return ", ".join(f"{number} {state}" for state, number in counts.items()) or "none"
