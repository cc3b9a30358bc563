// Causal attention with rotary positions and grouped queries (reference, sections 3 and 5).
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe {

// Cosines and sines of the rotary angles of consecutive positions (Su et al., 2021): [S, C/2] each, in fp32 or, for fp64
// inputs, fp64. Undefined: no rotation.
struct RotaryAngles {
  Tensor cos, sin;
};

// Of positions [first, first + count): channel pair c of a head of width C (even) turns by position * theta^(-2c/C).
// type: fp32 or fp64.
RotaryAngles rotary_angles(int64_t first, int64_t count, int64_t C, double theta, at::ScalarType type);

// x [B, S, H, C] turned: channels c and c + C/2 as a pair by the angle [i, c] at position i (Hugging Face's "rotate
// half"). fp32, fp64 or bf16, computed in fp32 at least. Differentiable in x.
Tensor rotate(const Tensor& x_BSHC, const RotaryAngles& angles);

// softmax(q k^T / sqrt(C)) v, where query i of Sq sees the keys 0 .. Sk - Sq + i: its own and all before. q [B, Sq, H, C];
// k, v [B, Sk, Hkv, C], Sk >= Sq; query head h uses key-value head h / (H / Hkv). With angles (of Sq positions), q and k
// are turned first, and Sk must equal Sq: the keys of a cache are already turned. Any strides. Returns
// [B, Sq, H, C]. fp32, fp64 or bf16, scores and softmax in fp32 at least. Differentiable in q, k and v; keeps the
// log-sum-exp for backward. Throws Error on shapes that do not fit.
Tensor causal_attention(const Tensor& q_BSHC, const Tensor& k_BSHC, const Tensor& v_BSHC, const RotaryAngles& angles);

}  // namespace rmoe
