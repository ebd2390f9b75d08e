"""Error messages: all errors of a file at once, each with its line, what was expected and what came."""

from collections.abc import Callable

import pytest

from experiment.config import ParameterFile

Problems = Callable[..., tuple[str, ...]]

# what stands in the good file >> what replaces it >> the start of the only error
MISTAKES = r"""
numEpochs: 12 >> numEpoch: 12 >> 4: training.numEpoch: unknown key. Did you mean 'numEpochs'?
mode: retrain >> mode: retrain\n  wrong: 1 >> 10: experiments.wrong: unknown key. Known keys: methods, mode
training: >> numNets: 3\ntraining: >> 2: numNets: unknown key. It belongs in experiments.
Size: 32 >> Size: 32\n  compile: reduce >> 4: training.compile: must be one of false, true, reduce-overhead. Got 'reduce
Size: 32 >> Size: 32\n  compile: 'true' >> 4: training.compile: must be one of false, true, reduce-overhead. Got 'true'.
Size: 32 >> Size: 32\n  compile: 1 >> 4: training.compile: must be one of false, true, reduce-overhead. Got 1.
Size: 32 >> Size: 32\n  compile: 0.0 >> 4: training.compile: must be one of false, true, reduce-overhead. Got 0.0.
batchSize: 32 >> batchSize: 32\n  lr: 1 >> 4: training.lr: unknown key. It belongs in training.optimizerKwargs.
  numEpochs: 12\n >>  >> 2: training.numEpochs: is required and missing (Length of the schedule in epochs.
, outputSize: 10 >>  >> 1: network.outputSize: is required and missing (Number of outputs (classes)).
  batchSize: 32\n >>   batchSize: 32\n  batchSize: 3\n >> 4: training.batchSize: is given twice (first in line 3).
batchSize: 32 >> batchSize: 3.5 >> 3: training.batchSize: must be a whole number. Got 3.5.
batchSize: 32 >> batchSize: many >> 3: training.batchSize: must be a whole number. Got 'many'.
batchSize: 32 >> batchSize: true >> 3: training.batchSize: must be a whole number. Got true.
batchSize: 32 >> batchSize: >> 3: training.batchSize: must be a whole number. Got nothing.
batchSize: 32 >> batchSize: [1] >> 3: training.batchSize: must be a whole number. Got a list of 1.
batchSize: 32 >> batchSize: 0 >> 3: training.batchSize: must be at least 1. Got 0.
optimizer: SGD >> optimizer: 3 >> 5: training.optimizer: must be text. Got 3. Write "3" in quotes for text.
optimizer: SGD >> optimizer: '' >> 5: training.optimizer: must not be empty. Got ''.
{lr: 0.1, momentum: 0.9} >> 0.1 >> 6: training.optimizerKwargs: must be a mapping (key: value). Got 0.1.
[WT, SVD] >> ALDS >> 8: experiments.methods: must be a list. Got 'ALDS'. Write [ALDS] for a list of one.
retrain\n >> retrain\n  noiseLevels: 0.25\n >> 10: experiments.noiseLevels: must be a list. Got 0.25. Write [0.25] for a
retrain\n >> retrain\n  hooks: own.code:make\n >> 10: experiments.hooks: must be a list. Got 'own.code:make'. Write [own
[WT, SVD] >> [WT, [SVD]] >> 8: experiments.methods[1]: must be a name or a mapping {name: ..., settings: ...}.
[WT, SVD] >> [{nam: WT}] >> 8: experiments.methods[0].nam: unknown key. Did you mean 'name'?
Size: 32 >> Size: 32\n  enableAMP: maybe >> 4: training.enableAMP: must be true or false. Got 'maybe'.
Size: 32 >> Size: 32\n  earlyStopEpoch: None >> 4: training.earlyStopEpoch: must be a whole number. Got 'None'.
mode: retrain >> mode: cascde >> 9: experiments.mode: must be one of train, retrain, retrain-rewind, cascade, ca
experiments: >> resources: {gpus: 1.5}\nexperiments: >> 7: resources.gpus: must be at most 1. Got 1.5.
maxVal: 0.8 >> maxVal: 1.3 >> 11: experiments.spacing[0].maxVal: must be in (0, 1]. Got 1.3.
minVal: 0.2 >> minVal: 0.9 >> 11: experiments.spacing[0].minVal: must be at most maxVal (0.8). Got 0.9.
Intervals: 3 >> Intervals: 99999 >> 11: experiments.spacing[0].numIntervals: must be at most 10000. Got 99999.
geometric >> geometrc >> 11: experiments.spacing[0].type: must be one of geometric, linear, cubic, harmonic2, ha
type: geometric,  >>  >> 11: experiments.spacing[0]: needs a `type`, one of geometric, linear
0.2} >> 0.2}\n    - {type: manual, values: [0.1, 1.2]} >> 12: experiments.spacing[1].values[1]: must be in (0, 1
0.2} >> 0.2}\n    - {type: manual, values: []} >> 12: experiments.spacing[1].values: must not be empty. Got a li
0.2} >> 0.2}\n    - {type: manual, values: [0.4]} >> 12: experiments.spacing[1]: repeats the keep ratio 0.4 of s
0.2} >> 0.2}\n    - {type: manual, values: [0.1, 0.1]} >> 12: experiments.spacing[1]: repeats the keep ratio 0.1
geometric, numIntervals: 3, maxVal: 0.8 >> harmonic, numIntervals: 100 >> 11: experiments.spacing[0].minVal: too
geometric >> harmonic >> 11: experiments.spacing[0].maxVal: does not apply to this type. Remove it.
retrain >> retrain\n  retrainIterations: 4 >> 10: experiments.retrainIterations: must be at most the number of k
momentum: 0.9 >> nesterov: no >> 6: training.optimizerKwargs.nesterov: 'no' is ambiguous. Write false, or "no" i
momentum: 0.9 >> foreach: None >> 6: training.optimizerKwargs.foreach: 'None' is ambiguous. Write null
momentum: 0.9 >> lr2: .nan >> 6: training.optimizerKwargs.lr2: must be a finite number. Got .nan.
momentum: 0.9 >> x: !!python/name:os.system '' >> 6: training.optimizerKwargs.x: the tag !!python/name:os.system
Size: 32 >> Size: 32\n  lossKwargs: {weight: [1.0]} >> 4: training.lossKwargs.weight: must have one number for e
END >> retraining: {startEpoch: 13} >> 12: retraining.startEpoch: is 13, after the last epoch: numEpochs is 12. Lower
END >> retraining: {startEpoch: 1, numEpochs: 0} >> 12: retraining.startEpoch: is 1, after the last epoch: numEpochs is
END >> retraining: {startEpoch: -1} >> 12: retraining.startEpoch: must be at least 0. Got -1.
END >>   rewind: yes >> 12: experiments.rewind: must be one of weights, random, none
END >>   rewind: random\nretraining: {numEpochs: 0} >> 12: experiments.rewind: random weights need retraining, b
mode: retrain >> mode: train\n  rewind: weights >> 10: experiments.rewind: has no effect in mode train, which co
mode: retrain >> mode: lc\n  rewind: random >> 10: experiments.rewind: has no effect in mode lc, which continues f
mode: retrain >> mode: lc\n  retrainIterations: 2 >> 10: experiments.retrainIterations: has no effect in mode lc
mode: retrain >> mode: retrain\n  search: {} >> 10: experiments.search: cannot be combined with spacing
END >> lc: {muInit: 1e5} >> 12: lc.muCap: must be at least muInit (100000). Got 10000.
END >> lc: {lrEnd: 0.1, lrDecay: 0.5} >> 12: lc.lrDecay: has no effect with lrEnd
END >> lc: {lrEnd: 0.1, lrMilestones: [2]} >> 12: lc.lrMilestones: has no effect with lrEnd
END >> lc: {steps: 3, lrMilestones: [2, 3]} >> 12: lc.lrMilestones: must be below steps (3). Got 3.
END >> retraining: {distillation: {alpha: 1.5}} >> 12: retraining.distillation.alpha: must be at most 1. Got 1.5
END >> retraining: {distillation: {T: 3}} >> 12: retraining.distillation.T: unknown key. Known keys: temperature
Size: 32 >> Size: 32\n  distillation: {} >> 4: training.distillation: unknown key. It belongs in retraining.
outputSize: 10 >> outputSize: 10, weights: [a.pt] >> 1: network.weights: must be text
Size: 32 >> Size: 32\n  penalties: [{layers: fc1}] >> 4: training.penalties[0]: needs l1, l2 or both.
Size: 32 >> Size: 32\n  penalties: [{l1: -1}] >> 4: training.penalties[0].l1: must be at least 0. Got -1.
Size: 32 >> Size: 32\n  penalties: [{l1: 1, layers: []}] >> 4: training.penalties[0].layers: must not be empty.
Size: 32 >> Size: 32\n  penalties: [{l1: 1, how: soft}] >> 4: training.penalties[0].how[0]: must be one of subgr
Size: 32 >> Size: 32\n  penalties: [{l1: 1, how: coupled}] >> 4: training.penalties[0].how: coupled applies to l
Size: 32 >> Size: 32\n  penalties: [{l1: 1, how: [proximal, subgradient]}] >> 4: training.penalties[0].how: prox
Size: 32 >> Size: 32\n  penalties: [{l1: 1, layer: fc1}] >> 4: training.penalties[0].layer: unknown key. Did you
"""


@pytest.mark.parametrize("line", MISTAKES.strip("\n").splitlines())
def test_one_mistake_is_one_error(problems: Problems, good: str, line: str) -> None:
    old, new, message = (part.replace("\\n", "\n") for part in line.split(" >> "))
    assert old == "END" or old in good
    (problem,) = problems(f"{good}{new}\n" if old == "END" else good.replace(old, new, 1))
    assert problem.startswith(f"e.yaml:{message}")


@pytest.mark.parametrize("word", ["'no'", '"None"'])
def test_quoted_words_are_text(loaded: Callable[..., ParameterFile], good: str, word: str) -> None:
    file = loaded(good.replace("momentum: 0.9", f"x: {word}"))
    assert file.parameters.training.optimizer_kwargs["x"] == word[1:-1]


def test_keep_ratios_must_decrease_in_a_cascade_only(
    loaded: Callable[..., object], problems: Problems, good: str
) -> None:
    rising = good.replace("minVal: 0.2}", "minVal: 0.2}\n    - {type: manual, values: [0.5]}")
    loaded(rising)
    assert problems(rising.replace("mode: retrain", "mode: cascade")) == (
        "e.yaml:12: experiments.spacing[1]: keep ratios must decrease in a cascade. Got 0.5 after 0.2.",
    )


def test_equal_networks_are_refused(loaded: Callable[..., object], problems: Problems, good: str) -> None:
    given = good.replace("outputSize: 10", "outputSize: 10, weights: mine.pt") + "  numNets: 3\n"
    loaded(given)
    untrained = given.replace("numEpochs: 12", "numEpochs: 0")
    assert problems(untrained) == (
        "e.yaml:12: experiments.numNets: must be 1: with network.weights and training.numEpochs: 0 all networks are "
        "the same. Got 3.",
    )
    loaded(untrained.replace("numNets: 3", "numNets: 1"))
    loaded(untrained.replace(", weights: mine.pt", ""))


def test_errors_that_retraining_inherits_are_reported_once(problems: Problems, good: str) -> None:
    assert len(problems(good.replace("SGD", "3") + "retraining: {numEpochs: 1}\n")) == 1
    assert len(problems(good.replace("  batchSize: 32\n", "") + "retraining: {numEpochs: 1}\n")) == 1
    for key in ("numEpochs", "batchSize"):
        found = problems(good.replace("numEpochs: 12", "numEpochs: x") + f"retraining: {{{key}: y}}\n")
        assert [p.partition(": must")[0] for p in found] == [
            "e.yaml:4: training.numEpochs",
            f"e.yaml:12: retraining.{key}",
        ]


def test_an_almost_empty_file(problems: Problems) -> None:
    assert [problem.split(": ")[1] for problem in problems("seed: 1\n")] == [
        "network", "training.batchSize", "training.numEpochs", "training.optimizer", "experiments",
    ]  # fmt: skip


def test_all_mistakes_at_once_in_the_order_of_their_lines(problems: Problems) -> None:
    text = """\
network: {name: lenet5, dataset: 3, outputsize: 10}
training:
  batchSize: 0
  numEpochs: 5
  optimizer: SGD
  optimizerKwargs: {nesterov: on}
  batchSize: 3
retraining: {startEpoch: 6, distillation: {}}
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
  - {key: [experiments, mode], value: train}
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
        "customizations[2].value",
        "customizations[3]",
        "customizations[3].value",
        "seeds",
    ]
    lines = [int(p.split(":")[1]) for p in found]
    assert lines == sorted(lines)


def test_mistakes_in_an_included_file_are_reported_there(
    problems: Problems, write: Callable[..., None], good: str
) -> None:
    write({"sub/t.yaml": "# a comment\nbatchSize: 0\ntestBatchSize: 0\n"})
    text = good.replace("training:\n  batchSize: 32", "training:\n  file: sub/t.yaml\n  testBatchSize: x")
    assert [p.partition(": must")[0] for p in problems(text)] == [
        "e.yaml:4: training.testBatchSize",
        "sub/t.yaml:2: training.batchSize",
    ]


def test_long_values_are_shortened(problems: Problems, good: str) -> None:
    (problem,) = problems(good.replace("batchSize: 32", f"batchSize: {'x' * 500}"))
    assert len(problem) < 200


NUMBERS_AS_TEXT = """
optimizerKwargs: {lr: '1e-3'} >> optimizerKwargs.lr >> 1e-3
optimizer: Adam, optimizerKwargs: {betas: [0.9, '.99']} >> optimizerKwargs.betas[1] >> .99
lossKwargs: {label_smoothing: '0'} >> lossKwargs.label_smoothing >> 0
lrSchedulers: [{type: StepLR, kwargs: {gamma: '.1'}}] >> lrSchedulers[0].kwargs.gamma >> .1
transformsTrain: [{type: RandomCrop, kwargs: {size: [28, '28']}}] >> transformsTrain[0].kwargs.size[1] >> 28
"""


@pytest.mark.parametrize("line", NUMBERS_AS_TEXT.strip().splitlines())
def test_a_number_given_as_text_is_refused_at_its_own_key(problems: Problems, good: str, line: str) -> None:
    text, key, got = line.split(" >> ")
    message = f"e.yaml:12: retraining.{key}: must be a number without quotes. Got '{got}'."
    assert problems(f"{good}retraining: {{{text}}}\n") == (message,)


def test_numbers_given_as_text_are_refused_in_includes_and_on_the_command_line(
    problems: Problems, write: Callable[..., None], good: str
) -> None:
    message = "must be a number without quotes. Got '1e-3'."
    key = "training.optimizerKwargs.lr"
    assert problems(good, f"{key}='1e-3'") == (f"--set {key}: {message}",)
    several = good.replace("{lr: 0.1, momentum: 0.9}", "\n    lr: '1e-3'\n    momentum: '1e-3'")
    assert problems(several) == tuple(
        f"e.yaml:{line}: training.optimizerKwargs.{name}: {message}" for line, name in ((7, "lr"), (8, "momentum"))
    ), "not once more for retraining, which inherits them"
    write({"base.yaml": good.replace("0.1, momentum", "'1e-3', momentum")})
    assert problems("file: base.yaml\nseed: 1\n") == (f"base.yaml:6: {key}: {message}",)
