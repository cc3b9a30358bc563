// The header of a safetensors file: text to entries and back. Shared by the reader and the writer, for nobody else.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "rmoe/io/safetensors.h"

namespace rmoe::io {

constexpr int64_t kMaxHeader = 100'000'000;
constexpr int64_t kPrefix = 8;  // bytes before the header, which hold its length

struct Header {
  std::vector<TensorEntry> entries;  // in the order of their bytes
  std::vector<uint32_t> by_name;     // positions in entries
  std::map<std::string, std::string> metadata;
};

// `text` is the header, `data_size` the number of bytes that follow it. Error(kBadInput) beginning with `path` unless
// everything agrees.
Header parse_header(std::string_view text, int64_t data_size, const std::string& path);

// The entries in the file's order with their offsets. Error(kBadInput) beginning with `path`.
std::vector<TensorEntry> lay_out(const std::vector<TensorSpec>& tensors, const std::string& path);

// The header of these entries, padded. Error(kBadInput) beginning with `path` for text that is not UTF-8.
std::string header_text(const std::vector<TensorEntry>& entries, const std::map<std::string, std::string>& metadata,
                        const std::string& path);

// Text from a file made fit for a one-line message: quoted, escaped, cut to a readable length.
std::string shown(std::string_view text);

}  // namespace rmoe::io
