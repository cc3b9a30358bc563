// Files: whole reads, atomic writes, read-only maps. Every failure is an Error(kIo) that names the path and says why.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace rmoe {

// The whole file. Larger than `limit` bytes is an error, found before anything is read.
std::string read_file(const std::filesystem::path& path, int64_t limit = int64_t{1} << 40);

// Writes a temporary file beside `path`, fsyncs it, renames it and fsyncs the folder: afterwards the file is either the
// old or the new one, whatever happens in between. The temporary file is removed when anything fails.
void write_file_atomic(const std::filesystem::path& path, std::string_view bytes);

// Fails as write_file_atomic would where that can be known beforehand: before the work whose result is to be written.
void check_writable(const std::filesystem::path& path);

// Makes a file's contents, or a folder's entries, survive a power cut.
void fsync_path(const std::filesystem::path& path);

// A read-only memory map of a whole file. The file must not be truncated while it is mapped.
class MappedFile {
 public:
  MappedFile() = default;  // empty
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const std::byte> bytes() const { return {data_, static_cast<size_t>(size_)}; }
  const std::byte* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

// "512 B", "1.5 KiB", "3.2 GiB".
std::string human_bytes(int64_t bytes);

}  // namespace rmoe
