#!/usr/bin/env python3
"""The Python package as pip installs it: a wheel is built with the library of a build folder, installed into an empty
environment and used from another folder. usage: package_test.py BUILD_FOLDER [unittest arguments]"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import zipfile

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
# What a user's shell has: nothing that points into the source tree.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"

USE = """
import importlib.metadata, pathlib, sys, sysconfig
assert "_rmoe_lm_eval" in sys.modules, "rmoe-lm-eval.pth did nothing"
assert "torch" not in sys.modules and "rmoe" not in sys.modules, "rmoe-lm-eval.pth imports too much"
import torch, rmoe
site = pathlib.Path(sysconfig.get_path("purelib")).resolve()
assert pathlib.Path(rmoe.__file__).resolve().parent == site / "rmoe", rmoe.__file__
assert rmoe.ops_available
maps = {line.split()[-1] for line in open("/proc/self/maps") if "librmoe" in line}
assert maps == {str(site / "rmoe/lib/librmoe.so")}, maps
assert rmoe.__version__ == importlib.metadata.version("rmoe"), rmoe.__version__
layer = rmoe.MoELayer(8, 4, 2, 16, "gru", 6)
x = torch.randn(5, 8, requires_grad=True)
y, carry, routing = layer(x)
(y.square().sum() + rmoe.balance.switch([routing])).backward()
assert y.shape == x.shape and carry.shape == (5, 6) and x.grad.abs().sum() > 0
assert all(name in dir(torch.ops.rmoe) or hasattr(torch.ops.rmoe, name) for name in rmoe.ops.__all__)
try:
    rmoe.Model("/nowhere")
except RuntimeError as error:
    assert "no such run folder" in str(error), error
else:
    raise AssertionError("a model out of nothing")
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.for_model("llama_moe_rnn", vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
                              num_attention_heads=2, moe_router_rnn_hidden_size=4)
assert AutoModelForCausalLM.from_config(config)(torch.tensor([[1, 2]])).logits.shape == (1, 2, 11)
import lm_eval.models
from lm_eval.api.registry import get_model
assert get_model("rmoe").__module__ == "rmoe.lm_eval"
print("used")
"""


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=ENVIRONMENT, **options)
    if done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n"
                             f"{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="rmoe-package-"))
        cls.addClassCleanup(shutil.rmtree, cls.work, ignore_errors=True)
        run(sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--no-index", "--no-build-isolation", "-w",
            cls.work / "wheel", f"--config-settings=build-dir={cls.work}/build",
            f"--config-settings=cmake.define.RMOE_BUILT={BUILD}")
        (cls.wheel,) = (cls.work / "wheel").glob("*.whl")

    def test_the_wheel_holds_the_package_and_the_library(self):
        with zipfile.ZipFile(self.wheel) as wheel:
            names = set(wheel.namelist())
            library = self.work / "librmoe.so"
            library.write_bytes(wheel.read("rmoe/lib/librmoe.so"))
            metadata = wheel.read(next(n for n in names if n.endswith(".dist-info/METADATA"))).decode()
        names = {n for n in names if ".dist-info/" not in n}
        sources = {str(p.relative_to(ROOT / "python")) for p in (ROOT / "python").rglob("*")
                   if p.is_file() and p.suffix in (".py", ".pth")}
        self.assertEqual(names, sources | {"rmoe/lib/librmoe.so"})
        self.assertRegex(self.wheel.name, r"^rmoe-[\d.]+-py3-none-linux_\w+\.whl$")
        versions = {re.search(pattern, text, re.M).group(1) for pattern, text in (
            (r"^Version: (.*)$", metadata),
            (r'^__version__ = "(.*)"$', (ROOT / "python/rmoe/__init__.py").read_text()),
            (r"^project\(rmoe VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text()))}
        self.assertEqual(len(versions), 1, versions)
        # It finds torch beside the package, and nothing at a place of this machine.
        (path,) = re.findall(r"\(R(?:UN)?PATH\).*\[(.*)\]", run("readelf", "-dW", library))
        self.assertEqual(path, "$ORIGIN/../../torch/lib")

    def test_installed_into_an_empty_environment_and_used_from_elsewhere(self):
        run(sys.executable, "-m", "venv", "--without-pip", self.work / "venv")
        python = self.work / "venv/bin/python"
        site = pathlib.Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        (site / "torch.pth").write_text(f"{pathlib.Path(torch.__file__).parents[1]}\n")
        run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", self.wheel)
        self.assertEqual(run(python, "-c", USE, cwd=self.work).strip().splitlines()[-1], "used")
        run(sys.executable, "-m", "pip", "--python", python, "uninstall", "-y", "rmoe")
        self.assertEqual([p.name for p in site.iterdir() if "rmoe" in p.name], [])


if __name__ == "__main__":
    unittest.main()
