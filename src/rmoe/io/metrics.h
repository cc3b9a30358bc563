// metrics.jsonl: what a run measured, one JSON object a line, appended as it happens.
//
// Every line ends in '\n' and is written by a single write(2), so a crash can tear only the last one; readers ignore a
// torn end. Numbers that are not finite are written as null. The fields of each kind of line are those of the trainer;
// lines about a training step carry an integer "step".
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "rmoe/base/json.h"
#include "rmoe/io/descriptor.h"

namespace rmoe::io {

class MetricsWriter {
 public:
  // Opens the file for appending, creating it where it is missing; a torn end is cut off first. Error(kIo).
  explicit MetricsWriter(std::filesystem::path path);

  // Appends one object. It is in the file (not necessarily on the disk) when this returns. Error(kIo).
  void write(const Json& object);

  // For a run resumed after `step`: removes the lines whose "step" is greater, and lines that are not JSON objects.
  // Lines without "step" stay. The file is replaced atomically. Returns the number of lines removed.
  int64_t truncate_after(int64_t step);

  const std::filesystem::path& path() const { return path_; }

 private:
  void open();
  std::filesystem::path path_;
  Descriptor file_;
};

// All lines of the file in order. A torn end (bytes after the last '\n' that are no JSON object) is ignored; any other
// line that is not a JSON object is Error(kBadInput) with file and line.
std::vector<Json> read_metrics(const std::filesystem::path& path);

}  // namespace rmoe::io
