// What a model says of every token, as a file: for comparing it with another implementation.
#pragma once

#include <filesystem>

#include "rmoe/eval/evaluate.h"

namespace rmoe {

// Reads the split's windows of options.block inputs (those of evaluate() for the llama family) in one forward pass and
// writes a safetensors file:
//   tokens            I64 [B, S]      the inputs, B full windows
//   logits            F32 [B, S, V]
//   router_logits.L   F32 [B*S, N]    of MoE layer L, counted from 0 among them;  experts.L  I64 [B*S, K]
//   balance_loss      F32 []          the model's balance losses on this batch, weighted and summed
// Error(kBadInput) for a split shorter than a window, or more than 32768 tokens (set options.max_tokens). Only
// block, max_tokens and dtype of the options count.
void write_logits(const Model& model, const data::TokenFile& tokens, const EvalOptions& options,
                  const std::filesystem::path& path);

}  // namespace rmoe
