"""rmoe: Mixture-of-Experts routers that remember, for PyTorch.

`import rmoe` loads librmoe.so and with it `torch.ops.rmoe`. `rmoe.ops` documents the ops, `rmoe.RecurrentRouter`,
`rmoe.GroupedExperts` and `rmoe.MoELayer` are the modules made of them, `rmoe.balance` holds the balance losses,
`rmoe.Model` runs a trained run folder, `rmoe.hf` is the model for transformers, and `rmoe.lm_eval` the model class for
lm-evaluation-harness.
"""
from rmoe import _library

#: Whether torch.ops.rmoe is there. Without it everything runs by the plain PyTorch formulas in rmoe.plain.
ops_available = _library.load()

from rmoe import balance, ops, plain  # noqa: E402
from rmoe.modules import GroupedExperts, MoELayer, RecurrentCell, RecurrentRouter, Routing  # noqa: E402
from rmoe.run import Model  # noqa: E402

__version__ = "0.1.0"
__all__ = ["GroupedExperts", "MoELayer", "Model", "RecurrentCell", "RecurrentRouter", "Routing", "balance", "ops",
           "ops_available", "plain"]

_library.when_imported("transformers", "rmoe.hf.register")
