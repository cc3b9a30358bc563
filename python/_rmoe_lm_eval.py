"""Makes `lm_eval --model rmoe` work without a word in lm_eval's own list: rmoe-lm-eval.pth imports this when Python
starts, and as soon as lm_eval's models are imported, the name `rmoe` is added. Nothing else is imported or done."""
import importlib.abc
import importlib.machinery
import sys


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "lm_eval.models":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                from lm_eval.api.registry import model_registry
                if "rmoe" not in model_registry:
                    model_registry.register("rmoe", target="rmoe.lm_eval:RmoeLM")

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
