"""Property-based tests of the names of trials, and of matching trials with existing runs."""

import collections
import json
import re

from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.config import keys, load
from charlm.sweeps import naming, sweep

VALUES = {
    str: st.sampled_from(["a", "/a/b", "/c/b", "a b", "a_b", "ü", "", "a,b", "a=b", "a+b", "x" * 120, "x" * 121]),
    int: st.integers(0, 2),
    float: st.sampled_from([0.1, 0.5, 1e-12]),
    bool: st.booleans(),
    tuple: st.sampled_from([(0.9, 0.1), (0.5, 0.5), (0.8, 0.1, 0.1)]),
}
PAIRS = st.sampled_from(list(keys.TABLE)).flatmap(lambda key: st.tuples(st.just(key.name), VALUES[key.type]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.lists(PAIRS, max_size=5).map(dict), max_size=6))
def test_different_overrides_have_different_names_that_are_file_names(many):
    different = {json.dumps(overrides, sort_keys=True) for overrides in many}
    names = {naming.trial_name(overrides) for overrides in many}
    assert len(names) == len(different)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._,=+-]*", name)
        assert len(name) <= naming.MAX_NAME_LENGTH


RUNS = st.lists(st.tuples(st.integers(0, 9).map(str), st.sampled_from(["p", "q", "r"])), max_size=8).map(dict)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(RUNS, RUNS, st.sets(st.integers(0, 9).map(str)))
def test_a_trial_is_matched_with_a_run_of_its_config_and_no_run_with_two_trials(trials, existing, damaged):
    existing = {name: None if name in damaged else digest for name, digest in existing.items()}
    matched = naming.match(trials, existing)
    assert list(matched) == list(trials)
    assert len(set(matched.values())) == len(trials)
    for name, run in matched.items():
        assert run == name or (name not in existing and run not in trials and existing[run] == trials[name])
    # Each config that has a run under an unused name and a trial without a run is matched exactly once.
    unused = {digest for name, digest in existing.items() if name not in trials and digest}
    wanted = {digest for name, digest in trials.items() if name not in existing}
    renamed = collections.Counter(trials[name] for name, run in matched.items() if run != name)
    assert renamed == dict.fromkeys(unused & wanted, 1)


OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.sampled_from([0, 1]),
        "model.hidden": st.sampled_from([32, 64]),
        "model.dropout": st.sampled_from([0, 0.0, 0.2]),
        "corpus.split": st.sampled_from([(0.9, 0.1), [0.9, 0.1], (0.5, 0.5)]),
        "corpus.documents": st.sampled_from(["", "lines", "separator:<|end|>", "separator:<|end.>"]),
        "train.init_from": st.sampled_from([None, "runs/parent", "other/parent", "runs/../runs/parent"]),
        "train.log_every": st.sampled_from([10, 20]),
    },
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(OVERRIDES, OVERRIDES)
def test_two_trials_have_the_same_digest_exactly_if_their_configs_do_not_differ(first, second):
    trials = [sweep.make_trial(str(ROOT / "configs" / "tiny.py"), {}, overrides) for overrides in (first, second)]
    configs = [load.to_dict(trial.config) for trial in trials]
    saved = json.loads(json.dumps(configs[0]))  # as config.json of a run has it
    assert (naming.digest(saved) == naming.digest(configs[1])) == (not load.differences(saved, configs[1]))
    assert (trials[0].name == trials[1].name) == (trials[0].overrides == trials[1].overrides)
