#!/usr/bin/env python3
"""The model for transformers against the golden values of the C++ model's tests, with torch.ops.rmoe and without.
usage: hf_test.py [unittest arguments]"""
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import safetensors
import torch

import rmoe  # noqa: F401
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

from rmoe.hf import modeling_llama_moe_rnn as modeling
from rmoe.hf.configuration_llama_moe_rnn import LlamaMoERNNConfig

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"


def without_ops():
    return mock.patch.object(modeling, "_fast", lambda x: False)


def golden(name, dtype=torch.float64):
    with safetensors.safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        meta = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    n = {key: int(value) for key, value in meta.items() if value.isdigit()}
    config = LlamaMoERNNConfig(
        vocab_size=n["vocab"], hidden_size=n["width"], intermediate_size=n["dense_width"] or n["expert_width"],
        num_hidden_layers=n["layers"], num_attention_heads=n["heads"], num_key_value_heads=n["kv_heads"],
        rms_norm_eps=1e-5, num_experts_per_tok=n["top_k"], num_local_experts=n["experts"],
        moe_num_layers=n["layers"] - n["dense_layers"], moe_expert_intermediate_size=n["expert_width"],
        add_moe_share_expert=n["shared_width"] > 0, moe_share_expert_intermediate_size=n["shared_width"],
        moe_router_type=meta["router"], moe_router_rnn_hidden_size=n["state_width"] or 8,
        tie_word_embeddings=meta["tied"] == "true", bos_token_id=0, eos_token_id=None)
    model = modeling.LlamaMoERNNForCausalLM(config).to(dtype)
    weights = {key.removeprefix("param."): value for key, value in tensors.items() if key.startswith("param.")}
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    return model, tensors


def tiny(**kwargs):
    torch.manual_seed(3)
    config = dict(vocab_size=31, hidden_size=24, intermediate_size=20, num_hidden_layers=3, num_attention_heads=4,
                  num_key_value_heads=2, moe_num_layers=2, num_local_experts=4, moe_expert_intermediate_size=10,
                  moe_router_rnn_hidden_size=8, initializer_range=0.3, bos_token_id=1, eos_token_id=None)
    return modeling.LlamaMoERNNForCausalLM(LlamaMoERNNConfig(**{**config, **kwargs}))


class Hf(unittest.TestCase):
    def test_golden_logits_losses_and_gradients(self):
        for name in ("llama_rmoe", "llama_smoe"):
            for context in (contextlib.nullcontext, without_ops):
                model, values = golden(name)
                tokens = values["tokens"][0]
                with context():
                    out = model(tokens[:, :-1], output_router_logits=True)
                    torch.testing.assert_close(out.logits.view_as(values["logits"]), values["logits"], rtol=1e-9,
                                               atol=1e-9)
                    loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), tokens[:, 1:].flatten())
                    torch.testing.assert_close(loss, values["loss"].reshape(()), rtol=1e-9, atol=1e-9)
                    routed = [rmoe.Routing(*rmoe.plain.gate(x, torch.eye(x.shape[1]).to(x), None,
                                                            model.config.num_experts_per_tok, True))
                              for x in out.router_logits]
                    balance = rmoe.balance.switch(routed)
                    torch.testing.assert_close(balance, values["balance"].reshape(()), rtol=1e-9, atol=1e-9)
                    (loss + 0.01 * balance).backward()
                for key, parameter in model.named_parameters():
                    if "grad." + key in values:
                        torch.testing.assert_close(
                            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad,
                            values["grad." + key], rtol=1e-8, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")

    def test_same_numbers_with_and_without_ops(self):
        for kind in ("gru", "rnn", "linear"):
            model = tiny(moe_router_type=kind, add_moe_share_expert=True, add_moe_bias=True)
            torch.nn.init.normal_(model.model.layers[2].block_sparse_moe.bias)
            tokens = torch.randint(0, 31, (2, 9))
            fast = model(tokens, labels=tokens, output_router_logits=True)
            with without_ops():
                plain = model(tokens, labels=tokens, output_router_logits=True)
            for key in ("loss", "aux_loss", "logits"):
                torch.testing.assert_close(fast[key], plain[key], rtol=1e-5, atol=1e-6)

    def test_balance_loss_is_the_concatenated_one_and_ignores_padding(self):
        model = tiny()
        tokens, mask = torch.randint(0, 31, (2, 9)), torch.ones(2, 9, dtype=torch.long)
        mask[1, :4] = 0
        out = model(tokens, attention_mask=mask, labels=tokens, output_router_logits=True)
        routed = [rmoe.Routing(*rmoe.plain.gate(x, torch.eye(4), None, 2, True)) for x in out.router_logits]
        expected = rmoe.balance.concatenated(routed, mask.bool().flatten())
        torch.testing.assert_close(out.aux_loss, expected, rtol=1e-6, atol=1e-6)
        without = model(tokens, attention_mask=mask, labels=tokens).loss
        torch.testing.assert_close(out.loss, without + 0.001 * out.aux_loss)
        uniform = modeling.balance_loss([torch.zeros(8, 4)], 2)
        torch.testing.assert_close(uniform, torch.tensor(2.0))
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
        theirs = load_balancing_loss_func(out.router_logits, 4, 2, mask)
        torch.testing.assert_close(out.aux_loss, theirs, rtol=1e-6, atol=1e-6)

    def test_generation_with_a_cache_equals_without(self):
        model = tiny().eval()
        tokens = torch.randint(0, 31, (2, 6))
        options = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
        cached = model.generate(tokens, use_cache=True, **options)
        self.assertEqual(cached.shape, (2, 14))
        self.assertTrue(torch.equal(cached, model.generate(tokens, use_cache=False, **options)))
        self.assertTrue(torch.equal(cached, model.generate(tokens, cache_implementation="static",
                                                           disable_compile=True, **options)))
        # Padding on the left changes nothing.
        padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), tokens), 1)
        mask = torch.cat((torch.zeros(2, 3, dtype=torch.long), torch.ones_like(tokens)), 1)
        self.assertTrue(torch.equal(cached[:, 6:], model.generate(padded, attention_mask=mask, **options)[:, 9:]))

    def test_token_by_token_equals_one_pass(self):
        model = tiny().eval().double()
        tokens = torch.randint(0, 31, (2, 7))
        with torch.no_grad():
            whole, cache, steps = model(tokens).logits, None, []
            for i in range(7):
                out = model(tokens[:, i:i + 1], past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                steps.append(out.logits)
        torch.testing.assert_close(torch.cat(steps, 1), whole)

    def test_gradient_checkpointing_keeps_the_carry(self):
        for reentrant in (True, False):
            model, tokens = tiny().double().train(), torch.randint(0, 31, (2, 9))

            def gradients():
                model.zero_grad()
                model(tokens, labels=tokens, output_router_logits=True).loss.backward()
                return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}

            expected = gradients()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            self.assertTrue(model.is_gradient_checkpointing)
            got = gradients()
            self.assertEqual(set(got), set(expected))
            self.assertGreater(got["model.rnn_router.weight_hn"].abs().sum().item(), 0)
            for key, value in expected.items():
                torch.testing.assert_close(got[key], value, msg=lambda m, key=key: f"{key}: {m}")

    def test_save_and_load_with_and_without_rmoe(self):
        model, tokens = tiny(add_moe_share_expert=True).eval(), torch.randint(0, 31, (2, 9))
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            expected = model(tokens).logits
            model.save_pretrained(folder)
            self.assertEqual(json.loads(pathlib.Path(f"{folder}/config.json").read_text())["auto_map"]["AutoModelForCausalLM"],
                             "modeling_llama_moe_rnn.LlamaMoERNNForCausalLM")
            with safetensors.safe_open(f"{folder}/model.safetensors", "pt") as file:
                self.assertIn("model.layers.1.block_sparse_moe.experts.3.w2.weight", file.keys())
                self.assertIn("model.rnn_router.weight_hz", file.keys())
                self.assertEqual(set(file.keys()), set(model.state_dict()))
            self.assertIsInstance(AutoConfig.from_pretrained(folder), LlamaMoERNNConfig)
            again = AutoModelForCausalLM.from_pretrained(folder).eval()
            self.assertIsInstance(again, modeling.LlamaMoERNNForCausalLM)
            torch.testing.assert_close(again(tokens).logits, expected, rtol=0, atol=0)
            torch.save((tokens, expected), f"{folder}/expected.pt")
            code = ("import sys, torch\nfrom transformers import AutoModelForCausalLM\n"
                    "m = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
                    "assert 'rmoe' not in sys.modules and not hasattr(torch.ops.rmoe, 'gate')\n"
                    "t, e = torch.load(sys.argv[1] + '/expected.pt')\n"
                    "with torch.no_grad(): torch.testing.assert_close(m(t).logits, e, rtol=1e-5, atol=1e-6)\n")
            with tempfile.TemporaryDirectory() as cache:
                done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True,
                                      env={"PATH": "/usr/bin:/bin", "HOME": cache, "HF_HOME": cache,
                                           "HF_HUB_OFFLINE": "1"})
            self.assertEqual(done.returncode, 0, done.stderr[-2000:])

    def test_static_cache_and_angles_follow_positions(self):
        model = tiny().eval()
        tokens = torch.randint(0, 31, (1, 5))
        with torch.no_grad():
            moved = model(tokens, position_ids=torch.arange(3, 8).unsqueeze(0)).logits
            torch.testing.assert_close(moved, model(tokens).logits, rtol=1e-4, atol=1e-5)  # rotary: distances alone
            cache = StaticCache(config=model.config, max_cache_len=12)
            torch.testing.assert_close(model(tokens, past_key_values=cache).logits, model(tokens).logits, rtol=1e-4,
                                       atol=1e-5)


class Registration(unittest.TestCase):
    def test_whoever_looks_for_transformers_first(self):
        code = ("import rmoe, importlib.util as u, sys; u.find_spec('transformers'); assert 'transformers' not in sys.modules;"
                "from transformers import CONFIG_MAPPING; print('llama_moe_rnn' in CONFIG_MAPPING)")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        self.assertEqual(done.stdout.strip(), "True", done.stderr[-500:])


if __name__ == "__main__":
    unittest.main()
