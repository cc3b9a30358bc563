"""Finds and loads librmoe.so, and runs code when another package is imported."""
import importlib
import importlib.abc
import importlib.machinery
import pathlib
import sys
import warnings

import torch


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


class _Then(importlib.abc.MetaPathFinder):
    """Lets the other finders load a module, and imports ours right after it."""

    def __init__(self, name, then):
        self.name, self.then = name, then

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            importlib.import_module(self.then)

        spec.loader.exec_module = exec_module
        return spec


def when_imported(name, then):
    """Imports the module `then` as soon as `name` is imported; at once where it already is."""
    if name in sys.modules:
        importlib.import_module(then)
    else:
        sys.meta_path.insert(0, _Then(name, then))
