// What a prepared data folder or a token file holds: the whole of `rmoe data info`.
#pragma once

#include <filesystem>
#include <string>

#include "rmoe/base/json.h"

namespace rmoe::data {

// Of a folder: its data.json, checked against tokenizer.json and the headers of the token files; of a .tok file: its
// header as {"file", "tokens", "vocab_size", "bytes_per_token", "tokenizer_hash", "documents", "bytes", "characters",
// "words"}. With `verify` every token is read and hashed. Throws naming the file that does not fit.
Json info(const std::filesystem::path& path, bool verify = false);

// The same for people, several lines.
std::string info_text(const Json& info);

}  // namespace rmoe::data
