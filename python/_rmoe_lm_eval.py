"""Makes `lm_eval --model rmoe` work without a word in lm_eval's own list: rmoe-lm-eval.pth imports this when Python
starts, and as soon as lm_eval's models are imported, the name `rmoe` is added. Nothing else is imported or done."""
import importlib.abc
import sys


class AfterImport(importlib.abc.MetaPathFinder):
    """Lets the other finders load the module `name`, and calls `then` right after it. Looking for the module, without
    loading it, changes nothing."""

    def __init__(self, name, then):
        self.name, self.then = name, then
        sys.meta_path.insert(0, self)

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        others = (f for f in sys.meta_path if f is not self and hasattr(f, "find_spec"))
        spec = next(filter(None, (f.find_spec(name, path, target) for f in others)), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self.then()

            spec.loader.exec_module = exec_module
        return spec


def _register():
    from lm_eval.api.registry import model_registry
    if "rmoe" not in model_registry:
        model_registry.register("rmoe", target="rmoe.lm_eval:RmoeLM")


AfterImport("lm_eval.models", _register)
