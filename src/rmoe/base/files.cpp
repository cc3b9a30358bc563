#include "rmoe/base/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <utility>

#include "rmoe/base/error.h"

namespace rmoe {
namespace {

[[noreturn]] void fail(const char* verb, const std::filesystem::path& path, int error_number) {
  io_error("cannot ", verb, " ", path.string(), ": ", errno_text(error_number));
}

class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, const char* verb, int flags) : Descriptor(path, verb, flags, 0, path) {}
  // `meant`: the file that a failure names.
  Descriptor(const std::filesystem::path& path, const char* verb, int flags, mode_t mode,
             const std::filesystem::path& meant) {
    do fd_ = ::open(path.c_str(), flags | O_CLOEXEC, mode);
    while (fd_ < 0 && errno == EINTR);
    if (fd_ < 0) fail(verb, meant, errno);
  }
  ~Descriptor() { ::close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// The size of an open file; folders open for reading but cannot be read.
int64_t checked_size(int fd, const std::filesystem::path& path) {
  struct stat info{};
  if (::fstat(fd, &info) != 0) fail("read", path, errno);
  if (S_ISDIR(info.st_mode)) fail("read", path, EISDIR);
  return static_cast<int64_t>(info.st_size);
}

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : ".";
}

void fsync_or_fail(int fd, const std::filesystem::path& path) {
  while (::fsync(fd) != 0) {
    if (errno == EINTR) continue;
    if (errno == EINVAL || errno == EROFS) return;  // nothing there to make durable (pipes, some network file systems)
    fail("fsync", path, errno);
  }
}

}  // namespace

std::string read_file(const std::filesystem::path& path, int64_t limit) {
  Descriptor file(path, "read", O_RDONLY);
  const auto refuse_size = [&](int64_t size) {
    io_error("cannot read ", path.string(), ": ", human_bytes(size), " or more, expected at most ", human_bytes(limit));
  };
  const int64_t size = checked_size(file.get(), path);
  if (size > limit) refuse_size(size);
  // The size is a hint: pipes and files in /proc say 0. One byte more shows the end without another round.
  std::string bytes(static_cast<size_t>(size) + 1, '\0');
  size_t used = 0;
  while (true) {
    if (used == bytes.size()) bytes.resize(bytes.size() * 2 + 4096);
    const ssize_t got = ::read(file.get(), bytes.data() + used, bytes.size() - used);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("read", path, errno);
    if (got == 0) break;
    used += static_cast<size_t>(got);
    if (static_cast<int64_t>(used) > limit) refuse_size(static_cast<int64_t>(used));
  }
  bytes.resize(used);
  return bytes;
}

void check_writable(const std::filesystem::path& path) {
  struct stat info{};
  if (::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) fail("write", path, EISDIR);
  const std::filesystem::path folder = folder_of(path);
  if (::stat(folder.c_str(), &info) != 0) fail("write", path, errno);
  if (!S_ISDIR(info.st_mode)) fail("write", path, ENOTDIR);
  if (::access(folder.c_str(), W_OK | X_OK) != 0) fail("write", path, errno);
}

void write_file_atomic(const std::filesystem::path& path, std::string_view bytes) {
  static std::atomic<uint64_t> counter{0};  // two threads may write files of one folder
  check_writable(path);
  const std::filesystem::path folder = folder_of(path);
  const std::filesystem::path temporary =
      folder / str(".", path.filename().string(), ".tmp-", ::getpid(), "-", counter.fetch_add(1));
  try {
    {
      Descriptor file(temporary, "write", O_WRONLY | O_CREAT | O_TRUNC, 0666, path);
      size_t done = 0;
      while (done < bytes.size()) {
        const ssize_t put = ::write(file.get(), bytes.data() + done, bytes.size() - done);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) fail("write", path, errno);
        done += static_cast<size_t>(put);
      }
      fsync_or_fail(file.get(), path);
    }
    if (::rename(temporary.c_str(), path.c_str()) != 0) fail("write", path, errno);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  fsync_path(folder);
}

void fsync_path(const std::filesystem::path& path) {
  Descriptor file(path, "fsync", O_RDONLY);
  fsync_or_fail(file.get(), path);
}

MappedFile::MappedFile(const std::filesystem::path& path) {
  Descriptor file(path, "read", O_RDONLY);
  size_ = checked_size(file.get(), path);
  if (size_ == 0) return;  // an empty map is an error to the kernel, an empty file is not
  void* mapped = ::mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_SHARED, file.get(), 0);
  if (mapped == MAP_FAILED) fail("map", path, errno);
  data_ = static_cast<const std::byte*>(mapped);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), static_cast<size_t>(size_));
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

std::string human_bytes(int64_t bytes) {
  constexpr std::array kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes > -1024 && bytes < 1024) return str(bytes, " B");
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  while (std::abs(value) >= 1023.95 && unit + 1 < kUnits.size()) {  // 1023.95 would print as 1024.0
    value /= 1024;
    ++unit;
  }
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f %s", value, kUnits[unit]);
  return text.data();
}

}  // namespace rmoe
