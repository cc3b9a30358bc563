"""The command `rmoe` as a person runs it: standard output, standard error, exit codes, and what is left on the disk.

usage: cli_test.py RMOE [CLASS[.test_name]...] [unittest options]     e.g. cli_test.py build/release/rmoe Signals -v
"""

import collections
import contextlib
import csv
import glob
import gzip
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RMOE = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else None
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
PATIENCE = 120  # seconds until a command counts as hanging

# Small, with everything on that makes resuming hard: dropout, accumulation, bf16, a recurrent stage, a block cache.
CONFIG = """# A tiny model for tests.
name = "tiny"

[data]
path = "data"

[model]
layers = 2
width = 16
heads = 2
dropout = 0.1
span = {span = 8}

[model.moe]
experts = 4
top_k = 2
expert_width = 8
stage = {kind = "gru", width = 8}

[train]
steps = 20
batch = 4
block = 8
accumulate = 2
dtype = "bf16"
log_every = 5
threads = 1
schedule = {warmup = 3}
eval = {every = 10, tokens = 300}
checkpoint = {every = 5, keep_last = 100}
sample = {length = 10}
"""

Result = collections.namedtuple("Result", "code out err")


def text_of(words, seed):
    pick = random.Random(seed)
    known = "the router remembers what a token was and every layer asks it again\n".split(" ")
    return "".join(pick.choice(known) + " " for _ in range(words))


def write(path, content):
    with open(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def sha256(path):
    return hashlib.sha256(read(path)).hexdigest()


def tree(folder):
    """Name -> content of every file below, to see that nothing changed."""
    names = (os.path.join(at, name) for at, _, files in os.walk(folder) for name in files)
    return {os.path.relpath(name, folder): sha256(name) for name in names}


def flip(path, at=-1):
    content = bytearray(read(path))
    content[at] ^= 1
    write(path, bytes(content))


def truncate(path):
    os.truncate(path, os.path.getsize(path) - 1)


def limits(**values):
    """For preexec_fn: limits(FSIZE=1000)."""

    def apply():
        for name, value in values.items():
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))

    return apply


class Case(unittest.TestCase):
    """Runs commands in a folder of its own, which all tests of a class share."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        holder = tempfile.TemporaryDirectory(prefix="rmoe-cli-")
        cls.addClassCleanup(holder.cleanup)
        cls.folder = holder.name
        write(cls.path("tiny.toml"), CONFIG)

    @classmethod
    def path(cls, *parts):
        return os.path.join(cls.folder, *parts)

    @classmethod
    def command(cls, *args):
        one_thread = ["--threads", "1"] if args and args[0] in ("train", "eval", "generate", "bench", "analyze") else []
        return [RMOE, *args, *one_thread]

    @classmethod
    def run_rmoe(cls, *args, stdin=b"", **options):
        """Code, standard output (bytes where it is no text) and standard error. A signal S gives the code -S."""
        # An empty standard input, so that a command that wrongly reads it does not wait.
        done = subprocess.run(cls.command(*args), cwd=cls.folder, env=ENVIRONMENT, input=stdin, capture_output=True,
                              timeout=PATIENCE, **options)
        return Result(done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode())

    @classmethod
    def start(cls, *args):
        """In the background; its standard error goes to a file, result.stderr_path."""
        cls.started = getattr(cls, "started", 0) + 1
        errors = cls.path(f"stderr-{cls.started}")
        with open(errors, "wb") as file:
            process = subprocess.Popen(cls.command(*args), cwd=cls.folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=file)
        process.stderr_path = errors
        return process

    def succeeds(self, *args, **options):
        result = self.run_rmoe(*args, **options)
        self.assertEqual(result.code, 0, result.err)
        return result

    def check_error(self, result, code, *parts, warnings=False):
        """The shape of every failure: its code, one line on standard error, perhaps a help line, nothing else."""
        self.assertEqual(result.code, code, result)
        lines = result.err.splitlines()
        if lines and lines[-1].startswith("  help: "):
            self.assertGreater(len(lines.pop()), len("  help: "))
        if warnings:
            lines = lines[-1:]
        self.assertEqual(len(lines), 1, result.err)
        self.assertRegex(lines[0], r"^rmoe: .*[^.]$")
        for part in parts:
            self.assertIn(part, result.err)

    def fails(self, code, *args, says=(), **options):
        result = self.run_rmoe(*args, **options)
        self.check_error(result, code, *([says] if isinstance(says, str) else says))
        self.assertEqual(result.out, "")
        return result

    def wait_for(self, what, process):
        """Until what() is true; the process must still run then."""
        end = time.monotonic() + PATIENCE
        while not what():
            self.assertIsNone(process.poll(), f"ended too early: {read(process.stderr_path).decode()}")
            self.assertLess(time.monotonic(), end, "nothing happens")
            time.sleep(0.01)

    def ends(self, process, code, within=PATIENCE):
        self.assertEqual(process.wait(within), code, read(process.stderr_path).decode())


class WithData(Case):
    """`data`: text of about 20 kB as bytes."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        write(cls.path("text.txt"), text_of(4000, seed=1))
        made = cls.run_rmoe("data", "prepare", "text.txt", "--out", "data")
        assert made.code == 0, made

    @classmethod
    def train(cls, run, *flags, **options):
        return cls.run_rmoe("train", "tiny.toml", "--out", run, *flags, **options)

    def steps(self, run):
        return sorted(int(name[len("step_"):]) for name in os.listdir(self.path(run, "checkpoints"))
                      if name.startswith("step_"))

    def weights(self, run, step):
        return sha256(self.path(run, "checkpoints", f"step_{step}", "model.safetensors"))


class WithRun(WithData):
    """`run`: trained for 20 steps, with checkpoints of the steps 5, 10, 15 and 20."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.trained = cls.train("run")
        assert cls.trained.code == 0, cls.trained

    def copy_of_run(self, name):
        shutil.copytree(self.path("run"), self.path(name))
        return name


# ---- the command line


class FromWeightsThatAreThere(Case):
    """Dense run -> MoE -> RMoE -> fine-tuned on instructions, and what goes wrong on the way."""

    SMALL = ["--model.family=llama", "--model.layers=2", "--model.width=16", "--model.heads=2", "--model.moe.experts=4",
             "--model.moe.expert_width=12", "--model.moe.shared_width=0", "--train.batch=4", "--train.block=32",
             "--train.steps=2", "--train.sample.length=0"]
    TUNING = ["--train.batch=8", "--train.accumulate=2", "--train.block=200", "--train.steps=3", "--train.dtype=fp32",
              "--train.sample.length=0"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        write(cls.path("text.txt"), text_of(2000, 1))
        lines = [json.dumps({"instruction": f"say {i}", "input": "", "output": "word " * (i % 4 + 1)})
                 for i in range(30)]
        lines[4] = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
        cls.lines = lines
        write(cls.path("sft.jsonl"), "\n".join(lines) + "\n")
        for command in (["data", "prepare", "text.txt", "--out", "data"],
                        ["train", "--data.path=data", "--model.dense_layers=2", "--model.dense_width=24",
                         "--out", "dense",
                         *cls.SMALL],
                        ["upcycle", "dense", "--out", "moe", "--experts", "4", "--top-k", "2", "--method", "split"],
                        ["retrofit", "moe", "--out", "rmoe", "--width", "8"]):
            result = cls.run_rmoe(*command)
            if result.code != 0:
                raise RuntimeError(f"{command}: {result.err}")

    def test_upcycling_and_retrofitting_say_what_they_did(self):
        made = json.loads(self.succeeds("upcycle", "dense", "--out", "copies", "--json").out)
        self.assertEqual(made["run"], "copies")
        self.assertLess(made["difference"], 1e-5)
        self.assertGreater(made["params"], made["params_before"])
        fitted = json.loads(self.succeeds("retrofit", "copies", "--out", "fitted", "--train", "routers", "--json").out)
        self.assertIs(fitted["identical"], True)
        self.assertIn("bit for bit", self.succeeds("retrofit", "copies", "--out", "fitted2", "--stage", "lstm").out)
        before, after = (self.succeeds("generate", run, "-p", "the ", "-n", "20", "--seed", "3").out
                         for run in ("copies", "fitted"))
        self.assertEqual(before, after)
        self.succeeds("train", "fitted/config.toml", "--train.steps=2", "--out", "on")

    def test_fine_tuning_reports_answers(self):
        result = self.succeeds("train", "--init", "rmoe", "--data.instruct.train=sft.jsonl",
                               "--data.instruct.valid_share=0.2",
                               "--train.freeze=['*.block_sparse_moe.*', '!*.experts.*', 'model.rnn_router.*']",
                               "--out", "tuned", *self.TUNING)
        self.assertIn("24 samples to train on", result.err)
        self.assertIn("no balance losses in 2 of 2 MoE layers", result.err)
        report = json.loads(self.succeeds("eval", "tuned", "--json").out)
        whole = json.loads(self.succeeds("eval", "tuned", "--data", "sft.jsonl", "--json").out)
        self.assertLess(report["tokens"], whole["tokens"])
        # Of every answer its bytes, and two line feeds.
        answers = [json.loads(line) for line in self.lines]
        size = sum(len(a.get("output", "b")) + 2 for a in answers)
        self.assertEqual(whole["tokens"], size)
        with gzip.open(self.path("packed.jsonl.gz"), "wb") as file:
            file.write(read(self.path("sft.jsonl")))
        packed = json.loads(self.succeeds("eval", "tuned", "--data", "packed.jsonl.gz", "--json").out)
        self.assertEqual(packed["nats"], whole["nats"])
        self.fails(2, "eval", "tuned", "--split", "test", says="no split 'test'")
        self.fails(4, "eval", "tuned", "--data", "nothing.jsonl", says="nothing.jsonl")

    def test_a_run_goes_on_without_the_one_that_it_started_from(self):
        shutil.copytree(self.path("rmoe"), self.path("start"))
        tune = ["train", "--init", "start", "--data.instruct.train=sft.jsonl", *self.TUNING, "--out", "goes-on"]
        self.succeeds(*tune)
        shutil.rmtree(self.path("start"))
        self.succeeds(*tune, "--train.steps=4")
        self.succeeds("train", "goes-on/config.toml", "--train.steps=5", "--out", "goes-on")
        self.assertEqual(json.loads(read(self.path("goes-on/summary.json")))["steps"], 5)
        self.fails(4, *tune[:-1], "elsewhere", says="start: no such run folder")

    def test_what_has_two_gates_per_router_is_not_exported(self):
        result = self.fails(2, "export", "rmoe", "folder", says="rmoe: has two gates per router, model.moe.state_gate")
        self.assertEqual(len(result.err.splitlines()), 1, result.err)
        self.assertEqual(json.loads(self.succeeds("export", "moe", "folder", "--json").out)["model_type"], "mixtral")

    def test_bad_samples_are_named_by_file_and_line(self):
        for number, (line, says) in enumerate([
                ('{"instruction": "a"}', "'output' is missing"),
                ('{"output": "a"}', "'instruction' is missing"),
                ('{"messages": [{"role": "robot", "content": "a"}]}', "unknown role 'robot'"),
                ('{"instruction": "a", "output": ["b"]}', "'output' is "),
                ('{"instruction": ', "syntax error")]):
            with self.subTest(line):
                write(self.path("bad.jsonl"), self.lines[0] + "\n" + line + "\n")
                self.fails(2, "train", "--init", "rmoe", "--data.instruct.train=bad.jsonl", "--out", f"bad{number}",
                           *self.TUNING, says=["bad.jsonl:2:", says])

    def test_samples_without_answer_and_too_long_ones_are_counted(self):
        long = json.dumps({"instruction": "a", "output": "b" * 500})
        write(self.path("odd.jsonl"), "\n".join([*self.lines, '{"instruction": "a", "output": ""}', long]) + "\n")
        command = ["train", "--init", "rmoe", "--data.instruct.train=odd.jsonl", *self.TUNING]
        result = self.succeeds(*command, "--out", "odd")
        self.assertIn("odd.jsonl:31: no answer; such samples are left out, 1 in all", result.err)
        self.assertIn("odd.jsonl:32: longer than train.block + 1 tokens; such samples are left out, 1 in all",
                      result.err)
        self.assertIn("1 samples were cut", self.succeeds(*command, "--data.instruct.too_long=cut", "--out", "cut").err)
        self.fails(2, *command, "--data.instruct.too_long=refuse", "--out", "refused",
                   says="odd.jsonl:32: the sample has ")

    def test_what_cannot_be_is_refused_in_a_line(self):
        tune = ["train", "--data.instruct.train=sft.jsonl", *self.TUNING, "--out", "never"]
        self.fails(2, *tune, "--init", "rmoe", "--train.freeze=['*.wieght']", says="'*.wieght' matches no tensor")
        self.fails(4, *tune, "--init", "nothing", says="nothing: no such run folder")
        self.fails(2, *tune, says="needs a tokenizer")
        self.fails(2, *tune, "--init", "rmoe", "--data.instruct.user=abc", says="{content}")
        self.fails(2, "upcycle", "moe", "--out", "unmade", says="MoE layers")
        self.fails(2, "upcycle", "dense", "--out", "moe", says="is there already")
        self.fails(2, "upcycle", "dense", "--out", "unmade", "--slices", "3", says="--slices")
        self.fails(2, "upcycle", "dense", "--out", "unmade", "--method", "split", "--slices", "5",
                   says="5 equal slices")
        self.fails(2, "retrofit", "rmoe", "--out", "unmade", says="has the stage 'gru' already")
        self.fails(2, "retrofit", "dense", "--out", "unmade", says="no MoE layer")
        self.fails(4, "retrofit", "nothing", "--out", "unmade", says="nothing")
        self.assertFalse(os.path.exists(self.path("unmade")))

    def test_the_papers_configs_train(self):
        for name, run in (("sft_alpaca", "rmoe"), ("sft_alpaca_frozen_router", "moe"),
                          ("sft_alpaca_frozen_router_and_cell", "rmoe")):
            with self.subTest(name):
                self.succeeds("train", os.path.join(ROOT, "configs", name + ".toml"), "--init", run,
                              "--data.instruct.train=sft.jsonl", "--train.batch=8", "--train.accumulate=2",
                              "--out", name)


class Help(Case):
    def commands_of(self, *command):
        listed = self.succeeds(*command, "--help").out.partition("\nSubcommands:\n")[2].partition("\n\n")[0]
        return re.findall(r"^  (\w+) ", listed, re.M)

    def test_every_command_explains_itself_with_an_example(self):
        commands = self.commands_of()
        self.assertLessEqual({"train", "eval", "generate", "compare", "bench", "data", "config", "list"}, set(commands))
        paths = [[command] for command in commands]
        paths += [[outer, inner] for outer in ("bench", "data", "config") for inner in self.commands_of(outer)]
        self.assertGreaterEqual(len(paths), len(commands) + 5)
        for path in paths:
            with self.subTest(path):
                result = self.succeeds(*path, "--help")
                self.assertEqual(result.err, "")
                example = result.out.partition("Example:\n")[2]
                self.assertIn("\n  rmoe " + " ".join(path) + " ", "\n" + example)
                for config in re.findall(r"configs/\S+\.toml", example):
                    self.assertTrue(os.path.exists(os.path.join(ROOT, config)), f"{config} of the example is not there")

    def test_version_is_one_line(self):
        self.assertRegex(self.succeeds("--version").out, r"^rmoe \d+\.\d+\.\d+\n$")

    def test_list_names_what_configs_can_name(self):
        self.assertRegex(self.succeeds("list", "routers").out, r"(?m)^linear +\S")
        stages = json.loads(self.succeeds("list", "stages", "--json").out)
        self.assertLessEqual({"none", "gru"}, {stage["name"] for stage in stages})
        self.assertTrue(all(stage["summary"] for stage in stages))
        self.assertRegex(self.succeeds("list", "balances").out, r"(?m)^switch +\S")
        configs = self.succeeds("list", "configs", "--dir", os.path.join(ROOT, "configs")).out.splitlines()
        self.assertEqual(len(configs), len(glob.glob(os.path.join(ROOT, "configs", "**", "*.toml"), recursive=True)))

    def test_doc_explains_every_key_of_a_shown_config(self):
        def keys(value, path):
            if isinstance(value, dict):
                return {key for name in value for key in keys(value[name], f"{path}.{name}" if path else name)}
            if isinstance(value, list):
                return {key for item in value for key in keys(item, path + "[]")}
            return {path}

        shown = keys(json.loads(self.succeeds("config", "show", "tiny.toml", "--json").out), "")
        explained = {entry["key"]: entry["help"] for entry in json.loads(self.succeeds("config", "doc", "--json").out)}
        self.assertEqual(shown - set(explained), set())
        self.assertTrue(all(explained.values()))
        self.assertIn("model.moe.top_k", self.succeeds("config", "doc").out)

    def test_the_page_on_configs_is_what_the_command_prints(self):
        page = read(os.path.join(ROOT, "docs", "config.md")).decode()
        self.assertTrue(page.endswith(self.succeeds("config", "doc", "--markdown").out), "docs/config.md is out of date")


class Usage(Case):
    def test_mistakes_name_the_nearest(self):
        for args, line, hint in [
            (["trian"], "unknown command 'trian'", "did you mean 'train'?"),
            ([], "a command is missing", "`rmoe --help` lists them"),
            (["data", "prepar"], "data: unknown command 'prepar'", "did you mean 'prepare'?"),
            (["data"], "data: a command is missing", "`rmoe data --help` lists them"),
            (["eval", "r", "--splt", "test"], "eval: unknown option --splt", "did you mean '--split'?"),
            (["eval", "r", "--split", "tset"], "eval: --split", "rmoe eval --help"),
            (["eval"], "eval: RUN is required", "rmoe eval --help"),
            (["eval", "a", "b"], "eval: unexpected argument 'b'", "rmoe eval --help"),
            (["generate", "r", "-n", "x"], "generate: --tokens", "rmoe generate --help"),
            (["generate", "r", "-n", "-3"], "generate: --tokens", "rmoe generate --help"),
            (["list", "routerz"], "list: unknown 'routerz'", "did you mean 'routers'?"),
            (["train", "--threads", "0"], "train: --threads: expected an integer from 1 to 4096, got '0'",
             "rmoe train --help"),
            (["train", "tiny.toml", "--out", ""], "train: --out: expected a value", "rmoe train --help"),
            (["train", "tiny.toml", "--out", "a", "--out=b"], "train: --out: given 2 times", "rmoe train --help"),
            (["eval", ""], "eval: RUN: expected a value", "rmoe eval --help"),
            (["data", "prepare", "t", "--out", "o", "--seed", "-1"], "data prepare: --seed: expected an integer from 0",
             "rmoe data prepare --help"),
            (["data", "prepare", "t", "--out", "o", "--vocab-size", "99999999999999999999"],
             "data prepare: --vocab-size: expected an integer from 0", "rmoe data prepare --help"),
            (["generate", "r", "--seed", "99999999999999999999"], "generate: --seed: expected an integer from 0, got",
             "rmoe generate --help"),
            (["generate", "r", "--temperature", "warm"], "generate: --temperature: expected a number, got 'warm'",
             "rmoe generate --help"),
            (["generate", "r", "--stop", ""], "generate: --stop: expected a value", "rmoe generate --help"),
            (["train", "--resume", "yes"], "train: --resume", "rmoe train --help"),
            (["train", "tiny.toml", "--ouy", "x"], "train: unknown option --ouy", "did you mean '--out'?"),
            (["train", "tiny.toml", "--resum", "auto"], "train: unknown option --resum", "did you mean '--resume'?"),
            (["train", "--steps=3"], "train: unknown option --steps", "did you mean '--train.steps'?"),
            (["config", "show", "--nmae=x"], "config show: unknown option --nmae", "did you mean '--name'?"),
            (["bench"], "bench: a command is missing", "`rmoe bench --help` lists them"),
            (["bench", "stpe"], "bench: unknown command 'stpe'", "did you mean 'step'?"),
            (["bench", "op"], "bench op: NAME is required", "rmoe bench op --help"),
            (["bench", "op", "liner"], "bench op: unknown op 'liner'", "did you mean 'linear'?"),
            (["bench", "op", "linear", "--filter", "x y z"], "bench op: no case of 'linear' contains 'x y z'",
             "without --filter"),
            (["bench", "op", "linear", "--rounds", "-1"], "bench op: --rounds: expected an integer from 1",
             "rmoe bench op --help"),
            (["bench", "op", "linear", "--dtype", "fp16"], "bench op: --dtype", "rmoe bench op --help"),
            (["bench", "step"], "bench step: CONFIG is required", "rmoe bench step --help"),
            (["bench", "step", "tiny.toml", "--rounds", "0"], "bench step: --rounds: expected an integer from 1",
             "rmoe bench step --help"),
            (["bench", "step", "tiny.toml", "--modle.layers=3"], "--modle.layers=3: unknown key 'modle'",
             "did you mean 'model'?"),
            (["bench", "decode", "tiny.toml", "--profile"], "bench decode: unknown option --profile", ""),
            (["config", "check", "--jsno"], "config check: unknown option --jsno", "did you mean '--json'?"),
        ]:
            with self.subTest(args):
                # No thread option here: it must be the only thing that is wrong.
                done = subprocess.run([RMOE, *args], cwd=self.folder, env=ENVIRONMENT, capture_output=True, text=True,
                                      stdin=subprocess.DEVNULL, timeout=PATIENCE)
                result = Result(done.returncode, done.stdout, done.stderr)
                self.check_error(result, 2, "rmoe: " + line, "  help: ", hint)
                self.assertEqual(result.out, "")

    def test_with_json_an_error_is_an_object_too(self):
        result = self.run_rmoe("config", "check", "--json", "--model.layers=-1")
        self.check_error(result, 2, "model.layers is '-1'")
        error = json.loads(result.out)["error"]
        self.assertEqual(error["code"], 2)
        self.assertEqual("rmoe: " + error["message"] + "\n", result.err)
        result = self.run_rmoe("trian", "--json")
        self.assertEqual(json.loads(result.out)["error"]["help"], "did you mean 'train'?")

    def test_a_result_that_cannot_be_written_is_a_failure(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([RMOE, "config", "show"], env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE,
                                  text=True, timeout=PATIENCE)
        self.check_error(Result(done.returncode, "", done.stderr), 4, "standard output", "No space left on device")


# ---- speed


class Bench(Case):
    MACHINE = {"cpu", "isa", "threads", "fp32_flops", "bf16_flops", "triad_bytes_per_s", "read_bytes_per_s"}

    def bench(self, *args):
        return json.loads(self.succeeds("bench", *args, "--quick", "--rounds", "1", "--json").out)

    def check_machine(self, machine):
        self.assertEqual(set(machine), self.MACHINE)
        self.assertEqual(machine["threads"], 1)
        self.assertTrue(all(machine[key] > 0 for key in self.MACHINE - {"cpu", "isa"}), machine)

    def test_an_op_is_measured_against_its_plain_formula(self):
        report = self.bench("op", "linear", "--filter", "odd", "--dtype", "fp32")
        self.check_machine(report["machine"])
        self.assertEqual([row["pass"] for row in report["rows"]], ["forward", "forward+backward"])
        for row in report["rows"]:
            self.assertEqual((row["op"], row["dtype"]), ("linear", "fp32"))
            for side in ("ours", "plain"):
                self.assertGreater(row[side]["best_s"], 0)
                self.assertGreaterEqual(row[side]["median_s"], row[side]["best_s"])
            self.assertAlmostEqual(row["ratio"], row["plain"]["best_s"] / row["ours"]["best_s"])
            self.assertAlmostEqual(row["flops_per_s"], row["flops"] / row["ours"]["best_s"], delta=1)
            self.assertGreater(row["bytes"], 0)
        text = self.succeeds("bench", "op", "linear", "--filter", "odd", "--dtype", "fp32", "--quick").out
        self.assertRegex(text, r"(?m)^machine: .*, 1 thread, kernels for \w+$")
        self.assertRegex(text, r"(?m)^op +case +dtype +pass .* ratio$")

    def test_the_instruction_set_that_runs_is_named(self):
        args = ["bench", "op", "linear", "--filter", "odd", "--dtype", "fp32", "--quick", "--json", "--threads", "1"]
        done = subprocess.run([RMOE, *args], env={**ENVIRONMENT, "RMOE_CPU_ISA": "plain"}, capture_output=True,
                              text=True, timeout=PATIENCE)
        self.assertEqual(json.loads(done.stdout)["machine"]["isa"], "plain")

    def test_a_workload_is_measured_with_and_without_stage_and_kernels(self):
        for workload in ("layer", "step", "decode", "prompt"):
            with self.subTest(workload):
                report = self.bench(workload, "tiny.toml", "--model.layers=1")
                self.check_machine(report["machine"])
                self.assertEqual((report["workload"], report["config"]), (workload, "tiny.toml"))
                variants = {variant["name"]: variant for variant in report["variants"]}
                self.assertEqual(list(variants), ["ours", "smoe", "plain"])
                for variant in variants.values():
                    for key in ("first_s", "tokens_per_s", "flops_per_s", "peak_share", "peak_memory_bytes"):
                        self.assertGreater(variant[key], 0, key)
                    self.assertEqual(variant["weight_bytes"] > 0, workload == "decode")
                best = {name: variant["times"]["best_s"] for name, variant in variants.items()}
                self.assertAlmostEqual(report["ratios"]["plain_over_ours"], best["plain"] / best["ours"])
                self.assertAlmostEqual(report["ratios"]["ours_over_smoe"], best["ours"] / best["smoe"])
                self.assertGreater(report["ratios"]["ours_over_smoe_flops"], 1)

    def test_without_a_stage_there_is_nothing_to_compare_it_with(self):
        result = self.succeeds("bench", "step", "tiny.toml", "--model.moe.stage.kind=none", "--no-plain", "--quick",
                               "--rounds", "1")
        self.assertRegex(result.out, r"(?m)^ours +[0-9.]+")
        self.assertNotRegex(result.out, r"(?m)^(smoe|plain|ours over)")

    def test_the_profile_adds_up_to_the_step(self):
        report = self.bench("step", "tiny.toml", "--profile")
        profile = report["profile"]
        for table in ("parts", "ops"):
            rows = {row["name"]: row for row in profile[table]}
            whole = sum(row["forward_s"] + row["backward_s"] for row in rows.values())
            self.assertAlmostEqual(whole, profile["step_s"], delta=1e-6)
            self.assertAlmostEqual(sum(row["share"] for row in rows.values()), 1, delta=1e-6)
        self.assertLessEqual({"input", "layer 0", "layer 1", "output", "gradient norm", "optimizer"},
                             {row["name"] for row in profile["parts"]})
        self.assertLessEqual({"rmoe::linear", "rmoe::linear_backward", "between ops"},
                             {row["name"] for row in profile["ops"]})

    def test_serving_answers_every_line_and_ends_with_its_input(self):
        result = self.succeeds("bench", "step", "tiny.toml", "--serve", "--quick", stdin=b"\n" * 3)
        ready, *rounds = [json.loads(line) for line in result.out.splitlines()]
        self.assertIs(ready["ready"], True)
        self.assertLessEqual({"warmup_s", "first_s", "peak_memory_bytes", "isa", "threads", "tokens", "flops"}, set(ready))
        self.assertEqual(len(rounds), 3)
        for done in rounds:
            self.assertGreaterEqual(done["median_s"], done["best_s"])
            self.assertGreater(done["tokens_per_s"], 0)
            self.assertGreater(done["peak_memory_bytes"], 0)
        self.assertEqual(self.succeeds("bench", "layer", "tiny.toml", "--serve", "--quick").out.count("\n"), 1)

    def test_what_does_not_fit_is_refused_before_anything_is_measured(self):
        self.fails(4, "bench", "step", "missing.toml", says="missing.toml")
        self.fails(2, "bench", "step", "tiny.toml", "--model.heads=3", says="heads")
        self.fails(2, "bench", "layer", "--model.moe.top_k=99", says="top_k")


# ---- configs


class Config(Case):
    def check(self, toml, *parts, code=2):
        write(self.path("wrong.toml"), toml)
        return self.fails(code, "config", "check", "wrong.toml", says=parts)

    def test_an_unknown_key_is_located_and_the_nearest_named(self):
        self.check("name = \"x\"\n[model.moe]\n  topk = 2\n", "rmoe: wrong.toml:3:3: unknown key 'model.moe.topk'",
                   "\n  help: did you mean 'top_k'?")
        self.check("[modle]\nlayers = 2\n", "wrong.toml:1:2: unknown key 'modle'", "did you mean 'model'?")
        self.check("[model.moe.stage]\nkind = \"none\"\nwidth = 3\n",
                   "wrong.toml:3:1: unknown key 'model.moe.stage.width'", "or \"gru\" or")
        write(self.path("wrong.toml"), "[train]\nstepz = 3\n")
        self.fails(2, "train", "wrong.toml", "--out", "run", says=["wrong.toml:2:1: ", "did you mean 'steps'?"])
        self.fails(2, "train", "tiny.toml", "--model.layerz=2", "--out", "run",
                   says=["--model.layerz=2: unknown key 'model.layerz'", "did you mean 'layers'?"])
        self.assertFalse(os.path.exists(self.path("run")))

    def test_a_wrong_type_is_located(self):
        for toml, line in [
            ("[model]\nlayers = \"two\"\n", "wrong.toml:2:1: model.layers is the string 'two', expected an integer"),
            ("[model]\nlayers = 2.5\n", "wrong.toml:2:1: model.layers is 2.5, expected an integer"),
            ("[train.optimizer]\nlr = nan\n", "wrong.toml:2:1: train.optimizer.lr is nan, expected a finite number"),
            ("[train]\n\ndtype = \"bf61\"\n",
             "wrong.toml:3:1: train.dtype is the string 'bf61', expected one of fp32, tf32, bf16"),
            ("model = 3\n", "wrong.toml:1:1: model is 3, expected a section"),
            ("[model.moe.router]\nkind = \"liner\"\n", "did you mean 'linear'?"),
            ("[model]\nlayers = 2\nlayers = 3\n", "wrong.toml:3:"),
            ("[model\nlayers = 2\n", "wrong.toml:1:"),
            ("base = \"wrong.toml\"\n", "wrong.toml:1:1: base files form a cycle"),
        ]:
            with self.subTest(toml):
                self.check(toml, line)
        self.check("base = \"nowhere.toml\"\n", "wrong.toml:1:1: base file nowhere.toml does not exist", code=4)
        self.fails(4, "config", "check", "nowhere.toml", says="cannot read nowhere.toml: No such file")
        for flag, line in [
            ("--model.layers=two", "--model.layers=two: model.layers is 'two', expected an integer"),
            ("--model.layers=99999999999999999999", "expected an integer of 64 bits"),
        ]:
            with self.subTest(flag):
                self.fails(2, "config", "check", "tiny.toml", flag, says=line)

    def test_negative_and_zero_sizes_are_refused(self):
        for key, value in [("model.layers", 0), ("model.width", -16), ("model.heads", 0), ("model.moe.experts", -1),
                           ("model.moe.top_k", 0), ("model.moe.stage.width", -8), ("train.batch", 0),
                           ("train.block", -1), ("train.accumulate", 0)]:
            with self.subTest(key):
                self.fails(2, "config", "check", "tiny.toml", f"--{key}={value}",
                           says=f"{key} is '{value}', expected at least 1")
        self.fails(2, "train", "tiny.toml", "--model.vocab_size=-1", "--out", "run",
                   says="model.vocab_size is '-1', expected at least 0")
        self.fails(2, "train", "tiny.toml", "--train.threads=100000", "--out", "run",
                   says="train.threads is '100000', expected at least 0 and at most 4096")

    def test_relations_are_blamed_on_the_flag_that_breaks_them_else_on_the_section(self):
        for flags, at, line in [
            (["--model.moe.top_k=5"], 0,
             "model.moe: top_k must be at most experts, got top_k = 5 and experts = 4 (experts from tiny.toml:15:1)"),
            (["--model.width=15"], 0, "model: width must be a multiple of heads, got width = 15 and heads = 2"),
            (["--train.accumulate=3"], 0, "train: batch must be a multiple of accumulate"),
            (["--model.family=llama", "--model.width=6"], 1, "model: rotary embeddings need an even head width"),
            (["--model.family=llama", "--model.llama.kv_heads=3", "--model.heads=4"], 2, "kv_heads = 3"),
        ]:
            with self.subTest(flags):
                command = ["train", "tiny.toml", "--out", "run"]
                self.fails(2, *command, *flags, says=["rmoe: " + flags[at], line])
        self.check("[data]\n[model]\nwidth = 15\nheads = 2\n", "rmoe: wrong.toml:2:2: model: width must be a multiple")
        self.assertFalse(os.path.exists(self.path("run")))

    def test_a_shown_config_can_be_fed_back(self):
        for source in ["tiny.toml", os.path.join(ROOT, "configs", "enwik8_medium_rmoe.toml"),
                       os.path.join(ROOT, "configs", "llama_laptop_smoe.toml")]:
            with self.subTest(source):
                once = self.succeeds("config", "show", source, "--train.optimizer.lr=0.1234567890123456789",
                                     "--data.path=a \"quoted\" \\path").out
                write(self.path("shown.toml"), once)
                self.assertEqual(self.succeeds("config", "show", "shown.toml").out, once)
                self.assertIn("lr = 0.12345678901234568\n", once)
        self.assertEqual(json.loads(self.succeeds("config", "show", "tiny.toml", "--json").out)["model"]["width"], 16)

    def test_check_counts_the_parameters_of_the_paper(self):
        config = os.path.join(ROOT, "configs", "enwik8_medium_smoe.toml")
        counted = json.loads(self.succeeds("config", "check", config, "--model.vocab_size=205", "--json").out)
        self.assertTrue(counted["ok"])
        self.assertGreater(counted["params"], counted["active_params"])
        self.assertIn(f"{counted['params']} parameters",
                      self.succeeds("config", "check", config, "--model.vocab_size=205").out)

    def test_check_takes_the_vocabulary_from_the_data(self):
        missing = self.succeeds("config", "check", "tiny.toml", "--data.path=later").out
        for part in ("tiny.toml: OK", "model.vocab_size is missing", "later, is not there", "--model.vocab_size=N"):
            self.assertIn(part, missing)
        self.assertIn("data.path is not set", self.succeeds("config", "check").out)
        self.assertEqual(json.loads(self.succeeds("config", "check", "--json").out)["missing"], "model.vocab_size")
        write(self.path("letters.txt"), text_of(1000, seed=9))
        prepared = ["data", "prepare", "letters.txt", "--tokenizer", "char", "--out", "letters", "--json", "--quiet"]
        size = json.loads(self.succeeds(*prepared).out)["tokenizer"]["vocab_size"]
        check = ["config", "check", "tiny.toml", "--data.path=letters", "--json"]
        counted = json.loads(self.succeeds(*check).out)
        self.assertEqual(counted, json.loads(self.succeeds(*check, f"--model.vocab_size={size}").out))
        self.assertGreater(counted["params"], 0)
        self.fails(2, *check[:-1], "--model.vocab_size=7", says=["model.vocab_size is 7", f"letters has {size}"])
        os.mkdir(self.path("bare"))
        self.fails(4, "config", "check", "tiny.toml", "--data.path=bare", says="bare/tokenizer.json: No such file")

    def test_every_config_has_a_name_of_its_own(self):
        names = {}
        for config in glob.glob(os.path.join(ROOT, "configs", "*.toml")):
            shown = json.loads(self.succeeds("config", "show", config, "--json").out)
            self.assertEqual(names.setdefault(shown["name"], config), config)
        demo = {name: os.path.basename(config) for name, config in names.items() if name in ("SMoE", "RMoE")}
        self.assertEqual(demo, {"SMoE": "demo_smoe.toml", "RMoE": "demo_rmoe.toml"})


class HugeSizes(WithData):
    """Refused at once: nothing is allocated, and nothing is counted in a loop that does not end."""

    def refused(self, *args, says):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        start = time.monotonic()
        self.fails(2, *args, says=says)
        self.assertLess(time.monotonic() - start, 30)
        self.assertLess(max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss), 1 << 20)  # KiB

    def test_of_one_key(self):
        for flag in ["--model.layers=1000000000000", "--model.width=1000000000", "--model.moe.experts=1000000000000",
                     "--model.moe.stage.width=1000000000000", "--model.span.span=1000000000000",
                     "--model.vocab_size=9223372036854775807"]:
            with self.subTest(flag):
                self.refused("config", "check", "tiny.toml", flag, says=[flag, "at most"])
                self.refused("train", "tiny.toml", "--out", "huge", flag, says=[flag, "at most"])

    def test_that_are_huge_together(self):
        each_fine = ["--model.layers=10000", "--model.moe.experts=10000"]
        self.refused("config", "check", "tiny.toml", *each_fine, says="MoE layers * moe.experts must be at most")
        too_large = ["--model.width=100000", "--model.moe.experts=1000", "--model.moe.expert_width=1000000"]
        checked = self.succeeds("config", "check", "tiny.toml", *too_large, "--model.vocab_size=256").out
        self.assertIn("400", checked)  # 2 layers x 1000 experts x 2 matrices of 1e11: no number of 64 bits overflows
        self.refused("train", "tiny.toml", "--out", "huge", *too_large, says=["train: 40008", "this machine's"])
        self.assertFalse(os.path.exists(self.path("huge")))

    def test_of_batches(self):
        huge = 10**12
        self.refused("train", "tiny.toml", "--out", "b", f"--train.batch={huge}", f"--train.accumulate={huge}",
                     says="data/train.tok: ")
        self.refused("train", "tiny.toml", "--out", "b", f"--train.block={huge}", says="data/train.tok: ")

    @unittest.skipIf(RMOE and b"__asan_init" in read(RMOE), "AddressSanitizer does not live with a limit")
    def test_memory_that_runs_out_is_an_error_like_others(self):
        flags = ["--model.width=1000", "--model.moe.experts=50", "--model.moe.expert_width=1000", "--model.heads=1"]
        result = self.train("oom", *flags, preexec_fn=limits(DATA=300 << 20))
        self.check_error(result, 4, "rmoe: out of memory")


class Threads(Case):
    def wait_setting(self, **environment):
        """What the OpenMP runtime says that it read when it was loaded."""
        done = subprocess.run([RMOE, "--version"], env={**ENVIRONMENT, "OMP_DISPLAY_ENV": "verbose", **environment},
                              capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual(done.returncode, 0, done.stderr)
        return re.search(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr).group(1)

    def test_threads_that_wait_sleep_soon(self):
        self.assertEqual(self.wait_setting(), "20000")

    def test_settings_of_the_environment_win(self):
        self.assertEqual(self.wait_setting(GOMP_SPINCOUNT="7"), "7")
        self.assertEqual(self.wait_setting(OMP_WAIT_POLICY="passive"), "0")


class Plan(WithData):
    # Large enough for the step to need more than what surrounds it.
    SIZES = ["--model.width=96", "--model.moe.expert_width=96", "--train.batch=16", "--train.block=128",
             "--model.span.span=128", "--train.steps=6"]

    def planned(self, *flags):
        return json.loads(self.succeeds("train", "tiny.toml", "--plan", "--json", *flags).out)

    def test_the_peak_is_that_of_the_run(self):
        for number, flags in enumerate([[], ["--train.dtype=fp32", "--train.accumulate=1"],
                                        ["--model.family=llama", "--model.layers=4", "--train.recompute=layer"]]):
            with self.subTest(flags):
                plan = self.planned(*self.SIZES, *flags)
                run = f"planned-{number}"
                self.assertEqual(self.train(run, *self.SIZES, *flags).code, 0)
                measured = json.loads(read(self.path(run, "summary.json")))
                self.assertEqual((plan["params"], plan["active_params"]),
                                 (measured["params"], measured["active_params"]))
                self.assertAlmostEqual(plan["peak_bytes"] / measured["peak_memory_bytes"], 1, delta=0.15)
                self.assertEqual(plan["parameter_bytes"], 4 * plan["params"])
                self.assertEqual(plan["gradient_bytes"], 4 * plan["params"])
                self.assertEqual(plan["optimizer_bytes"], 8 * plan["params"])
                self.assertLess(plan["activation_bytes"], plan["peak_bytes"])

    def test_activations_grow_with_the_batch_and_shrink_by_recomputation(self):
        one = self.planned(*self.SIZES)["activation_bytes"]
        two = self.planned(*self.SIZES, "--train.batch=32")["activation_bytes"]
        self.assertAlmostEqual(two / one, 2, delta=0.1)
        self.assertLess(self.planned(*self.SIZES, "--train.recompute=layer")["activation_bytes"], 0.7 * one)

    def test_it_writes_nothing_and_needs_no_data(self):
        before = tree(self.folder)
        text = self.succeeds("train", "tiny.toml", "--plan").out
        for name in ["parameters", "gradients", "optimizer", "activations", "peak", "machine"]:
            self.assertRegex(text, rf"(?m)^{name} +[0-9.]+ [KMG]iB")
        self.planned("--data.path=nowhere", "--model.vocab_size=99")
        self.assertEqual(tree(self.folder), before)
        self.fails(2, "train", "tiny.toml", "--plan", "--out", "x", says="--plan")

    def test_what_cannot_fit_is_counted_but_not_run(self):
        for flags in [["--model.width=10000", "--model.moe.experts=4000", "--model.moe.expert_width=10000"],
                      ["--train.block=1000000000000"]]:
            with self.subTest(flags):
                plan = self.planned(*flags)
                self.assertGreater(plan["parameter_bytes"], 0)
                self.assertIsNone(plan["activation_bytes"])
                self.assertIsNone(plan["peak_bytes"])
        self.assertIn("not measured", self.succeeds("train", "tiny.toml", "--plan", *flags).out)


# ---- data


def zstd_frame(content):
    """A Zstandard frame of blocks stored as they are (RFC 8878): this Python has no compressor."""
    frame = struct.pack("<IBI", 0xFD2FB528, 0xA0, len(content))
    blocks = [content[at:at + 100_000] for at in range(0, len(content), 100_000)]
    for i, block in enumerate(blocks):
        frame += struct.pack("<I", (i == len(blocks) - 1) | len(block) << 3)[:3] + block
    return frame


class Data(Case):
    def prepare(self, *inputs):
        """Prepares into `out` and gives the tokens of the splits."""
        out = self.path("out")
        shutil.rmtree(out, ignore_errors=True)
        self.succeeds("data", "prepare", *inputs, "--out", "out", "--quiet")
        return b"".join(read(os.path.join(out, split + ".tok"))[128:] for split in ("train", "valid", "test"))

    def test_all_forms_of_a_text_give_the_same_tokens(self):
        text = text_of(6000, seed=2).encode()
        write(self.path("a.txt"), text)
        write(self.path("b.txt.gz"), gzip.compress(text))
        write(self.path("c.txt.zst"), zstd_frame(text))
        os.makedirs(self.path("texts", "inner"))
        write(self.path("texts", "inner", "only.txt"), text)
        write(self.path("texts", "picture.png"), b"\x89PNG")
        expected = self.prepare("a.txt")
        self.assertEqual(expected, text)  # bytes as tokens, split by ranges
        for form in ("b.txt.gz", "c.txt.zst", "texts"):
            with self.subTest(form):
                self.assertEqual(self.prepare(form), expected)

    def test_documents_of_jsonl_are_separated(self):
        documents = [text_of(100, seed) for seed in range(40)]
        lines = "".join(json.dumps({"text": document, "id": i}) + "\n" for i, document in enumerate(documents))
        for name, content in [("d.jsonl", lines.encode()), ("d.jsonl.gz", gzip.compress(lines.encode())),
                              ("d.jsonl.zst", zstd_frame(lines.encode()))]:
            with self.subTest(name):
                write(self.path(name), content)
                self.prepare(name, "--text-key", "text")
                info = json.loads(self.succeeds("data", "info", "out", "--verify", "--json").out)
                splits = info["splits"]
                self.assertEqual(sum(split["bytes"] for split in splits.values()), sum(map(len, documents)))
                self.assertGreaterEqual(sum(split["documents"] for split in splits.values()), len(documents))

    def test_results_are_printed_and_quiet_is_quiet(self):
        write(self.path("t.txt"), text_of(2000, seed=3))
        loud = self.succeeds("data", "prepare", "t.txt", "--out", "loud")
        self.assertIn("train", loud.out)
        self.assertIn("MB/s", loud.err)
        quiet = self.succeeds("data", "prepare", "t.txt", "--out", "quiet", "--quiet", "--json")
        self.assertEqual(quiet.err, "")
        self.assertEqual(json.loads(quiet.out), json.loads(read(self.path("quiet", "data.json"))))
        self.assertIn("rmoe data prepare t.txt --out quiet", quiet.out)

    def test_input_that_cannot_be_used(self):
        write(self.path("empty.txt"), "")
        write(self.path("short.txt"), "abc")
        write(self.path("latin.txt"), "gr\xfc\xdfe ".encode("latin-1") * 100)
        write(self.path("fake.gz"), "not packed")
        write(self.path("torn.txt.gz"), gzip.compress(text_of(3000, seed=4).encode())[:-100])
        write(self.path("key.jsonl"), '{"text": "a"}\n{"txt": "b"}\n')
        write(self.path("torn.jsonl"), '{"text": "a"}\n{"text": "b')
        os.makedirs(self.path("nothing"), exist_ok=True)
        # Readable by nobody, root included.
        os.symlink("/proc/self/mem", self.path("locked.txt"))
        for name, code, *parts in [
            ("missing.txt", 4, "missing.txt: No such file or directory"),
            ("locked.txt", 4, "cannot read locked.txt: "),
            ("short.txt --model nowhere", 4, "cannot read nowhere: No such file"),
            ("empty.txt", 2, "empty.txt: no text"),
            ("nothing", 2, "nothing: no usable file", "--extension"),
            ("fake.gz", 2, "fake.gz: "),
            ("torn.txt.gz", 2, "torn.txt.gz: "),
            ("key.jsonl", 2, "key.jsonl:2: no key 'text'", "--text-key"),
            ("torn.jsonl", 2, "torn.jsonl:2: not valid JSON"),
        ]:
            with self.subTest(name):
                result = self.run_rmoe("data", "prepare", *name.split(), "--out", "bad", "--quiet")
                self.check_error(result, code, *parts)
                self.assertEqual(result.out, "")
                self.assertEqual(glob.glob(self.path("bad*")), [])
        self.fails(2, "data", "prepare", "short.txt", "--out", "bad", "--quiet", says="short.txt: too little text")
        self.fails(2, "data", "prepare", "latin.txt", "--tokenizer", "char", "--out", "bad", "--quiet",
                   says="latin.txt")
        self.fails(2, "data", "prepare", "short.txt", "--tokenizer", "chars", "--out", "bad",
                   says="did you mean 'char'?")
        self.fails(2, "data", "prepare", "--preset", "kvj", "--out", "bad", says="did you mean 'kjv'?")
        self.fails(2, "data", "prepare", "--out", "bad", says="no input")
        self.fails(4, "data", "prepare", "missing.txt", "--sha256", "0", "--out", "bad", says="missing.txt: No such file")
        self.assertEqual(glob.glob(self.path("bad*")), [])

    def test_a_folder_in_use_is_not_replaced(self):
        write(self.path("k.txt"), text_of(1000, seed=5))
        self.succeeds("data", "prepare", "k.txt", "--out", "kept")
        before = tree(self.path("kept"))
        self.fails(2, "data", "prepare", "k.txt", "--out", "kept", says=["kept", "--overwrite"])
        self.assertEqual(tree(self.path("kept")), before)
        self.succeeds("data", "prepare", "k.txt", "--out", "kept", "--overwrite")

    def test_altered_tokens_are_found(self):
        write(self.path("v.txt"), text_of(1000, seed=6))
        self.succeeds("data", "prepare", "v.txt", "--out", "v")
        flip(self.path("v", "valid.tok"))
        self.fails(2, "data", "info", "v", "--verify", says="v/valid.tok")


class DataForTraining(WithData):
    def changed(self, name, change, *parts):
        shutil.copytree(self.path("data"), self.path(name))
        change(self.path(name, *parts))
        return f"--data.path={name}"

    def test_that_is_not_there_or_broken(self):
        run = ["train", "tiny.toml", "--out", "run"]
        self.fails(4, *run, "--data.path=nowhere", says="nowhere/train.tok: ")
        self.fails(2, *run, "--data.path=", says="data.path is not set")
        self.fails(4, *run, self.changed("no-valid", os.remove, "valid.tok"), says="no-valid/valid.tok")
        self.fails(4, *run, self.changed("no-names", os.remove, "tokenizer.json"), says="no-names/tokenizer.json")
        self.fails(2, *run, self.changed("torn", truncate, "train.tok"), says="torn/train.tok")
        self.fails(2, *run, self.changed("magic", lambda path: flip(path, 0), "train.tok"), says="magic/train.tok")
        self.fails(2, *run, self.changed("empty", lambda path: write(path, ""), "train.tok"), says="empty/train.tok")
        self.assertFalse(os.path.exists(self.path("run")))

    def test_with_another_vocabulary_than_the_run(self):
        self.assertEqual(self.train("run", "--train.steps=2").code, 0)
        self.succeeds("data", "prepare", "text.txt", "--tokenizer", "char", "--out", "letters")
        before = tree(self.path("run"))
        self.fails(2, "train", "run/config.toml", "--data.path=letters", "--out", "run",
                   says=["model.vocab_size is 256", "letters has"])
        self.fails(2, "train", "tiny.toml", "--data.path=letters", "--out", "run",
                   says=["run: the run there was configured otherwise", "model.vocab_size"])
        self.fails(2, "eval", "run", "--data", "letters", says=["letters/valid.tok: ", "tokenizer", "data prepare"])
        self.fails(2, "eval", "run", "--data", "letters/test.tok", says="letters/test.tok: ")
        self.assertEqual({**tree(self.path("run")), ".lock": ""}, {**before, ".lock": ""})
        # A folder put together from two.
        shutil.copy(self.path("data", "tokenizer.json"), self.path("letters", "tokenizer.json"))
        self.fails(2, "train", "tiny.toml", "--data.path=letters", "--out", "other", says="letters/train.tok: ")


# ---- a trained run


class Trained(WithRun):
    def test_train_leaves_the_run_folder(self):
        self.assertEqual(self.trained.out, "run\n")
        self.assertIn("step 20/20 100%", self.trained.err)
        for name in ("config.toml", "tokenizer.json", "metrics.jsonl", "summary.json", "samples/final.txt"):
            self.assertTrue(os.path.exists(self.path("run", name)), name)
        self.assertTrue(glob.glob(self.path("run", "tensorboard", "*")))
        self.assertEqual(self.steps("run"), [5, 10, 15, 20])
        files = set(os.listdir(self.path("run", "checkpoints", "step_20")))
        self.assertLessEqual({"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}, files)
        lines = [json.loads(line) for line in read(self.path("run", "metrics.jsonl")).splitlines()]
        self.assertEqual([line["step"] for line in lines if line["kind"] == "train"], [5, 10, 15, 20])
        self.assertEqual([line["step"] for line in lines if line["kind"] == "eval"], [10, 20])
        summary = json.loads(read(self.path("run", "summary.json")))
        self.assertEqual((summary["steps"], summary["finished"], summary["stop"]), (20, True, "steps"))
        self.assertEqual(summary["tokens"], 20 * 4 * 8)

    def test_the_config_in_the_folder_gives_the_run_again(self):
        result = self.succeeds("train", "run/config.toml", "--out", "again", "--json", "--quiet")
        report = json.loads(result.out)
        self.assertEqual((report["run"], report["steps"], report["finished"]), ("again", 20, True))
        self.assertEqual(result.err, "")
        self.assertEqual(self.weights("again", 20), self.weights("run", 20))
        self.assertEqual(read(self.path("again", "config.toml")), read(self.path("run", "config.toml")))

    def test_a_finished_run_is_finished(self):
        run = self.copy_of_run("finished")
        report = json.loads(self.succeeds("train", "tiny.toml", "--out", run, "--json").out)
        self.assertEqual((report["steps"], report["finished"]), (20, True))
        evaluated = [line for line in map(json.loads, read(self.path(run, "metrics.jsonl")).splitlines())
                     if line["kind"] == "eval"]
        self.assertEqual([line["step"] for line in evaluated], [10, 20])
        self.assertEqual(report["valid_bpc"], evaluated[-1]["bpc"])
        self.assertEqual(tree(self.path(run, "checkpoints")), tree(self.path("run", "checkpoints")))
        self.fails(2, "train", "tiny.toml", "--out", run, "--resume", "never", says=f"{run}: holds a run already")
        summary = read(self.path(run, "summary.json"))
        for damaged, part in [("[]", "expected an object"), ('{"stop": 3}', "'stop' is 3, expected a string")]:
            write(self.path(run, "summary.json"), damaged)
            self.fails(2, "train", "tiny.toml", "--out", run, says=[f"{run}/summary.json: ", part])
        write(self.path(run, "summary.json"), summary)
        self.fails(2, "train", "tiny.toml", "--out", run, "--train.optimizer.lr=0.5",
                   says=[f"{run}: the run there was configured otherwise", "train.optimizer.lr"])

    def test_training_survives_the_reader_of_its_output(self):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(self.command("train", "tiny.toml", "--out", "unread"), cwd=self.folder, env=ENVIRONMENT,
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=writer, timeout=PATIENCE)
        os.close(writer)
        self.assertEqual(done.returncode, 0)
        self.assertEqual(self.weights("unread", 20), self.weights("run", 20))

    def test_eval_prints_and_writes_its_numbers(self):
        result = self.succeeds("eval", "run", "--split", "test")
        self.assertRegex(result.out, r"bits per character +\d\.\d{4}\n")
        written = json.loads(read(self.path("run", "eval", "test.json")))
        quiet = self.succeeds("eval", "run", "--split", "test", "--json", "--quiet", "--batch", "1", "--block", "5")
        self.assertEqual(quiet.err, "")
        report = json.loads(quiet.out)
        self.assertEqual((report["split"], report["checkpoint_step"]), ("test", 20))
        self.assertEqual(report["tokens"], written["tokens"])
        # bf16 rounds what the blocks cut differently; tests/unit/eval holds fp32 to 1e-6.
        self.assertAlmostEqual(report["bits_per_character"], written["bits_per_character"], delta=0.01)
        whole = [json.loads(self.succeeds("eval", "run", "--dtype", "fp32", "--json", *cut).out)["bits_per_character"]
                 for cut in (["--batch", "1", "--block", "5"], ["--batch", "7"], ["--block", str(10**12)])]
        self.assertAlmostEqual(whole[0], whole[1], delta=1e-6)
        self.assertAlmostEqual(whole[0], whole[2], delta=1e-6)
        few = json.loads(self.succeeds("eval", "run", "--tokens", "50", "--json").out)
        self.assertEqual(few["tokens"], 50)

    def test_eval_takes_any_checkpoint_and_any_data(self):
        by_step = json.loads(self.succeeds("eval", "run", "--checkpoint", "10", "--json").out)
        self.assertEqual(by_step["checkpoint_step"], 10)
        best = json.loads(self.succeeds("eval", "run", "--checkpoint", "best", "--json").out)
        self.assertEqual(best["checkpoint_step"], json.loads(read(self.path("run", "summary.json")))["best"]["step"])
        own = json.loads(self.succeeds("eval", "run", "--data", "data/test.tok", "--json").out)
        self.assertEqual(own["split"], "test")
        self.fails(2, "eval", "run", "--checkpoint", "7", says=["run: no checkpoint of step 7", "[5, 10, 15, 20]"])
        self.fails(2, "eval", "run", "--checkpoint", "last", says="newest, best or the number of a step")
        self.fails(4, "eval", "nowhere", says="nowhere: no such run folder")
        self.fails(2, "eval", "data", says="data: not a run folder")
        self.fails(2, "eval", "run", "--data", "text.txt", says="text.txt: not a token file")
        self.fails(4, "eval", "run", "--data", "nowhere", says="nowhere: no such data")

    def test_generate_reads_the_prompt_from_argument_file_and_standard_input(self):
        generate = ["generate", "run", "-n", "60", "--seed", "3", "--quiet"]
        from_argument = self.succeeds(*generate, "-p", "the router")
        self.assertEqual(from_argument.err, "")
        self.assertTrue(from_argument.out.endswith("\n"))
        write(self.path("prompt.txt"), "the router\n")
        self.assertEqual(self.succeeds(*generate, "--prompt-file", "prompt.txt").out, from_argument.out)
        self.assertEqual(self.succeeds(*generate, stdin=b"the router\n").out, from_argument.out)
        self.assertEqual(self.succeeds(*generate, "-p", "-", stdin=b"the router\n").out, from_argument.out)
        other_seed = self.succeeds("generate", "run", "-n", "60", "--seed", "4", "-p", "the router").out
        self.assertNotEqual(other_seed, from_argument.out)
        self.fails(4, *generate, "--prompt-file", "nowhere", says="nowhere: No such file")

    def test_generate_reports_as_json_and_stops_where_told(self):
        generate = ["generate", "run", "-p", "the", "-n", "80", "--json", "--seed", "5"]
        report = json.loads(self.succeeds(*generate).out)
        self.assertEqual((report["prompt"], report["prompt_tokens"], report["tokens"]), ("the", 3, 80))
        self.assertEqual(report["ending"], "length")
        stop = next(character for character in report["text"][5:] if character.isascii() and character.isprintable()
                    and not character == "-")
        stopped = json.loads(self.succeeds(*generate, "--stop", stop).out)
        self.assertEqual(stopped["ending"], "stop")
        self.assertEqual(stopped["text"], report["text"].partition(stop)[0])
        self.succeeds("generate", "run", "-p", "the", "-n", "9", "--out", "written.txt")
        self.assertTrue(read(self.path("written.txt")).endswith(b"\n"))
        # Said before anything is generated, which would be lost.
        for out, reason in [("no/such", "No such file or directory"), (".", "Is a directory")]:
            self.fails(4, "generate", "run", "-p", "the", "-n", "1000000", "--out", out,
                       says=f"cannot write {out}: {reason}")
        greedy = [self.succeeds("generate", "run", "-p", "the", "--greedy", "--seed", seed).out for seed in ("1", "2")]
        self.assertEqual(*greedy)

    def test_generate_refuses_what_it_cannot_sample_with(self):
        for flags, part in [(["--temperature", "-1"], "temperature must be at least 0, got -1"),
                            (["--temperature", "inf"], "temperature must be"),
                            (["--temperature", "nan"], "temperature must be"),
                            (["--top-p", "0"], "top_p must be above 0"),
                            (["--top-p", "1.5"], "top_p must be"),
                            (["--top-k", "-2"], "--top-k"),
                            (["--greedy", "--temperature", "1"], "--greedy")]:
            with self.subTest(flags):
                self.fails(2, "generate", "run", "-p", "x", *flags, says=part)

    def test_generate_into_a_pipe_that_closes_ends_quietly(self):
        script = 'set -o pipefail; "$@" | head -c 5'
        command = self.command("generate", "run", "-p", "x", "-n", "1000000")
        done = subprocess.run(["bash", "-c", script, "bash", *command], cwd=self.folder, env=ENVIRONMENT,
                              capture_output=True, timeout=PATIENCE)
        self.assertEqual(len(done.stdout), 5)
        self.assertEqual(done.stderr, b"")
        self.assertEqual(done.returncode, 128 + signal.SIGPIPE)

    def test_compare_lays_runs_side_by_side(self):
        other = ["train", "tiny.toml", "--name=other", "--model.moe.stage.kind=none", "--out", "other", "--quiet"]
        self.succeeds(*other)
        for run in (self.copy_of_run("mine"), "other"):
            self.succeeds("eval", run, "--split", "test", "--quiet")
        text = self.succeeds("compare", "mine", "other", "--quiet")
        self.assertEqual(text.err, "")
        self.assertRegex(text.out, r"(?m)^ +tiny +other$")
        self.assertRegex(text.out, r"(?m)^test bits per character +\d")
        report = json.loads(self.succeeds("compare", "mine", "other", "--json").out)
        self.assertEqual([group["name"] for group in report["groups"]], ["tiny", "other"])
        self.fails(4, "compare", "mine", "nowhere", says="nowhere does not exist")
        self.fails(4, "compare", "mine", "other", "--report", ".", says="cannot write .: Is a directory")


# ---- what must not get lost


class Traces(WithRun):
    """--trace and --replay."""

    def test_is_read_by_numpy_in_three_lines(self):
        self.succeeds("eval", "run", "--tokens", "100", "--trace", "t.npy", "--trace-fields", "tokens,probs,states")
        import numpy as np
        trace = np.load(self.path("t.npy"), mmap_mode="r")
        loads = [np.bincount(trace["ids"][:, layer].ravel(), minlength=4) for layer in range(2)]
        self.assertEqual(trace.shape, (100,))
        self.assertEqual(trace["ids"].shape, (100, 2, 2))
        self.assertEqual([int(load.sum()) for load in loads], [200, 200])
        np.testing.assert_array_equal(trace["position"], np.arange(100))
        np.testing.assert_allclose(trace["probs"].sum(-1), 1, atol=1e-5)
        np.testing.assert_array_equal(trace["probs"].argmax(-1), trace["ids"][:, :, 0])
        np.testing.assert_allclose(trace["weights"].sum(-1), 1, atol=1e-5)
        self.assertEqual(trace["states"].shape, (100, 2, 8))
        self.assertTrue((np.abs(trace["states"]) < 1).all())
        with open(self.path("data", "valid.tok"), "rb") as file:
            np.testing.assert_array_equal(trace["tokens"], np.frombuffer(file.read()[128:228], np.uint8))
        np.testing.assert_array_equal(np.load(self.path("t.npy"))["ids"], trace["ids"])

    def test_tokens_can_be_chosen(self):
        self.succeeds("eval", "run", "--tokens", "100", "--trace", "few.npy", "--trace-tokens", "10:50:20")
        import numpy as np
        self.assertEqual(np.load(self.path("few.npy"))["position"].tolist(), [10, 30])

    def test_replay_gives_the_recorded_loads(self):
        self.succeeds("eval", "run", "--tokens", "100", "--trace", "r.npy")
        plain, replayed = (json.loads(self.succeeds("eval", "run", "--tokens", "100", "--json", *more).out)
                           for more in ([], ["--replay", "r.npy"]))
        self.assertEqual(plain["expert_fraction"], replayed["expert_fraction"])
        self.assertAlmostEqual(plain["nats"] / replayed["nats"], 1, places=2)

    def test_training_and_generating_write_traces_too(self):
        self.train("traced", "--train.steps=4", "--trace", "train.npy", "--trace-every", "2")
        self.succeeds("generate", "run", "-p", "the", "-n", "5", "--trace", "generate.npy")
        import numpy as np
        self.assertEqual(np.unique(np.load(self.path("train.npy"))["step"]).tolist(), [0, 2])
        self.assertEqual(len(np.load(self.path("generate.npy"))), 3 + 4)

    def test_bad_traces_are_said_in_one_line(self):
        self.succeeds("eval", "run", "--tokens", "50", "--trace", "bad.npy")
        self.train("other", "--train.steps=1", "--model.moe.experts=5")
        self.fails(2, "eval", "other", "--tokens", "50", "--replay", "bad.npy", says="another model")
        self.fails(2, "eval", "run", "--split", "test", "--tokens", "50", "--replay", "bad.npy", says="another text")
        self.fails(2, "eval", "run", "--tokens", "60", "--replay", "bad.npy", says="position 50")
        truncate(self.path("bad.npy"))
        for args in (["eval", "run", "--replay", "bad.npy"], ["analyze", "bad.npy", "--out", "x"]):
            self.fails(2, *args, says="truncated")
        self.fails(2, "eval", "run", "--replay", "text.txt", says="not a routing trace")
        self.fails(4, "eval", "run", "--replay", "missing.npy", says="no such trace")
        self.fails(4, "eval", "run", "--trace", "missing/t.npy")
        self.fails(2, "eval", "run", "--trace", "t2.npy", "--trace-fields", "score", says="expected tokens")
        self.fails(2, "eval", "run", "--trace", "t2.npy", "--trace-tokens", "5", says="BEGIN:END:STEP")
        self.fails(2, "eval", "run", "--trace-tokens", "0:5")
        self.assertFalse(glob.glob(self.path("t2.npy*")))


class Analyze(WithRun):
    """`rmoe analyze`: files, report, and what it refuses."""

    def test_writes_json_tables_plots_and_a_page(self):
        result = self.succeeds("analyze", "run", "--tokens", "300", "--json")
        with open(self.path("run", "analysis", "analysis.json")) as file:
            self.assertEqual(json.load(file), json.loads(result.out))
        run = json.loads(result.out)["runs"][0]
        for key in ("mutual_information", "gate_entropy", "balance", "expert_similarity", "router_weights", "selection",
                    "gradients", "paths", "token_kinds", "state_gradient"):
            self.assertIsNotNone(run[key], key)
        page = read(self.path("run", "analysis", "report.html")).decode()
        self.assertNotRegex(page, r"(src|href)=\"(http|//)|<script|@import")
        for title in ("Information shared across layers", "34.68 / 0.915", "Gradient through the state"):
            self.assertIn(title, page)
        plots = glob.glob(self.path("run", "analysis", "plots", "*"))
        self.assertEqual({os.path.splitext(p)[0] for p in plots if p.endswith(".svg")},
                         {os.path.splitext(p)[0] for p in plots if p.endswith(".png")})
        self.assertGreater(len(plots), 20)
        for plot in plots:
            start = read(plot)[:5]
            self.assertIn(start, (b"\x89PNG\r", b"<?xml"), plot)
            self.assertNotIn(b"@@", read(plot) if plot.endswith(".svg") else b"", plot)
            self.assertNotIn(b"var(--", read(plot) if plot.endswith(".svg") else b"", plot)
        import csv
        with open(self.path("run", "analysis", "csv", "selection.csv"), newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(len(rows), 2 * 4)
        self.assertAlmostEqual(sum(float(row["fraction"]) for row in rows), 2)

    def test_puts_runs_side_by_side(self):
        self.train("smoe", "--model.moe.stage={kind = \"none\"}", "--train.steps=3")
        self.fails(2, "analyze", "run", "smoe", says="--out")
        out = self.succeeds("analyze", "run", "smoe", "--tokens", "200", "--out", "both").out
        self.assertIn("both/report.html", out)
        page = read(self.path("both", "report.html")).decode()
        self.assertIn(">smoe</span>", page)
        self.assertIn(">run</span>", page)
        self.assertTrue(os.path.exists(self.path("both", "plots", "mutual_information-2.png")))

    def test_losses_of_several_depths_make_a_plot(self):
        self.train("deep", "--model.layers=4", "--train.steps=3")
        self.succeeds("analyze", "run", "deep", "--tokens", "100", "--gradient-batches", "0", "--out", "depth")
        with open(self.path("depth", "csv", "loss_by_depth.csv")) as file:
            self.assertEqual(sorted(row["layers"] for row in csv.DictReader(file)), ["2", "4"])
        self.assertTrue(os.path.exists(self.path("depth", "plots", "loss_by_depth.svg")))

    def test_from_a_trace(self):
        self.succeeds("eval", "run", "--tokens", "200", "--trace", "a.npy", "--trace-fields", "probs,tokens")
        self.succeeds("analyze", "a.npy", "--out", "alone")
        text = json.loads(self.succeeds("analyze", "run", "--tokens", "200", "--out", "text", "--json").out)["runs"][0]
        alone = json.loads(read(self.path("alone", "analysis.json")))["runs"][0]
        self.assertEqual(text["paths"], alone["paths"])
        self.assertEqual(text["balance"], alone["balance"])
        with_run = self.succeeds("analyze", "run", "--from", "a.npy", "--out", "with", "--json")
        self.assertEqual(json.loads(with_run.out)["runs"][0]["token_kinds"], text["token_kinds"])

    def test_what_it_refuses(self):
        self.fails(4, "analyze", "missing")
        self.fails(2, "analyze", "data", says="not a run folder")
        self.fails(2, "analyze", "run", "--from", "a", "--from", "b", "--out", "x", says="2 traces for 1 runs")
        process = self.start("train", "tiny.toml", "--out", "live", "--train.steps=100000")
        self.wait_for(lambda: os.path.isdir(self.path("live", "checkpoints")) and self.steps("live"), process)
        self.fails(2, "analyze", "live", says="still being written")
        process.kill()
        process.wait()


class BrokenCheckpoints(WithRun):
    DAMAGE = [(name, damage) for name in ("model.safetensors", "state.json", "manifest.json")
              for damage in (truncate, flip, os.remove)]

    def only_newest(self, name):
        run = self.copy_of_run(name)
        for step in (5, 10, 15):
            shutil.rmtree(self.path(run, "checkpoints", f"step_{step}"))
        return run

    def test_are_named_and_not_used(self):
        for i, (name, damage) in enumerate(self.DAMAGE):
            with self.subTest(file=name, damage=damage.__name__):
                run = self.only_newest(f"damaged-{i}")
                file = os.path.join(run, "checkpoints", "step_20", name)
                damage(self.path(file))
                self.fails(2, "eval", run, "--checkpoint", "20", says=file)
                result = self.run_rmoe("generate", run, "-p", "x", "-n", "1")
                self.check_error(result, 2, f"{run}: no whole checkpoint is left: {file}", warnings=True)
                self.assertEqual(result.out, "")

    def test_every_byte_counts(self):
        run = self.only_newest("bytes")
        pick = random.Random(1)
        for name in ("model.safetensors", "optimizer.safetensors", "manifest.json"):
            file = self.path(run, "checkpoints", "step_20", name)
            at = pick.randrange(os.path.getsize(file))
            with self.subTest(name, at=at):
                flip(file, at)
                self.fails(2, "eval", run, "--checkpoint", "20", says=name)
                flip(file, at)
        self.succeeds("eval", run)

    def test_the_one_before_is_used_instead(self):
        run = self.copy_of_run("one")
        flip(self.path(run, "checkpoints", "step_20", "model.safetensors"))
        result = self.succeeds("eval", run, "--json")
        self.assertEqual(json.loads(result.out)["checkpoint_step"], 15)
        self.assertRegex(result.err, r"one/checkpoints/step_20/model\.safetensors: altered.*skipped")

    def test_resuming_skips_them_and_arrives_at_the_same_weights(self):
        run = self.copy_of_run("two")
        flip(self.path(run, "checkpoints", "step_20", "optimizer.safetensors"))
        truncate(self.path(run, "checkpoints", "step_15", "state.json"))
        result = self.train(run, "--resume", "auto")
        self.assertEqual(result.code, 0, result.err)
        self.assertIn("two/checkpoints/step_20/optimizer.safetensors: altered", result.err)
        self.assertIn("two/checkpoints/step_15/state.json: ", result.err)
        self.assertIn("resumed at step 10 of 20", result.err)
        self.assertEqual(self.weights(run, 20), self.weights("run", 20))
        self.succeeds("eval", run, "--checkpoint", "20")

    def test_a_run_without_a_whole_one_is_not_started_over(self):
        run = self.copy_of_run("lost")
        for step in (5, 10, 15, 20):
            flip(self.path(run, "checkpoints", f"step_{step}", "model.safetensors"))
        before = tree(self.path(run))
        for resume in ("auto", "must"):
            result = self.train(run, "--resume", resume)
            self.check_error(result, 2, "lost: none of the run's checkpoints is whole", "  help: ", warnings=True)
            self.assertEqual(result.out, "")
        self.assertEqual({**tree(self.path(run)), ".lock": ""}, {**before, ".lock": ""})

        os.remove(self.path(run, "config.toml"))
        self.fails(2, "train", "tiny.toml", "--out", run, says="lost: holds checkpoints but no config.toml")


class SmallDisk:
    """A disk of 20 MiB at `folder` with 1 MiB left, seen only by commands that start with `prefix`."""

    def __init__(self, folder):
        self.ballast = os.path.join(folder, "ballast")
        script = """mount -t tmpfs -o size=20m rmoe-test "$1" && head -c 19922944 /dev/zero >"$2" &&
                    echo ready && exec sleep 1000"""
        self.holder = None
        # As root; else as a user who may make namespaces of their own.
        for unshare in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
            with contextlib.suppress(OSError):
                holder = subprocess.Popen([*unshare, "sh", "-c", script, "sh", folder, self.ballast],
                                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                if holder.stdout.readline() == b"ready\n":
                    self.holder = holder
                    options = ["--mount"] if len(unshare) == 2 else ["--mount", "--user", "--preserve-credentials"]
                    self.prefix = ["nsenter", "--target", str(holder.pid), *options]
                    return
                self.end(holder)

    def make_room(self):
        subprocess.run([*self.prefix, "rm", self.ballast], check=True)

    @staticmethod
    def end(holder):
        if holder:
            holder.kill()
            holder.wait()
            holder.stdout.close()

    def close(self):
        self.end(self.holder)


class FullDisk(WithRun):
    def test_stops_with_the_file_and_loses_nothing(self):
        os.mkdir(self.path("disk"))
        disk = SmallDisk(self.path("disk"))
        self.addCleanup(disk.close)
        if not disk.holder:
            self.skipTest("needs the right to mount")

        def on_disk(*args):
            in_folder = [*disk.prefix, "sh", "-c", 'cd "$0" && exec "$@"', self.folder]
            done = subprocess.run([*in_folder, *self.command(*args)], env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                                  capture_output=True, text=True, timeout=PATIENCE)
            return Result(done.returncode, done.stdout, done.stderr)

        flags = ["--quiet", "--train.steps=100"]
        train = ["train", "tiny.toml", "--out", "disk/run", *flags]
        result = on_disk(*train)
        self.check_error(result, 4, "disk/run/", "No space left on device")
        self.assertEqual(result.out, "")
        # What was complete before is whole, and no rest of the failed one takes up space.
        inside = f"/proc/{disk.holder.pid}/root{self.folder}/disk/run/checkpoints"
        names = os.listdir(inside)
        newest = max(int(name.removeprefix("step_")) for name in names)
        self.assertGreaterEqual(newest, 5)
        self.assertLess(newest, 100)
        report = json.loads(on_disk("eval", "disk/run", "--json", "--tokens", "20").out)
        self.assertEqual(report["checkpoint_step"], newest)

        again = on_disk(*train)
        self.check_error(again, 4, "disk/run/", "No space left on device")
        disk.make_room()
        self.assertEqual(on_disk(*train), Result(0, "disk/run\n", ""))
        self.assertEqual(self.train("whole", *flags).code, 0)
        self.assertEqual(sha256(os.path.join(inside, "step_100", "model.safetensors")), self.weights("whole", 100))

    def test_a_limit_on_the_size_of_files_is_the_same(self):
        run = self.copy_of_run("limited")
        shutil.rmtree(self.path(run, "checkpoints", "step_20"))
        shutil.rmtree(self.path(run, "checkpoints", "step_15"))
        before = tree(self.path(run, "checkpoints"))
        largest = os.path.getsize(self.path(run, "checkpoints", "step_10", "optimizer.safetensors"))
        result = self.train(run, "--quiet", preexec_fn=limits(FSIZE=largest // 2))
        self.check_error(result, 4, "limited/checkpoints/", "model.safetensors", ": File too large")
        self.assertEqual(tree(self.path(run, "checkpoints")), before)
        self.assertEqual(json.loads(self.succeeds("eval", run, "--json").out)["checkpoint_step"], 10)
        self.assertEqual(self.train(run).code, 0)
        self.assertEqual(self.weights(run, 20), self.weights("run", 20))

    def test_prepared_data_is_whole_or_not_there(self):
        result = self.run_rmoe("data", "prepare", "text.txt", "--out", "cut", "--quiet", preexec_fn=limits(FSIZE=5000))
        self.check_error(result, 4, "train.tok: File too large")
        self.assertEqual(glob.glob(self.path("cut*")), [])


class Signals(WithData):
    """A run of a few seconds, ended in all ways, goes on as if it had not been ended."""

    STEPS = 240
    FLAGS = [f"--train.steps={STEPS}", "--train.checkpoint.every=20", "--train.checkpoint.keep_last=3"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        whole = cls.train("whole", *cls.FLAGS)
        assert whole.code == 0, whole

    def start_run(self, run, *flags):
        return self.start("train", "tiny.toml", "--out", run, *self.FLAGS, *flags)

    def saved(self, run, step):
        return os.path.exists(self.path(run, "checkpoints")) and max(self.steps(run), default=0) >= step

    def logged(self, run):
        metrics = self.path(run, "metrics.jsonl")
        return os.path.exists(metrics) and os.path.getsize(metrics) > 0

    def timeless(self, run):
        lines = [json.loads(line) for line in read(self.path(run, "metrics.jsonl")).splitlines()]
        clock = ("seconds", "tokens_per_s", "peak_share", "memory_bytes")
        return [{key: value for key, value in line.items() if key not in clock} for line in lines]

    def expect_same_as_whole(self, run):
        self.assertEqual(self.weights(run, self.STEPS), self.weights("whole", self.STEPS))
        self.assertEqual(self.timeless(run), self.timeless("whole"))

    def test_killed_twice_and_resumed_the_weights_are_the_same(self):
        for step in (40, 120):
            process = self.start_run("killed")
            self.wait_for(lambda at=step: self.saved("killed", at), process)
            process.kill()
            self.ends(process, -signal.SIGKILL)
        self.assertFalse(self.saved("killed", self.STEPS))
        result = self.train("killed", *self.FLAGS, "--resume", "must")
        self.assertEqual(result.code, 0, result.err)
        self.assertRegex(result.err, rf"resumed at step \d+ of {self.STEPS}")
        self.expect_same_as_whole("killed")

    def test_interrupted_it_saves_and_goes_on_later(self):
        process = self.start_run("interrupted", "--train.checkpoint.every=0")
        self.wait_for(lambda: self.logged("interrupted"), process)
        process.send_signal(signal.SIGINT)
        self.ends(process, 128 + signal.SIGINT)
        self.assertNotIn("rmoe: ", read(process.stderr_path).decode())
        step = self.steps("interrupted")[-1]
        summary = json.loads(read(self.path("interrupted", "summary.json")))
        self.assertEqual((summary["steps"], summary["finished"], summary["stop"]), (step, False, "signal"))
        result = self.train("interrupted", *self.FLAGS)
        self.assertEqual(result.code, 0, result.err)
        self.assertIn(f"resumed at step {step} of {self.STEPS}", result.err)
        self.expect_same_as_whole("interrupted")

    def test_sigterm_saves_and_exits_143(self):
        process = self.start_run("terminated", "--quiet")
        self.wait_for(lambda: self.saved("terminated", 20), process)
        process.terminate()
        self.ends(process, 128 + signal.SIGTERM)
        self.assertEqual(read(process.stderr_path), b"")
        self.succeeds("eval", "terminated", "--tokens", "20", "--checkpoint", str(self.steps("terminated")[-1]))

    def test_a_second_interrupt_ends_at_once(self):
        # The evaluation after step 12, which takes long, does not look at the first one.
        write(self.path("long.txt"), text_of(300_000, seed=7))
        self.succeeds("data", "prepare", "long.txt", "--out", "long", "--valid", "0.9", "--test", "0.01")
        process = self.start("train", "tiny.toml", "--out", "twice", "--data.path=long", "--train.eval.tokens=0",
                             "--train.eval.every=12", "--train.checkpoint.every=10", "--train.log_every=12")
        # Step 12 is logged just before.
        self.wait_for(lambda: self.logged("twice"), process)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        self.assertIsNone(process.poll(), "the evaluation was too short for this test")
        process.send_signal(signal.SIGINT)
        self.ends(process, 128 + signal.SIGINT, within=5)
        self.assertEqual(self.steps("twice"), [10])
        self.succeeds("generate", "twice", "-p", "x", "-n", "1")

    def test_two_trainers_do_not_share_a_folder(self):
        first = self.start_run("shared", "--train.steps=1000000")
        self.addCleanup(first.wait)
        self.addCleanup(first.kill)
        self.wait_for(lambda: self.saved("shared", 20), first)
        self.fails(2, "train", "tiny.toml", "--out", "shared", *self.FLAGS,
                   says=["shared: another trainer is using this run folder", f"(process {first.pid})"])
        self.assertIsNone(first.poll())
        first.kill()
        first.wait()
        step = self.steps("shared")[-1] + 1
        result = self.train("shared", *self.FLAGS, f"--train.steps={step}")
        self.assertEqual(result.code, 0, result.err)


class Divergence(WithData):
    def test_stops_with_3_before_a_checkpoint_is_touched(self):
        flags = ["--train.optimizer.lr=1e30", "--train.optimizer.clip=0", "--train.checkpoint.every=1", "--quiet",
                 "--train.dtype=fp32"]
        result = self.train("wild", *flags)
        self.check_error(result, 3, "no checkpoint was touched", "  help: ")
        self.assertEqual(result.out, "")
        step = int(re.search(r"train: step (\d+): the (loss|gradient norm) is (nan|-?inf);", result.err)[1])
        self.assertEqual(self.steps("wild"), list(range(1, step)))
        before = tree(self.path("wild", "checkpoints"))
        again = self.train("wild", *flags, "--json")
        self.check_error(again, 3, f"train: step {step}: ")
        self.assertEqual(json.loads(again.out)["error"]["code"], 3)
        self.assertEqual(tree(self.path("wild", "checkpoints")), before)


if __name__ == "__main__":
    if RMOE is None:
        sys.exit(__doc__)
    unittest.main()
