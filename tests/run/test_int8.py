"""A network of an experiment as int8 on the CPU, tested on the experiment's data, as the documentation shows it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from experiment import calibration_inputs, evaluate, load_network, quantize_int8, serialized_bytes
from experiment.errors import CompressionError, ConfigError, DataError
from experiment.main import main


@pytest.mark.usefixtures("no_plots")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torchao's own
def test_a_deployed_network_is_tested_for_real(write: Any, small: dict[str, Any]) -> None:
    pytest.importorskip("torchao", reason="needs the extra torchao")
    small["network"]["name"] = "lenet5_small"
    small["training"] |= {"numEpochs": 6, "lrSchedulers": []}
    small["experiments"]["methods"] = ["WT"]
    small["experiments"]["spacing"][0]["values"] = [0.8]
    path = write(small)
    assert main([str(path), "-j", "1", "-q"]) == 0
    network = load_network(path, method="WT", keep=0.8)
    images = calibration_inputs(path, size=100)
    expected = evaluate(path, network)["top1"]
    assert expected > 0.8
    for mode in ("dynamic", "static"):
        int8 = quantize_int8(network, mode, calibration=images if mode == "static" else None)
        assert evaluate(path, int8)["top1"] == pytest.approx(expected, abs=0.02)
        assert serialized_bytes(int8) < 0.4 * serialized_bytes(load_network(path, method="Reference"))


def test_calibration_inputs_are_validation_images_as_the_network_sees_them(write: Any, small: dict[str, Any]) -> None:
    path = write(small)
    images = calibration_inputs(path, size=20)
    assert images.shape == (20, 1, 28, 28)
    assert images.min() == pytest.approx((0 - 0.3) / 0.3, rel=1e-5)
    assert torch.equal(images, calibration_inputs(path, size=20))
    assert len(calibration_inputs(path, size=10**6)) < 1797 / 5
    for size in (0, -1, 2.5, True):
        with pytest.raises(ConfigError, match="size must be a whole number of at least 1"):
            calibration_inputs(path, size=size)  # type: ignore[arg-type]
    with pytest.raises(CompressionError, match="network must be a torch.nn.Module. Got a NoneType"):
        evaluate(path, None)  # type: ignore[arg-type]


def test_calibration_inputs_need_the_dataset(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    small["network"]["dataset"] = "MNIST"
    with pytest.raises(DataError, match="MNIST"):
        calibration_inputs(write(small), in_tmp)
