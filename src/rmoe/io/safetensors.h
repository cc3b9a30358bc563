// The safetensors format, read and written without torch.
//
// File layout (all integers little-endian):
//   bytes 0-7     N, u64: length of the header, at most 100 000 000
//   bytes 8-8+N   header: one JSON object in UTF-8, padded with spaces so that 8 + N is a multiple of 8
//                   "__metadata__": {text: text}            optional
//                   NAME: {"dtype": "F32", "shape": [3, 4], "data_offsets": [begin, end]}
//   the rest      data: tensors in row-major order; begin and end count bytes from the first byte of the data
// The ranges of the tensors, sorted by begin, cover the data exactly: no hole, no overlap, nothing after the last.
// A shape of [] is one element; a 0 in the shape makes the range empty.
//
// The writer orders tensors as the safetensors package does (largest dtype first, then by name) and writes the same
// bytes for the same tensors and metadata.
//
// The reader accepts and refuses what the safetensors package does (0.8.0), except that it also refuses duplicate
// tensor and metadata names (the package keeps the last), sizes beyond int64, and a tensor or dtype written in the
// array or object form that the package's JSON library happens to take. Memory used while parsing is proportional to
// the header that is really in the file, never to a number that the file declares.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rmoe/base/fields.h"
#include "rmoe/io/descriptor.h"

namespace rmoe::io {

// Element types of the format, in the order in which the format sorts them.
enum class DType : uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3FNUZ,
  kF8E5M2FNUZ,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

}  // namespace rmoe::io

namespace rmoe {
// The names in a file's header.
template <>
struct EnumNames<io::DType> {
  static constexpr std::array names{
      std::pair{io::DType::kBool, "BOOL"},
      std::pair{io::DType::kF4, "F4"},
      std::pair{io::DType::kF6E2M3, "F6_E2M3"},
      std::pair{io::DType::kF6E3M2, "F6_E3M2"},
      std::pair{io::DType::kU8, "U8"},
      std::pair{io::DType::kI8, "I8"},
      std::pair{io::DType::kF8E5M2, "F8_E5M2"},
      std::pair{io::DType::kF8E4M3, "F8_E4M3"},
      std::pair{io::DType::kF8E8M0, "F8_E8M0"},
      std::pair{io::DType::kF8E4M3FNUZ, "F8_E4M3FNUZ"},
      std::pair{io::DType::kF8E5M2FNUZ, "F8_E5M2FNUZ"},
      std::pair{io::DType::kI16, "I16"},
      std::pair{io::DType::kU16, "U16"},
      std::pair{io::DType::kF16, "F16"},
      std::pair{io::DType::kBF16, "BF16"},
      std::pair{io::DType::kI32, "I32"},
      std::pair{io::DType::kU32, "U32"},
      std::pair{io::DType::kF32, "F32"},
      std::pair{io::DType::kC64, "C64"},
      std::pair{io::DType::kF64, "F64"},
      std::pair{io::DType::kI64, "I64"},
      std::pair{io::DType::kU64, "U64"},
  };
};
}  // namespace rmoe

namespace rmoe::io {

// The DType called `name` in a file's header (enum_name is the way back; case matters); nothing for an unknown name.
std::optional<DType> dtype_from_name(std::string_view name);
// Bits of one element: 4, 6, 8, 16, 32 or 64.
int64_t dtype_bits(DType dtype);

// A tensor to be written.
struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
};

// A tensor in a file. begin and end are bytes from the start of the file's data part.
struct TensorEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t begin = 0;
  int64_t end = 0;

  int64_t byte_size() const { return end - begin; }
  int64_t numel() const;
};

// A file opened for reading, memory-mapped. Copies share the mapping.
class SafetensorsFile {
 public:
  // Maps the file and validates the whole header. Error(kIo) when it cannot be opened or mapped, Error(kBadInput) for
  // anything wrong inside; the message is one line with the file's path.
  static SafetensorsFile open(const std::filesystem::path& path);

  const std::filesystem::path& path() const;
  // In the order of their bytes in the file.
  const std::vector<TensorEntry>& entries() const;
  // nullptr when there is no tensor of that name.
  const TensorEntry* find(std::string_view name) const;
  // Error(kBadInput) naming the file and the tensor when there is none.
  const TensorEntry& at(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const;

  // The tensor's bytes inside the mapping, valid while a copy of this object or of keep_alive() lives. Not necessarily
  // aligned to the element. Error(kBadInput) when the file was shortened since it was opened; shortening it while the
  // bytes are being used is SIGBUS, as with every mapping: use read() for files that others may write to.
  std::span<const std::byte> bytes(const TensorEntry& entry) const;
  // Copies the tensor's bytes to `out` (exactly entry.byte_size() bytes) by pread; a file that was shortened meanwhile
  // is Error(kBadInput), never a signal. Safe from several threads.
  void read(const TensorEntry& entry, std::span<std::byte> out) const;
  // The same for out.size() bytes from byte `offset` of the tensor on.
  void read_part(const TensorEntry& entry, int64_t offset, std::span<std::byte> out) const;
  // Owner of the mapping, for tensors that borrow bytes().
  std::shared_ptr<const void> keep_alive() const;

 private:
  struct State;
  explicit SafetensorsFile(std::shared_ptr<const State> state);
  std::shared_ptr<const State> state_;
};

// Writes one file. The bytes go to "PATH.tmp", which finish() renames to PATH; without finish() nothing is left.
class SafetensorsWriter {
 public:
  // Creates the file in its full size and writes the header. The order of `tensors` does not matter. Error(kBadInput)
  // for duplicate names, a tensor called "__metadata__", negative or overflowing sizes, names that are not UTF-8;
  // Error(kIo) naming the file when it cannot be created or the disk has no room.
  SafetensorsWriter(std::filesystem::path path, const std::vector<TensorSpec>& tensors,
                    const std::map<std::string, std::string>& metadata = {});
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // Writes one tensor's bytes (row-major, little-endian, exactly its size). Any order, each tensor once.
  void write(std::string_view name, std::span<const std::byte> data);
  // The same in consecutive parts, from the first byte to the last; other tensors may be written in between.
  void write_part(std::string_view name, std::span<const std::byte> data);
  // Checks that every tensor was written, fsyncs the file and gives it its name. The folder is not fsynced.
  void finish();

  // In file order, with offsets.
  const std::vector<TensorEntry>& entries() const { return entries_; }

 private:
  std::filesystem::path path_;
  std::filesystem::path temp_path_;
  std::vector<TensorEntry> entries_;
  std::map<std::string, std::size_t, std::less<>> index_;  // name to position in entries_
  std::vector<int64_t> written_;                           // bytes of each entry; -1: nothing yet
  int64_t data_start_ = 0;
  Descriptor file_;
};

}  // namespace rmoe::io
