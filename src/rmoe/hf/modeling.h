// The Python files that an exported llama_moe_rnn folder carries, so that transformers' trust_remote_code can load it.
// Their text is taken in by the build (cmake/embed.cmake) from python/rmoe/hf/.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

namespace rmoe::hf {

// (file name, contents); empty when the build found none.
const std::vector<std::pair<std::string_view, std::string_view>>& modeling_files();

}  // namespace rmoe::hf
