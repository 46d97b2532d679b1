"""Divides the trials of a sweep into packs. Each pack is trained as one compiled program, in one process.

sweep.json records the names of the trials of each pack. When a sweep is continued, a recorded pack keeps the places of all its
trials, because the results of a trial depend, in their last bits, on its place and on the number of places.
"""

import json
import pathlib
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
    """The packs, and the trials that are trained alone."""

    packs: list[Pack]
    alone: list[sweep.Trial]

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

    Args:
      trials: the trials.
      steps: name of the trial → number of steps that it has made.
      recorded: the names of the trials of each pack that sweep.json records.
      largest: maximum number of trials in a new pack.
    """
    left = {trial.name: trial for trial in trials}
    found, alone = [], []
    for number, names in enumerate(recorded):
        signatures = {name: packs.signature(left[name].config) for name in names if name in left}
        # A trial has another signature than the rest of its pack if its config was changed later, as by `train.py --extend`.
        same = [name for name in signatures if signatures[name] == next(iter(signatures.values()))]
        if same:
            found.append(Pack(number, list(names), [left.pop(name) if name in same else None for name in names]))
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
    return Division(found, alone)


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
