// An open file: RAII over a POSIX descriptor, with reads and writes that are complete or throw. Every failure is
// Error(kIo): "cannot DO PATH: REASON".
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

namespace rmoe::io {

class Descriptor {
 public:
  Descriptor() = default;
  // open(2) with O_CLOEXEC. `flags` as there; new files get mode 0666 less the umask.
  static Descriptor open(const std::filesystem::path& path, int flags);
  // For reading; Error(kBadInput) when it is not a regular file, without blocking on a pipe.
  static Descriptor open_to_read(const std::filesystem::path& path);
  // The same, but nothing when there is no such file.
  static std::optional<Descriptor> open_if_there(const std::filesystem::path& path);

  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }
  const std::filesystem::path& path() const { return path_; }

  int64_t size() const;
  // Puts all bytes at the end of the file by one write(2) where the system allows it. A failure leaves the file as it
  // was. One writer at a time, and opened with O_APPEND.
  void append(std::string_view bytes) const;
  void write_at(int64_t offset, std::span<const std::byte> bytes) const;
  // Up to out.size() bytes; fewer only at the end of the file. Returns how many.
  int64_t read_at(int64_t offset, std::span<std::byte> out) const;
  void truncate(int64_t size) const;
  void sync() const;
  // Reports what the destructor would hide. Idempotent.
  void close();

 private:
  Descriptor(std::filesystem::path path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::filesystem::path path_;
  int fd_ = -1;
};

// Error(kIo) "cannot DO PATH: REASON" for the value of errno.
[[noreturn]] void throw_errno(std::string_view doing, const std::filesystem::path& path, int error);

}  // namespace rmoe::io
