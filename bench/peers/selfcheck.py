"""The styles of the peers compute the same: from the same weights, in fp32 and without dropout, the same loss and the
same gradients to 1e-5, for both routers and all workloads, and the same tokens when decoding; and the grouped ones keep
to the device that they were made on. No test framework.

    python bench/peers/selfcheck.py [--compiled]
"""

import argparse
import contextlib
import dataclasses
import functools
import sys
import zlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor, nn

import models
import ops
from workloads import NAMES, WORKLOADS, Shape

TOLERANCE = 1e-5


def small(workload: str) -> Shape:
    """The workload at a size that is checked in a second, odd where it can be; no dropout."""
    sizes = dict(layers=3, width=48, heads=4 if workload != "layer" else 0, experts=5, expert_width=40, batch=2,
                 length=17, state=24, dropout=0.0)
    shape = WORKLOADS["cpu"][workload]
    if shape.vocab:
        sizes["vocab"] = 97
    if shape.span:
        sizes["span"] = sizes["length"] = 150  # more than a tile of attention
    if shape.prompt:
        sizes |= dict(batch=1, prompt=9)
    if workload == "layer":
        sizes["layers"] = 1
    return dataclasses.replace(shape, **sizes)


def parts(model: nn.Module, of=lambda p: p) -> Iterator[tuple[str, Tensor]]:
    """(name, view) of every matrix of the model, with the same names in both styles: fused ones in their parts."""
    for name, parameter in model.named_parameters():
        value, (scope, _, leaf) = of(parameter), name.rpartition(".")
        if value is None:
            continue
        if leaf == "qkv":
            yield from ((f"{scope}.{n}", v) for n, v in zip("qkv", value.chunk(3)))
        elif leaf == "kv":
            yield from ((f"{scope}.{n}", v) for n, v in zip("kv", value.chunk(2)))
        elif leaf in ("w_in", "w_out", "b_in", "b_out"):
            swiglu = leaf == "w_in" and not any("b_in" in n for n, _ in model.named_parameters())
            short = {"w_in": "w1", "w_out": "w2", "b_in": "b1", "b_out": "b2"}[leaf]
            for n, matrix in enumerate(value.unbind(0)):
                if swiglu:
                    yield from ((f"{scope}.{k}.{n}", v) for k, v in zip(("w1", "w3"), matrix.chunk(2)))
                else:
                    yield f"{scope}.{short}.{n}", matrix
        else:
            yield name, value


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Weights that depend on the names only. Large enough that routing has no near ties."""
    for name, view in parts(model):
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(view.shape, generator=generator) * (0.2 if view.dim() > 1 else 0.05)
        view.copy_(noise + 1 if "norm" in name and not name.endswith("bias") else noise)


def run(workload: str, router: str, style: str) -> dict[str, Tensor]:
    """Outputs and gradients by name."""
    s, recurrent, fast, compiled = small(workload), router == "rmoe", style != "eager", style == "compiled"
    wrap = functools.partial(torch.compile, dynamic=False) if compiled else lambda f: f
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, max(s.vocab, 1), (s.batch, s.length), generator=generator)
    if workload == "layer":
        model = models.MoeLayer(s, fast, torch.float32, recurrent)
        cell = nn.GRUCell(s.state, s.state) if recurrent else None
        fill(model)
        x = torch.randn(s.tokens, s.width, generator=generator).requires_grad_()
        state = torch.randn(s.tokens, s.state, generator=generator).requires_grad_() if recurrent else None
        if cell:
            fill(cell)
        y, h, _ = wrap(model)(x, state, cell)
        (y.square().sum() + (h.square().sum() if recurrent else 0)).backward()
        results = {"y": y, "x.grad": x.grad}
        if recurrent:
            results |= {"h": h, "state.grad": state.grad}
            results |= {f"cell.{n}.grad": p.grad for n, p in cell.named_parameters()}
    elif workload == "span":
        model = models.Span(s, fast, torch.float32, recurrent)
        fill(model)
        pasts = [torch.randn(s.batch, s.span, s.width, generator=generator) for _ in range(s.layers)]
        loss, inputs = wrap(model.loss)(tokens, tokens.roll(-1, 1), pasts)
        loss.backward()
        results = {"loss": loss, "past": torch.stack(inputs)}
    elif workload == "step":
        model = models.Llama(s, fast, torch.float32, recurrent)
        fill(model)
        loss = wrap(model.loss)(tokens, tokens.roll(-1, 1))
        loss.backward()
        results = {"loss": loss}
    else:
        model = models.Llama(s, fast, torch.float32, recurrent, compiled).eval()
        model.requires_grad_(False)
        fill(model)
        if workload == "prompt":
            with torch.inference_mode():
                return {"logits": wrap(model.last_logits)(tokens)}
        caches = [models.FixedCache(s, torch.float32) if fast else models.GrowingCache() for _ in range(s.layers)]
        one = wrap(lambda t, at: model.last_logits(t, at, [cache.at(at) for cache in caches]))
        logits = []
        with torch.no_grad():
            logits.append(model.last_logits(tokens[:, : s.prompt], 0, caches))
            for i in range(s.prompt, s.length):
                token = tokens[:, i : i + 1]
                logits.append(one(token, torch.tensor([i])) if compiled else model.last_logits(token, i, caches))
        return {"logits": torch.stack(logits)}
    return results | {f"{n}.grad": g for n, g in parts(model, lambda p: p.grad)}


def check_dropout() -> bool:
    """The fast mask drops the right share and keeps the mean."""
    x = torch.ones(1_000_003)
    y = ops.fast_dropout(x, 0.1)
    dropped, mean = (y == 0).float().mean().item(), y.mean().item()
    return abs(dropped - 0.1) < 2e-3 and abs(mean - 1) < 2e-3


def check_device(workload: str) -> str:
    """Empty, or what fails where all that a grouped model holds is on another device than the CPU: torch's `meta`."""
    s, dtype = small(workload), torch.bfloat16
    try:
        with torch.device("meta"):
            tokens = torch.randint(0, max(s.vocab, 1), (s.batch, s.length))
            if workload == "layer":
                model, cell = models.MoeLayer(s, True, dtype, True), nn.GRUCell(s.state, s.state)
                inputs = (torch.randn(s.tokens, s.width, dtype=dtype), torch.randn(s.tokens, s.state), cell)
            elif workload == "span":
                pasts = [torch.zeros(s.batch, s.span, s.width, dtype=dtype) for _ in range(s.layers)]
                model, inputs = models.Span(s, True, dtype, True), (tokens, tokens, pasts)
            else:
                model, inputs = models.Llama(s, True, dtype, True), (tokens, tokens)
            position = torch.zeros(1, dtype=torch.int64)
            caches = [models.FixedCache(s, torch.float32) for _ in range(s.layers if s.heads else 0)]
        # meta knows no autocast.
        with mock.patch("torch.autocast", lambda *_, **__: contextlib.nullcontext()):
            if workload == "prompt":
                model.eval().last_logits(tokens)
            elif workload == "decode":
                with torch.no_grad():
                    model.eval().last_logits(tokens[:, :1], position, [cache.at(position) for cache in caches])
            else:
                outputs = model(*inputs) if workload == "layer" else model.loss(*inputs)
                (outputs[0] if isinstance(outputs, tuple) else outputs).sum().backward()
    except (RuntimeError, NotImplementedError) as error:
        return str(error).splitlines()[0]
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", action="store_true", help="torch.compile too (minutes)")
    args = parser.parse_args()
    failed = not check_dropout()
    print(f"dropout: {'wrong' if failed else 'ok'}")
    for workload in NAMES:
        if failure := check_device(workload):
            print(f"{workload} on another device: {failure}  WRONG")
            failed = True
        for router in ("smoe", "rmoe"):
            expected = run(workload, router, "eager")
            for style in ("grouped", "compiled") if args.compiled else ("grouped",):
                torch.compiler.reset()
                got = run(workload, router, style)
                if got.keys() != expected.keys():
                    print(f"{workload} {router} {style}: names differ: {sorted(got.keys() ^ expected.keys())}")
                    failed = True
                    continue
                errors = {n: ((got[n] - e).norm() / (e.norm() + 1e-12)).item() for n, e in expected.items()}
                worst = max(errors, key=errors.get)
                bad = not errors[worst] <= TOLERANCE
                failed |= bad
                print(f"{workload} {router} {style}: {len(errors)} tensors, worst {errors[worst]:.1e} ({worst})"
                      f"{'  WRONG' if bad else ''}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
