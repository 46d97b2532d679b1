"""Damages the files of a prepared dataset of TensorFlow Datasets (TFDS), and then trains on the dataset.

The dataset is made up. Each training must be refused with one error sentence, and must not leave a run directory. With the
files restored, the training must not differ from a training before the damage.
"""

import os
import subprocess
import sys

from faults import checks
from faults.runs import HARMS, LIMIT, ROOT, Result, Runs, harm, make_text, succeed

NAME = "made_up_lines"


def results(runs: Runs) -> list[Result]:
    data, rng, failures, tried = runs.folder / "tfds", runs.random("dataset"), [], 0
    data.mkdir()
    path = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
    prepare = [sys.executable, "-m", "faults.dataset", data]
    subprocess.run(prepare, check=True, timeout=LIMIT, capture_output=True, env=os.environ | {"PYTHONPATH": path})
    overrides = {"corpus.path": "None", "corpus.tfds": f"{NAME}:line", "corpus.data_dir": data, "corpus.documents": ""}
    overrides |= {"batch.length": 40, "train.steps": 20}
    straight, again = runs.folder / "dataset_straight", runs.folder / "dataset_again"
    succeed(runs.train(straight, "documents", **overrides))
    (folder,) = {path.parent for path in data.rglob("dataset_info.json")}
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for how in HARMS:
            if how == "deleted" and file.name == "charlm_sha256.json":
                continue  # without the digests, the dataset is like one that charlm has not read yet
            tried += 1
            workdir = runs.folder / f"dataset_{file.name}_{how}"
            harm(file, how, rng.random(), rng.randrange(8))
            status, _, errors = checks.outcome(runs.train(workdir, "documents", **overrides))
            failures += checks.refusal(status, errors, (f"remove the folder {folder}", "remove that folder"), f"{file} {how}")
            if workdir.exists():
                failures.append(f"the refused training made {workdir}")
            file.write_bytes(content)
    succeed(runs.train(again, "documents", **overrides))
    return [Result("damaged dataset of TFDS", tried, [*failures, *checks.survival(again, straight)], "refused until restored")]


def _prepare(data: str) -> None:
    """Prepares a dataset whose examples are lines."""
    import tensorflow_datasets as tfds

    lines = make_text(20_000).splitlines()

    class Lines(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"line": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            del dl_manager
            return {"train": [(number, {"line": line}) for number, line in enumerate(lines)]}

        def _generate_examples(self):
            raise AssertionError

    Lines.name = NAME
    Lines(data_dir=data, file_format="array_record").download_and_prepare()


if __name__ == "__main__":
    _prepare(sys.argv[1])
