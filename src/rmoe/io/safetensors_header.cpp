// The text goes through a SAX handler that knows the format's five levels and keeps nothing else; then the ranges and
// sizes are checked against each other and against the file.
#include "rmoe/io/safetensors_header.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>

#include <nlohmann/json.hpp>

#include "rmoe/base/error.h"

namespace rmoe::io {
namespace {

constexpr int kMaxDepth = 127;  // the safetensors package's limit
constexpr char kMetadataKey[] = "__metadata__";

// Bytes of a tensor; nothing when a size is negative, a product does not fit int64, or the elements do not fill whole
// bytes. Multiplied from left to right as the format does, so [huge, huge, 0] overflows.
std::optional<int64_t> tensor_bytes(DType dtype, const std::vector<int64_t>& shape) {
  int64_t elements = 1;
  for (int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(elements, size, &elements)) return std::nullopt;
  }
  // Groups of elements that fill whole bytes: 1 for most types, 2 of F4, 4 of F6.
  int64_t group_bits = std::lcm(dtype_bits(dtype), int64_t{8});
  int64_t group = group_bits / dtype_bits(dtype);
  int64_t bytes = 0;
  if (elements % group != 0 || __builtin_mul_overflow(elements / group, group_bits / 8, &bytes)) return std::nullopt;
  return bytes;
}

// Receives the events of nlohmann's SAX parser (which does not recurse). A method that returns false ends the parsing;
// `error` then says why.
class HeaderReader {
 public:
  using json = nlohmann::json;

  explicit HeaderReader(Header& header) : header_(header) {}

  std::string error;

  bool null() {
    if (ignoring()) return true;
    if (where_ == Where::kMetadataValue) {  // the package reads null as "no metadata"
      where_ = Where::kHeader;
      return true;
    }
    return unexpected("null");
  }
  bool boolean(bool) { return ignoring() || unexpected("a boolean"); }
  bool number_integer(int64_t value) { return ignoring() || not_a_size(value == 0 ? "-0" : str(value)); }
  bool number_unsigned(uint64_t value) {
    if (ignoring()) return true;
    if (where_ != Where::kShape && where_ != Where::kOffsets) return unexpected("a number");
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return not_a_size(str(value));
    if (where_ == Where::kShape) {
      entry().shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (offsets_ == 2) return fail(in_tensor(), "data_offsets has more than 2 numbers");
    (offsets_++ == 0 ? entry().begin : entry().end) = static_cast<int64_t>(value);
    return true;
  }
  bool number_float(double, const std::string& text) { return ignoring() || not_a_size(text); }
  bool string(std::string& value) {
    if (ignoring()) return true;
    if (where_ == Where::kMetadataText) {
      if (!header_.metadata.try_emplace(key_, std::move(value)).second) {
        return fail("", str("__metadata__ has two texts called ", shown(key_)));
      }
      where_ = Where::kMetadata;
      return true;
    }
    if (where_ != Where::kDType) return unexpected("a text");
    std::optional<DType> dtype = dtype_from_name(value);
    if (!dtype) return fail(in_tensor(), str("unknown dtype ", shown(value)));
    entry().dtype = *dtype;
    where_ = Where::kTensor;
    return true;
  }
  bool binary(json::binary_t&) { return unexpected("binary data"); }

  bool start_object(std::size_t) {
    if (!deeper()) return false;
    if (ignoring()) return true;
    switch (where_) {
      case Where::kStart:
        where_ = Where::kHeader;
        return true;
      case Where::kMetadataValue:
        where_ = Where::kMetadata;
        return true;
      case Where::kTensorValue:
        where_ = Where::kTensor;
        return true;
      default:
        return unexpected("an object");
    }
  }
  bool key(std::string& name) {
    if (ignoring()) return true;
    switch (where_) {
      case Where::kHeader:
        if (name == kMetadataKey) {
          if (std::exchange(seen_metadata_, true)) return fail("", "duplicate key \"__metadata__\"");
          where_ = Where::kMetadataValue;
        } else {
          header_.entries.emplace_back().name = std::move(name);
          seen_dtype_ = seen_shape_ = seen_offsets_ = false;
          where_ = Where::kTensorValue;
        }
        return true;
      case Where::kMetadata:
        key_ = std::move(name);
        where_ = Where::kMetadataText;
        return true;
      default:
        return tensor_key(name);
    }
  }
  bool end_object() {
    --depth_;
    if (leave_ignored()) return true;
    if (where_ == Where::kTensor) {
      const char* missing = !seen_dtype_ ? "dtype" : !seen_shape_ ? "shape" : !seen_offsets_ ? "data_offsets" : nullptr;
      if (missing) return fail(in_tensor(), str("has no ", missing));
      where_ = Where::kHeader;
    } else if (where_ == Where::kMetadata) {
      where_ = Where::kHeader;
    }
    return true;
  }
  bool start_array(std::size_t) {
    if (!deeper()) return false;
    if (ignoring()) return true;
    switch (where_) {
      case Where::kShapeValue:
        where_ = Where::kShape;
        return true;
      case Where::kOffsetsValue:
        where_ = Where::kOffsets;
        return true;
      default:
        return unexpected("a list");
    }
  }
  bool end_array() {
    --depth_;
    if (leave_ignored()) return true;
    if (where_ == Where::kOffsets && offsets_ != 2) {
      return fail(in_tensor(), str("data_offsets has ", offsets_, " numbers, expected 2"));
    }
    where_ = Where::kTensor;
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& problem) {
    // nlohmann: "[json.exception...] parse error at line 1, column 9: syntax error while ...; last read: '...'"
    std::string_view text = problem.what();
    std::size_t reason = text.find("syntax error");
    text = reason == text.npos ? "number out of range" : text.substr(reason);
    text = text.substr(0, text.find("; last read"));
    return fail("", str("the header is not valid JSON at byte ", kPrefix + static_cast<int64_t>(position) - 1, ": ",
                        text.substr(0, 200)));
  }

 private:
  enum class Where {
    kStart,
    kHeader,         // expects a tensor's name or __metadata__
    kMetadataValue,  // expects {
    kMetadata,       // expects a key
    kMetadataText,   // expects a text
    kTensorValue,    // expects {
    kTensor,         // expects dtype, shape, data_offsets or something to ignore
    kDType,
    kShapeValue,
    kShape,
    kOffsetsValue,
    kOffsets,
    kIgnored,  // the value of an unknown key of a tensor
  };

  TensorEntry& entry() { return header_.entries.back(); }
  std::string in_tensor() { return str("tensor ", shown(entry().name), ": "); }

  bool fail(const std::string& place, const std::string& reason) {
    error = place + reason;
    return false;
  }
  bool unexpected(const char* what) {
    switch (where_) {
      case Where::kStart:
        return fail("", str("the header is ", what, ", expected an object"));
      case Where::kMetadataValue:
        return fail("", str("__metadata__ is ", what, ", expected an object of texts"));
      case Where::kMetadataText:
        return fail("", str("__metadata__ ", shown(key_), " is ", what, ", expected a text"));
      case Where::kTensorValue:
        return fail(in_tensor(), str("is ", what, ", expected an object"));
      case Where::kDType:
        return fail(in_tensor(), str("dtype is ", what, ", expected a text"));
      case Where::kShapeValue:
        return fail(in_tensor(), str("shape is ", what, ", expected a list"));
      case Where::kOffsetsValue:
        return fail(in_tensor(), str("data_offsets is ", what, ", expected a list"));
      case Where::kShape:
        return fail(in_tensor(), str("shape holds ", what, ", expected whole numbers from 0"));
      default:
        return fail(in_tensor(), str("data_offsets holds ", what, ", expected whole numbers from 0"));
    }
  }
  bool not_a_size(std::string_view number) {
    if (where_ != Where::kShape && where_ != Where::kOffsets) return unexpected("a number");
    return fail(in_tensor(), str(where_ == Where::kShape ? "shape" : "data_offsets", " holds ", number.substr(0, 40),
                                 ", expected whole numbers from 0 to 9223372036854775807"));
  }
  bool deeper() {
    return ++depth_ <= kMaxDepth || fail("", str("the header is nested deeper than ", kMaxDepth, " levels"));
  }

  bool tensor_key(const std::string& name) {
    auto once = [&](bool& seen, Where next) {
      if (std::exchange(seen, true)) return fail(in_tensor(), str("duplicate key \"", name, "\""));
      where_ = next;
      return true;
    };
    if (name == "dtype") return once(seen_dtype_, Where::kDType);
    if (name == "shape") return once(seen_shape_, Where::kShapeValue);
    if (name == "data_offsets") {
      offsets_ = 0;
      return once(seen_offsets_, Where::kOffsetsValue);
    }
    ignored_from_ = depth_;
    where_ = Where::kIgnored;
    return true;
  }

  // Whether the event belongs to the value of an unknown key. A scalar there is the whole value.
  bool ignoring() {
    if (where_ != Where::kIgnored) return false;
    if (depth_ == ignored_from_) where_ = Where::kTensor;
    return true;
  }
  bool leave_ignored() {
    if (where_ != Where::kIgnored) return false;
    if (depth_ == ignored_from_) where_ = Where::kTensor;
    return true;
  }

  Header& header_;
  Where where_ = Where::kStart;
  int depth_ = 0;
  int ignored_from_ = 0;
  int offsets_ = 0;
  bool seen_metadata_ = false;
  bool seen_dtype_ = false;
  bool seen_shape_ = false;
  bool seen_offsets_ = false;
  std::string key_;
};

// Positions of the entries sorted by name; Error naming the first duplicate.
std::vector<uint32_t> sorted_by_name(const std::vector<TensorEntry>& entries, const std::string& path) {
  std::vector<uint32_t> order(entries.size());
  for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  auto name = [&](uint32_t i) -> const std::string& { return entries[i].name; };
  std::ranges::sort(order, {}, name);
  auto same = std::ranges::adjacent_find(order, {}, name);
  if (same != order.end()) input_error(path, ": two tensors are called ", shown(name(*same)));
  return order;
}

}  // namespace

std::string shown(std::string_view text) {
  constexpr std::size_t kLongest = 100;
  bool cut = text.size() > kLongest;
  using json = nlohmann::json;
  std::string quoted = json(text.substr(0, kLongest)).dump(-1, ' ', true, json::error_handler_t::replace);
  return cut ? quoted + "..." : quoted;
}

Header parse_header(std::string_view text, int64_t data_size, const std::string& path) {
  // nlohmann skips a byte order mark and takes a NUL for the end of the text; neither is JSON.
  std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == text.npos || text[first] != '{') input_error(path, ": the header does not begin with '{'");
  if (std::size_t at = text.find('\0'); at != text.npos) {
    input_error(path, ": the header is not valid JSON at byte ", kPrefix + static_cast<int64_t>(at), ": NUL");
  }
  Header header;
  HeaderReader reader(header);
  if (!nlohmann::json::sax_parse(text, &reader)) input_error(path, ": ", reader.error);

  std::ranges::stable_sort(header.entries, {}, [](const TensorEntry& e) { return std::tuple(e.begin, e.end); });
  header.by_name = sorted_by_name(header.entries, path);
  int64_t covered = 0;
  for (const TensorEntry& e : header.entries) {
    auto tensor = [&] { return str(path, ": tensor ", shown(e.name), ": "); };
    if (e.end < e.begin) input_error(tensor(), "data_offsets [", e.begin, ", ", e.end, "] end before they begin");
    if (e.end > data_size) {
      input_error(tensor(), "data_offsets [", e.begin, ", ", e.end, "] reach past the end of the file, which has ",
                  data_size, " bytes of data");
    }
    if (e.begin > covered) input_error(path, ": bytes ", covered, " to ", e.begin, " of the data belong to no tensor");
    if (e.begin < covered) {
      input_error(tensor(), "data_offsets [", e.begin, ", ", e.end, "] overlap the tensor before, which ends at ",
                  covered);
    }
    std::optional<int64_t> bytes = tensor_bytes(e.dtype, e.shape);
    // A rank of millions makes no readable message.
    std::string shape = e.shape.size() <= 16 ? str(e.shape) : str("of ", e.shape.size(), " dimensions");
    if (!bytes) {
      input_error(tensor(), enum_name(e.dtype), " ", shape, " has no valid size in bytes");
    }
    if (*bytes != e.byte_size()) {
      input_error(tensor(), enum_name(e.dtype), " ", shape, " takes ", *bytes, " bytes but data_offsets [", e.begin,
                  ", ", e.end, "] hold ", e.byte_size());
    }
    covered = e.end;
  }
  if (covered != data_size) {
    input_error(path, ": the tensors take ", covered, " bytes but the file has ", data_size, " bytes of data");
  }
  return header;
}

std::vector<TensorEntry> lay_out(const std::vector<TensorSpec>& tensors, const std::string& path) {
  std::vector<TensorEntry> entries;
  entries.reserve(tensors.size());
  for (const TensorSpec& t : tensors) {
    if (t.name == kMetadataKey) input_error(path, ": a tensor cannot be called \"__metadata__\"");
    entries.push_back({t.name, t.dtype, t.shape, 0, 0});
  }
  std::ranges::sort(entries, [](const TensorEntry& a, const TensorEntry& b) {
    return std::tuple(b.dtype, std::string_view(a.name)) < std::tuple(a.dtype, std::string_view(b.name));
  });
  sorted_by_name(entries, path);
  int64_t offset = 0;
  for (TensorEntry& e : entries) {
    std::optional<int64_t> bytes = tensor_bytes(e.dtype, e.shape);
    e.begin = offset;
    if (!bytes || __builtin_add_overflow(offset, *bytes, &offset)) {
      input_error(path, ": tensor ", shown(e.name), ": ", enum_name(e.dtype), " ", e.shape,
                  " has no valid size in bytes");
    }
    e.end = offset;
  }
  return entries;
}

std::string header_text(const std::vector<TensorEntry>& entries, const std::map<std::string, std::string>& metadata,
                        const std::string& path) {
  auto quoted = [&](const std::string& text) {
    try {
      return nlohmann::json(text).dump();
    } catch (const nlohmann::json::type_error&) {
      input_error(path, ": ", shown(text), " is not valid UTF-8");
    }
  };
  std::string out = "{";
  auto separate = [&] {
    if (out.size() > 1) out += ',';
  };
  if (!metadata.empty()) {
    out += str('"', kMetadataKey, "\":{");
    bool first = true;
    for (const auto& [key, value] : metadata) {
      if (!std::exchange(first, false)) out += ',';
      out += quoted(key) + ':' + quoted(value);
    }
    out += '}';
  }
  for (const TensorEntry& e : entries) {
    separate();
    out += quoted(e.name) + ":{\"dtype\":\"" + enum_name(e.dtype) + "\",\"shape\":[";
    for (std::size_t i = 0; i < e.shape.size(); ++i) out += str(i > 0 ? "," : "", e.shape[i]);
    out += "],\"data_offsets\":[" + std::to_string(e.begin) + ',' + std::to_string(e.end) + "]}";
  }
  out += '}';
  out.resize((out.size() + 7) / 8 * 8, ' ');
  return out;
}

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const auto& [dtype, text] : EnumNames<DType>::names) {
    if (name == text) return dtype;
  }
  return std::nullopt;
}

int64_t dtype_bits(DType dtype) {
  switch (dtype) {
    case DType::kF4:
      return 4;
    case DType::kF6E2M3:
    case DType::kF6E3M2:
      return 6;
    case DType::kBool:
    case DType::kU8:
    case DType::kI8:
    case DType::kF8E5M2:
    case DType::kF8E4M3:
    case DType::kF8E8M0:
    case DType::kF8E4M3FNUZ:
    case DType::kF8E5M2FNUZ:
      return 8;
    case DType::kI16:
    case DType::kU16:
    case DType::kF16:
    case DType::kBF16:
      return 16;
    case DType::kI32:
    case DType::kU32:
    case DType::kF32:
      return 32;
    case DType::kC64:
    case DType::kF64:
    case DType::kI64:
    case DType::kU64:
      return 64;
  }
  RMOE_ASSERT(false, "dtype ", static_cast<int>(dtype), " is none");
  return 0;
}

int64_t TensorEntry::numel() const {
  int64_t elements = 1;
  for (int64_t size : shape) elements *= size;  // checked when the entry was made
  return elements;
}

}  // namespace rmoe::io
