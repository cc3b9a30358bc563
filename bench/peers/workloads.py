"""The workloads that rmoe and the peers are measured on, by device: shapes and model FLOPs. No torch here."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """Sizes of one workload, in the letters of the code (D width, H heads, N experts, ...)."""

    family: str  # "layer", "llama" or "span"
    layers: int
    width: int
    heads: int
    experts: int
    expert_width: int
    top_k: int
    vocab: int
    batch: int
    length: int
    state: int = 128  # P, width of the recurrent state
    span: int = 0
    dropout: float = 0.0
    prompt: int = 0  # decode: tokens in the cache before the clock starts

    @property
    def tokens(self) -> int:
        return self.batch * self.length


_LLAMA = Shape("llama", layers=8, width=384, heads=6, experts=16, expert_width=384, top_k=2, vocab=32000,
               batch=4, length=512)

# The paper's 0.91 B setting and its medium Enwik8 setting.
_LARGE = Shape("llama", layers=24, width=1280, heads=20, experts=16, expert_width=448, top_k=4, vocab=96512,
               batch=4, length=4096)

_ON_CPU = {
    "layer": Shape("layer", layers=1, width=1280, heads=0, experts=16, expert_width=448, top_k=4, vocab=0,
                   batch=1, length=2048),
    "step": _LLAMA,
    "span": Shape("span", layers=8, width=352, heads=8, experts=16, expert_width=352, top_k=2, vocab=205,
                  batch=4, length=512, span=512, dropout=0.1),
    "prompt": _LLAMA,
    "decode": replace(_LLAMA, batch=1, length=128, prompt=64),
}
_ON_GPU = {
    "layer": replace(_ON_CPU["layer"], length=16384),
    "step": _LARGE,
    "span": replace(_ON_CPU["span"], batch=48, span=2048),
    "prompt": _LARGE,
    "decode": replace(_LARGE, batch=1, length=128, prompt=64),
}
WORKLOADS = {"cpu": _ON_CPU, "cuda": _ON_GPU}  # device -> name -> shape
NAMES = tuple(_ON_CPU)
TRAINING = ("layer", "step", "span")


def model_flops(workload: str, router: str, s: Shape) -> float:
    """Model FLOPs of one iteration; for `decode`, of one token.

    passes * tokens * MACs per token, where passes is 6 with a backward pass (2 forward, 4 back) and 2 without, and
    the MACs per token are those of the active matrices and of attention:
      experts    K * 3 D F (SwiGLU) or K * 2 D F (ReLU)
      router     D N; with the recurrent stage D P + 6 P^2 + P N
      attention  llama 4 D^2, scores and values 2 D (S + 1) / 2 (causal); span: queries and output 2 D^2, keys and
                 values 2 D^2 (S + M) / M (cached positions included), scores, position and values 3 D S
      head       D V (for `prompt` one token per sequence)
    Nothing recomputed counts; embeddings, norms and element-wise work do not count.
    """
    D, F, N, P = s.width, s.expert_width, s.experts, s.state
    layer = s.top_k * (2 if s.family == "span" else 3) * D * F
    layer += D * P + 6 * P * P + P * N if router == "rmoe" else D * N
    if s.family == "llama":
        context = s.prompt + s.length / 2 if workload == "decode" else (s.length + 1) / 2
        layer += 4 * D * D + 2 * D * context
    elif s.family == "span":
        layer += 2 * D * D + 2 * D * D * (s.span + s.length) / s.length + 3 * D * s.span
    tokens = 1 if workload == "decode" else s.tokens
    heads = s.batch if workload == "prompt" else tokens
    passes = 6 if workload in TRAINING else 2
    return passes * (tokens * s.layers * layer + heads * D * s.vocab)
