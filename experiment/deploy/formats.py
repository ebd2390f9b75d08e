"""The formats in which networks leave this program: who writes a file, and who runs it. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePath

from experiment.errors import ConfigError
from experiment.registry import suggestion

UNFINISHED = ".exporting-"  # the start of the names of folders with files that are not whole yet
WRITERS, RUNTIMES = "experiment.deploy.writers", "experiment.deploy.runtimes"


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: in parameter files and columns.
        file: the name of the exported file in a cell's folder `export`.
        write: import path of a function (Deployed, path) -> None.
        run: import path of a function (path, threads, own_names) -> (arrays -> arrays), for a process of its own;
            `own_names` are the networks of the user's own code that may be imported.
        needs: the modules that writing or running imports.
        install: what to install for them.
        int8: whether weights and activations are quantized, for which calibration inputs are needed.
    """

    name: str
    file: str
    write: str
    run: str
    needs: tuple[str, ...] = ()
    install: str = ""
    int8: bool = False

    @property
    def suffix(self) -> str:
        """The ending of its files."""
        return PurePath(self.file).suffix

    @property
    def missing(self) -> str:
        """The first module that is not installed; empty if all are."""
        return next((module for module in self.needs if find_spec(module) is None), "")

    @property
    def advice(self) -> str:
        """What is missing, and how to install it."""
        how = f"python -m pip install '{self.install}'"
        return f"{self.name} needs the package {self.missing}, which is not installed: {how}."


_ONNX, _TORCHAO = ("onnx", "onnxscript", "onnxruntime"), ("torchao",)

FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (
        Format("onnx", "network.onnx", f"{WRITERS}:onnx", f"{RUNTIMES}:onnx", _ONNX, "experiment[onnx]"),
        Format("onnx_int8", "network_int8.onnx", f"{WRITERS}:onnx_int8", f"{RUNTIMES}:onnx", _ONNX, "experiment[onnx]",
               int8=True),
        Format("pt2", "network.pt2", f"{WRITERS}:pt2", f"{RUNTIMES}:pt2"),
        Format("torchao_int8", "network_int8.pt2", f"{WRITERS}:torchao_int8", f"{RUNTIMES}:pt2", _TORCHAO,
               "experiment[torchao]", int8=True),
        Format("openvino", "network.xml", f"{WRITERS}:openvino", f"{RUNTIMES}:openvino", ("openvino",),
               "experiment[openvino]"),
        Format("executorch", "network.pte", f"{WRITERS}:executorch", f"{RUNTIMES}:executorch", ("executorch",),
               "executorch"),
        Format("safetensors", "network.safetensors", f"{WRITERS}:safetensors",
               "experiment.run.disk.safetensors_file:run", ("safetensors",), "safetensors"),
    )
}  # fmt: skip


def find_format(name: str | None, path: PurePath) -> Format:
    """The format of this name, or by default the first one with the ending of a file.

    Raises: ConfigError: there is none, or the file has another ending.
    """
    if name is not None and name not in FORMATS:
        raise ConfigError(f"format: must be one of {', '.join(FORMATS)}. Got {name!r}.{suggestion(name, FORMATS)}")
    possible = FORMATS.values() if name is None else [FORMATS[name]]
    found = next((each for each in possible if each.suffix == path.suffix), None)
    if found is None:
        endings = ", ".join(dict.fromkeys(each.suffix for each in possible))
        raise ConfigError(f"{path}: the name of the file must end in {endings}. Got {path.suffix!r}.")
    return found
