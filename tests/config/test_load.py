"""Loading: look-up, includes, deep merging, overrides, names, places."""

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from experiment.config import ParameterFile, json_schema, load, packaged_param
from experiment.config.experiment_name import experiment_name
from experiment.errors import ConfigError

Write = Callable[[dict[str, str]], None]
Loaded = Callable[..., ParameterFile]
Problems = Callable[..., tuple[str, ...]]


def test_a_small_file(loaded: Loaded, good: str) -> None:
    file = loaded(good)
    p = file.parameters
    assert file.name() == "e"
    assert (p.network.name, p.network.dataset.name, p.network.output_size) == ("lenet5", "Digits", 10)
    assert [m.name for m in p.experiments.methods] == ["WT", "SVD"]
    assert (p.seed, p.threads, p.coresets.delta_s, p.experiments.budget.counted) == (0, 1, 1e-16, "parameters")
    assert p.retraining.model_dump(exclude={"distillation", "tune"}) == p.training.model_dump()
    assert p.retraining.distillation is None
    assert [v.name for v in file.variants] == [""]
    assert file.variants[0].parameters == p
    assert file.notices == ()
    assert "retraining" not in file.values
    assert file.values["training"]["numEpochs"] == 12


def test_survives_the_way_to_a_worker(loaded: Loaded, good: str) -> None:
    file = loaded(good, "seed=3")
    again = pickle.loads(pickle.dumps(file))
    assert again.parameters == file.parameters
    assert again.where("seed") == "--set seed"


def test_long_forms(loaded: Loaded, good: str) -> None:
    text = good.replace("dataset: Digits", "dataset: {name: ImageFolder, settings: {root: x}}")
    text = text.replace("[WT, SVD]", "[WT, {name: ALDS, label: ALDS+, settings: {foldings: [0, 1]}}]")
    p = loaded(text).parameters
    assert p.network.dataset.settings == {"root": "x"}
    assert (p.experiments.methods[1].label, p.experiments.methods[1].settings) == ("ALDS+", {"foldings": [0, 1]})
    assert p.experiments.methods[0].label is None


def test_words_that_yaml_1_1_takes_for_truth_values(loaded: Loaded, good: str) -> None:
    text = good.replace("batchSize: 32", "batchSize: 32\n  enableAMP: off\n  channelsLast: yes")
    training = loaded(text.replace("name: lenet5", "name: on")).parameters.training
    assert (training.enable_amp, training.channels_last) == (False, True)


# --- includes


def test_included_first_then_what_stands_here(write: Write, good: str) -> None:
    write(
        {
            "base.yaml": good,
            "top.yaml": "training: {optimizerKwargs: {lr: 1e-4}}\nexperiments: {methods: [FT]}\nfile: base.yaml\n",
        }
    )
    file = load("top.yaml")
    assert file.parameters.training.optimizer_kwargs == {"lr": 1e-4, "momentum": 0.9}  # mappings merge deeply
    assert [m.name for m in file.parameters.experiments.methods] == ["FT"]  # lists replace
    assert file.parameters.experiments.mode == "retrain"
    assert "file" not in file.values


def test_an_include_within_a_block_holds_that_block(write: Write, good: str) -> None:
    training = good.splitlines()[2:6]
    rest = good.splitlines()[:1] + good.splitlines()[6:]
    text = "\n".join([*rest, "training: {file: t.yaml, numEpochs: 3}", "retraining: {file: r.yaml}"])
    write({"e.yaml": text, "t.yaml": "\n".join(line[2:] for line in training), "r.yaml": "startEpoch: 1\n"})
    p = load("e.yaml").parameters
    assert (p.training.num_epochs, p.training.batch_size) == (3, 32)
    assert (p.retraining.num_epochs, p.retraining.start_epoch) == (3, 1)


def test_a_budget_replaces_that_of_an_include(write: Write, good: str) -> None:
    base = "experiments: {budget: {bytes: 0.5, latency: 0.5, batch: 16}}"
    write({"good.yaml": good, "base.yaml": f"file: good.yaml\n{base}\n"})
    write({"top.yaml": "file: base.yaml\nexperiments: {budget: {bytes: 20 kB}}\n"})
    assert [limit.quantity for limit in load("base.yaml").parameters.experiments.budget.limits] == ["bytes", "latency"]
    assert [limit.quantity for limit in load("top.yaml").parameters.experiments.budget.limits] == ["bytes"]


def test_other_arguments_come_with_another_optimizer(write: Write, good: str) -> None:
    adam = "training: {optimizer: Adam, optimizerKwargs: {lr: 0.001}}"
    same = "training: {optimizer: SGD, optimizerKwargs: {lr: 0.001}}"
    write({"base.yaml": good, "adam.yaml": f"file: base.yaml\n{adam}\n", "same.yaml": f"file: base.yaml\n{same}\n"})
    assert load("adam.yaml").parameters.training.optimizer_kwargs == {"lr": 0.001}
    assert load("same.yaml").parameters.training.optimizer_kwargs == {"lr": 0.001, "momentum": 0.9}


def test_an_include_is_looked_up_beside_then_here_then_in_the_package(write: Write, here: Path, good: str) -> None:
    names = {"sub/e.yaml": f"file: part.yaml\n{good}", "part.yaml": "seed: 1\n"}
    write(names)
    assert load("sub/e.yaml").parameters.seed == 1
    write({"sub/part.yaml": "seed: 2\n"})
    assert load("sub/e.yaml").parameters.seed == 2
    write({"packaged.yaml": good.replace("training:", "training:\n  file: training/cifar/resnet.yaml")})
    assert load("packaged.yaml").parameters.training.lr_schedulers[0].type == "MultiStepLR"
    write({"training/cifar/resnet.yaml": "lossKwargs: {label_smoothing: 0.1}\n"})
    assert load("packaged.yaml").parameters.training.lr_schedulers == []


def test_free_mappings_have_no_includes(loaded: Loaded, good: str) -> None:
    text = good.replace("outputSize: 10", "outputSize: 10, settings: {file: weights.pt}")
    assert loaded(text).parameters.network.settings == {"file": "weights.pt"}


def test_missing_include_names_the_places(problems: Problems, good: str) -> None:
    (problem,) = problems(good.replace("training:", "training:\n  file: training/cifar/resnte.yaml"))
    assert problem.startswith("e.yaml:3: training.file: no such file 'training/cifar/resnte.yaml'. Searched: training/")
    assert str(packaged_param()) in problem
    assert problem.endswith("Did you mean 'param/training/cifar/resnet.yaml'?")


def test_missing_include_does_not_hide_other_mistakes(problems: Problems) -> None:
    text = "file: nowhere.yaml\nexperiments: {mod: retrain}\ncustomizations: [{key: [seed], value: x}]\n"
    assert [p.split(": ")[1] for p in problems(text)] == ["file", "experiments.mod", "customizations[0].value"]


def test_cycles_are_named(write: Write, good: str) -> None:
    write(
        {"a.yaml": f"file: sub/b.yaml\n{good}", "sub/b.yaml": "training: {file: ../c.yaml}", "c.yaml": "file: a.yaml"}
    )
    with pytest.raises(ConfigError) as raised:
        load("a.yaml")
    (problem,) = raised.value.problems
    assert problem == "c.yaml:1: file: the file includes itself: a.yaml -> sub/b.yaml -> c.yaml -> a.yaml."


def test_a_diamond_is_no_cycle(write: Write, good: str) -> None:
    write({"a.yaml": "file: b.yaml\ntraining: {file: d.yaml}", "b.yaml": good, "d.yaml": "testBatchSize: 7"})
    write({"b.yaml": good.replace("training:", "training:\n  file: d.yaml")})
    assert load("a.yaml").parameters.training.test_batch_size == 7


def test_a_broken_include_is_an_error_at_the_include(problems: Problems, write: Write, good: str) -> None:
    write({"t.yaml": "a: [1\n"})
    (problem,) = problems(good.replace("training:", "training:\n  file: t.yaml"))
    assert problem.startswith("e.yaml:3: training.file: t.yaml:2: not valid YAML")


def test_include_bomb(write: Write) -> None:
    names = "abcdefghijklmnopqrst"
    for name, following in pairwise(names):
        write({f"{name}.yaml": f"x: {{file: {following}.yaml}}\ny: {{file: {following}.yaml}}\n"})
    write({f"{names[-1]}.yaml": "z: 1\n"})
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        load("a.yaml")


# --- retraining


def test_retraining_is_training_with_its_own_keys_on_top(loaded: Loaded, good: str) -> None:
    retraining = loaded(good + "retraining: {startEpoch: 4, optimizerKwargs: {lr: 0.01}}\n").parameters.retraining
    assert (retraining.start_epoch, retraining.batch_size) == (4, 32)
    assert retraining.optimizer_kwargs == {"lr": 0.01, "momentum": 0.9}


@pytest.mark.parametrize("block", ["retraining: {}\n", "retraining:\n", ""])
def test_retraining_may_be_empty(loaded: Loaded, good: str, block: str) -> None:
    assert loaded(good + block).parameters.retraining.num_epochs == 12


def test_prune_only_and_prune_at_initialisation(loaded: Loaded, good: str) -> None:
    assert loaded(good + "retraining: {numEpochs: 0}\n").parameters.retraining.num_epochs == 0
    p = loaded(good.replace("numEpochs: 12", "numEpochs: 0") + "retraining: {numEpochs: 12}\n").parameters
    assert (p.training.num_epochs, p.retraining.num_epochs) == (0, 12)


# --- overrides


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.numEpochs=2", lambda p: p.training.num_epochs == 2),
        ("training.optimizerKwargs.lr=1e-3", lambda p: p.training.optimizer_kwargs == {"lr": 1e-3, "momentum": 0.9}),
        ("training.optimizerKwargs={lr: 1}", lambda p: p.training.optimizer_kwargs == {"lr": 1}),
        ("experiments.methods=[FT]", lambda p: [m.name for m in p.experiments.methods] == ["FT"]),
        ("experiments.methods[1]=FT", lambda p: [m.name for m in p.experiments.methods] == ["WT", "FT"]),
        ("experiments.methods[1].label=x", lambda p: p.experiments.methods[1].label == "x"),
        ("experiments.spacing[0].numIntervals=9", lambda p: p.experiments.spacing[0].num_intervals == 9),
        ("network.dataset.settings.root=/x", lambda p: p.network.dataset.settings == {"root": "/x"}),
        ("network.dataset.settings.root=/x", lambda p: p.network.dataset.name == "Digits"),
        ("retraining.startEpoch=3", lambda p: p.retraining.start_epoch == 3),
        ("description=a=b", lambda p: p.description == "a=b"),
        ("training.testBatchSize=null", lambda p: p.training.test_batch_size is None),
        ('description=""', lambda p: p.description == ""),
    ],
)
def test_overrides(loaded: Loaded, good: str, override: str, read: Callable[[object], bool]) -> None:
    file = loaded(good, override)
    assert read(file.parameters)
    assert file.overrides == (override,)


def test_overrides_show_in_values_and_places(loaded: Loaded, good: str) -> None:
    file = loaded(good, "training.numEpochs=2")
    assert file.values["training"]["numEpochs"] == 2
    assert file.where("training", "numEpochs") == "--set training.numEpochs"
    assert file.where("retraining", "numEpochs") == "--set training.numEpochs"


WRONG_OVERRIDES = """
training.numEpoch=2 >> training.numEpoch: unknown key. Did you mean 'numEpochs'?
traning.numEpochs=2 >> traning.numEpochs: traning: unknown key. Did you mean 'training'?
numNets=2 >> numNets: unknown key. It belongs in experiments.
lr=2 >> lr: unknown key. It belongs in training.optimizerKwargs.
training.numEpochs.x=2 >> training.numEpochs.x: training.numEpochs: must be a whole number. Got a mapping (x).
training.numEpochs >> training.numEpochs: expected KEY=VALUE, for instance experiments.numNets=1.
training..x=1 >> training..x=1: expected KEY=VALUE, for instance experiments.numNets=1.
training.numEpochs= >> training.numEpochs: has no value. Write KEY=null for no value
training.numEpochs=x >> training.numEpochs: must be a whole number. Got 'x'.
training.numEpochs=[1 >> training.numEpochs: not valid YAML
training.numEpochs=!!python/name:os >> training.numEpochs: the tag !!python/name:os is not allowed
training.file=x.yaml >> training.file: unknown key. A file can only be included from within
experiments.methods[7]=FT >> experiments.methods[7]: the list has 2 items, counted from 0.
experiments.methods.x=FT >> experiments.methods.x: experiments.methods: must be a list. Got a mapping (x).
slurm.setup=[3] >> slurm.setup[0]: must be text. Got 3.
slurm.setup={0: x} >> slurm.setup: must be a list.
slurm={setup: [true]} >> slurm.setup[0]: must be text.
slurm.options={a: [1]} >> slurm.options.a: must be one line of text
retraining.startEpoch=13 >> retraining.startEpoch: is 13, after the last epoch: numEpochs is 12
"""


@pytest.mark.parametrize("line", WRONG_OVERRIDES.strip().splitlines())
def test_wrong_overrides(problems: Problems, good: str, line: str) -> None:
    override, message = line.split(" >> ")
    (problem,) = problems(good, override)
    assert problem.startswith(f"--set {message}")


def test_an_override_given_twice(problems: Problems, good: str) -> None:
    assert problems(good, "seed=1", "seed=2") == ("--set seed: is given twice.",)


# --- names and places


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("param/cifar/prune/resnet20.yaml", "cifar/prune/resnet20"),
        ("mine/first.yaml", "mine/first"),
        ("mine/param/first.yaml", "mine/first"),
        ("param.yaml", "param"),
        ("v1.2.yaml", "v1.2"),
        ("plain", "plain"),
    ],
)
def test_names_below_the_working_directory(write: Write, good: str, file: str, name: str) -> None:
    write({file: good})
    assert load(file).name() == name


def test_names_elsewhere(write: Write, here: Path, good: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write({"param/a/b.yaml": good, "c/d.yaml": good, "work/x": ""})
    monkeypatch.chdir(here / "work")
    assert load(here / "param/a/b.yaml").name() == "a/b"
    assert load("../c/d.yaml").name().startswith("d~")
    assert load("../c/d.yaml").name() == load(str(here / "c/d.yaml")).name()


def test_names_do_not_depend_on_the_working_directory(
    write: Write, here: Path, good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write({"a/b/c.yaml": good})
    results = here / "a/results"
    names = set()
    for folder in (".", "a", "a/b", ".."):
        monkeypatch.chdir(here / folder)
        path = Path(os.path.relpath(here / "a/b/c.yaml"))
        names |= {load(path).name(place) for place in (results, Path(os.path.relpath(results)))}
    assert names == {"b/c"}


LONG = "a" * 70
MEETING = [  # names that were one folder's
    ("../expA/run", "../expB/run"),
    (f"{LONG}_lr0.1", f"{LONG}_lr0.2"),
    (f"{LONG}/x", f"{LONG}b/x"),
    ("実験", "検証"),
    ("実", "_"),
    ("a b", "a_b"),
    ("lr(1)", "lr[1]"),
    (".hid", "hid"),
    ("hid.", "hid"),
    ("a b/x", "a_b/x"),
    ("caf\udce9", "caf\udce8"),
    ("a/cells", "a/cells.yaml"),
]


@pytest.mark.parametrize(("one", "other"), MEETING)
def test_files_of_different_names_have_different_folders(tmp_path: Path, one: str, other: str) -> None:
    results = tmp_path / "here/data/results"
    first, second = (experiment_name(tmp_path / f"here/{name}.yaml", results) for name in (one, other))
    assert first.lower() != second.lower()
    for name in (first, second):
        assert re.fullmatch(r"[A-Za-z0-9+._=,~-]+(/[A-Za-z0-9+._=,~-]+)*", name)
        assert not {"", ".", ".."} & set(name.split("/"))
        assert max(map(len, name.split("/"))) <= 70


@pytest.mark.parametrize("part", ["cells", "Plots", "results.csv"])
def test_no_experiment_lies_in_the_files_of_another(tmp_path: Path, part: str) -> None:
    name = experiment_name(tmp_path / f"param/a/{part}.yaml", tmp_path / "data/results")
    assert name.startswith(f"a/{part}~")


@pytest.mark.parametrize("path", ["digits/prune/lenet5.yaml", "param/digits/prune/lenet5.yaml"])
def test_packaged_files_are_found_from_anywhere(here: Path, path: str) -> None:
    file = load(path)
    assert file.name() == "digits/prune/lenet5"
    assert file.path == packaged_param() / "digits/prune/lenet5.yaml"


def test_the_working_directory_goes_first(write: Write, good: str) -> None:
    write({"digits/prune/lenet5.yaml": good})
    assert load("digits/prune/lenet5.yaml").parameters.experiments.methods[0].name == "WT"
    assert load("digits/prune/lenet5.yaml").where() == "digits/prune/lenet5.yaml:1"


def test_where(write: Write, good: str) -> None:
    write({"b.yaml": good, "param/e.yaml": "file: ../b.yaml\n\nexperiments:\n  methods:\n    - WT\n    - FT\n"})
    file = load("param/e.yaml")
    assert file.where("experiments", "methods", 1) == "param/e.yaml:6"
    assert file.where("experiments", "methods", 1, "name") == "param/e.yaml:6"
    assert file.where("experiments", "spacing", 0, "maxVal") == "b.yaml:11"
    assert file.where("training", "optimizerKwargs", "lr") == "b.yaml:6"
    assert file.where("retraining", "optimizerKwargs", "lr") == "b.yaml:6"
    assert file.where("training", "loss") == "b.yaml:2"
    assert file.where("nothing") == "param/e.yaml:1"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere.yaml", "no such parameter file. Searched: nowhere.yaml"),
        ("mine/fisrt.yaml", "Did you mean 'mine/first.yaml'?"),
        ("x" * 5000, "no such parameter file"),
        ("x\0y", "no such parameter file"),
        ("param/digits/prune/lenet.yaml", "Did you mean 'param/digits/prune/lenet5.yaml'?"),
        ("digits/prune/lenet5", "Did you mean 'param/digits/prune/lenet5.yaml'?"),
        ("digits/prune", "is a folder. Expected a parameter file (.yaml). It contains lenet5.yaml."),
    ],
)
def test_no_such_file(write: Write, good: str, path: str, words: str) -> None:
    write({"mine/first.yaml": good})
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert words in str(raised.value)


# --- the package as a whole


def test_reading_needs_no_torch() -> None:
    code = (
        "import sys; from experiment.config import load; load('digits/prune/lenet5.yaml');"
        "print([m for m in ('torch', 'numpy', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_json_schema_speaks_the_files_language() -> None:
    schema = json_schema()
    definitions = schema["$defs"]
    training = definitions["Training"]["properties"]
    assert {"batchSize", "lrSchedulers", "enableAMP", "file"} <= set(training)
    assert "required" not in definitions["Training"]
    assert "required" not in schema
    assert definitions["DatasetRef"]["anyOf"][0]["type"] == "string"
    assert definitions["Interval"]["required"] == ["type", "numIntervals", "maxVal", "minVal"]


def test_json_schema_bounds_numbers_in_words_that_editors_know() -> None:
    network = json_schema()["$defs"]["Network"]["properties"]
    assert network["outputSize"]["minimum"] == 1
    text = json.dumps(json_schema())
    assert not [word for word in ("ge", "gt", "le", "lt") if f'"{word}":' in text]


def test_json_schema_describes_every_key() -> None:
    schema = json_schema()
    blocks = {"": schema, **schema["$defs"]}
    for name, block in blocks.items():
        full = block["anyOf"][1] if "anyOf" in block else block
        for key, value in full["properties"].items():
            block_of = schema["$defs"].get(value.get("$ref", "").rpartition("/")[2], {})
            assert (value | block_of).get("description"), f"{name}.{key}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("numNets: 1000000", "experiments.numNets: 1,000,000 networks x 2 methods x 3 keep ratios: 6,000,000 cells"),
        (f"numNets: {10**18}", "experiments.numNets: 1,000,000,000,000,000,000 networks"),
        (f"numNets: {10**250}", "experiments.numNets: more than 10^21 networks"),
        (f"numRepetitions: {10**9}", "experiments.numRepetitions: 1,000,000,000 repetitions x 2 methods"),
        (f"methods: [{', '.join(['WT'] * 1_001)}]", "experiments.methods: has 1,001 entries. At most 1,000"),
    ],
)
def test_a_grid_that_is_too_large_is_refused_before_it_is_made(tmp_path: Path, change: str, said: str) -> None:
    key, _, value = change.partition(": ")
    lines = {
        "mode": "retrain",
        "methods": "[WT, SVD]",
        "spacing": "[{type: manual, values: [0.5, 0.2, 0.1]}]",
        key: value,
    }
    path = tmp_path / "large.yaml"
    path.write_text(GRID + "".join(f"  {key}: {value}\n" for key, value in lines.items()))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert said in str(caught.value)
    assert re.search(r"large\.yaml:\d+: ", str(caught.value))


GRID = """network: {name: lenet5, dataset: Digits, outputSize: 10}
training: {numEpochs: 2, batchSize: 64, optimizer: SGD, optimizerKwargs: {lr: 0.1}}
retraining: {numEpochs: 1}
experiments:
"""
