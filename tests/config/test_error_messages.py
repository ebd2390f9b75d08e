"""What a user is told: every mistake of a file at once, with its line, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from experiment.config import ParameterFile

Problems = Callable[..., tuple[str, ...]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # keys
        ("numEpochs: 12", "numEpoch: 12", "4: training.numEpoch: unknown key. Did you mean 'numEpochs'?"),
        ("numEpochs: 12", "num_epochs: 12", "4: training.num_epochs: unknown key. Did you mean 'numEpochs'?"),
        ("mode: retrain", "mode: retrain\n  wrong: 1", "10: experiments.wrong: unknown key. Known here: methods, mode"),
        ("training:", "numNets: 3\ntraining:", "2: numNets: unknown key. It belongs in experiments."),
        (
            "batchSize: 32",
            "batchSize: 32\n  lr: 1",
            "4: training.lr: unknown key. It belongs in training.optimizerKwargs.",
        ),
        ("  numEpochs: 12\n", "", "2: training.numEpochs: is required and missing (Epochs of the whole schedule"),
        (", outputSize: 10", "", "1: network.outputSize: is required and missing (Number of outputs (classes))."),
        (
            "  batchSize: 32\n",
            "  batchSize: 32\n  batchSize: 3\n",
            "4: training.batchSize: is given twice (first in line 3).",
        ),
        # types
        ("batchSize: 32", "batchSize: 3.5", "3: training.batchSize: must be a whole number. Got 3.5."),
        ("batchSize: 32", "batchSize: many", "3: training.batchSize: must be a whole number. Got 'many'."),
        ("batchSize: 32", "batchSize: true", "3: training.batchSize: must be a whole number. Got true."),
        ("batchSize: 32", "batchSize:", "3: training.batchSize: must be a whole number. Got nothing."),
        ("batchSize: 32", "batchSize: [1]", "3: training.batchSize: must be a whole number. Got a list of 1."),
        ("batchSize: 32", "batchSize: 0", "3: training.batchSize: must be at least 1. Got 0."),
        ("numEpochs: 12", "numEpochs: -1", "4: training.numEpochs: must be at least 0. Got -1."),
        ("optimizer: SGD", "optimizer: 3", '5: training.optimizer: must be text. Got 3. Write "3" in quotes for text.'),
        ("optimizer: SGD", "optimizer: ''", "5: training.optimizer: must not be empty. Got ''."),
        ("{lr: 0.1, momentum: 0.9}", "0.1", "6: training.optimizerKwargs: must be a mapping (key: value). Got 0.1."),
        ("[WT, SVD]", "ALDS", "8: experiments.methods: must be a list. Got 'ALDS'. Write [ALDS] for a list of one."),
        (
            "[WT, SVD]",
            "[WT, [SVD]]",
            "8: experiments.methods[1]: must be a name or a mapping {name: ..., settings: ...}.",
        ),
        ("[WT, SVD]", "[{nam: WT}]", "8: experiments.methods[0].nam: unknown key. Did you mean 'name'?"),
        (
            "batchSize: 32",
            "batchSize: 32\n  enableAMP: maybe",
            "4: training.enableAMP: must be true or false. Got 'maybe'.",
        ),
        (
            "batchSize: 32",
            "batchSize: 32\n  earlyStopEpoch: None",
            "4: training.earlyStopEpoch: must be a whole number. Got 'None'. Write null for no value.",
        ),
        (
            "batchSize: 32",
            "batchSize: 32\n  precision: fp8",
            "4: training.precision: must be one of auto, fp32, bf16, fp16. Got 'fp8'.",
        ),
        (
            "retrain",
            "cascde",
            "9: experiments.mode: must be one of train, retrain, retrain-rewind, cascade, cascade-rewind, lc. "
            "Got 'cascde'",
        ),
        # the grid
        ("experiments:", "resources: {cpus: 0}\nexperiments:", "7: resources.cpus: must be at least 1. Got 0."),
        ("experiments:", "resources: {gpus: 1.5}\nexperiments:", "7: resources.gpus: must be at most 1. Got 1.5."),
        ("maxVal: 0.8", "maxVal: 1.3", "11: experiments.spacing[0].maxVal: must be in (0, 1]. Got 1.3."),
        ("minVal: 0.2", "minVal: 0", "11: experiments.spacing[0].minVal: must be in (0, 1]. Got 0"),
        ("minVal: 0.2", "minVal: 0.9", "11: experiments.spacing[0].minVal: must be at most maxVal (0.8). Got 0.9."),
        ("numIntervals: 3", "numIntervals: 0", "11: experiments.spacing[0].numIntervals: must be at least 1. Got 0."),
        (
            "numIntervals: 3",
            "numIntervals: 99999",
            "11: experiments.spacing[0].numIntervals: must be at most 10000. Got 99999.",
        ),
        (
            "geometric",
            "geometrc",
            "11: experiments.spacing[0].type: must be one of geometric, linear, cubic, harmonic2, harmonic, manual",
        ),
        ("type: geometric, ", "", "11: experiments.spacing[0]: needs a `type`, one of geometric, linear"),
        (
            "minVal: 0.2}",
            "minVal: 0.2}\n    - {type: manual, values: [0.1, 1.2]}",
            "12: experiments.spacing[1].values[1]: must be in (0, 1]. Got 1.2.",
        ),
        (
            "minVal: 0.2}",
            "minVal: 0.2}\n    - {type: manual, values: []}",
            "12: experiments.spacing[1].values: must not be empty. Got a list of 0.",
        ),
        (
            "minVal: 0.2}",
            "minVal: 0.2}\n    - {type: manual, values: [0.1, 0.4]}",
            "12: experiments.spacing[1]: gives the keep ratio 0.4 again, which is given by spacing[0].",
        ),
        (
            "minVal: 0.2}",
            "minVal: 0.2}\n    - {type: manual, values: [0.1, 0.1]}",
            "12: experiments.spacing[1]: gives the keep ratio 0.1 again, which is given by this block itself.",
        ),
        ("minVal: 0.2", "minVal: 0.8", "11: experiments.spacing[0]: gives the keep ratio 0.8 again"),
        (
            "type: geometric, numIntervals: 3",
            "type: harmonic, numIntervals: 100",
            "11: experiments.spacing[0].minVal: makes about 10^5 keep ratios",
        ),
        (
            "mode: retrain",
            "mode: retrain\n  retrainIterations: 4",
            "10: experiments.retrainIterations: must be at most the number of keep ratios (3), or -1",
        ),
        # the rest
        (
            "momentum: 0.9",
            "nesterov: no",
            "6: training.optimizerKwargs.nesterov: 'no' may be text or not. Write false, or \"no\" in quotes for text.",
        ),
        (
            "momentum: 0.9",
            "foreach: None",
            "6: training.optimizerKwargs.foreach: 'None' may be text or not. Write null",
        ),
        ("momentum: 0.9", "lr2: .nan", "6: training.optimizerKwargs.lr2: must be a finite number. Got .nan."),
        (
            "momentum: 0.9",
            "x: !!python/name:os.system ''",
            "6: training.optimizerKwargs.x: the tag !!python/name:os.system is not allowed",
        ),
    ],
)
def test_one_mistake_one_sentence(problems: Problems, good: str, old: str, new: str, message: str) -> None:
    assert old in good
    (problem,) = problems(good.replace(old, new, 1))
    assert problem.startswith(f"e.yaml:{message}")


@pytest.mark.parametrize("word", ["'no'", '"None"'])
def test_quoted_words_are_text(loaded: Callable[..., ParameterFile], good: str, word: str) -> None:
    file = loaded(good.replace("momentum: 0.9", f"x: {word}"))
    assert file.parameters.training.optimizer_kwargs["x"] == word[1:-1]


def test_keep_ratios_must_fall_in_a_cascade_only(loaded: Callable[..., object], problems: Problems, good: str) -> None:
    rising = good.replace("minVal: 0.2}", "minVal: 0.2}\n    - {type: manual, values: [0.5]}")
    loaded(rising)
    (problem,) = problems(rising.replace("mode: retrain", "mode: cascade"))
    assert problem == (
        "e.yaml:12: experiments.spacing[1]: keep ratios must fall from one to the next in a cascade. Got 0.5 after 0.2."
    )


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            "retraining: {startEpoch: 13}",
            "must be at most numEpochs (12), for the epochs startEpoch to numEpochs are run",
        ),
        ("retraining: {startEpoch: 1, numEpochs: 0}", "must be at most numEpochs (0)"),
        ("retraining: {startEpoch: -1}", "must be at least 0. Got -1."),
    ],
)
def test_start_epoch(problems: Problems, good: str, block: str, message: str) -> None:
    (problem,) = problems(f"{good}{block}\n")
    assert problem.startswith(f"e.yaml:12: retraining.startEpoch: {message}")


def test_start_epoch_at_the_end_is_prune_only(loaded: Callable[..., ParameterFile], good: str) -> None:
    retraining = loaded(good + "retraining: {startEpoch: 12}\n").parameters.retraining
    assert retraining.start_epoch == retraining.num_epochs == 12


def test_rewinding_needs_an_epoch_of_the_training(loaded: Callable[..., object], problems: Problems, good: str) -> None:
    rewind = good.replace("mode: retrain", "mode: cascade-rewind")
    loaded(rewind + "retraining: {startEpoch: 11}\n")
    (problem,) = problems(rewind + "retraining: {startEpoch: 12}\n")
    assert "the weights go back to the start of this epoch of a training of 12 epochs" in problem


def test_what_retraining_inherits_is_told_once(problems: Problems, good: str) -> None:
    assert len(problems(good.replace("SGD", "3") + "retraining: {numEpochs: 1}\n")) == 1
    assert len(problems(good.replace("  batchSize: 32\n", "") + "retraining: {numEpochs: 1}\n")) == 1


@pytest.mark.parametrize("key", ["numEpochs", "batchSize"])
def test_what_retraining_has_wrong_itself_is_told_too(problems: Problems, good: str, key: str) -> None:
    found = problems(good.replace("numEpochs: 12", "numEpochs: x") + f"retraining: {{{key}: y}}\n")
    assert [p.partition(": must")[0] for p in found] == ["e.yaml:4: training.numEpochs", f"e.yaml:12: retraining.{key}"]


def test_an_almost_empty_file(problems: Problems) -> None:
    assert [problem.split(": ")[1] for problem in problems("seed: 1\n")] == [
        "network",
        "training.batchSize",
        "training.numEpochs",
        "training.optimizer",
        "experiments",
    ]


def test_all_mistakes_at_once_in_the_order_of_their_lines(problems: Problems) -> None:
    text = """\
network: {name: lenet5, dataset: 3, outputsize: 10}
training:
  batchSize: 0
  numEpochs: 5
  optimizer: SGD
  optimizerKwargs: {nesterov: on}
  batchSize: 3
retraining: {startEpoch: 6}
experiments:
  methods: [WT]
  mode: casc
  numNets: true
  spacing:
    - {type: linear, numIntervals: 2, maxVal: 2, minVal: 0.1}
    - {type: linear, numIntervals: 2, maxVal: 0.5, minVal: 0.6}
  budget: !!python/name:os []
customizations:
  - {key: [retraining, startEpoch], value: 7}
  - {key: [retraining, startEpch], value: 1}
  - {key: [experiments, numNets], value: 2}
seeds: 1
"""
    found = problems(text)
    assert [p.partition(": ")[2].partition(": ")[0] for p in found] == [
        "network.dataset",
        "network.outputsize",
        "training.batchSize",
        "training.optimizerKwargs.nesterov",
        "training.batchSize",
        "retraining.startEpoch",
        "experiments.mode",
        "experiments.numNets",
        "experiments.spacing[0].maxVal",
        "experiments.spacing[1].minVal",
        "experiments.budget",
        "customizations[0].value",
        "customizations[1].key",
        "customizations[2] (experiments.numNets=2)",
        "seeds",
    ]
    lines = [int(p.split(":")[1]) for p in found]
    assert lines == sorted(lines)


def test_mistakes_in_an_included_file_are_told_there(problems: Problems, write: Callable[..., None], good: str) -> None:
    write({"sub/t.yaml": "# a comment\nbatchSize: 0\ntestBatchSize: 0\n"})
    text = good.replace("training:\n  batchSize: 32", "training:\n  file: sub/t.yaml\n  testBatchSize: x")
    assert [p.partition(": must")[0] for p in problems(text)] == [
        "e.yaml:4: training.testBatchSize",
        "sub/t.yaml:2: training.batchSize",
    ]


@pytest.mark.parametrize("text", ["a: [", "", "- 1\n", "a: 1\n---\n"])
def test_unreadable_files(problems: Problems, text: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith("e.yaml:")


def test_long_values_are_shortened(problems: Problems, good: str) -> None:
    (problem,) = problems(good.replace("batchSize: 32", f"batchSize: {'x' * 500}"))
    assert len(problem) < 200
