// Routing traces: what the routers did, one record per token, as a NumPy file.
//
// File layout (all numbers little-endian):
//   bytes 0-h     the header of a .npy file, version 1.0: a structured dtype and the number of records
//   records       packed, one after the other; the fields in this order (TraceLayout)
//   trailer       JSON in UTF-8 (Trace::info), its length as u64, and the 8 bytes "RMOETRC1"
// numpy.load reads the header and the records and does not look further. The trailer says what made the trace, and that
// it is whole: a file that was cut off has none. docs/formats.md lists the fields.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/io/descriptor.h"

namespace rmoe::io {

// What a trace holds besides step, position, ids and weights.
struct TraceFields {
  bool tokens = false;  // the token's id
  bool logits = false;  // of the head, after the transforms
  bool scores = false;  // what the score function made of them
  bool probs = false;   // the scores as a distribution
  bool states = false;  // h_i of the recurrent stage

  // "tokens,probs"; "" gives none, "all" all. Error(kBadInput) that lists the names for any other.
  static TraceFields parse(std::string_view text);
  std::vector<std::string> names() const;
  bool operator==(const TraceFields&) const = default;
};

// Sizes of a record, all layers of one token together.
struct TraceLayout {
  int64_t layers = 0;       // MoE layers
  int64_t slots = 0;        // experts that a token can have: K, or N where their number varies
  int64_t experts = 0;      // N
  int64_t state_width = 0;  // P; 0 without states
  TraceFields fields = {};

  struct Field {
    std::string name;
    std::string type;            // numpy's, "<f4"
    std::vector<int64_t> shape;  // empty: a scalar
    int64_t offset = 0;          // bytes from the record's start
    int64_t bytes = 0;
  };
  // In file order: step u4, position u8, [tokens u4], ids i2 or i4 [layers, slots], weights f4 [layers, slots],
  // [logits, scores, probs f4 [layers, experts]], [states f4 [layers, state_width]].
  std::vector<Field> record() const;
  int64_t record_bytes() const;
  bool narrow_ids() const { return experts <= 32767; }  // i2
  bool operator==(const TraceLayout&) const = default;
};

// Writes one trace, record by record, in memory that does not grow. The bytes go to "PATH.tmp", which finish() renames
// to PATH; without finish() nothing is left. Error(kIo) naming the file.
class TraceWriter {
 public:
  TraceWriter(std::filesystem::path path, const TraceLayout& layout);
  ~TraceWriter();
  TraceWriter(const TraceWriter&) = delete;
  TraceWriter& operator=(const TraceWriter&) = delete;

  // Whole records, packed as TraceLayout::record says.
  void append(std::span<const std::byte> records);
  // `info` goes into the trailer, with the layout beside it.
  void finish(Json info);
  int64_t records() const { return records_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_, temp_path_;
  TraceLayout layout_;
  Descriptor file_;
  int64_t header_bytes_ = 0, records_ = 0;
  bool finished_ = false;
};

// A trace opened for reading, memory-mapped.
class TraceFile {
 public:
  // Error(kBadInput), one line: no trace, truncated, or a header that does not fit its trailer. Error(kIo).
  static TraceFile open(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const TraceLayout& layout() const { return layout_; }
  const Json& info() const { return info_; }
  int64_t records() const { return records_; }
  // One record's bytes.
  const std::byte* record(int64_t i) const { return data_ + i * record_bytes_; }

 private:
  std::filesystem::path path_;
  TraceLayout layout_;
  Json info_;
  std::shared_ptr<const MappedFile> map_;
  const std::byte* data_ = nullptr;
  int64_t records_ = 0, record_bytes_ = 0;
};

// Which tokens a trace holds, as Python's slices: "BEGIN:END:STEP" of the positions, each part may be missing.
struct TokenSlice {
  int64_t begin = 0, end = -1, step = 1;  // end -1: all
  static TokenSlice parse(const std::string& text);
  bool all() const { return begin == 0 && end < 0 && step == 1; }
  bool contains(int64_t position) const {
    return position >= begin && (end < 0 || position < end) && (position - begin) % step == 0;
  }
};

}  // namespace rmoe::io
