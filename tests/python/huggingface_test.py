"""Hugging Face folders against transformers itself: what `rmoe import` reads, `rmoe export` writes, and what the models
say. Checkpoints are tiny, random and made by transformers' own classes.

usage: huggingface_test.py RMOE [CLASS[.test_name]...] [unittest options]
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
import warnings

os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
import tokenizers
import transformers

torch.set_num_threads(1)
RMOE = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else None
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
WORDS = "the router remembers what a token was and every layer asks it again so no expert sleeps".split()
TEXT = " ".join(WORDS[(i * i + i // 7) % len(WORDS)] for i in range(600)) + "\n"
VOCABULARY = 64
HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = os.path.join(os.path.dirname(os.path.dirname(HERE)), "python")


def run(*arguments, code=0, env=ENVIRONMENT, **options):
    result = subprocess.run([RMOE, *map(str, arguments)], capture_output=True, text=True, env=env, **options)
    assert result.returncode == code, f"{arguments}: exit code {result.returncode}\n{result.stdout}{result.stderr}"
    return result


def word_tokenizer():
    """One id per word, so that equal texts are equal tokens."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for i in range(VOCABULARY - 3):
        vocabulary[WORDS[i] if i < len(WORDS) else f"w{i}"] = len(vocabulary)
    t = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    t.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    t.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>",
                                               unk_token="<unk>")


SMALL = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=256, initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=None)
MOE = dict(num_experts_per_tok=2, router_aux_loss_coef=0.02)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)


def config_of(name):
    t = transformers
    return {
        "llama": lambda: t.LlamaConfig(**SMALL, intermediate_size=48),
        "llama_head_bias": lambda: t.LlamaConfig(**SMALL, intermediate_size=48, head_dim=12, attention_bias=True,
                                                 tie_word_embeddings=True, rms_norm_eps=1e-3),
        "llama_linear": lambda: t.LlamaConfig(**SMALL, intermediate_size=48, rope_theta=500.0,
                                              rope_scaling={"rope_type": "linear", "factor": 4.0}),
        "llama3": lambda: t.LlamaConfig(**SMALL, intermediate_size=48, rope_scaling=LLAMA3),
        "mixtral": lambda: t.MixtralConfig(**SMALL, **MOE, intermediate_size=24, num_local_experts=5),
        "mixtral_window": lambda: t.MixtralConfig(**SMALL, **MOE, intermediate_size=24, num_local_experts=5,
                                                  head_dim=10, sliding_window=256, tie_word_embeddings=True),
        "olmoe": lambda: t.OlmoeConfig(**SMALL, **MOE, intermediate_size=24, num_experts=6),
        "olmoe_normalized": lambda: t.OlmoeConfig(**SMALL, **MOE, intermediate_size=24, num_experts=6,
                                                  norm_topk_prob=True, attention_bias=True),
        "qwen3_moe": lambda: t.Qwen3MoeConfig(**SMALL, **MOE, intermediate_size=40, moe_intermediate_size=24,
                                              num_experts=6, norm_topk_prob=True, head_dim=12),
        "qwen3_moe_sparse": lambda: t.Qwen3MoeConfig(**SMALL, **MOE, intermediate_size=40, moe_intermediate_size=24,
                                                     num_experts=6, decoder_sparse_step=2, mlp_only_layers=[1],
                                                     head_dim=8, attention_bias=True),
    }[name]()


# A run of two steps.
TINY_LLAMA = """
[model]
family = "llama"
layers = 2
width = 16
heads = 2
[model.moe]
experts = 4
top_k = 2
expert_width = 8
[train]
steps = 2
batch = 2
block = 16
sample.length = 0
"""
FAMILIES = ["llama", "llama_head_bias", "llama_linear", "llama3", "mixtral", "mixtral_window", "olmoe",
            "olmoe_normalized", "qwen3_moe", "qwen3_moe_sparse"]


def make(folder, name, dtype=torch.float32, **save):
    """A random checkpoint by transformers' own class, with its tokenizer."""
    torch.manual_seed(sum(map(ord, name)))
    model = transformers.AutoModelForCausalLM.from_config(config_of(name))
    with torch.no_grad():  # norms and biases start as ones and zeros, which would hide where they are used
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model = model.to(dtype).eval()
    model.save_pretrained(folder, **save)
    word_tokenizer().save_pretrained(folder)
    return model


def read_tokens(path):
    """Ids of a .tok file: docs/formats.md."""
    with open(path, "rb") as file:
        content = file.read()
    size, = struct.unpack_from("<I", content, 12)
    return numpy.frombuffer(content, {1: "u1", 2: "<u2", 4: "<u4"}[size], offset=128).astype(int).tolist()


def read(path):
    with open(path, "rb") as file:
        return file.read()


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="rmoe-hf-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def fails(self, code, *arguments, says, **options):
        result = run(*arguments, code=code, **options)
        lines = result.stderr.strip().split("\n")
        self.assertTrue(lines[0].startswith("rmoe: ") and all(l.startswith("  help: ") for l in lines[1:]),
                        result.stderr)
        for part in [says] if isinstance(says, str) else says:
            self.assertIn(part, result.stderr)
        return result

    def prepare(self, run_folder, out):
        with open(self.path("text.txt"), "w") as file:
            file.write(TEXT)
        run("data", "prepare", self.path("text.txt"), "--model", run_folder, "--valid", "0", "--test", "0",
            "--out", out)

    def logits(self, run_folder, block=40, tokens=120):
        """What rmoe says, as tensors, and the tokens that it read."""
        if not os.path.exists(self.path("data")):
            self.prepare(run_folder, self.path("data"))
        out = self.path("logits.safetensors")
        run("eval", run_folder, "--data", self.path("data"), "--split", "train", "--block", block, "--tokens", tokens,
            "--logits", out, "--quiet")
        return load_file(out)

    def same(self, ours, theirs, tolerance=1e-5, what="logits"):
        error = (ours - theirs).abs().max().item() / theirs.abs().max().item()
        self.assertLess(error, tolerance, what)


class Parity(Case):
    """Each family: the same logits, balance loss and greedy texts as transformers' model."""

    def check(self, name):
        model = make(self.path("hf"), name)
        run("import", self.path("hf"), "--out", self.path("run"))
        ours = self.logits(self.path("run"))
        with torch.no_grad():
            moe = "num_experts_per_tok" in model.config.to_dict()
            theirs = model(ours["tokens"], **({"output_router_logits": True} if moe else {}))
        self.assertEqual(tuple(ours["logits"].shape), (3, 40, VOCABULARY))
        self.assertGreater(theirs.logits.std().item(), 0.1)
        self.same(ours["logits"], theirs.logits)
        if moe:
            self.assertAlmostEqual(ours["balance_loss"].item(), 0.02 * theirs.aux_loss.item(), delta=1e-6)
            self.assertEqual(sum(k.startswith("router_logits.") for k in ours), len(theirs.router_logits))
            for i, logits in enumerate(theirs.router_logits):
                self.same(ours[f"router_logits.{i}"], logits.view(-1, logits.shape[-1]), what=f"router {i}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.path("hf"))
        for prompt in ("the router", "so no expert sleeps and"):
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            text = tokenizer.decode(model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1]:],
                                    skip_special_tokens=True)
            answer = json.loads(run("generate", self.path("run"), "-p", prompt, "-n", 24, "--greedy", "--json").stdout)
            self.assertEqual(answer["prompt_tokens"], ids.shape[1])
            self.assertEqual(answer["text"].split(), text.split(), prompt)

        # And back: the tensors are those of the start, and transformers reads them as such.
        run("export", self.path("run"), self.path("back"))
        again = transformers.AutoModelForCausalLM.from_pretrained(self.path("back"))
        self.assertIs(type(again), type(model))
        for key, tensor in model.state_dict().items():
            self.assertTrue(torch.equal(tensor, again.state_dict()[key]), key)
        with torch.no_grad():
            self.assertTrue(torch.equal(again(ours["tokens"]).logits, model(ours["tokens"]).logits))
        run("import", self.path("back"), "--out", self.path("run2"))
        for file in ("checkpoints/step_0/model.safetensors", "tokenizer.json"):
            self.assertEqual(read(self.path("run", file)), read(self.path("run2", file)), file)
        strip = lambda text: [l for l in text.decode().split("\n") if not l.startswith("name")]
        self.assertEqual(strip(read(self.path("run/config.toml"))), strip(read(self.path("run2/config.toml"))))


for family in FAMILIES:
    setattr(Parity, f"test_{family}", lambda self, family=family: self.check(family))


class RecurrentMoe(torch.nn.Module):
    """The MoE block of llama_moe_rnn, written from its definition (arXiv 2408.06793 and its public format)."""

    def __init__(self, config, cell, carry):
        super().__init__()
        c = self.config = config
        d, f, n, p = c["hidden_size"], c["moe_expert_intermediate_size"], c["num_local_experts"], c.get("p", 0)
        weight = lambda *shape: torch.nn.Parameter(torch.randn(*shape) * 0.3)
        self.cell, self.carry = [cell], carry
        if c["moe_router_type"] in ("gru", "rnn"):
            self.weight1, self.weight2 = weight(p, d), weight(n, p)
        else:
            self.gate = torch.nn.Linear(d, n, bias=False)
        self.experts = torch.nn.ModuleList()
        for _ in range(n):
            self.experts.append(torch.nn.ModuleDict({"w1": torch.nn.Linear(d, f, bias=False),
                                                     "w2": torch.nn.Linear(f, d, bias=False),
                                                     "w3": torch.nn.Linear(d, f, bias=False)}))
        if c["add_moe_bias"]:
            self.bias = weight(d)
        self.share = None
        if c["add_moe_share_expert"]:
            s = c["moe_share_expert_intermediate_size"]
            self.share = torch.nn.ModuleDict({"gate_proj": torch.nn.Linear(d, s, bias=False),
                                              "up_proj": torch.nn.Linear(d, s, bias=False),
                                              "down_proj": torch.nn.Linear(s, d, bias=False)})

    def forward(self, hidden):
        x, silu = hidden.reshape(-1, hidden.shape[-1]), torch.nn.functional.silu
        if hasattr(self, "weight1"):
            state = self.carry["state"]
            zero = x.new_zeros(len(x), self.weight1.shape[0])
            state = self.carry["state"] = self.cell[0](x @ self.weight1.T, zero if state is None else state)
            logits = state @ self.weight2.T
        else:
            logits = self.gate(x)
        self.carry["logits"].append(logits)
        weights, ids = torch.topk(torch.softmax(logits.float(), -1), self.config["num_experts_per_tok"], dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        rows = []
        for t in range(len(x)):
            rows.append(sum(w * e["w2"](silu(e["w1"](x[t])) * e["w3"](x[t]))
                            for w, e in ((weights[t, k], self.experts[int(ids[t, k])]) for k in range(ids.shape[1]))))
        y = torch.stack(rows)
        if self.config["add_moe_bias"]:
            y = y + self.bias
        if self.share is not None:
            s = self.share
            y = self.config["moe_weight"] * y + self.config["share_weight"] * s["down_proj"](
                silu(s["gate_proj"](x)) * s["up_proj"](x))
        return y.view_as(hidden)


class LlamaMoeRnn(Case):
    """The public format: transformers' Llama around the block above."""

    def build(self, folder, router, shared, bias, moe_layers):
        torch.manual_seed(7)
        p = 12
        config = dict(SMALL, model_type="llama_moe_rnn", intermediate_size=40, hidden_act="silu", rms_norm_eps=1e-6,
                      rope_theta=10000.0, num_experts_per_tok=2, num_local_experts=5, router_aux_loss_coef=0.03,
                      moe_num_layers=moe_layers, add_moe_share_expert=shared,
                      moe_share_expert_intermediate_size=20 if shared else None, moe_expert_intermediate_size=24,
                      share_weight=0.7, moe_weight=0.4, add_moe_bias=bias, moe_router_type=router,
                      moe_router_rnn_hidden_size=p)
        base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, intermediate_size=40)).eval()
        carry = {"state": None, "logits": []}
        cell = None if router == "linear" else (torch.nn.GRUCell if router == "gru" else torch.nn.RNNCell)(p, p)
        for layer in base.model.layers[SMALL["num_hidden_layers"] - moe_layers:]:
            layer.mlp = RecurrentMoe({**config, "p": p}, cell, carry)
        base.model.register_forward_pre_hook(lambda *_: carry.update(state=None, logits=[]))
        tensors = {}
        for key, tensor in base.state_dict().items():
            parts = key.split(".")
            if parts[-1] == "inv_freq":
                continue
            if ".mlp." in key and isinstance(base.model.layers[int(parts[2])].mlp, RecurrentMoe):
                key = key.replace(".mlp.share.", ".mlp_share.").replace(".mlp.", ".block_sparse_moe.")
            tensors[key] = tensor.contiguous()
        gates = {"gru": "rzn", "rnn": "n"}.get(router, "")
        for kind in ("weight", "bias"):
            for side in ("ih", "hh"):
                for gate, part in zip(gates,
                                      getattr(cell, f"{kind}_{side}").chunk(max(len(gates), 1)) if gates else ()):
                    tensors[f"model.rnn_router.{kind}_{side[0]}{gate}"] = part.detach().contiguous()
        os.makedirs(folder)
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump(config, file)
        save_file(tensors, os.path.join(folder, "model.safetensors"))
        word_tokenizer().save_pretrained(folder)
        return base, carry

    def check(self, router, shared=True, bias=True, moe_layers=3):
        model, carry = self.build(self.path("hf"), router, shared, bias, moe_layers)
        run("import", self.path("hf"), "--out", self.path("run"))
        ours = self.logits(self.path("run"))
        with torch.no_grad():
            theirs = model(ours["tokens"]).logits
        self.same(ours["logits"], theirs)
        for i, logits in enumerate(carry["logits"]):
            self.same(ours[f"router_logits.{i}"], logits, what=f"router {i}")
        loss = transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func(tuple(carry["logits"]), 5, 2)
        self.assertAlmostEqual(ours["balance_loss"].item(), 0.03 * loss.item(), delta=1e-6)
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.path("hf"))
        ids = tokenizer("the router", return_tensors="pt").input_ids
        with torch.no_grad():
            for _ in range(12):  # the state is made anew for each token: no cache is needed to be right
                ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        answer = json.loads(run("generate", self.path("run"), "-p", "the router", "-n", 12, "--greedy",
                                "--json").stdout)
        self.assertEqual(answer["text"].split(), tokenizer.decode(ids[0, 3:], skip_special_tokens=True).split())

        run("export", self.path("run"), self.path("back"))
        config = json.loads(read(self.path("back/config.json")))
        self.assertEqual(config["model_type"], "llama_moe_rnn")
        self.assertEqual(config["auto_map"]["AutoModelForCausalLM"], "modeling_llama_moe_rnn.LlamaMoERNNForCausalLM")
        before, after = load_file(self.path("hf/model.safetensors")), load_file(self.path("back/model.safetensors"))
        self.assertEqual(sorted(before), sorted(after))
        for key, tensor in before.items():
            self.assertTrue(torch.equal(tensor, after[key]), key)
        run("import", self.path("back"), "--out", self.path("run2"))
        file = "checkpoints/step_0/model.safetensors"
        self.assertEqual(read(self.path("run", file)), read(self.path("run2", file)))

    def test_gru(self):
        self.check("gru")

    def test_rnn(self):
        self.check("rnn", shared=False)

    def test_linear(self):
        self.check("linear", bias=False)

    def test_all_layers_moe_without_extras(self):
        self.check("gru", shared=False, bias=False, moe_layers=4)


class Exported(Case):
    """Folders of llama_moe_rnn that trained runs were exported to, read by transformers' Auto classes with the package
    rmoe and without it. exported_model.py says what is compared."""

    CONFIG = """
        [data]
        path = "{data}"
        [model]
        family = "llama"
        layers = 4
        width = 32
        heads = 4
        init_std = 0.3
        {model}
        [model.llama]
        kv_heads = 2
        {llama}
        [model.moe]
        experts = 5
        top_k = 2
        expert_width = 24
        balance = [{{ kind = "concatenated", weight = 0.03 }}]
        {moe}
        [train]
        steps = 6
        batch = 4
        block = 24
        optimizer.lr = 0.01
        schedule.warmup = 1
        sample.length = 0
        eval.every = 0
        threads = 1
    """
    DENSE = "dense_layers = 1\ndense_width = 40"
    SHARED = "shared_width = 20\nmoe_weight = 0.4\nshared_weight = 0.7"
    RUNS = {"gru": (DENSE, "", SHARED + "\nbias = true\nstage = { kind = 'gru', width = 12 }"),
            "rnn": ("", "tie_embeddings = true", "stage = { kind = 'rnn', width = 12 }"),
            "linear": (DENSE, "rope_theta = 500.0", SHARED),
            "scaled": ("", "attention_bias = true\nhead_width = 12\n"
                           "rope_scaling = { kind = 'linear', factor = 4.0 }", "stage = { kind = 'gru', width = 12 }"),
            "llama3": ("", "head_width = 16\nrope_scaling = { kind = 'llama3', factor = 8.0, low_freq_factor = 1.0,"
                           " high_freq_factor = 4.0, original_positions = 32 }", "stage = { kind = 'rnn', width = 8 }")}

    def python(self, script, *arguments, path=None):
        environment = {k: v for k, v in ENVIRONMENT.items() if k != "PYTHONPATH"}
        environment.update(HF_HOME=self.path("cache"), **({"PYTHONPATH": path} if path else {}))
        done = subprocess.run([sys.executable, os.path.join(HERE, script), *map(str, arguments)], capture_output=True,
                              text=True, env=environment, cwd=self.folder)
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        return done.stdout

    def test_trained_runs_load_with_and_without_the_package(self):
        word_tokenizer().save_pretrained(self.path("words"))
        self.prepare(self.path("words"), self.path("data"))
        shutil.copy(self.path("data/train.tok"), self.path("data/valid.tok"))
        pairs = []
        for name, (model, llama, moe) in self.RUNS.items():
            with open(self.path(name + ".toml"), "w") as file:
                file.write(self.CONFIG.format(data=self.path("data"), model=model, llama=llama, moe=moe))
            run("train", self.path(name + ".toml"), "--out", self.path(name, "run"), "--quiet")
            ours = self.logits(self.path(name, "run"))
            self.assertGreater(ours["logits"].std().item(), 0.1)
            folder, logits = self.path(name, "hf"), self.path(name, "logits.safetensors")
            os.rename(self.path("logits.safetensors"), logits)
            pairs += [folder, logits]
            texts = []
            for prompt in ("the router", "so no expert sleeps and"):
                answer = json.loads(run("generate", self.path(name, "run"), "-p", prompt, "-n", 16, "--greedy",
                                        "--json").stdout)
                texts.append({"prompt": prompt, "tokens": 16, "text": answer["text"]})
            self.assertGreater(len({word for text in texts for word in text["text"].split()}), 3, texts)
            with open(logits + ".json", "w") as file:
                json.dump(texts, file)

            run("export", self.path(name, "run"), folder)
            for file in ("configuration_llama_moe_rnn.py", "modeling_llama_moe_rnn.py"):
                self.assertEqual(read(os.path.join(folder, file)), read(os.path.join(PACKAGE, "rmoe/hf", file)), file)
            # There and back: the same bytes in the run and in the folder.
            run("import", folder, "--out", self.path(name, "again"))
            run("export", self.path(name, "again"), self.path(name, "hf2"))
            run("import", self.path(name, "hf2"), "--out", self.path(name, "third"))
            trained = max(os.listdir(self.path(name, "run/checkpoints")), key=lambda step: int(step.split("_")[1]))
            before = load_file(self.path(name, "run/checkpoints", trained, "model.safetensors"))
            after = load_file(self.path(name, "again/checkpoints/step_0/model.safetensors"))
            self.assertEqual(sorted(before), sorted(after))
            for key, tensor in before.items():
                self.assertTrue(torch.equal(tensor, after[key]), key)
            for one, other in (("hf/model.safetensors", "hf2/model.safetensors"), ("hf/config.json", "hf2/config.json"),
                               ("hf/tokenizer.json", "hf2/tokenizer.json"),
                               ("again/checkpoints/step_0/model.safetensors",
                                "third/checkpoints/step_0/model.safetensors")):
                self.assertEqual(read(self.path(name, one)), read(self.path(name, other)), f"{name}: {one}")

        saved = self.path("remote.safetensors"), self.path("package.safetensors")
        self.python("exported_model.py", "--save", saved[0], *pairs)
        out = self.python("exported_model.py", "--import-rmoe", "--save", saved[1], *pairs, path=PACKAGE)
        self.assertEqual(out.count("2 texts, logits, routing, balance loss and gradients agree"), len(self.RUNS))
        remote, package = map(load_file, saved)
        self.assertEqual(sorted(remote), sorted(package))
        for key, tensor in remote.items():
            self.same(package[key], tensor, 2e-5, key)

    def test_an_export_that_differs_is_noticed(self):
        """The comparison can fail: a weight of the folder is moved."""
        torch.manual_seed(2)
        LlamaMoeRnn.build(self, self.path("hf"), "gru", True, True, 3)
        run("import", self.path("hf"), "--out", self.path("run"))
        self.logits(self.path("run"))
        run("export", self.path("run"), self.path("back"))
        arguments = (self.path("back"), self.path("logits.safetensors"))
        self.python("exported_model.py", *arguments)
        tensors = load_file(self.path("back/model.safetensors"))
        tensors["model.rnn_router.bias_hn"] += 0.01
        save_file(tensors, self.path("back/model.safetensors"), {"format": "pt"})
        with self.assertRaisesRegex(AssertionError, "logits: differs by"):
            self.python("exported_model.py", *arguments)


class Formats(Case):
    """Element types and shards."""

    def test_types_and_shards_round_trip_byte_for_byte(self):
        for i, (dtype, name) in enumerate([(torch.float32, "fp32"), (torch.bfloat16, "bf16"), (torch.float16, "fp16")]):
            with self.subTest(name):
                make(self.path(f"hf{i}"), "mixtral", dtype, max_shard_size="40KB")
                self.assertTrue(os.path.exists(self.path(f"hf{i}", "model.safetensors.index.json")))
                run("import", self.path(f"hf{i}"), "--out", self.path(f"run{i}"))
                run("export", self.path(f"run{i}"), self.path(f"back{i}"), "--dtype", name)
                back = load_file(self.path(f"back{i}", "model.safetensors"))
                self.assertEqual(json.loads(read(self.path(f"back{i}/config.json")))["torch_dtype"],
                                 str(dtype).removeprefix("torch."))
                index = json.loads(read(self.path(f"hf{i}", "model.safetensors.index.json")))["weight_map"]
                self.assertEqual(sorted(index), sorted(back))
                for shard in sorted(set(index.values())):
                    for key, tensor in load_file(self.path(f"hf{i}", shard)).items():
                        self.assertEqual(back[key].dtype, dtype)
                        self.assertTrue(torch.equal(tensor, back[key]), key)
                run("import", self.path(f"back{i}"), "--out", self.path(f"again{i}"))
                file = "checkpoints/step_0/model.safetensors"
                self.assertEqual(read(self.path(f"run{i}", file)), read(self.path(f"again{i}", file)))

    def test_exported_shards_are_an_index_that_transformers_reads(self):
        torch.manual_seed(1)
        config = transformers.LlamaConfig(**{**SMALL, "hidden_size": 256, "vocab_size": 2000}, intermediate_size=700)
        model = transformers.LlamaForCausalLM(config).eval()
        model.save_pretrained(self.path("hf"))
        word_tokenizer().save_pretrained(self.path("hf"))
        run("import", self.path("hf"), "--out", self.path("run"))
        run("export", self.path("run"), self.path("back"), "--shard-mb", 3)
        index = json.loads(read(self.path("back/model.safetensors.index.json")))
        files = set(index["weight_map"].values())
        self.assertGreater(len(files), 3)
        for file in files:
            self.assertLess(os.path.getsize(self.path("back", file)), 3.1e6)
        again = transformers.AutoModelForCausalLM.from_pretrained(self.path("back"))
        for key, tensor in model.state_dict().items():
            self.assertTrue(torch.equal(tensor, again.state_dict()[key]), key)
        run("import", self.path("back"), "--out", self.path("run2"))
        file = "checkpoints/step_0/model.safetensors"
        self.assertEqual(read(self.path("run", file)), read(self.path("run2", file)))

    def test_config_as_transformers_5_writes_it(self):
        for name in ("qwen3_moe", "olmoe", "llama3"):
            make(self.path(name), name)
            config = json.loads(read(self.path(name, "config.json")))
            theta, scaling = config.pop("rope_theta", None), config.pop("rope_scaling", None)
            rope = config.pop("rope_parameters", None)
            rope = rope or {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
            experts = config.pop("num_experts", None) or config.pop("num_local_experts", None)
            common = {k: v for k, v in config.items() if k not in ("torch_dtype", "dtype")}
            old = {"rope_theta": rope["rope_theta"], "torch_dtype": "float32", "num_experts": experts,
                   "rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"} if name == "llama3" else None}
            new = {"rope_parameters": rope, "dtype": "float32", "num_local_experts": experts}
            for i, fields in enumerate((old, new)):
                with open(self.path(name, "config.json"), "w") as file:
                    json.dump({**common, **{k: v for k, v in fields.items() if v is not None}}, file)
                run("import", self.path(name), "--out", self.path(f"{name}-run{i}"))
            for file in ("checkpoints/step_0/model.safetensors", "config.toml"):
                one, other = (read(self.path(f"{name}-run{i}", file)).replace(f"-run{i}".encode(), b"") for i in (0, 1))
                self.assertEqual(one, other, file)

    def test_tokenizer_files_are_carried_along(self):
        make(self.path("hf"), "llama")
        run("import", self.path("hf"), "--out", self.path("run"))
        run("export", self.path("run"), self.path("back"))
        files = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"}
        files &= set(os.listdir(self.path("hf")))
        self.assertGreaterEqual(len(files), 3)  # transformers 5 writes no special_tokens_map.json
        for file in files:
            self.assertEqual(read(self.path("hf", file)), read(self.path("back", file)), file)

    def test_memory_does_not_grow_with_the_checkpoint(self):
        peaks = []
        for vocabulary in (1000, 150_000):
            folder = self.path(str(vocabulary))
            config = transformers.LlamaConfig(**{**SMALL, "vocab_size": vocabulary, "hidden_size": 512},
                                              intermediate_size=64)
            config.save_pretrained(folder)
            with torch.device("meta"):
                shapes = {k: list(v.shape) for k, v in transformers.LlamaForCausalLM(config).state_dict().items()}
            header, at = {}, 0
            for key, shape in shapes.items():
                size = 2 * int(numpy.prod(shape))
                header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
                at += size
            text = json.dumps(header).encode()
            with open(os.path.join(folder, "model.safetensors"), "wb") as file:
                file.write(struct.pack("<Q", len(text)) + text)
                file.truncate(8 + len(text) + at)  # zeros that take no room
            word_tokenizer().save_pretrained(folder)
            script = ("import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
                      "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
            done = subprocess.run([sys.executable, "-c", script, RMOE, "import", folder, "--out", folder + "-run",
                                   "--quiet"],
                                  capture_output=True, text=True, env=ENVIRONMENT)
            code, peak = map(int, done.stdout.split()[-2:])
            self.assertEqual(code, 0, done.stderr)
            peaks.append(peak / 1024)
            shutil.rmtree(folder + "-run")
        self.assertLess(peaks[1] - peaks[0], 64, "MiB more for 600 MB of fp32 weights")


class Refused(Case):
    """What cannot be read or expressed fails in one line that says why."""

    def setUp(self):
        super().setUp()
        make(self.path("hf"), "mixtral")

    def change(self, file="config.json", **changes):
        path = self.path("hf", file)
        content = json.loads(read(path))
        if "rope_scaling" in changes:
            content.pop("rope_parameters", None)  # where transformers 5 wrote it
        content.update(changes)
        with open(path, "w") as out:
            json.dump(content, out)

    def refuses(self, *says):
        self.fails(2, "import", self.path("hf"), "--out", self.path("run"), says=says)
        self.assertFalse(os.path.exists(self.path("run")))
        self.assertFalse([n for n in os.listdir(self.folder) if ".tmp" in n])

    def test_fields_that_change_the_model(self):
        good = read(self.path("hf/config.json"))
        for changes, says in [
            ({"sliding_window": 128}, "'sliding_window' is 128"), ({"hidden_act": "gelu"}, "'hidden_act'"),
            ({"attention_dropout": 0.1}, "'attention_dropout'"),
            ({"router_jitter_noise": 0.1}, "'router_jitter_noise'"),
            ({"quantization_config": {"bits": 4}}, "'quantization_config'"), ({"model_type": "gpt2"}, "'model_type'"),
            ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'rope_type' is 'yarn'"),
            ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "'rope_type' is 'dynamic'"),
            ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor'"), ({"hidden_size": -4}, "'hidden_size' is -4"),
            ({"hidden_size": 10**18}, "'hidden_size'"), ({"num_hidden_layers": 0}, "'num_hidden_layers'"),
            ({"num_hidden_layers": 9999}, "at least"), ({"num_attention_heads": 5}, "'num_attention_heads' = 5"),
            ({"num_local_experts": "many"}, "'num_local_experts'"),
            ({"num_experts_per_tok": 9}, "'num_experts_per_tok'"),
            ({"rms_norm_eps": 0}, "'rms_norm_eps'"), ({"vocab_size": 1.5}, "'vocab_size'"),
            ({"rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 500.0}}, "'rope_scaling'"),
        ]:
            with self.subTest(changes):
                self.change(**changes)
                self.refuses("config.json", says)
                with open(self.path("hf/config.json"), "wb") as file:
                    file.write(good)

    def test_fields_of_other_types(self):
        for name, changes, says in [("olmoe", {"clip_qkv": 8.0}, "'clip_qkv'"),
                                    ("llama", {"mlp_bias": True}, "'mlp_bias'"),
                                    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 8},
                                     "'sliding_window'"),
                                    ("qwen3_moe", {"num_experts": 6, "num_local_experts": 5}, "'num_local_experts'")]:
            shutil.rmtree(self.path("hf"))
            make(self.path("hf"), name)
            self.change(**changes)
            self.refuses("config.json", says)

    def test_both_sides_are_listed(self):
        tensors = load_file(self.path("hf/model.safetensors"))
        tensors["model.extra.weight"] = tensors.pop("model.norm.weight")
        save_file(tensors, self.path("hf/model.safetensors"))
        self.refuses("1 of the model are not in the folder: \"model.norm.weight\"",
                     "1 of the folder are not in the model: \"model.extra.weight\"")

    def test_wrong_shape_and_type(self):
        tensors = load_file(self.path("hf/model.safetensors"))
        save_file({**tensors, "model.norm.weight": torch.ones(31)}, self.path("hf/model.safetensors"))
        self.refuses("model.safetensors", "model.norm.weight", "[31]", "[32]")
        save_file({**tensors, "model.norm.weight": torch.ones(32, dtype=torch.int32)},
                  self.path("hf/model.safetensors"))
        self.refuses("model.norm.weight", "I32")

    def test_pickles(self):
        for name in ("pytorch_model.bin", "model.pt", "model.pth"):
            os.rename(self.path("hf/model.safetensors"), self.path("kept"))
            torch.save({}, self.path("hf", name))
            self.refuses(name, "pickle", "save_pretrained")
            os.remove(self.path("hf", name))
            os.rename(self.path("kept"), self.path("hf/model.safetensors"))

    def test_what_a_type_cannot_express(self):
        run("import", self.path("hf"), "--out", self.path("run"))
        for kind in ("llama", "olmoe", "qwen3_moe"):
            self.fails(2, "export", self.path("run"), self.path("out"), "--type", kind, says=["cannot express", kind])
        run("export", self.path("run"), self.path("out"), "--type", "llama_moe_rnn")
        config = json.loads(read(self.path("out/config.json")))
        self.assertEqual(config["moe_router_type"], "linear")
        self.fails(2, "export", self.path("run"), self.path("out"), says="is there already")
        self.fails(2, "import", self.path("hf"), "--out", self.path("run"), says="is there already")

    def test_what_training_keeps_and_routing_reads(self):
        with open(self.path("text.txt"), "w") as file:
            file.write(TEXT * 30)
        run("data", "prepare", self.path("text.txt"), "--out", self.path("data"))
        for kind in ("bias", "quantile"):
            with open(self.path(kind + ".toml"), "w") as file:
                file.write(TINY_LLAMA + f"[[model.moe.balance]]\nkind = '{kind}'\n")
            run("train", self.path(kind + ".toml"), f"--data.path={self.path('data')}", "--out", self.path(kind))
            self.fails(2, "export", self.path(kind), self.path("out"),
                       says=["a state that training keeps and routing reads"])
            self.assertFalse(os.path.exists(self.path("out")))

    def test_an_lstm_has_no_type(self):
        run("import", self.path("hf"), "--out", self.path("run"))
        self.prepare(self.path("run"), self.path("data"))
        common = ["--data.path=" + self.path("data"), "--train.steps=1", "--train.batch=2", "--train.block=8",
                  "--train.sample.length=0"]
        shutil.copy(self.path("data/train.tok"), self.path("data/valid.tok"))
        run("train", self.path("run/config.toml"), "--model.moe.stage={kind = \"lstm\", width = 8}", *common,
            "--out", self.path("lstm"), "--quiet")
        self.fails(2, "export", self.path("lstm"), self.path("out"), says=["no model type", "model.moe.stage.kind"])


class AsRun(Case):
    """An imported run is a run: it trains on, starts others and says who it is."""

    def test_trains_on_and_starts_others(self):
        model = make(self.path("hf"), "qwen3_moe")
        run("import", self.path("hf"), "--out", self.path("run"))
        self.prepare(self.path("run"), self.path("data"))
        shutil.copy(self.path("data/train.tok"), self.path("data/valid.tok"))
        flags = ["--data.path=" + self.path("data"), "--train.steps=2", "--train.batch=2", "--train.block=16",
                 "--train.sample.length=0", "--quiet"]
        run("train", "--init", self.path("run"), *flags, "--out", self.path("tuned"))
        run("export", self.path("tuned"), self.path("back"))
        tuned = transformers.AutoModelForCausalLM.from_pretrained(self.path("back"))
        self.assertIsInstance(tuned, transformers.Qwen3MoeForCausalLM)
        self.assertEqual(read(self.path("hf/tokenizer.json")), read(self.path("back/tokenizer.json")))
        other = self.path("other")
        run("data", "prepare", self.path("text.txt"), "--valid", "0", "--test", "0", "--out", other)
        shutil.copy(os.path.join(other, "train.tok"), os.path.join(other, "valid.tok"))
        self.fails(2, "train", "--init", self.path("run"), "--data.path=" + other, "--out", self.path("never"),
                   says=["tokenizer other than that of", "data prepare"])
        moved = [k for k, v in model.state_dict().items() if not torch.equal(v, tuned.state_dict()[k])]
        self.assertGreater(len(moved), 10)
        for key, tensor in model.state_dict().items():  # two small steps from where it was
            self.assertLess((tensor - tuned.state_dict()[key]).abs().max().item(), 0.01, key)
        # A balance of other kinds keeps a state, which the imported run has not: it starts anew.
        with open(self.path("bias.toml"), "w") as file:
            file.write("[[model.moe.balance]]\nkind = 'bias'\n")
        run("train", self.path("bias.toml"), "--init", self.path("run"), *flags, "--out", self.path("biased"))
        run("train", self.path("run/config.toml"), *flags[:2], "--train.sample.length=0", "--quiet", "--out",
            self.path("run"), "--resume", "must")
        self.assertTrue(os.path.exists(self.path("run/checkpoints/step_2/optimizer.safetensors")))


class Adapted(Case):
    """What is made of imported models: an RMoE of each MoE type, an MoE of a dense one."""

    def retrofit(self, name):
        model = make(self.path("hf"), name)
        run("import", self.path("hf"), "--out", self.path("run"))
        for stage in ("gru", "lstm"):
            out = self.path(stage)
            report = json.loads(run("retrofit", self.path("run"), "--out", out, "--stage", stage, "--width", 8,
                                    "--json").stdout)
            self.assertIs(report["identical"], True)
            self.assertGreater(report["params"], report["params_before"])
            before, after = self.logits(self.path("run")), self.logits(out)
            self.assertEqual(sorted(before), sorted(after))
            for key, tensor in before.items():  # routers' logits, choices and the balance loss, too
                self.assertTrue(torch.equal(tensor, after[key]), key)
            with torch.no_grad():
                self.same(after["logits"], model(after["tokens"]).logits)
            say = ["-p", "the router", "-n", 16, "--greedy"]
            self.assertEqual(run("generate", out, *say).stdout, run("generate", self.path("run"), *say).stdout)
            self.fails(2, "export", out, self.path("back"), says="model.moe.state_gate = true")
        # With the new gates at work the output is another one.
        shutil.copy(self.path("data/train.tok"), self.path("data/valid.tok"))
        run("train", self.path("gru/config.toml"), "--data.path=" + self.path("data"), "--train.steps=3",
            "--train.batch=2", "--train.block=16", "--train.schedule.warmup=0", "--train.sample.length=0", "--quiet",
            "--out", self.path("tuned"))
        self.assertFalse(torch.equal(self.logits(self.path("tuned"))["logits"], before["logits"]))

    def test_mixtral(self):
        self.retrofit("mixtral")

    def test_olmoe(self):
        self.retrofit("olmoe")

    def test_qwen3_moe_with_dense_layers(self):
        self.retrofit("qwen3_moe_sparse")

    def upcycle(self, name, *flags):
        model = make(self.path("hf"), name)
        run("import", self.path("hf"), "--out", self.path("run"))
        report = json.loads(run("upcycle", self.path("run"), "--out", self.path("moe"), "--method", "split",
                                "--experts", 8, "--top-k", 4, "--slices", 4, *flags, "--json").stdout)
        self.assertLess(report["difference"], 1e-5)
        before, after = self.logits(self.path("run")), self.logits(self.path("moe"))
        self.same(after["logits"], before["logits"])
        with torch.no_grad():
            self.same(after["logits"], model(after["tokens"]).logits)
        self.assertEqual(json.loads(run("retrofit", self.path("moe"), "--out", self.path("rmoe"), "--width", 8,
                                        "--json").stdout)["identical"], True)
        return model, after

    def test_a_dense_llama_becomes_a_mixtral(self):
        model, ours = self.upcycle("llama")
        run("export", self.path("moe"), self.path("back"))
        again = transformers.AutoModelForCausalLM.from_pretrained(self.path("back"))
        self.assertIsInstance(again, transformers.MixtralForCausalLM)
        with torch.no_grad():
            self.same(again(ours["tokens"]).logits, model(ours["tokens"]).logits)
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            self.assertEqual(read(self.path("hf", file)), read(self.path("back", file)), file)

    def test_wide_heads_biases_and_tied_embeddings_stay(self):
        self.upcycle("llama_head_bias", "--dense-layers", 1, "--every", 2)


class Tokenizers(Case):
    """The ids are those of Hugging Face's package and of the SentencePiece library."""

    STRANGE = "Hello,  world!\n\n\tTabs and  spaces \u00fc\u00df\u4e16\u754c \U0001f600 don't\n" + "x" * 300 + " end "

    def prepared(self, tokenizer, text):
        shutil.rmtree(self.path("data"), ignore_errors=True)
        with open(self.path("text.txt"), "w", newline="") as file:
            file.write(text)
        run("data", "prepare", self.path("text.txt"), "--model", tokenizer, "--valid", "0", "--test", "0", "--out",
            self.path("data"))
        return read_tokens(self.path("data/train.tok"))

    def byte_level(self, folder):
        t = tokenizers.Tokenizer(tokenizers.models.BPE())
        t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.decoder = tokenizers.decoders.ByteLevel()
        t.train_from_iterator([TEXT], tokenizers.trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False))
        wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=t, eos_token="<|end|>")
        wrapped.save_pretrained(folder)
        return wrapped

    def test_byte_level_bpe(self):
        tokenizer = self.byte_level(self.path("tok"))
        for text in (TEXT, self.STRANGE):
            self.assertEqual(self.prepared(self.path("tok"), text), tokenizer(text).input_ids)
        info = json.loads(run("data", "info", self.path("data"), "--json").stdout)
        self.assertEqual(info["tokenizer"]["kind"], "huggingface")

    def test_special_tokens_begin_a_text(self):
        word_tokenizer().save_pretrained(self.path("tok"))
        ids = self.prepared(self.path("tok"), TEXT)
        self.assertEqual(ids, word_tokenizer()(TEXT).input_ids)
        self.assertEqual(ids[0], 1)

    def test_generated_text_is_what_the_package_decodes(self):
        tokenizer = self.byte_level(self.path("hf"))
        torch.manual_seed(3)
        config = {**SMALL, "vocab_size": len(tokenizer), "eos_token_id": 0}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, intermediate_size=48)).eval()
        model.save_pretrained(self.path("hf"))
        run("import", self.path("hf"), "--out", self.path("run"))
        prompt = "the router \u4e16 "
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        all_ids = model.generate(ids, max_new_tokens=40, do_sample=False)[0]
        whole = tokenizer.decode(all_ids, skip_special_tokens=True)
        answer = json.loads(run("generate", self.path("run"), "-p", prompt, "-n", 40, "--greedy", "--json").stdout)
        cut = "\ufffd"  # of a character that is not finished at the end, nothing is printed
        self.assertEqual((prompt + answer["text"]).rstrip(cut), whole.rstrip(cut))

    def test_without_the_package_the_way_out_is_named(self):
        self.byte_level(self.path("tok"))
        os.mkdir(self.path("broken"))
        with open(self.path("broken/tokenizers.py"), "w") as file:
            file.write("raise ImportError('not here')\n")
        self.fails(4, "data", "prepare", __file__, "--model", self.path("tok"), "--out", self.path("data"),
                   says=["tokenizer.json", "tokenizers", "not here", "pip install tokenizers"],
                   env={**ENVIRONMENT, "PYTHONPATH": self.path("broken")})

    def test_our_own_are_there_for_transformers(self):
        text = TEXT.replace(" sleeps ", " sleeps\n") + self.STRANGE
        os.mkdir(self.path("corpus"))
        for i in range(30):  # several documents are separated
            with open(self.path(f"corpus/{i}.txt"), "w", newline="") as file:
                file.write(text)
        with open(self.path("c.toml"), "w") as file:
            file.write(TINY_LLAMA)
        for kind in (["byte"], ["sentencepiece", "--vocab-size", 290],
                     ["sentencepiece", "--vocab-size", 290, "--algorithm", "bpe"]):
            with self.subTest(kind):
                for name in ("made", "run", "out"):
                    shutil.rmtree(self.path(name), ignore_errors=True)
                run("data", "prepare", self.path("corpus"), "--tokenizer", *kind, "--out", self.path("made"))
                run("train", self.path("c.toml"), f"--data.path={self.path('made')}", "--out", self.path("run"))
                run("export", self.path("run"), self.path("out"))
                theirs = transformers.AutoTokenizer.from_pretrained(self.path("out"))
                own = json.loads(open(self.path("out/rmoe_tokenizer.json")).read())
                self.assertEqual(theirs.eos_token_id, own["separator"])
                # Of equally likely splits of a run of spaces, each library takes its own.
                like = text.replace("  ", " ") if "bpe" not in kind and "byte" not in kind else text
                ids = [i for i in self.prepared(self.path("run"), like) if i != own["separator"]]
                self.assertEqual(theirs(like).input_ids, ids)
                self.assertEqual(theirs.decode(ids), like)

    def test_the_ids_that_end_a_text(self):
        make(self.path("hf"), "llama")
        prompt = "the router remembers"
        run("import", self.path("hf"), "--out", self.path("run"))
        generate = ["-p", prompt, "-n", 12, "--greedy", "--json"]
        whole = json.loads(run("generate", self.path("run"), *generate).stdout)
        model = transformers.AutoModelForCausalLM.from_pretrained(self.path("hf"))
        ids = word_tokenizer()(prompt, return_tensors="pt").input_ids
        text = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, ids.shape[1]:].tolist()
        self.assertEqual(whole["tokens"], 12)
        end = next(i for i in text if i != text[0])
        for file in ("generation_config.json", "config.json"):
            shutil.rmtree(self.path("run"), ignore_errors=True)
            content = json.loads(read(self.path("hf", file)))
            content["eos_token_id"] = [2, end]
            with open(self.path("hf", file), "w") as out:
                json.dump(content, out)
            run("import", self.path("hf"), "--out", self.path("run"))
            answer = json.loads(run("generate", self.path("run"), *generate).stdout)
            self.assertEqual((answer["tokens"], answer["ending"]), (text.index(end), "separator"))
            run("export", self.path("run"), self.path("back" + file))
            self.assertEqual(json.loads(read(self.path("back" + file, file)))["eos_token_id"], [2, end])
            if file == "generation_config.json":
                os.remove(self.path("hf", file))
        # Without tokenizer_config.json the separator is what config.json says.
        os.remove(self.path("hf/tokenizer_config.json"))
        run("import", self.path("hf"), "--out", self.path("run2"))
        self.assertEqual(json.loads(read(self.path("run2/tokenizer.json")))["separator"], 2)

    def test_sentencepiece(self):
        import sentencepiece
        with open(self.path("corpus.txt"), "w") as file:
            file.write(TEXT.replace(" sleeps ", " sleeps\n"))
        for prefix in (True, False):
            with self.subTest(prefix=prefix):
                folder = self.path(f"sp{prefix}")
                os.mkdir(folder)
                sentencepiece.SentencePieceTrainer.train(
                    input=self.path("corpus.txt"), model_prefix=os.path.join(folder, "tokenizer"), model_type="bpe",
                    vocab_size=330, byte_fallback=True, normalization_rule_name="identity",
                    remove_extra_whitespaces=False, add_dummy_prefix=prefix, minloglevel=2)
                processor = sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, "tokenizer.model"))
                for text in (TEXT, self.STRANGE):
                    self.assertEqual(self.prepared(folder, text), [processor.bos_id()] + processor.encode(text))
                config = {**SMALL, "vocab_size": 330}
                model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, intermediate_size=48)).eval()
                model.save_pretrained(folder)
                run("import", folder, "--out", folder + "-run")
                ids = torch.tensor([[processor.bos_id()] + processor.encode("the router")])
                new = model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1]:].tolist()
                answer = json.loads(run("generate", folder + "-run", "-p", "the router", "-n", 16, "--greedy",
                                        "--json").stdout)
                self.assertEqual(answer["prompt_tokens"], ids.shape[1])
                whole = processor.decode(ids[0].tolist() + new)
                if "\ufffd" not in whole:
                    self.assertEqual("the router" + answer["text"], whole)

    def test_sentencepiece_that_normalizes_is_refused(self):
        import sentencepiece
        with open(self.path("corpus.txt"), "w") as file:
            file.write(TEXT.replace(" sleeps ", " sleeps\n"))
        os.mkdir(self.path("sp"))
        sentencepiece.SentencePieceTrainer.train(input=self.path("corpus.txt"), model_prefix=self.path("sp/tokenizer"),
                                                 vocab_size=60, hard_vocab_limit=False, minloglevel=2)
        self.fails(2, "data", "prepare", __file__, "--model", self.path("sp"), "--out", self.path("data"),
                   says=["tokenizer.model", "not supported", "tokenizer.json"])


if __name__ == "__main__":
    unittest.main()
