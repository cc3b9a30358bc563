// Token files: see token_file.h for the layout.
#include "rmoe/data/token_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <system_error>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/data/hash.h"

namespace rmoe::data {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are written and mapped as little-endian");

constexpr size_t kHeaderBytes = 128;
constexpr std::array<char, 8> kMagic{'R', 'M', 'O', 'E', 'T', 'O', 'K', '\0'};
constexpr size_t kBufferBytes = size_t{1} << 20;
constexpr size_t kReservedAt = 80;

template <class T>
T load(std::span<const std::byte> bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

template <class T>
void store(std::span<std::byte> bytes, size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

template <class T>
void widen(const std::byte* from, int64_t count, int64_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    T id;
    std::memcpy(&id, from + static_cast<size_t>(i) * sizeof(T), sizeof id);
    out[i] = static_cast<int64_t>(id);
  }
}

template <class T>
void narrow(std::span<const int64_t> ids, std::vector<std::byte>& out) {
  size_t at = out.size();
  out.resize(at + ids.size() * sizeof(T));
  for (const int64_t id : ids) {
    const auto value = static_cast<T>(id);
    std::memcpy(out.data() + at, &value, sizeof value);
    at += sizeof value;
  }
}

TokenHeader parse_header(std::span<const std::byte> bytes, const std::string& name) {
  RMOE_CHECK(bytes.size() >= kHeaderBytes, name, ": not a token file: ", bytes.size(), " bytes, expected a header of ",
             kHeaderBytes);
  RMOE_CHECK(std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) == 0, name,
             ": not a token file: it does not begin with RMOETOK");
  const auto number = [&](size_t at, const char* what) {
    const auto value = load<uint64_t>(bytes, at);
    RMOE_CHECK(value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max() / 8), name,
               ": damaged header: ", what, " is ", value);
    return static_cast<int64_t>(value);
  };
  TokenHeader h;
  h.version = load<uint32_t>(bytes, 8);
  RMOE_CHECK(h.version == 1, name, ": token file of version ", h.version, ", expected 1");
  h.bytes_per_token = load<uint32_t>(bytes, 12);
  RMOE_CHECK(h.bytes_per_token == 1 || h.bytes_per_token == 2 || h.bytes_per_token == 4, name,
             ": damaged header: ", h.bytes_per_token, " bytes per token, expected 1, 2 or 4");
  h.count = number(16, "the number of tokens");
  h.vocab_size = number(24, "the vocabulary");
  h.tokenizer_hash = load<uint64_t>(bytes, 32);
  h.documents = number(40, "the number of documents");
  h.bytes = number(48, "the number of bytes");
  h.characters = number(56, "the number of characters");
  h.words = number(64, "the number of words");
  h.payload_hash = load<uint64_t>(bytes, 72);
  RMOE_CHECK(h.vocab_size > 0 && h.vocab_size <= int64_t{1} << (8 * h.bytes_per_token), name,
             ": damaged header: a vocabulary of ", h.vocab_size, " in ", h.bytes_per_token, " bytes per token");
  for (size_t at = kReservedAt; at < kHeaderBytes; ++at) {
    RMOE_CHECK(bytes[at] == std::byte{0}, name, ": damaged header: byte ", at, " is not zero");
  }
  return h;
}

std::array<std::byte, kHeaderBytes> format_header(const TokenHeader& h) {
  std::array<std::byte, kHeaderBytes> bytes{};
  std::memcpy(bytes.data(), kMagic.data(), kMagic.size());
  store(bytes, 8, static_cast<uint32_t>(h.version));
  store(bytes, 12, static_cast<uint32_t>(h.bytes_per_token));
  store(bytes, 16, static_cast<uint64_t>(h.count));
  store(bytes, 24, static_cast<uint64_t>(h.vocab_size));
  store(bytes, 32, h.tokenizer_hash);
  store(bytes, 40, static_cast<uint64_t>(h.documents));
  store(bytes, 48, static_cast<uint64_t>(h.bytes));
  store(bytes, 56, static_cast<uint64_t>(h.characters));
  store(bytes, 64, static_cast<uint64_t>(h.words));
  store(bytes, 72, h.payload_hash);
  return bytes;
}

}  // namespace

int64_t token_width(int64_t vocab_size) {
  RMOE_CHECK(vocab_size > 0 && vocab_size <= int64_t{1} << 32, "token file: a vocabulary of ", vocab_size,
             ", expected 1 to 2^32 ids");
  return vocab_size <= 256 ? 1 : vocab_size <= 65536 ? 2 : 4;
}

TokenFile TokenFile::open(const std::filesystem::path& path) {
  TokenFile file;
  file.path_ = path;
  file.map_ = std::make_shared<const MappedFile>(path);
  const auto bytes = file.map_->bytes();
  file.header_ = parse_header(bytes, path.string());
  const TokenHeader& h = file.header_;
  const auto expected = static_cast<int64_t>(kHeaderBytes) + h.count * h.bytes_per_token;
  RMOE_CHECK(file.map_->size() == expected, path.string(), ": token file of ", file.map_->size(), " bytes, but ",
             h.count, " tokens of ", h.bytes_per_token, " bytes need ", expected,
             file.map_->size() < expected ? " (truncated)" : "");
  file.tokens_ = bytes.data() + kHeaderBytes;
  return file;
}

void TokenFile::read(int64_t begin, int64_t count, int64_t* out) const {
  RMOE_ASSERT(begin >= 0 && count >= 0 && begin <= header_.count - count, path_.string(), ": tokens [", begin, ", ",
              begin + count, ") of ", header_.count);
  const std::byte* from = tokens_ + begin * header_.bytes_per_token;
  switch (header_.bytes_per_token) {
    case 1:
      widen<uint8_t>(from, count, out);
      break;
    case 2:
      widen<uint16_t>(from, count, out);
      break;
    default:
      widen<uint32_t>(from, count, out);
      break;
  }
  int64_t largest = -1;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, out[i]);
  RMOE_CHECK(largest < header_.vocab_size, path_.string(), ": damaged: token ", largest, " in [", begin, ", ",
             begin + count, "), but the vocabulary has ", header_.vocab_size);
}

void TokenFile::verify() const {
  RunningHash hash;
  std::vector<int64_t> ids(kBufferBytes / 4);
  for (int64_t begin = 0; begin < header_.count; begin += static_cast<int64_t>(ids.size())) {
    const int64_t count = std::min<int64_t>(static_cast<int64_t>(ids.size()), header_.count - begin);
    hash.feed({tokens_ + begin * header_.bytes_per_token, static_cast<size_t>(count * header_.bytes_per_token)});
    read(begin, count, ids.data());
  }
  RMOE_CHECK(hash.value() == header_.payload_hash, path_.string(), ": damaged: the tokens hash to ",
             hex16(hash.value()), ", expected ", hex16(header_.payload_hash));
}

struct TokenWriter::HashState : RunningHash {};

TokenWriter::TokenWriter(const std::filesystem::path& path, int64_t vocab_size, uint64_t tokenizer_hash)
    : path_(path), temp_path_(path.string() + ".tmp"), hash_(std::make_unique<HashState>()) {
  header_.bytes_per_token = token_width(vocab_size);
  header_.vocab_size = vocab_size;
  header_.tokenizer_hash = tokenizer_hash;
  fd_ = ::open(temp_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) io_error("cannot write ", temp_path_.string(), ": ", errno_text(errno));
  buffer_.assign(kHeaderBytes, std::byte{0});  // the place of the header
}

TokenWriter::~TokenWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  std::error_code ignored;
  std::filesystem::remove(temp_path_, ignored);
}

void TokenWriter::append(std::span<const int64_t> ids) {
  while (!ids.empty()) {
    const auto part = ids.first(std::min(ids.size(), kBufferBytes / 4));
    int64_t smallest = 0, largest = 0;
    for (const int64_t id : part) smallest = std::min(smallest, id), largest = std::max(largest, id);
    RMOE_ASSERT(smallest >= 0 && largest < header_.vocab_size, path_.string(), ": ids from ", smallest, " to ", largest,
                " for a vocabulary of ", header_.vocab_size);
    switch (header_.bytes_per_token) {
      case 1:
        narrow<uint8_t>(part, buffer_);
        break;
      case 2:
        narrow<uint16_t>(part, buffer_);
        break;
      default:
        narrow<uint32_t>(part, buffer_);
        break;
    }
    header_.count += static_cast<int64_t>(part.size());
    ids = ids.subspan(part.size());
    if (buffer_.size() >= kBufferBytes) flush();
  }
}

void TokenWriter::flush() {
  std::span<const std::byte> rest = buffer_;
  const bool at_start = ::lseek(fd_, 0, SEEK_CUR) == 0;
  hash_->feed(at_start ? rest.subspan(kHeaderBytes) : rest);
  while (!rest.empty()) {
    const ssize_t written = ::write(fd_, rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) io_error("cannot write ", path_.string(), ": ", errno_text(errno));
    rest = rest.subspan(static_cast<size_t>(written));
  }
  buffer_.clear();
}

void TokenWriter::set_counts(int64_t documents, int64_t bytes, int64_t characters, int64_t words) {
  header_.documents = documents;
  header_.bytes = bytes;
  header_.characters = characters;
  header_.words = words;
}

TokenHeader TokenWriter::commit() {
  RMOE_ASSERT(fd_ >= 0, path_.string(), ": committed twice");
  flush();
  header_.payload_hash = hash_->value();
  const auto bytes = format_header(header_);
  if (::pwrite(fd_, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size()) || ::fsync(fd_) != 0) {
    io_error("cannot write ", path_.string(), ": ", errno_text(errno));
  }
  std::error_code error;
  std::filesystem::rename(temp_path_, path_, error);
  if (error) io_error("cannot rename ", temp_path_.string(), " to ", path_.string(), ": ", error.message());
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0) io_error("cannot close ", path_.string(), ": ", errno_text(errno));
  fsync_path(std::filesystem::absolute(path_).parent_path());
  return header_;
}

}  // namespace rmoe::data
