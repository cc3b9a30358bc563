#!/usr/bin/env python3
"""Runs the Python examples of README.md as they stand there. usage: readme_test.py [unittest arguments]"""
import pathlib
import re
import unittest

import torch
import transformers

README = pathlib.Path(__file__).resolve().parents[2] / "README.md"


class Examples(unittest.TestCase):
    def run_example(self, word):
        (code,) = [c for c in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if word in c]
        torch.manual_seed(0)
        names = {}
        exec(compile(code, f"README.md: {word}", "exec"), names)
        return names

    def test_a_transformer_of_ones_own(self):
        names = self.run_example("class Block")
        self.assertTrue(all(p.grad is not None and p.grad.isfinite().all() for p in names["blocks"].parameters()))
        self.assertGreater(names["cell"].weight_hh.grad.abs().sum().item(), 0)  # by way of the state
        self.assertEqual(len(names["routings"]), 3)

    @unittest.skipIf(int(transformers.__version__.split(".")[0]) > 4, "transformers 5 has no module per expert")
    def test_mixtral(self):
        names = self.run_example("MixtralForCausalLM")
        self.assertGreater(names["cell"].weight_hh.grad.abs().sum().item(), 0)
        for layer in names["model"].model.layers:
            self.assertGreater(layer.block_sparse_moe.router.weight.grad.abs().sum().item(), 0)


if __name__ == "__main__":
    unittest.main()
