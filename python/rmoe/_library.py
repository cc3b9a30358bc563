"""Finds and loads librmoe.so, and runs code when another package is imported."""
import importlib
import pathlib
import sys
import warnings

import torch

from _rmoe_lm_eval import AfterImport


def candidates():
    """Where librmoe.so may be: in the installed package, or in the build folder of a source tree."""
    package = pathlib.Path(__file__).resolve().parent
    yield package / "lib" / "librmoe.so"
    for build in ("release", "debug"):
        yield package.parents[1] / "build" / build / "librmoe.so"


def load():
    """Loads the first librmoe.so there is. Returns whether torch.ops.rmoe can be used; where not, warns why."""
    found = [path for path in candidates() if path.exists()]
    if not found:
        warnings.warn("rmoe: no librmoe.so beside the package nor in build/; the plain PyTorch formulas are used, which"
                      " are slower. `pip install .` or `make build` makes it.", RuntimeWarning, stacklevel=3)
        return False
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        warnings.warn(f"rmoe: {found[0]} cannot be loaded: {error}; the plain PyTorch formulas are used, which are"
                      f" slower. It was built for another torch than {torch.__version__}: build it again.",
                      RuntimeWarning, stacklevel=3)
        return False
    return True


def when_imported(name, then):
    """Imports the module `then` as soon as `name` is imported; at once where it already is."""
    if name in sys.modules:
        importlib.import_module(then)
    else:
        AfterImport(name, lambda: importlib.import_module(then))
