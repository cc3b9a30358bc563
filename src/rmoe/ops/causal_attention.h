// Causal attention with rotary positions and grouped queries (reference, sections 3 and 5).
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe {

// Cosines and sines of the rotary angles of consecutive positions (Su et al., 2021): [S, C/2] each, in fp32 or, for
// fp64 inputs, fp64. Undefined: no rotation.
struct RotaryAngles {
  Tensor cos, sin;
};

// The frequencies of a head of width C (even), theta^(-2c/C), [C/2]. type: fp32 or fp64.
Tensor rotary_frequencies(int64_t C, double theta, at::ScalarType type);
// Those of Llama 3.1 for texts longer than its pre-training's `original` positions: a frequency of fewer than `low`
// turns within them is divided by `factor`, one of more than `high` is not, and between them the share grows linearly.
Tensor llama3_frequencies(const Tensor& plain_c, double factor, double low, double high, int64_t original);

// Of positions [first, first + count): channel pair c turns by position * frequency[c]. In the frequencies' type.
RotaryAngles rotary_angles(int64_t first, int64_t count, const Tensor& frequency_c);
// The same with rotary_frequencies(C, theta, type).
RotaryAngles rotary_angles(int64_t first, int64_t count, int64_t C, double theta, at::ScalarType type);

// x [B, S, H, C] turned: channels c and c + C/2 as a pair by the angle [i, c] at position i (Hugging Face's "rotate
// half"). fp32, fp64 or bf16, computed in fp32 at least. Differentiable in x.
Tensor rotate(const Tensor& x_BSHC, const RotaryAngles& angles);

// softmax(q k^T / sqrt(C)) v, where query i of Sq sees the keys 0 .. Sk - Sq + i: its own and all before. q [B, Sq, H,
// C]; k, v [B, Sk, Hkv, C], Sk >= Sq; query head h uses key-value head h / (H / Hkv). With angles (of Sq positions), q
// and k are turned first, and Sk must equal Sq: the keys of a cache are already turned. Any strides. Returns [B, Sq, H,
// C]. fp32, fp64 or bf16, scores and softmax in fp32 at least. Differentiable in q, k and v; keeps the log-sum-exp for
// backward. Throws Error on shapes that do not fit.
Tensor causal_attention(const Tensor& q_BSHC, const Tensor& k_BSHC, const Tensor& v_BSHC, const RotaryAngles& angles);

}  // namespace rmoe
