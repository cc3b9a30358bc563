"""Decoding and prompts beside llama.cpp: makes a GGUF of the `decode` workload's shape with random weights, then lets
`rmoe bench` and llama.cpp's llama-bench take turns.

    python bench/peers/llama_cpp.py PATH/TO/llama-bench [--threads 2] [--rounds 5]

Needs `pip install gguf`, a llama-bench that takes no_vocab models (llama.cpp of 2025 or later), and a quiet machine: both
sides wait in loops, and llama.cpp's threads wait longer when they are interrupted. Its cache of keys and values is fp16.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import tomllib

import gguf
import numpy as np
from compare import ROOT, Program

CONFIG = ROOT / "configs/bench_llama_smoe.toml"
PROMPT, NEW, BLOCK = 64, 128, 512


def write_gguf(path: pathlib.Path, dtype: str) -> None:
    model = tomllib.loads(CONFIG.read_text())["model"]
    moe = model["moe"]
    V, L, D, H = model["vocab_size"], model["layers"], model["width"], model["heads"]
    N, F = moe["experts"], moe["expert_width"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(V)
    writer.add_block_count(L)
    writer.add_context_length(2048)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_expert_feed_forward_length(F)
    writer.add_expert_count(N)
    writer.add_expert_used_count(moe["top_k"])
    writer.add_head_count(H)
    writer.add_head_count_kv(H)
    writer.add_rope_dimension_count(D // H)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    bf16 = dtype == "bf16"
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if bf16 else gguf.LlamaFileType.ALL_F32)
    random = np.random.default_rng(1)

    def add(name: str, *shape: int, fp32: bool = not bf16) -> None:
        values = random.standard_normal(shape, np.float32) * np.float32(0.02)
        if fp32:
            writer.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", V, D)
    add("output_norm.weight", D, fp32=True)
    add("output.weight", V, D)
    for i in range(L):
        for norm in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{norm}.weight", D, fp32=True)
        for matrix in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{matrix}.weight", D, D)
        add(f"blk.{i}.ffn_gate_inp.weight", N, D, fp32=True)
        add(f"blk.{i}.ffn_gate_exps.weight", N, F, D)
        add(f"blk.{i}.ffn_up_exps.weight", N, F, D)
        add(f"blk.{i}.ffn_down_exps.weight", N, D, F)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def theirs(binary: str, model: pathlib.Path, workload: str, threads: int) -> list[float]:
    """Seconds per token of one turn's repetitions."""
    work = ["-p", "0", "-n", str(NEW), "-d", str(PROMPT)] if workload == "decode" else ["-p", str(BLOCK), "-n", "0"]
    command = [binary, "-m", str(model), "-t", str(threads), "-r", "3", "-o", "jsonl", *work]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [1 / rate for line in done.stdout.splitlines() for rate in json.loads(line)["samples_ts"]]


def ours(binary: str, workload: str, dtype: str, threads: int) -> Program:
    words = ["bench", workload, str(CONFIG), f"--train.dtype={dtype}", "--no-plain", "--serve", "--threads", str(threads)]
    if workload == "prompt":
        words.append("--train.batch=1")
    program = Program("rmoe", "smoe", False, [binary, *words])
    program.start(120)
    if program.failure:
        raise SystemExit(f"llama_cpp.py: {' '.join(program.command)}: {program.failure}")
    if workload == "prompt":
        program.units = BLOCK
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("llama_bench")
    parser.add_argument("--rmoe", default=str(ROOT / "build/release/rmoe"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"{'':12s}{'':6s}{'ours tok/s':>12s}{'llama.cpp':>12s}{'ratio':>8s}   (best of all repetitions)")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("bf16", "fp32"):
            model = pathlib.Path(folder) / f"{dtype}.gguf"
            write_gguf(model, dtype)
            for workload in ("decode", "prompt"):
                program = ours(args.rmoe, workload, dtype, args.threads)
                seconds: list[float] = []
                for _ in range(args.rounds):
                    program.round(120)
                    seconds += theirs(args.llama_bench, model, workload, args.threads)
                program.stop()
                print(f"{workload:12s}{dtype:6s}{1 / program.best_s:12.0f}{1 / min(seconds):12.0f}"
                      f"{min(seconds) / program.best_s:8.2f}", flush=True)


if __name__ == "__main__":
    main()
