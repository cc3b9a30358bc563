#!/usr/bin/env python3
"""Modules and balance losses. usage: modules_test.py [unittest arguments]"""
import itertools
import math
import unittest

import torch
from torch.utils.checkpoint import checkpoint

import rmoe
from rmoe import balance


class Stack(torch.nn.Module):
    """Three MoE layers with one cell, the second behind a dense layer that the carry passes by."""

    def __init__(self, stage="gru", share=True, **router):
        super().__init__()
        torch.manual_seed(0)
        cell = rmoe.RecurrentCell(stage, 6) if stage != "none" and share else None
        self.layers = torch.nn.ModuleList(
            [rmoe.MoELayer(8, 5, 2, 7, stage, 6, cell=cell, **router) for _ in range(3)])
        self.dense = torch.nn.Linear(8, 8)

    def forward(self, x, how=lambda layer, x, carry: layer(x, carry)):
        carry, routings = None, []
        for i, layer in enumerate(self.layers):
            y, carry, routing = how(layer, x, carry)
            x = x + y
            if i == 0:
                x = x + torch.tanh(self.dense(x))
            routings.append(routing)
        return x, routings


def loss_of(out):
    x, routings = out
    return x.square().mean() + balance.switch([rmoe.Routing(*r) for r in routings])


def gradients(model, out):
    model.zero_grad()
    loss_of(out).backward()
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


class Modules(unittest.TestCase):
    def test_the_router_is_torchs_cell_and_a_gate(self):
        torch.manual_seed(0)
        for stage, reference in (("gru", torch.nn.GRUCell), ("lstm", torch.nn.LSTMCell), ("rnn", torch.nn.RNNCell)):
            router, cell = rmoe.RecurrentRouter(8, 5, 2, stage, 6, bias=True), reference(6, 6)
            cell.load_state_dict(router.cell.state_dict())
            carry = hidden = None
            for _ in range(3):
                x = torch.randn(2, 4, 8)
                routing, carry = router(x, carry)
                hidden = cell(x.reshape(8, 8) @ router.projection.T, hidden)
                h = hidden[0] if stage == "lstm" else hidden
                torch.testing.assert_close(carry, torch.cat(hidden, 1) if stage == "lstm" else h)
                probs = (h @ router.weight.T + router.bias).softmax(-1)
                top = probs.topk(2)
                torch.testing.assert_close(routing.probs, probs)
                self.assertTrue(torch.equal(routing.ids, top.indices))
                torch.testing.assert_close(routing.weights, top.values / top.values.sum(-1, keepdim=True))
                self.assertEqual(routing.counts.tolist(), torch.bincount(top.indices.flatten(), minlength=5).tolist())

    def test_experts_are_a_sum_over_the_chosen(self):
        torch.manual_seed(0)
        for gated, bias in itertools.product((True, False), (True, False)):
            experts, router = rmoe.GroupedExperts(8, 7, 5, gated=gated, bias=bias), rmoe.RecurrentRouter(8, 5, 2, "none")
            x = torch.randn(2, 4, 8)
            routing, carry = router(x)
            self.assertIsNone(carry)
            y = experts(x, routing)
            self.assertEqual(y.shape, x.shape)
            for t, row in enumerate(x.reshape(8, 8)):
                expected = torch.zeros(8)
                for k in range(2):
                    n, w = routing.ids[t, k], routing.weights[t, k]
                    inner = experts.w1[n] @ row + (experts.b1[n] if bias else 0)
                    inner = torch.nn.functional.silu(inner) * (experts.w3[n] @ row) if gated else inner.relu()
                    expected = expected + w * (experts.w2[n] @ inner + (experts.b2[n] if bias else 0))
                torch.testing.assert_close(y.reshape(8, 8)[t], expected)

    def test_one_cell_is_shared_and_counted_once(self):
        shared, own = Stack(), Stack(share=False)
        self.assertEqual(len({id(layer.router.cell) for layer in shared.layers}), 1)
        count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
        self.assertEqual(count(own) - count(shared), 2 * (2 * 18 * 6 + 2 * 18))
        with self.assertRaisesRegex(ValueError, "expected gru 6 -> 6"):
            rmoe.RecurrentRouter(8, 5, 2, "gru", 6, cell=rmoe.RecurrentCell("gru", 7))

    def test_the_state_carries_gradients_unless_told_otherwise(self):
        for router, reaches in (({}, True), ({"detach_state": True}, False), ({"pass_state": False}, False)):
            model = Stack(**router)
            x = torch.randn(4, 8)
            carry = model.layers[0].router(x)[1]
            routing, _ = model.layers[1].router(x, carry)
            (grad,) = torch.autograd.grad(routing.weights.square().sum(), model.layers[0].router.projection,
                                          allow_unused=True)
            self.assertEqual(grad is not None and bool(grad.abs().sum() > 0), reaches, router)

    def test_checkpointed_equals_eager(self):
        for stage in ("gru", "lstm", "none"):
            model, x = Stack(stage), torch.randn(2, 5, 8, requires_grad=True)
            expected = gradients(model, model(x))
            for reentrant in (True, False):
                def how(layer, x, carry, reentrant=reentrant):
                    def flat(x, carry):
                        y, carry, routing = layer(x, carry)
                        return (y, carry, *routing)
                    y, carry, *routing = checkpoint(flat, x, carry, use_reentrant=reentrant)
                    return y, carry, routing
                got = gradients(model, model(x, how))
                self.assertEqual(set(got), set(expected))
                for key in expected:
                    torch.testing.assert_close(got[key], expected[key])  # up to the order of sums

    def test_compiled_equals_eager(self):
        for stage in ("gru", "lstm"):
            torch._dynamo.reset()
            model = Stack(stage)
            compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
            for T in (6, 6, 9):  # the last one: another shape
                x = torch.randn(T, 8)
                expected, got = gradients(model, model(x)), gradients(model, compiled(x))
                for key in expected:
                    torch.testing.assert_close(got[key], expected[key])

    def test_inductor_compiles_router_and_experts(self):
        torch._dynamo.reset()
        model, x = Stack(), torch.randn(6, 8)
        expected, compiled = gradients(model, model(x)), torch.compile(model, fullgraph=True)
        got = gradients(model, compiled(x))
        for key in expected:
            torch.testing.assert_close(got[key], expected[key], rtol=1e-4, atol=1e-5)

    def test_no_tokens(self):
        model = Stack()
        x, routings = model(torch.zeros(0, 8))
        self.assertEqual(x.shape, (0, 8))
        self.assertEqual(balance.switch(routings).item(), 0)
        loss_of((x, routings)).nan_to_num().backward()

    def test_fallback_gives_the_same(self):
        model, x = Stack(), torch.randn(9, 8)
        fast = gradients(model, model(x))
        try:
            rmoe.ops_available = False
            plain = gradients(model, model(x))
        finally:
            rmoe.ops_available = True
        for key in fast:
            torch.testing.assert_close(fast[key], plain[key], rtol=1e-4, atol=1e-6)


class Balance(unittest.TestCase):
    """docs/balance.md: values at uniform routing, and the formulas by plain loops."""

    def routings(self, L=3, T=8, N=4, K=2):
        torch.manual_seed(1)
        return [rmoe.Routing(*rmoe.ops.gate(torch.randn(T, 6), torch.randn(N, 6), None, K)) for _ in range(L)]

    def uniform(self, L=3, N=4, K=2):
        ids = torch.tensor([[i % N, (i + 1) % N] for i in range(8)])
        probs = torch.full((8, N), 1 / N)
        return [rmoe.Routing(ids, probs[:, :K], probs, torch.zeros(8, N), torch.bincount(ids.flatten()))] * L

    def test_at_uniform_routing(self):
        r = self.uniform()
        for loss, expected in ((balance.switch(r), 1), (balance.small_scale(r), 3 / 2), (balance.concatenated(r), 2),
                               (balance.sequence(r, 2), 1), (balance.z(r), math.log(4) ** 2),
                               (balance.global_batch(r, [balance.counts(x) for x in r]), 1)):
            self.assertAlmostEqual(loss.item(), expected, places=5)

    def test_by_plain_loops(self):
        r, N, K = self.routings(), 4, 2
        layers = []
        for x in r:
            f = [(x.ids == n).sum().item() / x.ids.numel() for n in range(N)]
            P = [x.probs[:, n].mean().item() for n in range(N)]
            layers.append(N * sum(a * b for a, b in zip(f, P)))
        self.assertAlmostEqual(balance.switch(r).item(), sum(layers) / 3, places=5)
        self.assertAlmostEqual(balance.small_scale(r).item(), sum(layers) / K, places=5)
        halves = [[rmoe.Routing(*(t[part] for t in x[:4]), None) for x in r] for part in (slice(0, 4), slice(4, 8))]
        self.assertAlmostEqual(balance.sequence(r, 2).item(),
                               sum(balance.switch(h).item() for h in halves) / 2, places=5)
        total = [balance.counts(x) for x in r]
        self.assertAlmostEqual(sum(balance.global_batch(h, total).item() for h in halves) / 2,
                               balance.switch(r).item(), places=5)
        s = torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.0, 2.0]])
        g = [1 * 3 / (1 * 2), 0, 2 * 3 / (1 * 2)]
        self.assertAlmostEqual(balance.relu_l1([s], 0.1, 1).item(), 0.1 * (g[0] * 0.25 + g[2] * 1.5), places=6)

    def test_padding_counts_nowhere(self):
        r, valid = self.routings(), torch.tensor([True] * 5 + [False] * 3)
        short = [rmoe.Routing(*(t[:5] for t in x[:4]), None) for x in r]
        for name in ("switch", "small_scale", "concatenated", "z"):
            f = getattr(balance, name)
            self.assertAlmostEqual(f(r, valid).item(), f(short).item(), places=5, msg=name)
        self.assertEqual(balance.switch([]).item(), 0)

    def test_gradients_flow_through_probabilities_alone(self):
        x = torch.randn(6, 6, requires_grad=True)
        routing = rmoe.Routing(*rmoe.ops.gate(x, torch.randn(4, 6), None, 2))
        for loss in (balance.switch([routing]), balance.concatenated([routing]), balance.sequence([routing], 2),
                     balance.small_scale([routing]), balance.z([routing])):
            (grad,) = torch.autograd.grad(loss, x, retain_graph=True)
            self.assertGreater(grad.abs().sum().item(), 0)


if __name__ == "__main__":
    unittest.main()
