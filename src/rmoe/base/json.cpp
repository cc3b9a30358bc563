#include "rmoe/base/json.h"

#include <cmath>
#include <unordered_set>
#include <vector>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/utf8.h"

namespace rmoe {
namespace {

// Text of a file made fit for a one-line message: in single quotes, escaped, cut.
std::string shown(const std::string& text) {
  std::string escaped = json_text(text.size() > 100 ? text.substr(0, 97) + "..." : text);
  escaped.front() = escaped.back() = '\'';
  return escaped;
}

// Builds the value without recursion; the parser below it keeps its own stack too.
class Builder : public nlohmann::json_sax<Json> {
 public:
  Builder(std::string_view text, const std::string& what, JsonLimits limits)
      : text_(text), what_(what), limits_(limits) {}

  Json take() { return std::move(root_); }

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t&) override { return put(value); }
  bool string(string_t& value) override { return put(std::move(value)); }
  bool binary(binary_t&) override { return false; }

  bool key(string_t& name) override {
    if (!open_.back().keys.insert(name).second) input_error(what_, ": duplicate key ", shown(name));
    key_ = std::move(name);
    return true;
  }
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    // The library's text, without its own "[json.exception.parse_error.101] parse error at line 1, column 2: ".
    std::string reason = error.what();
    if (size_t at = reason.find("syntax error"); at != std::string::npos) reason.erase(0, at);
    if (size_t at = reason.find("] "); at != std::string::npos && reason.front() == '[') reason.erase(0, at + 2);
    constexpr size_t kLongest = 200;  // it quotes what was read last, which may be long
    if (reason.size() > kLongest) reason = reason.substr(0, kLongest - 3) + "...";
    const std::string_view before = text_.substr(0, position > 0 ? position - 1 : 0);
    int64_t line = 1;
    for (char c : before) line += c == '\n';
    const size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0
    input_error(what_, ":", line, ":", before.size() - line_start + 1, ": ", printable_utf8(reason));
  }

 private:
  struct Open {
    Json* value;
    std::unordered_set<std::string> keys;
  };

  template <class T>
  Json* add(T&& value) {
    if (open_.empty()) {
      root_ = std::forward<T>(value);
      return &root_;
    }
    Json& parent = *open_.back().value;
    if (parent.is_array()) {
      parent.push_back(std::forward<T>(value));
      return &parent.back();
    }
    // Past ordered_json's own insertion, which looks through all keys; duplicates were found above.
    auto& members = parent.get_ref<Json::object_t&>();
    members.Container::emplace_back(std::move(key_), Json(std::forward<T>(value)));
    return &members.back().second;
  }
  template <class T>
  bool put(T&& value) {
    add(std::forward<T>(value));
    return true;
  }
  bool open(Json value) {
    if (static_cast<int64_t>(open_.size()) >= limits_.depth) input_error(what_, ": nested deeper than ", limits_.depth);
    Json* added = add(std::move(value));
    open_.push_back({added, {}});
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  std::string_view text_;
  const std::string& what_;
  JsonLimits limits_;
  Json root_;
  std::vector<Open> open_;
  std::string key_;
};

template <class T>
[[noreturn]] void wrong_type(const Json& value, const char* key, const std::string& what, const T& expected) {
  std::string got = json_text(value);
  if (got.size() > 40) got = got.substr(0, 37) + "...";
  input_error(what, ": '", key, "' is ", got, ", expected ", expected);
}

}  // namespace

Json parse_json(std::string_view text, const std::string& what, JsonLimits limits) {
  RMOE_CHECK(static_cast<int64_t>(text.size()) <= limits.bytes, what, ": ",
             human_bytes(static_cast<int64_t>(text.size())), " of JSON, expected at most ", human_bytes(limits.bytes));
  Builder builder(text, what, limits);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

Json read_json_file(const std::filesystem::path& path, JsonLimits limits) {
  return parse_json(read_file(path, limits.bytes), path.string(), limits);
}

const Json& json_member(const Json& object, const char* key, const std::string& what) {
  RMOE_CHECK(object.is_object(), what, ": expected an object with '", key, "'");
  auto found = object.find(key);
  RMOE_CHECK(found != object.end(), what, ": '", key, "' is missing");
  return *found;
}

int64_t json_int(const Json& object, const char* key, const std::string& what) {
  const Json& value = json_member(object, key, what);
  const bool fits =
      value.is_number_unsigned() ? value.get<uint64_t>() <= uint64_t{INT64_MAX} : value.is_number_integer();
  if (!fits) wrong_type(value, key, what, "an integer of 64 bits");
  return value.get<int64_t>();
}

double json_double(const Json& object, const char* key, const std::string& what) {
  const Json& value = json_member(object, key, what);
  if (!value.is_number()) wrong_type(value, key, what, "a number");
  return value.get<double>();
}

bool json_bool(const Json& object, const char* key, const std::string& what) {
  const Json& value = json_member(object, key, what);
  if (!value.is_boolean()) wrong_type(value, key, what, "true or false");
  return value.get<bool>();
}

std::string json_string(const Json& object, const char* key, const std::string& what) {
  const Json& value = json_member(object, key, what);
  if (!value.is_string()) wrong_type(value, key, what, "a string");
  return value.get<std::string>();
}

std::vector<int64_t> json_ints(const Json& object, const char* key, const std::string& what) {
  RMOE_CHECK(object.is_object(), what, ": expected an object");
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return {};
  const Json list = found->is_array() ? *found : Json::array({*found});
  std::vector<int64_t> ints;
  for (const Json& item : list) {
    if (!item.is_number_integer()) wrong_type(*found, key, what, "an integer, a list of integers or null");
    ints.push_back(item.get<int64_t>());
  }
  return ints;
}

std::string json_text(const Json& value, int indent) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace rmoe
