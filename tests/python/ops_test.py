#!/usr/bin/env python3
"""Every op from Python: values against the plain formula, opcheck, gradcheck, torch.compile, checkpointing, autocast, and
inputs that do not fit. usage: ops_test.py [unittest arguments]"""
import unittest

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import rmoe
from rmoe import plain

R = torch.ops.rmoe
OPCHECK = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def rand(*shape, dtype=torch.float32, grad=True):
    return torch.randn(*shape, dtype=dtype).requires_grad_(grad)


def stage(dtype, cell="gru", T=5, D=6, P=4, project=True, state=True):
    G = {"gru": 3, "rnn": 1, "lstm": 4}[cell]
    r = lambda *s: rand(*s, dtype=dtype)  # noqa: E731
    return (cell, r(T, D), r(T, P) if state else None, r(T, P) if state and cell == "lstm" else None,
            r(P, D) if project else None, r(G * P, P if project else D), r(G * P, P), r(G * P), r(G * P))


def experts(dtype, T=7, D=5, F=6, N=4, K=2, gated=True, bias=False):
    r = lambda *s: rand(*s, dtype=dtype)  # noqa: E731
    ids = torch.stack([torch.randperm(N)[:K] for _ in range(T)]) if T else torch.zeros(0, K, dtype=torch.long)
    return (r(T, D), ids, r(T, K), r(N, F, D), r(N, F) if bias else None, r(N, D, F), r(N, D) if bias else None,
            r(N, F, D) if gated else None, 0.0, 0, False)


def angles(S, C, dtype):
    angle = torch.arange(S, dtype=dtype).unsqueeze(1) * torch.rand(C // 2, dtype=dtype)
    return angle.cos(), angle.sin()


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


# name -> (op, arguments for a dtype and T, how many results are for users, the plain formula)
def cases(dtype, T=5):
    r = lambda *s: rand(*s, dtype=dtype)  # noqa: E731
    first = lambda f: lambda *a: f(*a[:-1])  # noqa: E731
    cos_sin = lambda: angles(T, 4, wide(dtype))  # noqa: E731
    yield "linear", R.linear, (r(T, 6), r(3, 6), r(3)), plain.linear
    yield "linear_no_bias_3d", R.linear, (r(2, T, 6), r(3, 6), None), plain.linear
    for cell in ("gru", "rnn", "lstm"):
        for state in (True, False):
            yield f"stage_{cell}_{state}", R.recurrent_stage, stage(dtype, cell, T, state=state), plain.recurrent_stage
    yield "stage_shared_projection", R.recurrent_stage, stage(dtype, "gru", T, project=False), plain.recurrent_stage
    for renormalize in (True, False):
        yield f"gate_{renormalize}", R.gate, (r(T, 6), r(5, 6), r(5), 2, renormalize), plain.gate
        yield (f"added_gate_{renormalize}", R.added_gate, (r(T, 6), r(5, 6), r(5), r(T, 5), 2, renormalize),
               plain.added_gate)
    yield "gate_no_bias", R.gate, (r(T, 6), r(5, 6), None, 3, True), plain.gate
    yield "added_gate_no_bias", R.added_gate, (r(T, 6), r(5, 6), None, r(T, 5), 3, True), plain.added_gate
    for gated in (True, False):
        yield f"experts_{gated}", R.experts, experts(dtype, T, gated=gated, bias=not gated), first(plain.experts)
    yield "rms_norm", R.rms_norm, (r(T, 6), r(6), 1e-5), plain.rms_norm
    yield "layer_norm", R.layer_norm, (r(2, T, 6), r(6), r(6), 1e-5), plain.layer_norm
    yield "add_rms_norm", R.add_rms_norm, (r(T, 6), r(T, 6), r(6), 1e-5, 0.0, 0), plain.add_rms_norm
    yield "add_layer_norm", R.add_layer_norm, (r(T, 6), r(T, 6), r(6), r(6), 1e-5, 0.0, 0), plain.add_layer_norm
    yield "rotate", R.rotate, (r(2, T, 3, 4), *cos_sin(), False), plain.rotate
    yield "causal", R.causal_attention, (r(2, T, 4, 4), r(2, T, 2, 4), r(2, T, 2, 4), None, None), plain.causal_attention
    yield ("causal_rotated", R.causal_attention, (r(2, T, 4, 4), r(2, T, 2, 4), r(2, T, 2, 4), *cos_sin()),
           plain.causal_attention)
    yield ("span", R.span_attention, (r(2, 3, T, 4), r(2, 3, 6 + T, 4), r(2, 3, 6 + T, 4), r(4, 6), 0.0, 0),
           plain.span_attention)
    targets = torch.randint(0, 9, (T,))
    targets[:1] = -100
    yield ("cross_entropy", R.linear_cross_entropy, (r(T, 6), r(9, 6), r(9), targets, -100, 0.1, 0.5),
           plain.linear_cross_entropy)


def outputs(result):
    """What of an op's results is for users: everything but empty placeholders."""
    result = result if isinstance(result, (tuple, list)) else (result,)
    return [t for t in result if t is not None and not (t.dim() == 1 and t.shape[0] == 0)]


def differentiable(result):
    return [t for t in outputs(result) if t.requires_grad]


def gradients(op, args, only=None):
    for a in args:
        if isinstance(a, torch.Tensor) and a.requires_grad:
            a.grad = None
    out = differentiable(op(*args))[:only]
    torch.manual_seed(1)
    loss = sum((t * torch.randn(t.shape, dtype=t.dtype)).sum() for t in out)
    loss.backward()
    return [a.grad for a in args if isinstance(a, torch.Tensor) and a.requires_grad]


class Parts(TorchDispatchMode):
    """Keeps one call of each op below autograd for each set of arguments that are there: the backward of every case,
    and what the ops are made of."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "rmoe":
            # Some ops write to what they are given; the copies are as they were.
            kept = [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args]
            kind = tuple(None if a is None else a.dtype if isinstance(a, torch.Tensor) else str(a) for a in args)
            self.calls.setdefault((function, kind), kept)
        return function(*args, **(kwargs or {}))


def registered():
    return {s.name.split("::")[1] for s in torch._C._jit_get_all_schemas() if s.name.startswith("rmoe::")}


class Ops(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)
        torch._dynamo.reset()

    def each(self, dtype, T=5):
        for name, op, args, oracle in cases(dtype, T):
            self.case = f"{name}, {dtype}, T = {T}"
            yield name, op, args, oracle

    def run(self, result=None):
        method = getattr(self, self._testMethodName)

        def named():
            try:
                method()
            except Exception as error:
                error.add_note(f"case: {getattr(self, 'case', '-')}")
                raise

        setattr(self, self._testMethodName, named)
        return super().run(result)

    def close(self, a, b, dtype):
        tolerance = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 6e-2}[dtype]
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, check_stride=False)

    def test_second_derivatives_and_tangents_are_refused(self):
        for dtype in (torch.float32, torch.float64):
            for name, op, args, _ in self.each(dtype):
                if name == "rotate":
                    continue  # linear in x: its backward is itself
                inputs = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
                out = sum(t.square().sum() for t in differentiable(op(*args)))
                found = torch.autograd.grad(out, inputs, create_graph=True, allow_unused=True)
                with self.assertRaisesRegex(RuntimeError, "derivative"):
                    sum(g.square().sum() for g in found if g is not None).backward()
                with torch.autograd.forward_ad.dual_level(), self.assertRaisesRegex(RuntimeError, "jvp is not implemented"):
                    dual = torch.autograd.forward_ad.make_dual(inputs[0].detach(), torch.ones_like(inputs[0]))
                    op(*[dual if a is inputs[0] else a.detach() if isinstance(a, torch.Tensor) else a for a in args])

    def test_ops_are_loaded(self):
        self.assertTrue(rmoe.ops_available)

    def test_values_are_those_of_the_plain_formula(self):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            for T in (0, 1, 5, 17):
                for name, op, args, oracle in self.each(dtype, T):
                    with torch.no_grad():
                        got, expected = outputs(op(*args)), outputs(oracle(*args))
                    for a, b in zip(got, expected):  # what only backward needs comes last
                        self.close(a, b, dtype)

    def test_gradients_are_those_of_the_plain_formula(self):
        for dtype in (torch.float64, torch.float32):
            for T in (0, 5, 17):
                for name, op, args, oracle in self.each(dtype, T):
                    if name.startswith("causal") or name == "span":
                        oracle = lambda *a, f=oracle: (f(*a),)  # noqa: E731
                    for a, b in zip(gradients(op, args), gradients(oracle, args), strict=True):
                        if a is not None or b is not None:  # what is not used: none, or zeros
                            self.close(torch.zeros_like(b) if a is None else a, torch.zeros_like(a) if b is None else b,
                                       dtype)

    def test_opcheck(self):
        for dtype in (torch.float64, torch.float32):
            for name, op, args, _ in self.each(dtype):
                if not name.startswith(("gate", "added_gate")):
                    torch.library.opcheck(op.default, args, test_utils=OPCHECK)
                    continue
                # opcheck sums all results, and cannot add those of a float op whose first result is integer; its
                # backward under AOT is in test_compiled_equals_eager.
                torch.library.opcheck(op.default, args, test_utils=OPCHECK[:-1])
                torch.library.opcheck(op.default, [a.detach() if isinstance(a, torch.Tensor) else a for a in args],
                                      test_utils=OPCHECK)

    def test_opcheck_of_the_parts(self):
        for dtype in (torch.float64, torch.float32):
            with Parts() as parts:
                for _, op, args, _ in self.each(dtype):
                    gradients(op, args)
            for (op, _), args in parts.calls.items():
                self.case = f"{op}, {dtype}"
                torch.library.opcheck(op, args, test_utils=OPCHECK)
            seen = {op.name().split("::")[1] for op, _ in parts.calls} | {op.__name__ for _, op, _, _ in cases(dtype)}
            self.assertEqual(seen, registered())  # an op without a case is an op without tests

    def test_gradcheck(self):
        for name, op, args, _ in self.each(torch.float64, 3):
            def run(*inputs):
                rest = iter(inputs)
                return tuple(differentiable(op(*(next(rest) if isinstance(a, torch.Tensor) and a.requires_grad else a
                                                 for a in args))))
            self.assertTrue(torch.autograd.gradcheck(
                run, [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]))

    def test_compiled_equals_eager(self):
        for dynamic in (False, True):
            for name, op, args, _ in self.each(torch.float32):
                torch._dynamo.reset()
                compiled = torch.compile(lambda *a: outputs(op(*a)), fullgraph=True, backend="aot_eager",
                                         dynamic=dynamic)
                for a, b in zip(compiled(*args), outputs(op(*args)), strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=0)
                for a, b in zip(gradients(lambda *a: tuple(compiled(*a)), args), gradients(op, args), strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=0)

    def test_checkpointed_equals_eager(self):
        for name, op, args, _ in self.each(torch.float32):
            expected = gradients(op, args)
            for reentrant in (True, False):
                again = lambda *a: tuple(  # noqa: E731
                    outputs(checkpoint(lambda *b: tuple(outputs(op(*b))), *a, use_reentrant=reentrant)))
                for a, b in zip(gradients(again, args), expected, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=0)

    def test_any_strides(self):
        for dtype in (torch.float32, torch.bfloat16):
            for name, op, args, _ in self.each(dtype):
                loose = [torch.stack((a, a), -1)[..., 0].detach().requires_grad_(a.requires_grad)
                         if isinstance(a, torch.Tensor) else a for a in args]
                for a, b in zip(outputs(op(*loose)), outputs(op(*args)), strict=True):
                    self.close(a, b, dtype)
                for a, b in zip(gradients(op, loose), gradients(op, args), strict=True):
                    self.close(a, b, dtype)

    def test_wrong_shapes_and_dtypes_are_refused(self):
        for grad in (True, False):
            for name, op, args, _ in self.each(torch.float32):
                for i, a in enumerate(args):
                    if not isinstance(a, torch.Tensor):
                        continue
                    for wrong in (a.detach().unsqueeze(0), a.detach().flatten()[:1].reshape(()),
                                  torch.cat((a.detach(), a.detach()), -1)[..., :-1],
                                  torch.zeros(a.shape, dtype=torch.complex64), a.detach().to(torch.int8)):
                        bad = [*args[:i], wrong, *args[i + 1:]]
                        try:  # what has more rows or fewer may be right, what cannot be right must say so
                            with torch.inference_mode(not grad):
                                op(*bad)
                        except (RuntimeError, IndexError, NotImplementedError) as error:
                            self.assertGreater(len(str(error)), 10)
                            self.assertNotIn("INTERNAL ASSERT", str(error))

    def test_the_formulas_refuse_what_the_ops_refuse(self):
        z = torch.zeros
        cell = lambda kind, state, c, T=3, P=4, G=3: (  # noqa: E731
            kind, z(T, 6), state, c, z(P, 6), z(G * P, P), z(G * P, P), z(G * P), z(G * P))
        for name, args in (("gate", (z(3, 7), z(5, 7), None, 9, True)), ("gate", (z(3, 7), z(5, 7), None, 0, True)),
                           ("gate", (z(3, 7), z(5, 7), z(1), 2, True)),
                           ("added_gate", (z(3, 7), z(5, 7), None, z(1, 5), 2, True)),
                           ("recurrent_stage", cell("gru", z(1, 4), None)),
                           ("recurrent_stage", cell("gru", None, z(3, 4))),
                           ("recurrent_stage", cell("lstm", z(3, 4), z(1, 4), G=4)),
                           ("add_rms_norm", (z(3, 6), z(1, 6), z(6), 1e-5, 0.0, 0)),
                           ("add_layer_norm", (z(3, 6), z(6), z(6), z(6), 1e-5, 0.0, 0)),
                           ("rms_norm", (z(3, 6), z(1), 1e-5)),
                           ("causal_attention", (z(1, 5, 2, 4), z(1, 3, 2, 4), z(1, 3, 2, 4), None, None)),
                           ("causal_attention", (z(2, 3, 2, 4), z(1, 3, 2, 4), z(1, 3, 2, 4), None, None)),
                           ("linear_cross_entropy", (z(3, 6), z(5, 6), None, z(2, dtype=torch.long), -100, 0.0, 1.0))):
            for module in (R, plain):
                with self.subTest(name, module=module), self.assertRaisesRegex(RuntimeError, f"{name}|norm|gate"):
                    getattr(module, name)(*args)

    def test_messages_name_the_op_the_argument_and_what_was_expected(self):
        x, w = torch.zeros(4, 6), torch.zeros(5, 7)
        for inference in (True, False):
            with torch.inference_mode(inference):
                for call, message in (
                        (lambda: R.gate(torch.zeros(4, 6), torch.zeros(5, 7), None, 2, True),
                         r"gate: weight must be \[N, 6\], got \[5, 7\]"),
                        (lambda: R.gate(torch.zeros(4, 7), torch.zeros(5, 7), None, 6, True),
                         "top_k is 6, expected 1 to 5"),
                        (lambda: R.added_gate(torch.zeros(4, 7), torch.zeros(5, 7), None, torch.zeros(4, 4), 2, True),
                         r"added_gate: added must be \[4, 5\], got \[4, 4\]"),
                        (lambda: R.linear_cross_entropy(torch.zeros(2, 6), torch.zeros(5, 6), None,
                                                        torch.tensor([1, 5]), -100, 0.0, 1.0),
                         r"target 5 is outside \[0, 5\)"),
                        (lambda: R.recurrent_stage("gra", *stage(torch.float32)[1:]), "unknown cell 'gra'"),
                        (lambda: R.rms_norm(torch.zeros(2, 6, dtype=torch.long), torch.zeros(6), 1e-5),
                         "norm: x must be of a floating-point type")):
                    with self.assertRaisesRegex(RuntimeError, message):
                        call()

    def test_autocast(self):
        narrow, precise = torch.bfloat16, torch.float32
        with torch.autocast("cpu", dtype=narrow):
            for name, op, args, _ in self.each(precise):
                out = outputs(op(*args))
                expected = narrow if name.split("_")[0] in ("linear", "experts", "causal", "span") else precise
                self.assertEqual(next(t for t in out if t.is_floating_point()).dtype, expected, name)
                sum(t.float().sum() for t in differentiable(out)).backward()
            # What a narrow layer before it gives is read as it is, and the router stays in fp32.
            x, w = torch.randn(4, 6, dtype=narrow), torch.randn(5, 6)
            inside = R.gate(x, w, None, 2, True)[3]
            beside = R.added_gate(x, w, None, torch.ones(4, 5), 2, True)[3]
        torch.testing.assert_close(inside, R.gate(x.float(), w, None, 2, True)[3])
        torch.testing.assert_close(beside, inside + 1)
        with torch.autocast("cpu", dtype=narrow):
            s, _ = R.add_rms_norm(torch.randn(4, 6), torch.randn(4, 6, dtype=narrow), torch.ones(6), 1e-5, 0.0, 0)
        self.assertEqual(s.dtype, precise)

    def test_dropout_is_a_function_of_its_key(self):
        x, branch, w = rand(64, 8), rand(64, 8), torch.ones(8)
        a, b, c = (R.add_rms_norm(x, branch, w, 1e-5, 0.5, key)[0] for key in (3, 3, 4))
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        self.assertFalse(torch.equal(a, c))
        kept = ((a - x).abs() > 0).float().mean().item()
        self.assertAlmostEqual(kept, 0.5, delta=0.1)

    def test_docstrings_say_shapes_and_source(self):
        for name in rmoe.ops.__all__:
            text = getattr(rmoe.ops, name).__doc__
            self.assertTrue(text and "Returns" in text, name)
            if not name.startswith("add_"):
                self.assertIn("Source", text, name)
        public = {n for n in registered() if not n.endswith(("_backward", "_gradients")) and n != "norm"}
        self.assertEqual(public, set(rmoe.ops.__all__))


if __name__ == "__main__":
    unittest.main()
