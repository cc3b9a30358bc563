#!/usr/bin/env python3
"""Loads what `rmoe export` wrote as llama_moe_rnn by transformers' Auto classes, and compares it with what rmoe said.

usage: exported_model.py [--import-rmoe] [--save FILE] FOLDER LOGITS [FOLDER LOGITS]...

LOGITS is the file of `rmoe eval RUN --logits LOGITS`; beside it, LOGITS.json may hold a list of {"prompt", "text"} of
`rmoe generate --greedy`. With --import-rmoe the classes and ops are those of the package; without it the folder's own
files are trusted, and there must be no package. Runs under transformers 4.57 and 5. Exit code 0: all of it agrees.
"""
import argparse
import importlib.util
import json
import os
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")

import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)


def same(got, expected, tolerance, what):
    if got.shape != expected.shape:
        sys.exit(f"{what}: shape {list(got.shape)}, expected {list(expected.shape)}")
    error = (got - expected).abs().max().item() / max(expected.abs().max().item(), 1e-30)
    if not error <= tolerance:
        sys.exit(f"{what}: differs by {error:.3g} of the largest value, expected at most {tolerance:g}")


def gradients(model, tokens):
    model.zero_grad()
    out = model(tokens, labels=tokens, output_router_logits=True)
    out.loss.backward()
    return {"loss": out.loss.detach(), **{k: p.grad for k, p in model.named_parameters() if p.grad is not None}}


def check(model, expected, texts, tokenizer, folder):
    """Returns all that was computed, as tensors."""
    seen, tokens, config = {}, expected["tokens"], model.config
    with torch.no_grad():
        out = model.eval()(tokens, output_router_logits=True)
        if model(tokens).router_logits is not None:
            sys.exit(f"{folder}: router_logits where nobody asked for them")
        plain = model(tokens, return_dict=False)
        if not isinstance(plain, tuple) or not torch.equal(plain[0], out.logits):
            sys.exit(f"{folder}: return_dict=False gives {type(plain)}, expected a tuple with the logits in front")
    same(out.logits, expected["logits"], 1e-5, f"{folder}: logits")
    layers = sum(key.startswith("router_logits.") for key in expected)
    if len(out.router_logits) != layers or layers != config.moe_num_layers:
        sys.exit(f"{folder}: router_logits of {len(out.router_logits)} layers, expected {layers}")
    for i, logits in enumerate(out.router_logits):
        same(logits.reshape(-1, logits.shape[-1]), expected[f"router_logits.{i}"], 1e-5, f"{folder}: router_logits {i}")
        seen[f"router_logits.{i}"] = logits.contiguous()
    balance = config.router_aux_loss_coef * out.aux_loss
    if not abs(balance - expected["balance_loss"]) <= 1e-6:
        sys.exit(f"{folder}: balance loss {balance.item():.8f}, expected {expected['balance_loss'].item():.8f}")
    seen["logits"] = out.logits

    for text in texts:
        ids = tokenizer(text["prompt"], return_tensors="pt").input_ids
        options = dict(max_new_tokens=text["tokens"], do_sample=False, pad_token_id=0)
        cached = model.generate(ids, use_cache=True, **options)
        if not torch.equal(cached, model.generate(ids, use_cache=False, **options)):
            sys.exit(f"{folder}: {text['prompt']!r} is continued differently with a cache and without")
        got = tokenizer.decode(cached[0, ids.shape[1]:], skip_special_tokens=True)
        if got.split() != text["text"].split():
            sys.exit(f"{folder}: {text['prompt']!r} is continued by {got!r}, expected {text['text']!r}")

    plain = gradients(model.train(), tokens)
    for reentrant in (True, False):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        again = gradients(model, tokens)
        if set(again) != set(plain):
            sys.exit(f"{folder}: gradient checkpointing changes what has gradients: {sorted(set(again) ^ set(plain))}")
        for key, value in plain.items():
            same(again[key], value, 1e-5, f"{folder}: {key} with gradient checkpointing")
    return {**seen, **{f"grad.{key}": value for key, value in plain.items()}}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--import-rmoe", action="store_true")
    parser.add_argument("--save")
    parser.add_argument("pairs", nargs="+", metavar="FOLDER LOGITS")
    options = parser.parse_args()
    if options.import_rmoe:
        import rmoe
        if not rmoe.ops_available:
            sys.exit("torch.ops.rmoe is not there")
    elif importlib.util.find_spec("rmoe") is not None:
        sys.exit("this Python finds the package rmoe, expected none: without --import-rmoe the folder has to do")
    import transformers
    saved = {}
    for n, (folder, logits) in enumerate(zip(options.pairs[::2], options.pairs[1::2], strict=True)):
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=not options.import_rmoe, output_loading_info=True)
        if any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
            sys.exit(f"{folder}: not loaded as it is: {loading}")
        module = type(model).__module__
        if module.startswith("rmoe.hf.") != options.import_rmoe:
            sys.exit(f"{folder}: the class is from {module}")
        if hasattr(torch.ops.rmoe, "gate") != options.import_rmoe:
            sys.exit("torch.ops.rmoe is loaded, or is not")
        texts, tokenizer = [], None
        if os.path.exists(logits + ".json"):
            with open(logits + ".json") as file:
                texts = json.load(file)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=not options.import_rmoe)
            if tokenizer.eos_token_id != model.config.eos_token_id:
                sys.exit(f"{folder}: the tokenizer ends texts by {tokenizer.eos_token_id}, config.json by"
                         f" {model.config.eos_token_id}")
        result = check(model, load_file(logits), texts, tokenizer, folder)
        saved.update({f"{n}.{key}": value.detach().clone().contiguous() for key, value in result.items()})
        print(f"{folder}: {len(texts)} texts, logits, routing, balance loss and gradients agree"
              f" (transformers {transformers.__version__}, {module})")
    if options.save:
        save_file(saved, options.save)


if __name__ == "__main__":
    main()
