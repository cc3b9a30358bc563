"""One peer: a workload in one variant of plain PyTorch, as a small server.

    python bench/peers/peer.py step --dtype bf16 --router rmoe --variant grouped --threads 2
    python bench/peers/peer.py step --dtype bf16 --router rmoe --variant compiled --device cuda

Builds the model, warms up, prints {"ready": true, "first_s", "warmup_s", "peak_memory_bytes"}; then one round for
every line on standard input, answered by {"best_s", "median_s", "peak_memory_bytes"}: seconds per iteration, for `decode`
per token. The end of the input ends it. A peer that cannot run prints {"ready": false, "reason"} and exits with 3.
"""

import argparse
import contextlib
import json
import math
import pathlib
import statistics
import sys
import time

import torch

import mixtral
import models
from mixtral import Unavailable
from workloads import NAMES, WORKLOADS, Shape

PLAIN = ("eager", "grouped", "compiled", "onednn")
VARIANTS = (*PLAIN, "mixtral-eager", "mixtral-grouped_mm", "mixtral-batched_mm")


def relative_error_fp32() -> float:
    """Of one fp32 GEMM as it is configured now."""
    a, b = torch.randn(256, 384), torch.randn(384, 256)
    exact = a.double() @ b.double()
    return ((a @ b - exact).norm() / exact.norm()).item()


def half(model: torch.nn.Module) -> torch.nn.Module:
    """bf16 weights, for inference; routers and their cell stay in fp32."""
    model.bfloat16()
    for module in model.modules():
        if isinstance(module, models.Router | torch.nn.GRUCell):
            module.float()
    return model


class Peer:
    """Builds the workload; `self.iterate()` is one iteration, `self.per` the number of results in it."""

    def __init__(self, args: argparse.Namespace):
        self.s: Shape = WORKLOADS[args.device][args.workload]
        self.device = torch.device(args.device)
        self.variant, self.recurrent = args.variant, args.router == "rmoe"
        self.bf16 = args.dtype == "bf16"
        self.fast, self.compiled = args.variant != "eager", args.variant == "compiled"
        self.per = 1
        torch.manual_seed(1)
        name = f"{'mixtral' if self.variant.startswith('mixtral') else 'plain'}_{args.workload}"
        if not hasattr(self, name):
            raise Unavailable(f"transformers' Mixtral has no workload {args.workload!r}")
        if name.startswith("mixtral") and self.recurrent:
            raise Unavailable("transformers' Mixtral has no recurrent router")
        if self.compiled:
            import torch._inductor.config as inductor

            inductor.compile_threads = 1
            # Calls into the generated code cost less, a graph of them on a GPU none; what a token at a time is made of.
            inductor.cpp_wrapper = args.workload == "decode" and args.device == "cpu"
        self.mode = "reduce-overhead" if args.workload == "decode" and args.device == "cuda" else None
        with self.device:
            self.tokens = torch.randint(0, self.s.vocab or 1, (self.s.batch, self.s.length))
            self.targets = self.tokens.roll(-1, 1)
            self.iterate = getattr(self, name)()

    def clock(self) -> float:
        """Seconds of an iteration."""
        self._synchronize()
        begin = time.perf_counter()
        self.iterate()
        self._synchronize()
        return time.perf_counter() - begin

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_memory(self) -> int:
        """Largest resident size since the start of the program; on a GPU the most that tensors took there."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    # Training

    @property
    def dtype(self) -> torch.dtype:
        """Of the explicit casts; the public style leaves them to autocast."""
        return torch.bfloat16 if self.bf16 and self.fast else torch.float32

    def autocast(self):
        on = self.bf16 and (not self.fast or self.variant.startswith("mixtral"))
        return torch.autocast(self.device.type, torch.bfloat16) if on else contextlib.nullcontext()

    def compile(self, f):
        return torch.compile(f, dynamic=False, mode=self.mode) if self.compiled else f

    def plain_layer(self):
        """Input and its gradient in the workload's dtype; weights and their gradients in fp32, as in training."""
        s, dtype = self.s, torch.bfloat16 if self.bf16 else torch.float32
        layer = models.MoeLayer(s, self.fast, self.dtype, self.recurrent)
        cell = torch.nn.GRUCell(s.state, s.state) if self.recurrent else None
        x = torch.randn(s.tokens, s.width).to(dtype).requires_grad_()
        state = torch.randn(s.tokens, s.state).mul_(0.5).requires_grad_() if self.recurrent else None
        grads = [torch.randn_like(x), *([torch.randn_like(state)] if self.recurrent else [])]
        forward = self.compile(layer)
        leaves = [x, *layer.parameters(), *([state, *cell.parameters()] if self.recurrent else [])]

        def iterate():
            for leaf in leaves:
                leaf.grad = None
            with self.autocast():
                y, h, _ = forward(x, state, cell)
            torch.autograd.backward([y, h] if self.recurrent else [y], grads)
        return iterate

    def _train(self, model: torch.nn.Module, loss):
        model.train()
        # One pass over the parameters; the public style takes what AdamW does by itself.
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True if self.fast else None)

        def iterate():
            optimizer.zero_grad()
            with self.autocast():
                value = loss()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return iterate

    def plain_step(self):
        model = models.Llama(self.s, self.fast, self.dtype, self.recurrent)
        loss = self.compile(model.loss)
        return self._train(model, lambda: loss(self.tokens, self.targets))

    def plain_span(self):
        s = self.s
        model = models.Span(s, self.fast, self.dtype, self.recurrent)
        pasts = [torch.zeros(s.batch, s.span, s.width, dtype=self.dtype) for _ in range(s.layers)]
        compiled = self.compile(model.loss)

        def loss():
            value, pasts[:] = compiled(self.tokens, self.targets, pasts)
            return value
        return self._train(model, loss)

    def mixtral_step(self):
        model = mixtral.make(self.s, self.variant.split("-")[1], training=True)
        # Mixtral shifts the labels itself: the same number of predictions but one per sequence.
        return self._train(model, lambda: model(input_ids=self.tokens, labels=self.tokens).loss)

    # Inference

    def _llama(self) -> models.Llama:
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        model = models.Llama(self.s, self.fast, dtype, self.recurrent, self.compiled).eval().requires_grad_(False)
        return half(model) if self.bf16 else model

    def plain_prompt(self):
        model = self._llama()
        forward = self.compile(model.last_logits)
        return torch.inference_mode()(lambda: forward(self.tokens))

    def plain_decode(self):
        s = self.s
        self.per = s.length
        model = self._llama()
        prompt = torch.randint(0, s.vocab, (1, s.prompt))
        if self.fast:
            caches = [models.FixedCache(s, model.embedding.dtype) for _ in range(s.layers)]
        else:
            caches = [models.GrowingCache() for _ in range(s.layers)]
        with torch.inference_mode():
            first = model.last_logits(prompt, 0, caches).argmax(-1, keepdim=True)
        begin = [(cache.k, cache.v) for cache in caches]

        @torch.inference_mode()
        def iterate():
            token = first
            for cache, (k, v) in zip(caches, begin):
                cache.reset(k, v, s.prompt)
            for position in range(s.prompt, s.prompt + s.length):
                token = model.last_logits(token, position, caches).argmax(-1, keepdim=True)

        def one(token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            logits = model.last_logits(token, position, [cache.at(position) for cache in caches])
            return logits.argmax(-1, keepdim=True)
        compiled = self.compile(one)

        @torch.no_grad()
        def iterate_compiled():
            token = first.clone()
            for position in range(s.prompt, s.prompt + s.length):
                token = compiled(token, torch.tensor([position], device=self.device)).clone()
        return iterate_compiled if self.compiled else iterate

    def _mixtral(self):
        model = mixtral.make(self.s, self.variant.split("-")[1], training=False).eval().requires_grad_(False)
        return model.bfloat16() if self.bf16 else model

    def mixtral_prompt(self):
        model = self._mixtral()
        return torch.inference_mode()(lambda: mixtral.last_logits(model, self.tokens))

    def mixtral_decode(self):
        self.per = self.s.length
        model = self._mixtral()
        with torch.inference_mode():
            decoder = mixtral.Decoder(model, torch.randint(0, self.s.vocab, (1, self.s.prompt)))
        return torch.inference_mode()(lambda: decoder(self.s.length))


def say(**fields) -> None:
    print(json.dumps(fields), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=NAMES)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--router", choices=("smoe", "rmoe"), default="rmoe")
    parser.add_argument("--variant", choices=VARIANTS, default="grouped")
    parser.add_argument("--device", choices=WORKLOADS, default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=3, help="iterations before the first round")
    parser.add_argument("--round-s", type=float, default=1.5, help="seconds that a round should take")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    note = {}
    begin = time.perf_counter()
    try:
        if args.variant == "onednn":
            if args.dtype != "fp32" or args.device != "cpu":
                raise Unavailable("the oneDNN setting is for fp32 on a CPU")
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"
            error = relative_error_fp32()
            note = {"relative_error": error}
            if error > 1e-5:
                raise Unavailable(f"oneDNN rounds fp32 to bf16 on this CPU (relative error {error:.1e}): not fp32")
        if args.device == "cuda" and not torch.cuda.is_available():
            raise Unavailable("torch finds no CUDA device")
        peer = Peer(args)
        first = peer.clock()
    except Unavailable as reason:
        say(ready=False, reason=str(reason), **note)
        return 3
    warm = min(peer.clock() for _ in range(max(args.warmup, 1)))
    say(ready=True, first_s=first, warmup_s=time.perf_counter() - begin, peak_memory_bytes=peer.peak_memory(), **note)
    count = max(2, math.ceil(args.round_s / warm))
    for _ in sys.stdin:
        times = [peer.clock() / peer.per for _ in range(count)]
        say(best_s=min(times), median_s=statistics.median(times), peak_memory_bytes=peer.peak_memory())
    return 0


if __name__ == "__main__":
    sys.exit(main())
