// Event files for TensorBoard, written without TensorFlow and without protobuf.
//
// File DIR/events.out.tfevents.SECONDS.HOST.PID.COUNTER: a sequence of records (TFRecord framing, little-endian)
//   u64 length | u32 masked CRC32C of those 8 bytes | `length` bytes: a tensorflow.Event | u32 masked CRC32C of them
// where masked(c) = ((c >> 15) | (c << 17)) + 0xa282ead8 and CRC32C is the Castagnoli CRC. The first event holds the
// version "brain.Event:2". Fields used (protobuf numbers):
//   Event           1 wall_time double, 2 step int64, 3 file_version, 5 summary, 7 session_log
//   Summary         1 value (repeated);  Value: 1 tag, 2 simple_value float, 8 tensor, 9 metadata
//   SummaryMetadata 1 plugin_data {1 plugin_name};  TensorProto: 1 dtype = 7 (string), 2 tensor_shape, 8 string_val
//   SessionLog      1 status = 1 (START)
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string_view>

#include "rmoe/io/descriptor.h"

namespace rmoe::io {

// CRC-32C (Castagnoli, reflected, initial and final inversion) of `data`.
uint32_t crc32c(std::span<const std::byte> data);

// One event file, for one process and one run. Each event is written by a single write(2), so TensorBoard can follow a
// running training and a crash tears at most the last event, which TensorBoard ignores. All failures are Error(kIo)
// naming the file.
class EventWriter {
 public:
  // Creates the folder where it is missing and a new file in it. A resumed run passes `purge_from`, the first step that
  // it will log: TensorBoard then forgets what earlier files of the folder hold from that step on.
  explicit EventWriter(const std::filesystem::path& dir, std::optional<int64_t> purge_from = std::nullopt);

  // wall_time: seconds since 1970; now when absent. Values are stored as float; NaN and infinity are allowed.
  void add_scalar(std::string_view tag, int64_t step, double value, std::optional<double> wall_time = std::nullopt);
  // Markdown, shown under "Text".
  void add_text(std::string_view tag, int64_t step, std::string_view text,
                std::optional<double> wall_time = std::nullopt);

  const std::filesystem::path& path() const { return path_; }

 private:
  void write_event(std::string_view event);
  std::filesystem::path path_;
  Descriptor file_;
};

}  // namespace rmoe::io
