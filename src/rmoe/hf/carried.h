// Files of a Hugging Face folder that a run keeps as they are, in RUN/hf/, and that an export puts back. Free of torch.
#pragma once

#include <filesystem>

#include "rmoe/base/error.h"

namespace rmoe::hf {

inline constexpr char kCarriedFolder[] = "hf";
// Tokenizers in every form that transformers reads, and how the model is generated from. config.json is kept as the
// record of what was imported; an export writes its own.
inline constexpr const char* kCarriedFiles[] = {"config.json",
                                                "generation_config.json",
                                                "tokenizer.json",
                                                "tokenizer.model",
                                                "tokenizer_config.json",
                                                "special_tokens_map.json",
                                                "added_tokens.json",
                                                "vocab.json",
                                                "vocab.txt",
                                                "merges.txt",
                                                "chat_template.jinja",
                                                "chat_template.json",
                                                "rmoe_tokenizer.json",
                                                "tokenizer.hf.json"};

// Copies those that are there, over what has their name.
inline void carry(const std::filesystem::path& from, const std::filesystem::path& to) {
  for (const char* name : kCarriedFiles) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(from / name, error)) continue;
    std::filesystem::copy_file(from / name, to / name, std::filesystem::copy_options::overwrite_existing, error);
    if (error) io_error("cannot copy ", (from / name).string(), " to ", to.string(), ": ", error.message());
  }
}

// Hands what the run `from` keeps, if anything, on to a run that is made of its weights.
inline void carry_on(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::error_code error;
  if (!std::filesystem::is_directory(from / kCarriedFolder, error)) return;
  std::filesystem::create_directory(to / kCarriedFolder, error);
  if (error) io_error("cannot make ", (to / kCarriedFolder).string(), ": ", error.message());
  carry(from / kCarriedFolder, to / kCarriedFolder);
}

}  // namespace rmoe::hf
