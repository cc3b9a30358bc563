// JSON from files that cannot be trusted: duplicate keys, deep nesting, huge inputs and invalid UTF-8 are refused, and
// every Error(kBadInput) begins with `what`, which names the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace rmoe {

using Json = nlohmann::ordered_json;

struct JsonLimits {
  int64_t bytes = int64_t{64} << 20;
  int64_t depth = 64;
};

Json parse_json(std::string_view text, const std::string& what, JsonLimits limits = {});
Json read_json_file(const std::filesystem::path& path, JsonLimits limits = {});

// A member of an object, of the type asked for; anything else is an Error: "data.json: 'tokens' is missing". A number
// that int64_t cannot hold, or that has a fraction, is no integer.
const Json& json_member(const Json& object, const char* key, const std::string& what);
int64_t json_int(const Json& object, const char* key, const std::string& what);
double json_double(const Json& object, const char* key, const std::string& what);
bool json_bool(const Json& object, const char* key, const std::string& what);
std::string json_string(const Json& object, const char* key, const std::string& what);

// A member that is an integer or a list of integers; nothing where it is null or missing.
std::vector<int64_t> json_ints(const Json& object, const char* key, const std::string& what);

// Text of a value; `indent` < 0 gives one line. Bytes that are not UTF-8 become U+FFFD, NaN and infinities null.
std::string json_text(const Json& value, int indent = -1);

}  // namespace rmoe
