"""A user's own detector: the file that builds it, named on the command line, and what may go wrong with that file.

Nothing names such a file but the command line: neither a config nor a checkpoint can have code run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gid_cuda.detectors.outputs import Detector
from gid_cuda.errors import UserError

if TYPE_CHECKING:
    from gid_cuda.config import InputConfig, ModelConfig

Builder = Callable[["ModelConfig", "InputConfig", list[str]], Detector]
"""`build_detector` of an adapter file: the detector of a config with `detector: own`, on the CPU, for these classes.
Weights are loaded afterwards."""

_FUNCTION = "build_detector"
_GUIDE = "docs/own_detector.md"


def load_adapter(path: str | Path | None) -> Builder | None:
    """`build_detector` of a Python file, which is run; None for None.

    The file's folder is appended to Python's path, so that it can import what lies beside it. UserError where there is
    no such file or no such function; what the file itself raises comes through with its traceback.
    """
    if path is None:
        return None
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--adapter: {path} is not a file: give the Python file that defines {_FUNCTION}, see {_GUIDE}")
    builder = getattr(_run(path), _FUNCTION, None)
    if not callable(builder):
        raise UserError(
            f"--adapter: {path} defines no function {_FUNCTION}(model, input, classes): add one that returns your "
            f"detector, see {_GUIDE}"
        )
    return builder


def build_own(adapter: Builder | None, model: ModelConfig, input: InputConfig, classes: list[str]) -> Detector:
    """What the adapter builds. UserError where there is no adapter, or its result is no Detector."""
    if adapter is None:
        raise UserError(_MISSING)
    detector = _traced(adapter, model, input, classes)
    if not isinstance(detector, Detector):
        source = getattr(getattr(adapter, "__code__", None), "co_filename", repr(adapter))
        raise UserError(
            f"--adapter: {_FUNCTION} of {source} returned {_a(type(detector).__name__)}, expected a Detector: derive "
            f"your class from gid_cuda.detectors.outputs.Detector, see {_GUIDE}"
        )
    return detector


def check_adapter(adapter: Builder | None, *models: ModelConfig | None) -> None:
    """UserError where one of these models needs an adapter and there is none, or none needs the one there is."""
    own = any(model is not None and model.detector == "own" for model in models)
    if own and adapter is None:
        raise UserError(_MISSING)
    if adapter is not None and not own:
        kinds = ", ".join(dict.fromkeys(model.detector for model in models if model is not None))
        raise UserError(
            f"--adapter is for detector: own, and here it is {kinds}: leave --adapter out, or give a config or weights "
            "of detector: own"
        )


_MISSING = f"detector: own needs the Python file that builds it: add --adapter FILE, see {_GUIDE}"


def _run(path: Path) -> ModuleType:
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # at the end: a file beside it should not hide an installed package
    name = f"gid_adapter_{path.stem}"
    spec = spec_from_loader(name, SourceFileLoader(name, str(path)))  # whatever the file's suffix
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for the module that they are defined in
    _traced(spec.loader.exec_module, module)
    return module


def _traced(call: Callable[..., Any], *arguments: Any) -> Any:
    """The scripts tell an OSError in one sentence about files of theirs; of the user's code it has its traceback."""
    try:
        return call(*arguments)
    except OSError as error:
        raise RuntimeError(f"the adapter raised {type(error).__name__}: {error}") from error


def _a(name: str) -> str:
    return "nothing (None)" if name == "NoneType" else f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
