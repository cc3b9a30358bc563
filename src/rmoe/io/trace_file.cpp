#include "rmoe/io/trace_file.h"

#include <fcntl.h>

#include <charconv>
#include <cstring>
#include <memory>

#include "rmoe/base/error.h"

namespace rmoe::io {
namespace {

constexpr std::string_view kMagic("\x93NUMPY\x01\x00", 8);  // version 1.0
constexpr std::string_view kEnd = "RMOETRC1";
constexpr int64_t kFooter = 16;

struct FieldName {
  const char* name;
  bool TraceFields::* member;
};
constexpr FieldName kOptional[] = {{"tokens", &TraceFields::tokens},
                                   {"logits", &TraceFields::logits},
                                   {"scores", &TraceFields::scores},
                                   {"probs", &TraceFields::probs},
                                   {"states", &TraceFields::states}};

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (const int64_t size : shape) text += str(size, ",");
  return text + ")";
}

// The .npy header. Its length depends on the layout alone, so that it can be written again with the final count.
std::string npy_header(const TraceLayout& layout, int64_t records) {
  std::string descr = "[";
  for (const TraceLayout::Field& field : layout.record()) {
    descr += str("('", field.name, "', '", field.type, "'", field.shape.empty() ? "" : ", " + shape_text(field.shape),
                 "), ");
  }
  const std::string count = std::to_string(records);
  std::string text = "{'descr': " + descr + "], 'fortran_order': False, 'shape': (" + count + ",), }";
  text.append(20 - count.size(), ' ');
  while ((kMagic.size() + 2 + text.size() + 1) % 64 != 0) text += ' ';
  text += '\n';
  std::string header(kMagic);
  header += static_cast<char>(text.size() & 0xff);
  header += static_cast<char>(text.size() >> 8);
  return header + text;
}

Json layout_json(const TraceLayout& layout) {
  return {{"layers", layout.layers},
          {"slots", layout.slots},
          {"experts", layout.experts},
          {"state_width", layout.state_width},
          {"fields", layout.fields.names()}};
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

int64_t part(const std::string& text, const std::string& whole, int64_t missing, int64_t least) {
  if (text.empty()) return missing;
  int64_t value = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  RMOE_CHECK(failed == std::errc() && end == text.data() + text.size() && value >= least, "tokens '", whole,
             "': expected BEGIN:END:STEP, whole numbers of which any may be missing, STEP at least 1");
  return value;
}

}  // namespace

TraceFields TraceFields::parse(std::string_view text) {
  TraceFields fields;
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    const std::string_view name = text.substr(0, comma);
    bool known = name == "all";
    for (const FieldName& field : kOptional) {
      if (name == "all" || name == field.name) fields.*field.member = known = true;
    }
    RMOE_CHECK(known, "trace field '", name, "': expected tokens, logits, scores, probs, states or all");
    text.remove_prefix(std::min(comma + 1, text.size()));
  }
  return fields;
}

std::vector<std::string> TraceFields::names() const {
  std::vector<std::string> names;
  for (const FieldName& field : kOptional) {
    if (this->*field.member) names.emplace_back(field.name);
  }
  return names;
}

std::vector<TraceLayout::Field> TraceLayout::record() const {
  std::vector<Field> all;
  int64_t offset = 0;
  const auto add = [&](const char* name, const char* type, int64_t size, std::vector<int64_t> shape) {
    int64_t bytes = size;
    for (const int64_t n : shape) bytes *= n;
    all.push_back({name, type, std::move(shape), offset, bytes});
    offset += bytes;
  };
  add("step", "<u4", 4, {});
  add("position", "<u8", 8, {});
  if (fields.tokens) add("tokens", "<u4", 4, {});
  add("ids", narrow_ids() ? "<i2" : "<i4", narrow_ids() ? 2 : 4, {layers, slots});
  add("weights", "<f4", 4, {layers, slots});
  if (fields.logits) add("logits", "<f4", 4, {layers, experts});
  if (fields.scores) add("scores", "<f4", 4, {layers, experts});
  if (fields.probs) add("probs", "<f4", 4, {layers, experts});
  if (fields.states) add("states", "<f4", 4, {layers, state_width});
  return all;
}

int64_t TraceLayout::record_bytes() const {
  const std::vector<Field> all = record();
  return all.back().offset + all.back().bytes;
}

TraceWriter::TraceWriter(std::filesystem::path path, const TraceLayout& layout)
    : path_(std::move(path)), temp_path_(path_.string() + ".tmp"), layout_(layout) {
  check_writable(path_);
  file_ = Descriptor::open(temp_path_, O_RDWR | O_CREAT | O_TRUNC | O_APPEND);
  const std::string header = npy_header(layout_, 0);
  header_bytes_ = std::ssize(header);
  file_.append(header);
}

TraceWriter::~TraceWriter() {
  if (finished_) return;
  std::error_code ignored;
  std::filesystem::remove(temp_path_, ignored);
}

void TraceWriter::append(std::span<const std::byte> records) {
  const int64_t size = layout_.record_bytes();
  RMOE_ASSERT(std::ssize(records) % size == 0, "a part of a record");
  file_.append({reinterpret_cast<const char*>(records.data()), records.size()});
  records_ += std::ssize(records) / size;
}

void TraceWriter::finish(Json info) {
  info["records"] = records_;
  info["layout"] = layout_json(layout_);
  std::string trailer = json_text(info);
  const auto length = static_cast<uint64_t>(trailer.size());
  char bytes[8];
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i));
  trailer.append(bytes, 8);
  trailer += kEnd;
  file_.append(trailer);
  file_.close();
  // Not through the appending descriptor: on Linux pwrite() appends there whatever the offset.
  const Descriptor again = Descriptor::open(temp_path_, O_RDWR);
  again.write_at(0, bytes_of(npy_header(layout_, records_)));
  again.sync();
  std::filesystem::rename(temp_path_, path_);
  finished_ = true;
}

TraceFile TraceFile::open(const std::filesystem::path& path) {
  const std::string name = path.string();
  if (!std::filesystem::exists(path)) io_error(name, ": no such trace");
  Descriptor::open_to_read(path);
  TraceFile trace;
  trace.path_ = path;
  trace.map_ = std::make_shared<MappedFile>(path);
  const auto bytes = trace.map_->bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  RMOE_CHECK(text.substr(0, 6) == kMagic.substr(0, 6), name, ": not a routing trace; `--trace FILE` writes one");
  const auto truncated = [&] {
    throw Error(Exit::kBadInput, name + ": the trace is truncated: its end is missing",
                "copy it again, or record it again with --trace");
  };
  if (std::ssize(text) < kFooter || text.substr(text.size() - 8) != kEnd) truncated();
  uint64_t length = 0;
  for (int i = 0; i < 8; ++i) {
    length |= static_cast<uint64_t>(static_cast<unsigned char>(text[text.size() - 16 + static_cast<size_t>(i)]))
              << (8 * i);
  }
  if (length > text.size() - kFooter) truncated();
  trace.info_ = parse_json(text.substr(text.size() - kFooter - length, length), name + ": trailer");
  const std::string what = name + ": trailer";
  const Json& shape = json_member(trace.info_, "layout", what);
  TraceLayout& layout = trace.layout_;
  layout.layers = json_int(shape, "layers", what);
  layout.slots = json_int(shape, "slots", what);
  layout.experts = json_int(shape, "experts", what);
  layout.state_width = json_int(shape, "state_width", what);
  for (const Json& field : json_member(shape, "fields", what)) {
    const TraceFields one = TraceFields::parse(field.is_string() ? field.get<std::string>() : std::string("?"));
    for (const FieldName& known : kOptional) layout.fields.*known.member |= one.*known.member;
  }
  constexpr int64_t kMost = int64_t{1} << 24;
  for (const int64_t size : {layout.layers, layout.slots, layout.experts, layout.state_width + 1}) {
    RMOE_CHECK(size > 0 && size < kMost, what, ": a size of ", size);
  }
  trace.records_ = json_int(trace.info_, "records", what);
  trace.record_bytes_ = layout.record_bytes();
  const std::string header = npy_header(layout, trace.records_);
  const auto rest = static_cast<int64_t>(text.size() - kFooter - length) - std::ssize(header);
  if (trace.records_ < 0 || rest % trace.record_bytes_ != 0 || rest / trace.record_bytes_ != trace.records_)
    truncated();
  RMOE_CHECK(text.starts_with(header), name, ": the trace is damaged: its header does not fit its trailer");
  trace.data_ = bytes.data() + header.size();
  return trace;
}

TokenSlice TokenSlice::parse(const std::string& text) {
  std::vector<std::string> parts{""};
  for (const char c : text) {
    if (c == ':') {
      parts.emplace_back();
    } else {
      parts.back().push_back(c);
    }
  }
  RMOE_CHECK(parts.size() <= 3 && text.find(':') != text.npos, "tokens '", text,
             "': expected BEGIN:END:STEP, for example 0:10000 or ::16");
  parts.resize(3);
  TokenSlice slice{part(parts[0], text, 0, 0), part(parts[1], text, -1, 0), part(parts[2], text, 1, 1)};
  RMOE_CHECK(slice.end < 0 || slice.end > slice.begin, "tokens '", text, "': END must be beyond BEGIN");
  return slice;
}

}  // namespace rmoe::io
