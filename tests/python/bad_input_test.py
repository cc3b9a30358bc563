"""Malformed Hugging Face folders: each is one line with the file and the place, exit code 2, and no memory beyond the
file's size. What is accepted of a safetensors file is what the safetensors package accepts.

usage: bad_input_test.py RMOE IMPORT_FOLDERS [unittest options]
"""

import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

import numpy
from safetensors import safe_open
from safetensors.numpy import save

RMOE, IMPORT_FOLDERS = (os.path.abspath(p) for p in (sys.argv.pop(1), sys.argv.pop(1)))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
# Reached only by a file that the reader took: the tensors are then compared with those of config.json.
TAKEN = ("its tensors are not those that config.json describes", "but config.json describes a model of at least")
CONFIG = dict(model_type="mixtral", vocab_size=257, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
              num_attention_heads=2, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1,
              max_position_embeddings=32)


def shapes():
    """The tensors of CONFIG."""
    layer = "model.layers.0."
    out = {"model.embed_tokens.weight": (257, 4), "lm_head.weight": (257, 4), "model.norm.weight": (4,),
           layer + "input_layernorm.weight": (4,), layer + "post_attention_layernorm.weight": (4,),
           layer + "block_sparse_moe.gate.weight": (2, 4)}
    for p in "qkvo":
        out[f"{layer}self_attn.{p}_proj.weight"] = (4, 4)
    for e in range(2):
        for w in (1, 2, 3):
            out[f"{layer}block_sparse_moe.experts.{e}.w{w}.weight"] = (4, 4)
    return out


def model():
    return {k: numpy.random.default_rng(i).normal(size=s).astype("float32")
            for i, (k, s) in enumerate(shapes().items())}


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype="F32", shape=(1,), offsets=(0, 4), name="a"):
    return json.dumps({name: {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}})


def two(first, second, names=("a", "b")):
    parts = [json.dumps(n) + ":" + json.dumps({"dtype": "F32", "shape": s, "data_offsets": o})
             for n, (s, o) in zip(names, (first, second))]
    return "{" + ",".join(parts) + "}"


def corpus():
    """(name, bytes): about 200 files, most of them broken."""
    d4, d8, big = b"d" * 4, b"d" * 8, 2**63
    out = {}
    add = out.__setitem__
    good = tensor()
    for n in range(9):
        add(f"only {n} bytes", b"\0" * n)
    for length in (0, 1, len(good) - 1, len(good) + 1, len(good) + 4, len(good) + 5, 1000, 100_000_000, 100_000_001,
                   2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1):
        add(f"header length {length} of {len(good)}", file_of(good, d4, length))
    for data in (b"", b"d", b"d" * 3, b"d" * 5, b"d" * 400):
        add(f"{len(data)} bytes of data for 4", file_of(good, data))
    ranges = [((0, 0)), (0, 3), (0, 5), (1, 5), (4, 0), (4, 8), (4, 4), (-1, 3), (-4, 0), (0, 2**40), (0, 2**63 - 1),
              (2**62, 2**62 + 4), (2**63, 2**63 + 4), (0, 2**64), (0.0, 4), (0, 4.0), ("0", 4), (None, 4), (True, 4),
              (0,), (0, 4, 8), ()]
    for offsets in ranges:
        add(f"range {offsets}", file_of(tensor(offsets=offsets), d4))
    for shape in [(), (0,), (2,), (-1,), (1, -1), (-1, -1), (1, 1, 1, 1), (2**31,), (2**32, 2**32), (2**62, 4),
                  (2**63,),
                  (2**64,), (1.0,), ("1",), (None,), ((1,),), (True,), (2**32, 2**31, 2**31), (1,) * 70]:
        add(f"shape {shape}"[:60], file_of(tensor(shape=shape), d4))
    for dtype in ("F64", "f32", "F33", "", "FLOAT", "F16", "BF16", "U8", "BOOL", "I64", "C64", None, 3, ["F32"],
                  "F32 "):
        add(f"dtype {dtype}", file_of(tensor(dtype=dtype), d4))
    add("two side by side", file_of(two(([1], [0, 4]), ([1], [4, 8])), d8))
    add("two, swapped", file_of(two(([1], [4, 8]), ([1], [0, 4])), d8))
    add("two with the same range", file_of(two(([1], [0, 4]), ([1], [0, 4])), d4))
    add("two overlapping", file_of(two(([1], [0, 4]), ([1], [2, 6])), b"d" * 6))
    add("one inside the other", file_of(two(([2], [0, 8]), ([1], [2, 6])), d8))
    add("a hole between", file_of(two(([1], [0, 4]), ([1], [8, 12])), b"d" * 12))
    add("a hole in front", file_of(two(([1], [4, 8]), ([1], [8, 12])), b"d" * 12))
    add("a hole behind", file_of(two(([1], [0, 4]), ([1], [4, 8])), b"d" * 12))
    add("an empty one between", file_of(two(([0], [0, 0]), ([1], [0, 4])), d4))
    add("an empty one behind", file_of(two(([1], [0, 4]), ([0], [4, 4])), d4))
    add("an empty one inside", file_of(two(([1], [0, 4]), ([0], [2, 2])), d4))
    add("the same name, other ranges", file_of(two(([1], [0, 4]), ([1], [4, 8]), ("a", "a")), d8))
    add("the same name, overlapping", file_of(two(([1], [0, 4]), ([1], [2, 6]), ("a", "a")), b"d" * 6))
    add("the same name three times", file_of("{" + ",".join(['"a":' + json.dumps(json.loads(tensor())["a"])] * 2 +
                                             ['"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}']) + "}", d8))
    for key in ("dtype", "shape", "data_offsets"):
        entry = json.loads(good)["a"]
        twice = json.dumps(entry)[:-1] + "," + json.dumps({key: entry[key]})[1:]
        add(f"'{key}' twice", file_of('{"a":' + twice + "}", d4))
        del entry[key]
        add(f"no '{key}'", file_of(json.dumps({"a": entry}), d4))
    add("an unknown field", file_of('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"extra":1}}', d4))
    for name, header in {"empty": "", "spaces": "   ", "a list": "[]", "a number": "1", "null": "null", "text": '"a"',
                         "nothing in it": "{}", "cut": good[:-1], "cut in a name": '{"a', "more behind": good + "{}",
                         "a comma too many": good[:-1] + ",}", "single quotes": good.replace('"', "'"),
                         "a comment": good + "//", "spaces behind": good + "   ", "zeros behind": good + "\0\0",
                         "tabs in front": "\t\n " + good, "a byte order mark": "\ufeff" + good,
                         "NaN": good.replace("[1]", "[NaN]"), "an exponent": good.replace("[1]", "[1e0]"),
                         "a sign": good.replace("[1]", "[+1]"), "a leading zero": good.replace("[1]", "[01]"),
                         "minus zero": good.replace("[0, 4]", "[-0, 4]"), "no value": '{"a":}', "a null": '{"a":null}',
                         "an empty object": '{"a":{}}', "an empty name": tensor(name=""),
                         "an escape": good.replace('"a"', '"\\u0061"'), "half a pair": good.replace('"a"', '"\\ud800"'),
                         "a bad escape": good.replace('"a"', '"\\x"'),
                         "a control character": good.replace('"a"', '"\n"'),
                         }.items():
        add(f"header: {name}", file_of(header, d4 if '"data_offsets"' in header else b""))
    for depth in (10, 127, 128, 129, 1000, 100_000):
        add(f"{depth} lists deep", file_of("[" * depth + "]" * depth))
        add(f"{depth} objects deep", file_of('{"a":' * depth + "1" + "}" * depth))
        add(f"a shape {depth} deep", file_of('{"a":{"dtype":"F32","shape":' + "[" * depth + "]" * depth +
                                             ',"data_offsets":[0,4]}}', d4))
    for name, raw in {"a lone byte": b"\xff", "a cut character": b"\xc3", "overlong": b"\xc0\x80",
                      "a surrogate": b"\xed\xa0\x80",
                      "beyond Unicode": b"\xf4\x90\x80\x80"}.items():
        add(f"invalid UTF-8 in a name: {name}", file_of(good.encode().replace(b'"a"', b'"' + raw + b'"'), d4))
        add(f"invalid UTF-8 in metadata: {name}", file_of(b'{"__metadata__":{"k":"' + raw + b'"}}'))
    for value in ("1", "null", "[]", '{"k":1}', '{"k":null}', '{"k":{}}', '{"k":[]}', '{"k":"v"}', "{}", '"x"'):
        add(f"metadata {value}", file_of('{"__metadata__":' + value + "}"))
    sound = save({"x": numpy.arange(6, dtype="float32").reshape(2, 3), "y": numpy.zeros(5, dtype="int64")})
    add("sound", sound)
    pick = random.Random(5)
    for i in range(60):  # one byte of a sound header changed; the data are free to be anything
        at = pick.randrange(struct.unpack("<Q", sound[:8])[0] + 8)
        changed = bytearray(sound)
        changed[at] ^= 1 << pick.randrange(8)
        add(f"bit {i} flipped at {at}", bytes(changed))
    for i in range(0, len(sound), 9):
        add(f"cut to {i}", sound[:i])
    return out


# Of these the package takes one reading in silence; we refuse them, as io/safetensors.h says.
STRICTER = {
    "the same name, equal": file_of(two(([1], [0, 4]), ([1], [0, 4]), ("a", "a")), b"d" * 4),
    "metadata twice": file_of('{"__metadata__":{"k":"1","k":"2"}}'),
}


def package_accepts(path):
    try:
        with safe_open(path, "numpy") as file:
            list(file.keys())
        return True
    except Exception:  # whatever it is: the package has several
        return False


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="rmoe-bad-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.tokenizer = os.path.join(self.folder, "tokenizer")
        with open(os.path.join(self.folder, "text"), "w") as file:
            file.write("text\n" * 100)
        subprocess.run([RMOE, "data", "prepare", os.path.join(self.folder, "text"), "--valid", "0", "--test", "0",
                        "--out", self.tokenizer], check=True, capture_output=True, env=ENVIRONMENT)

    def make(self, name, files):
        folder = os.path.join(self.folder, name)
        os.makedirs(folder)
        for file, content in {"config.json": json.dumps(CONFIG), **files}.items():
            with open(os.path.join(folder, file), "wb") as out:
                out.write(content if isinstance(content, bytes) else content.encode())
        return folder

    def results(self, folders):
        done = subprocess.run([IMPORT_FOLDERS, os.path.join(self.folder, "out"), self.tokenizer, *folders],
                              capture_output=True, text=True, env=ENVIRONMENT)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def one_line(self, result, folder):
        self.assertEqual(result["code"], 2, result)
        self.assertTrue(result["message"].startswith(folder), result)
        self.assertTrue(result["message"].isprintable() and len(result["message"]) < len(folder) + 600, result)


class Safetensors(Case):
    def test_accepts_and_refuses_as_the_package_does(self):
        cases = corpus()
        self.assertGreaterEqual(len(cases), 100)
        folders = [self.make(f"f{i}", {"model.safetensors": content}) for i, content in enumerate(cases.values())]
        results = self.results(folders)
        accepted = 0
        for name, folder, result in zip(cases, folders, results):
            with self.subTest(name):
                self.one_line(result, os.path.join(folder, "model.safetensors"))
                ours = any(t in result["message"] for t in TAKEN)
                self.assertEqual(ours, package_accepts(os.path.join(folder, "model.safetensors")), result["message"])
                accepted += ours
        self.assertGreater(accepted, 10)
        self.assertLess(accepted, len(cases) - 100)
        # The files are small, and so is what they cost: the first one pays for what is loaded once.
        self.assertLess(results[-1]["peak_bytes"] - results[0]["peak_bytes"], 16 << 20)

    def test_says_the_place(self):
        for name, content, says in [
            ("product", file_of(tensor(shape=(2,)), b"d" * 4), ['"a"', "8 bytes", "[0, 4]"]),
            ("overlap", file_of(two(([1], [0, 4]), ([1], [2, 6])), b"d" * 6), ['"b"', "overlap"]),
            ("hole", file_of(two(([1], [0, 4]), ([1], [8, 12])), b"d" * 12), ["bytes 4 to 8"]),
            ("length", file_of(tensor(), b"", 2**40), [str(2**40)]),
        ]:
            folder = self.make(name, {"model.safetensors": content})
            done = subprocess.run([RMOE, "import", folder, "--out", folder + "-run"], capture_output=True, text=True,
                                  env=ENVIRONMENT)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertEqual(done.stdout, "")
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            for part in [os.path.join(folder, "model.safetensors"), *says]:
                self.assertIn(part, done.stderr)
            self.assertFalse(os.path.exists(folder + "-run"))

    def test_stricter_where_the_package_drops_one_of_two(self):
        folders = [self.make(f"s{i}", {"model.safetensors": c}) for i, c in enumerate(STRICTER.values())]
        for folder, result in zip(folders, self.results(folders)):
            self.assertTrue(package_accepts(os.path.join(folder, "model.safetensors")))
            self.one_line(result, os.path.join(folder, "model.safetensors"))
            self.assertFalse(any(t in result["message"] for t in TAKEN), result)

    def test_a_whole_folder_is_imported(self):  # or the tests here would pass by refusing everything
        self.assertEqual(self.results([self.make("good", {"model.safetensors": save(model())})])[0]["code"], 0)


class Index(Case):
    def index(self, weight_map, **more):
        return json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map, **more})

    def test_bad_indexes(self):
        name, tensors = "model.safetensors.index.json", model()
        keys = sorted(tensors)
        a = {"a.safetensors": save({k: tensors[k] for k in keys[:7]})}
        parts = {**a, "b.safetensors": save({k: tensors[k] for k in keys[7:]})}
        good = {k: "a.safetensors" if i < 7 else "b.safetensors" for i, k in enumerate(keys)}
        change = lambda **c: self.index({**good, **{keys[0]: v for v in c.values()}})
        outside = os.path.join(self.folder, "outside.safetensors")
        with open(outside, "wb") as file:
            file.write(parts["a.safetensors"])
        bad = {
            "outside by ..": change(f="../outside.safetensors"), "absolute": change(f=outside),
            "the folder": change(f="."),
            "the parent": change(f=".."), "empty": change(f=""), "a folder below": change(f="sub/a.safetensors"),
            "a zero byte": change(f="a\0.safetensors"), "a number": change(f=1), "null": change(f=None),
            "a list": change(f=["a.safetensors"]), "not there": change(f="c.safetensors"),
            "in the other file": change(f="b.safetensors"), "no map": json.dumps({"metadata": {}}),
            "an empty map": self.index({}), "a list for a map": self.index([]), "a text for a map": self.index("x"),
            "a tensor too many": self.index({**good, "extra": "a.safetensors"}),
            "a tensor too few": self.index({k: v for k, v in good.items() if k != keys[0]}),
            "not JSON": "{", "a list": "[]", "nothing": "", "deep": "[" * 5000 + "]" * 5000,
            "deep in the map": '{"weight_map":' + '{"a":' * 5000 + "1" + "}" * 5001,
            "invalid UTF-8": b'{"weight_map":{"\xff":"a.safetensors"}}',
            "a name twice": '{"weight_map":{"x":"a.safetensors","x":"b.safetensors"}}',
            "map twice": '{"weight_map":{},"weight_map":{}}',
        }
        folders = [self.make(f"i{i}", {**parts, name: content}) for i, content in enumerate(bad.values())]
        for case, folder, result in zip(bad, folders, self.results(folders)):
            with self.subTest(case):
                self.one_line(result, os.path.join(folder, name))
        sound = self.make("sound", {**parts, name: self.index(good)})
        broken = self.make("shard", {**parts, "b.safetensors": parts["b.safetensors"][:-1], name: self.index(good)})
        results = self.results([sound, broken])
        self.assertEqual(results[0]["code"], 0, results[0])
        self.one_line(results[1], os.path.join(broken, "b.safetensors"))


class Config(Case):
    def test_bad_configs(self):
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "num_local_experts", "num_experts_per_tok", "max_position_embeddings")
        bad = {}
        for key in sizes:
            for value in (0, -1, 2**31, 10**18, 2**63, 2**64, 1.5, 1e300, "7", True, [1], {}):
                # A position limit changes no size: any 64-bit count up to 10^12 is a sane one.
                if key == "max_position_embeddings" and value == 2**31:
                    continue
                bad[f"{key} = {value}"] = json.dumps({**CONFIG, key: value})
        for key, value in (("rms_norm_eps", 0), ("rms_norm_eps", -1e-5), ("rms_norm_eps", "x"), ("rope_theta", 0),
                           ("rope_theta", -1), ("rope_scaling", 3),
                           ("rope_scaling", {"rope_type": "linear", "factor": -1}),
                           ("rope_scaling", {"rope_type": 3}), ("tie_word_embeddings", 1), ("hidden_act", "tanh"),
                           ("model_type", 7), ("model_type", "bert"), ("router_aux_loss_coef", -1), ("head_dim", 3),
                           ("head_dim", -2), ("num_key_value_heads", 3), ("num_attention_heads", 3),
                           ("initializer_range", -1)):
            bad[f"{key} = {value}"] = json.dumps({**CONFIG, key: value})
        text = json.dumps(CONFIG)
        bad.update({"nothing": "", "a list": "[]", "null": "null", "cut": text[:-1], "more": text + "x",
                    "infinity": text[:-1] + ',"rope_theta":1e999}', "NaN": text[:-1] + ',"rope_theta":NaN}',
                    "twice": text[:-1] + ',"hidden_size":4}', "deep": '{"a":' * 10000 + "1" + "}" * 10000,
                    "invalid UTF-8": text.encode()[:-1] + b',"a":"\xff"}', "no type": "{}",
                    "huge and consistent": json.dumps({**CONFIG, "num_hidden_layers": 5000, "num_local_experts": 20})})
        weights = save(model())
        folders = [self.make(f"c{i}", {"config.json": c, "model.safetensors": weights})
                   for i, c in enumerate(bad.values())]
        results = self.results(folders)
        for case, folder, result in zip(bad, folders, results):
            with self.subTest(case):
                self.assertEqual(result["code"], 2, result)
                self.assertTrue(result["message"].startswith(folder) and result["message"].isprintable(), result)
        self.assertLess(results[-1]["peak_bytes"] - results[0]["peak_bytes"], 16 << 20)


class Shrinking(Case):
    def test_a_file_that_shrinks_while_it_is_read(self):
        """Cut while the command converts it."""
        # The reader takes every tensor through pread, so that a shorter file is an error and no signal; where the cut
        # falls into the reading is up to the machine, so a file is cut that is being read for long.
        config = {**CONFIG, "vocab_size": 4_000_000}
        header, at = {}, 0
        for key, shape in shapes().items():
            shape = [4_000_000 if n == 257 else n for n in shape]
            size = 4 * int(numpy.prod(shape))
            header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
            at += size
        folder = self.make("shrinks", {"config.json": json.dumps(config),
                                       "model.safetensors": file_of(json.dumps(header))})
        path = os.path.join(folder, "model.safetensors")
        os.truncate(path, os.path.getsize(path) + at)
        out = os.path.join(self.folder, "shrunk")
        process = subprocess.Popen([RMOE, "import", folder, "--tokenizer", self.tokenizer, "--out", out],
                                   stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        while process.poll() is None and not any("shrunk.tmp" in n for n in os.listdir(self.folder)):
            pass  # it has checked the header and begins to convert
        os.truncate(path, 1000)
        err = process.communicate()[1]
        self.assertEqual(process.returncode, 2, err)
        self.assertTrue(err.startswith(f"rmoe: {path}: tensor") and "shortened" in err, err)
        self.assertFalse(os.path.exists(out))


if __name__ == "__main__":
    unittest.main()
