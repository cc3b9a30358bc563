#!/usr/bin/env python3
"""lm_eval's model `rmoe`, the C++ model, against lm_eval's own `hf` on the same weights, on made-up items in the formats
of ARC-easy, HellaSwag, PIQA, SciQ and LAMBADA. usage: lm_eval_test.py [unittest arguments]; RMOE_COMMAND is the command."""
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = """
[data]
path = "{data}"
[model]
family = "llama"
layers = 3
width = 48
heads = 4
dense_layers = 1
dense_width = 64
[model.moe]
experts = 4
top_k = 2
expert_width = 32
stage = {{ kind = "gru", width = 16 }}
[train]
steps = 30
batch = 8
block = 96
threads = 1
sample.length = 0
eval.every = 0
"""
# (task, context, choices, right one): what the five tasks make of their items; rolling and generation below.
ITEMS = [
    ("arc_easy", "Question: Which one melts in the sun?\nAnswer:", [" ice", " a stone", " the moon", " iron"], 0),
    ("arc_easy", "Question: What do plants drink?\nAnswer:", [" sand", " water", " light", " wood"], 1),
    ("hellaswag", "Baking: A woman opens the oven. She", [" takes out a loaf of bread.", " sings to the roof of it."], 0),
    ("hellaswag", "Rowing: Two men sit in a boat. They", [" paint the sky.", " pull the oars together."], 1),
    ("piqa", "Question: to dry a wet shirt\nAnswer:", [" hang it on a line.", " put it into the lake."], 0),
    ("sciq", "A cell is the smallest part of life.\nQuestion: What is the smallest part of life?\nAnswer:",
     [" cell", " rock", " cloud", " river"], 0),
    ("lambada", "He looked for his hat, but the wind had taken the", [" hat"], 0),
    ("lambada", "x" * 150 + " the end of a text that is longer than the model's context is the", [" end"], 0),
    ("empty", "", ["begins with nothing"], 0),
]


def tokenizer():
    """Bytes as ids and 256 as the separator: rmoe's byte tokenizer as one of transformers'."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode
    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()} | {"<|end|>": 256}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", bos_token="<|end|>")


class LmEval(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import rmoe.lm_eval
        from lm_eval.models.huggingface import HFLM
        cls.folder = tempfile.TemporaryDirectory()
        work = pathlib.Path(cls.folder.name)
        texts = [context + choices[right] for _, context, choices, right in ITEMS] * 40
        for i, text in enumerate(texts):
            (work / f"text{i:03}.txt").write_text(text)
        command = os.environ.get("RMOE_COMMAND", str(ROOT / "build/release/rmoe"))

        def rmoe_command(*arguments):
            done = subprocess.run([command, *map(str, arguments)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr)

        rmoe_command("data", "prepare", *sorted(work.glob("text*.txt")), "--out", work / "data")
        (work / "c.toml").write_text(CONFIG.format(data=work / "data"))
        rmoe_command("train", work / "c.toml", "--out", work / "run", "--quiet")
        cls.run_folder = work / "run"
        rmoe_command("export", work / "run", work / "hf")
        tokenizer().save_pretrained(work / "hf")
        cls.ours = rmoe.lm_eval.RmoeLM(path=str(work / "run"), batch_size=4)
        cls.theirs = HFLM(pretrained=str(work / "hf"), device="cpu", dtype="float32", batch_size=4, max_length=96)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def instances(self, kind, arguments):
        from lm_eval.api.instance import Instance
        return [Instance(request_type=kind, doc={}, arguments=a, idx=i, metadata=("task", i, 1))
                for i, a in enumerate(arguments)]

    def test_loglikelihoods_and_scores(self):
        pairs = [(context, choice) for _, context, choices, _ in ITEMS for choice in choices]
        pairs = [(c, x) for c, x in pairs if c]  # what stands before an empty text is each tokenizer's own affair
        ours, theirs = (m.loglikelihood(self.instances("loglikelihood", pairs)) for m in (self.ours, self.theirs))
        for pair, a, b in zip(pairs, ours, theirs, strict=True):
            self.assertAlmostEqual(a[0], b[0], delta=1e-4, msg=pair)
            self.assertEqual(a[1], b[1], pair)
        scores = []
        for values in (iter(ours), iter(theirs)):
            scores.append([])
            for task, context, choices, right in ITEMS:
                if not context:
                    continue
                values_here = [next(values) for _ in choices]
                by_length = [v[0] / len(c) for v, c in zip(values_here, choices)]
                best = lambda v: v.index(max(v))  # noqa: E731
                scores[-1].append((task, best([v[0] for v in values_here]) == right, best(by_length) == right,
                                   values_here[0][1]))
        self.assertEqual(*scores)
        self.assertTrue(any(ok for _, ok, _, _ in scores[0]))

    def test_the_batch_changes_nothing(self):
        import rmoe.lm_eval
        pairs = [(context, choice) for _, context, choices, _ in ITEMS for choice in choices]
        single = rmoe.lm_eval.RmoeLM(path=str(self.run_folder), batch_size=1)
        for a, b in zip(*(m.loglikelihood(self.instances("loglikelihood", pairs)) for m in (self.ours, single))):
            self.assertAlmostEqual(a[0], b[0], delta=1e-4)

    def test_the_device(self):
        import rmoe.lm_eval
        rmoe.lm_eval.RmoeLM(path=str(self.run_folder), device="cuda:0")  # the command's default
        with self.assertRaisesRegex(ValueError, "device is 'cuda:1', expected cpu"):
            rmoe.lm_eval.RmoeLM(path=str(self.run_folder), device="cuda:1")

    def test_the_logits_of_one_text(self):
        model = self.ours.model
        ids = model.encode("He looked up")
        self.assertTrue(torch.equal(model.logits(ids), model.logits(torch.tensor([ids]))[0]))

    def test_rolling(self):
        texts = [("A short text.",), ("A text of many windows. " * 20,)]
        ours, theirs = (m.loglikelihood_rolling(self.instances("loglikelihood_rolling", texts))
                        for m in (self.ours, self.theirs))
        if self.ours.prefix_token_id != self.theirs.prefix_token_id:
            self.fail(f"{self.ours.prefix_token_id} {self.theirs.prefix_token_id}")
        for a, b in zip(ours, theirs, strict=True):
            self.assertAlmostEqual(a, b, delta=1e-4 * 10)  # a sum over hundreds of tokens

    def test_generate_until(self):
        requests = [("Question: What do plants drink?\nAnswer:", {"until": ["\n"], "max_gen_toks": 20}),
                    ("He looked", {"until": ["e", "zz"], "max_gen_toks": 30, "do_sample": False}),
                    ("x" * 150, {"until": ["\n\n"], "max_gen_toks": 10})]
        ours, theirs = (m.generate_until(self.instances("generate_until", requests)) for m in (self.ours, self.theirs))
        self.assertEqual(ours, theirs)
        self.assertNotIn("e", ours[1])

    def test_texts_generated_together_are_those_generated_alone(self):
        import rmoe.lm_eval
        contexts = [context + choice for _, context, choices, _ in ITEMS for choice in choices]
        requests = []
        for i, context in enumerate(contexts):
            options = {"until": [["\n"], ["e", "zz"], []][i % 3], "max_gen_toks": (24, 40)[i % 2]}
            if i % 5 == 0:
                options.update(do_sample=True, temperature=0.7, top_k=9)
            requests.append((context, options))
        single = rmoe.lm_eval.RmoeLM(path=str(self.run_folder), batch_size=1)
        texts, sizes = {}, {}
        for name, model in (("together", self.ours), ("alone", single)):
            sizes[name], generate = [], model.model.generate

            def watched(prompts, *args, generate=generate, name=name, **kwargs):
                sizes[name].append(len(prompts))
                return generate(prompts, *args, **kwargs)

            with mock.patch.object(model.model, "generate", watched):
                texts[name] = model.generate_until(self.instances("generate_until", requests))
        self.assertEqual(texts["together"], texts["alone"])
        self.assertEqual(texts["alone"][3], single.model.generate(contexts[3], 40, 0.0, stops=["\n"]))
        self.assertEqual(max(sizes["alone"]), 1)
        self.assertEqual(max(sizes["together"]), 4)
        self.assertLess(len(sizes["together"]), len(requests))

    def test_registered_by_name_and_errors(self):
        from lm_eval.api.registry import get_model
        import rmoe.lm_eval
        self.assertIs(get_model("rmoe"), rmoe.lm_eval.RmoeLM)
        made = get_model("rmoe").create_from_arg_string(f"path={self.run_folder},checkpoint=best,max_length=64")
        self.assertEqual(made.max_length, 64)
        with self.assertRaisesRegex(ValueError, "unknown model_args pth"):
            rmoe.lm_eval.RmoeLM(path=str(self.run_folder), pth=1)
        with self.assertRaisesRegex(RuntimeError, "no such run folder"):
            rmoe.lm_eval.RmoeLM(path="/nowhere")

    def test_lm_eval_finds_the_name_by_itself(self):
        code = "import _rmoe_lm_eval, importlib.util as u; u.find_spec('lm_eval.models')\n" \
            "import lm_eval.models, lm_eval.api.registry as r; print(r.get_model('rmoe').__name__)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": str(ROOT / "python")})
        self.assertEqual(done.stdout.strip(), "RmoeLM", done.stderr[-500:])


if __name__ == "__main__":
    unittest.main()
