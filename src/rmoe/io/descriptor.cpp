// Complete reads and writes over POSIX descriptors: EINTR and short counts are retried here and nowhere else.
#include "rmoe/io/descriptor.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "rmoe/base/error.h"

namespace rmoe::io {
namespace {

// Linux moves at most 0x7ffff000 bytes a call.
constexpr std::size_t kMaxCall = std::size_t{1} << 30;

template <class Call>
auto retry(Call call) {
  auto result = call();
  while (result == -1 && errno == EINTR) result = call();
  return result;
}

}  // namespace

void throw_errno(std::string_view doing, const std::filesystem::path& path, int error) {
  io_error("cannot ", doing, " ", path.string(), ": ", errno_text(error));
}

Descriptor Descriptor::open(const std::filesystem::path& path, int flags) {
  int fd = retry([&] { return ::open(path.c_str(), flags | O_CLOEXEC, 0666); });
  if (fd < 0) throw_errno((flags & O_CREAT) != 0 ? "create" : "open", path, errno);
  return Descriptor(path, fd);
}

std::optional<Descriptor> Descriptor::open_if_there(const std::filesystem::path& path) {
  // A pipe without a writer would block.
  int fd = retry([&] { return ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC); });
  if (fd < 0 && errno == ENOENT) return std::nullopt;
  if (fd < 0) throw_errno("open", path, errno);
  Descriptor file(path, fd);
  struct stat status{};
  if (::fstat(fd, &status) != 0) throw_errno("read the size of", path, errno);
  if (!S_ISREG(status.st_mode)) {
    input_error(path.string(), ": is ", S_ISDIR(status.st_mode) ? "a folder" : "not a regular file",
                "; expected a file");
  }
  return file;
}

Descriptor Descriptor::open_to_read(const std::filesystem::path& path) {
  std::optional<Descriptor> file = open_if_there(path);
  if (!file) throw_errno("open", path, ENOENT);
  return std::move(*file);
}

Descriptor::~Descriptor() {
  if (fd_ >= 0) ::close(fd_);
}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    path_ = std::move(other.path_);
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

int64_t Descriptor::size() const {
  struct stat status{};
  if (::fstat(fd_, &status) != 0) throw_errno("read the size of", path_, errno);
  return status.st_size;
}

void Descriptor::append(std::string_view bytes) const {
  int64_t before = size();
  while (!bytes.empty()) {
    ssize_t n = retry([&] { return ::write(fd_, bytes.data(), std::min(bytes.size(), kMaxCall)); });
    if (n < 0) {
      int error = errno;
      // A full disk may have taken a part; if even this fails, a reader finds a torn end.
      [[maybe_unused]] int result = ::ftruncate(fd_, before);
      throw_errno("write", path_, error);
    }
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
}

void Descriptor::write_at(int64_t offset, std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    ssize_t n = retry([&] { return ::pwrite(fd_, bytes.data(), std::min(bytes.size(), kMaxCall), offset); });
    if (n < 0) throw_errno("write", path_, errno);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    offset += n;
  }
}

int64_t Descriptor::read_at(int64_t offset, std::span<std::byte> out) const {
  int64_t total = 0;
  while (!out.empty()) {
    ssize_t n = retry([&] { return ::pread(fd_, out.data(), std::min(out.size(), kMaxCall), offset + total); });
    if (n < 0) throw_errno("read", path_, errno);
    if (n == 0) break;
    out = out.subspan(static_cast<std::size_t>(n));
    total += n;
  }
  return total;
}

void Descriptor::truncate(int64_t size) const {
  if (retry([&] { return ::ftruncate(fd_, size); }) != 0) throw_errno("truncate", path_, errno);
}

void Descriptor::sync() const {
  if (retry([&] { return ::fsync(fd_); }) != 0) throw_errno("sync", path_, errno);
}

void Descriptor::close() {
  // After close() the descriptor is gone whatever it returns (Linux); EINTR is no failure.
  if (fd_ >= 0 && ::close(std::exchange(fd_, -1)) != 0 && errno != EINTR) throw_errno("close", path_, errno);
}

}  // namespace rmoe::io
