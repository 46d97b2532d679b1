"""Divides the trials of a sweep into packs. Each pack is trained as one compiled program, in one process.

sweep.json records the names of the trials of each pack. When a sweep is continued, a recorded pack keeps the places of all its
trials, because the results of a trial depend, in their last bits, on its place and on the number of places.
"""

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from charlm import files
from charlm.config import load, packs
from charlm.progress import counted
from charlm.sweeps import sweep


class Pack(NamedTuple):
    """A pack of trials.

    Attributes:
      number: index of the pack in sweep.json.
      names: the names of the trials, one for each place of the pack.
      places: the trials. None at a place whose trial is not trained now, for example because it has ended.
    """

    number: int
    names: list[str]
    places: list[sweep.Trial | None]

    @property
    def trials(self) -> list[sweep.Trial]:
        return [trial for trial in self.places if trial is not None]


class Division(NamedTuple):
    """The packs, and the trials that are trained alone.

    Attributes:
      steps: the different steps of the trials that are not in a recorded pack.
    """

    packs: list[Pack]
    alone: list[sweep.Trial]
    steps: list[int]

    def sentences(self) -> list[str]:
        """What the user should know about the division: the number of packs, and why trials are not in one pack."""
        sizes = ", ".join(str(len(pack.trials)) for pack in self.packs)
        parts = [f"{counted(len(self.packs), 'pack')} of {sizes} trials"] if self.packs else []
        parts += [f"{counted(len(self.alone), 'trial')} alone"] if self.alone else []
        lines = [" and ".join(parts)] if parts else []
        configs = [trial.config for pack in self.packs for trial in pack.trials[:1]] + [trial.config for trial in self.alone]
        if separating := packs.separating_keys(configs):
            listed = ", ".join(f"{key} ({', '.join(map(str, values))})" for key, values in separating.items())
            lines.append(f"The trials of a pack can't differ in {listed}.")
        if len(self.steps) > 1:
            lines.append(f"Trials at different steps ({', '.join(map(str, self.steps))}) can't form a new pack together.")
        for trial in self.alone:
            if reason := packs.reason_alone(trial.config):
                lines.append(f"{trial.name} is trained alone, because of {reason}.")
        return lines


def divide(
    trials: Sequence[sweep.Trial], steps: Mapping[str, int], recorded: Sequence[Sequence[str]], largest: int
) -> Division:
    """Divides the trials that must be trained into packs.

    Recorded packs stay together. The other trials form new packs, in the order of the sweep. The trials of a new pack have the
    same `packs.signature` and the same step.

    A recorded pack of more than `largest` trials is divided anew if none of them has a checkpoint. A user can thus make smaller
    packs if a pack needs too much memory.

    Args:
      trials: the trials.
      steps: name of the trial → step of its latest checkpoint.
      recorded: the names of the trials of each pack that sweep.json records. A trial that is in several packs belongs to the
        last of them.
      largest: maximum number of trials in a new pack.
    """
    left = {trial.name: trial for trial in trials}
    found, alone = [], []
    for number, names in reversed(list(enumerate(recorded))):
        signatures = {name: packs.signature(left[name].config) for name in names if name in left}
        if signatures and (len(names) <= largest or any(steps[name] for name in signatures)):
            # A trial has another signature than the rest of its pack if its config was changed later, by `train.py --extend`.
            usual = statistics.mode(signatures.values())
            places = [left.pop(name) if signatures.get(name) == usual else None for name in names]
            found.append(Pack(number, list(names), places))
    found.reverse()
    groups: dict[tuple[str, int], list[sweep.Trial]] = {}
    for trial in left.values():
        if packs.reason_alone(trial.config):
            alone.append(trial)
        else:
            groups.setdefault((packs.signature(trial.config), steps[trial.name]), []).append(trial)
    number = len(recorded)
    for group in groups.values():
        for begin in range(0, len(group), largest):
            members = group[begin : begin + largest]
            if len(members) == 1:
                alone += members
            else:
                found.append(Pack(number, [trial.name for trial in members], list(members)))
                number += 1
    return Division(found, alone, sorted({step for _, step in groups}))


def file_of(root: sweep.Root, pack: Pack) -> pathlib.Path:
    """The file that describes a pack for the program `train_pack`."""
    return root.path.absolute() / "logs" / f"pack_{pack.number}.json"


def write(root: sweep.Root, pack: Pack) -> None:
    """Writes the file of a pack. For each place, it has the fields of `charlm.training.packing.Trial`, or null."""
    places = [
        trial
        and {
            "name": trial.name,
            "workdir": str(root.path.absolute() / trial.name),
            "log": str(root.log(trial).absolute()),
            "config": load.to_dict(trial.config),
        }
        for trial in pack.places
    ]
    files.write(file_of(root, pack), json.dumps({"places": places}, indent=1) + "\n")
