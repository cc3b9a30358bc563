// Reading maps the file after its header was checked. Writing is one pwrite per tensor into a file that has its full
// size from the start, so that a full disk is noticed before the first tensor.
#include "rmoe/io/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <system_error>
#include <utility>

#include "rmoe/base/error.h"
#include "rmoe/io/safetensors_header.h"

namespace rmoe::io {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data are mapped as they are");

// Gives the file its size with the blocks behind it, where the filesystem can.
void reserve(const Descriptor& file, int64_t size) {
  int result = 0;
  do {
    result = ::fallocate(file.get(), 0, 0, size);
  } while (result != 0 && errno == EINTR);
  if (result == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS) throw_errno(str("reserve ", size, " bytes for"), file.path(), errno);
  file.truncate(size);
}

}  // namespace

struct SafetensorsFile::State {
  ~State() {
    if (map) ::munmap(map, static_cast<std::size_t>(file_size));
  }

  Descriptor file;
  int64_t file_size = 0;
  int64_t data_start = 0;
  void* map = nullptr;
  Header header;
};

SafetensorsFile::SafetensorsFile(std::shared_ptr<const State> state) : state_(std::move(state)) {}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  auto state = std::make_shared<State>();
  std::string name = path.string();
  state->file = Descriptor::open_to_read(path);
  state->file_size = state->file.size();
  if (state->file_size < kPrefix) {
    input_error(name, ": ", state->file_size, " bytes are too few for a safetensors file, which has at least 8");
  }
  uint64_t length = 0;
  if (state->file.read_at(0, std::as_writable_bytes(std::span(&length, 1))) != kPrefix) {
    input_error(name, ": was shortened while its header was read");
  }
  if (length > static_cast<uint64_t>(kMaxHeader)) {
    input_error(name, ": the header's length is ", length, ", expected at most ", kMaxHeader);
  }
  auto header_size = static_cast<int64_t>(length);
  if (header_size > state->file_size - kPrefix) {
    input_error(name, ": the header's length is ", header_size, " but only ", state->file_size - kPrefix,
                " bytes follow");
  }
  state->data_start = kPrefix + header_size;
  {
    // A copy, not the mapping: another process may be writing to the file while it is parsed.
    std::string text(static_cast<std::size_t>(header_size), '\0');
    if (state->file.read_at(kPrefix, std::as_writable_bytes(std::span(text))) != header_size) {
      input_error(name, ": was shortened while its header was read");
    }
    state->header = parse_header(text, state->file_size - state->data_start, name);
  }
  void* map = ::mmap(nullptr, static_cast<std::size_t>(state->file_size), PROT_READ, MAP_SHARED, state->file.get(), 0);
  if (map == MAP_FAILED) throw_errno("map", path, errno);
  state->map = map;
  return SafetensorsFile(std::move(state));
}

const std::filesystem::path& SafetensorsFile::path() const { return state_->file.path(); }
const std::vector<TensorEntry>& SafetensorsFile::entries() const { return state_->header.entries; }
const std::map<std::string, std::string>& SafetensorsFile::metadata() const { return state_->header.metadata; }
std::shared_ptr<const void> SafetensorsFile::keep_alive() const { return state_; }

const TensorEntry* SafetensorsFile::find(std::string_view name) const {
  auto name_of = [&](uint32_t i) -> std::string_view { return entries()[i].name; };
  const std::vector<uint32_t>& by_name = state_->header.by_name;
  auto at = std::ranges::lower_bound(by_name, name, {}, name_of);
  return at != by_name.end() && name_of(*at) == name ? &entries()[*at] : nullptr;
}

const TensorEntry& SafetensorsFile::at(std::string_view name) const {
  const TensorEntry* entry = find(name);
  if (!entry) input_error(path().string(), ": has no tensor ", shown(name));
  return *entry;
}

std::span<const std::byte> SafetensorsFile::bytes(const TensorEntry& entry) const {
  RMOE_ASSERT(entry.begin >= 0 && entry.begin <= entry.end && entry.end <= state_->file_size - state_->data_start,
              path().string(), ": no such entry");
  if (state_->file.size() < state_->data_start + entry.end) {
    input_error(path().string(), ": tensor ", shown(entry.name), ": the file was shortened since it was opened");
  }
  return {static_cast<const std::byte*>(state_->map) + state_->data_start + entry.begin,
          static_cast<std::size_t>(entry.byte_size())};
}

void SafetensorsFile::read(const TensorEntry& entry, std::span<std::byte> out) const {
  RMOE_ASSERT(static_cast<int64_t>(out.size()) == entry.byte_size(), path().string(), ": tensor ", shown(entry.name),
              " has ", entry.byte_size(), " bytes, not ", out.size());
  read_part(entry, 0, out);
}

void SafetensorsFile::read_part(const TensorEntry& entry, int64_t offset, std::span<std::byte> out) const {
  const auto size = static_cast<int64_t>(out.size());
  RMOE_ASSERT(offset >= 0 && offset <= entry.byte_size() && size <= entry.byte_size() - offset, path().string(),
              ": tensor ", shown(entry.name), " has ", entry.byte_size(), " bytes, not ", offset, " + ", size);
  if (state_->file.read_at(state_->data_start + entry.begin + offset, out) != size) {
    input_error(path().string(), ": tensor ", shown(entry.name), ": the file was shortened since it was opened");
  }
}

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, const std::vector<TensorSpec>& tensors,
                                     const std::map<std::string, std::string>& metadata)
    : path_(std::move(path)), temp_path_(path_.string() + ".tmp") {
  std::string name = path_.string();
  entries_ = lay_out(tensors, name);
  for (std::size_t i = 0; i < entries_.size(); ++i) index_.emplace(entries_[i].name, i);
  written_.resize(entries_.size(), -1);
  std::string header = header_text(entries_, metadata, name);
  auto header_size = static_cast<int64_t>(header.size());
  RMOE_CHECK(header_size <= kMaxHeader, name, ": the header takes ", header_size, " bytes, expected at most ",
             kMaxHeader);
  data_start_ = kPrefix + header_size;
  int64_t data_size = entries_.empty() ? 0 : entries_.back().end;
  int64_t file_size = 0;
  RMOE_CHECK(!__builtin_add_overflow(data_start_, data_size, &file_size), name, ": ", data_size,
             " bytes of data are too many for a file");

  file_ = Descriptor::open(temp_path_, O_WRONLY | O_CREAT | O_TRUNC);
  try {
    reserve(file_, file_size);
    auto length = static_cast<uint64_t>(header_size);
    file_.write_at(0, std::as_bytes(std::span(&length, 1)));
    file_.write_at(kPrefix, std::as_bytes(std::span(header)));
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(temp_path_, ignored);
    throw;
  }
}

SafetensorsWriter::~SafetensorsWriter() {
  if (!file_.is_open()) return;
  std::error_code ignored;
  std::filesystem::remove(temp_path_, ignored);
}

void SafetensorsWriter::write(std::string_view name, std::span<const std::byte> data) {
  RMOE_CHECK(file_.is_open(), path_.string(), ": tensor ", shown(name), " was written after finish()");
  auto at = index_.find(name);
  RMOE_CHECK(at != index_.end(), path_.string(), ": tensor ", shown(name), " was not announced");
  const TensorEntry& e = entries_[at->second];
  RMOE_CHECK(written_[at->second] < 0, path_.string(), ": tensor ", shown(name), " was written twice");
  RMOE_CHECK(static_cast<int64_t>(data.size()) == e.byte_size(), path_.string(), ": tensor ", shown(name), " has ",
             data.size(), " bytes, expected ", e.byte_size());
  write_part(name, data);
}

void SafetensorsWriter::write_part(std::string_view name, std::span<const std::byte> data) {
  RMOE_CHECK(file_.is_open(), path_.string(), ": tensor ", shown(name), " was written after finish()");
  auto at = index_.find(name);
  RMOE_CHECK(at != index_.end(), path_.string(), ": tensor ", shown(name), " was not announced");
  const TensorEntry& e = entries_[at->second];
  int64_t& done = written_[at->second];
  done = std::max<int64_t>(done, 0);
  const auto size = static_cast<int64_t>(data.size());
  RMOE_CHECK(size <= e.byte_size() - done, path_.string(), ": tensor ", shown(name), " has ", done + size,
             " bytes, expected ", e.byte_size());
  file_.write_at(data_start_ + e.begin + done, data);
  done += size;
}

void SafetensorsWriter::finish() {
  RMOE_CHECK(file_.is_open(), path_.string(), ": finish() was called twice");
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    RMOE_CHECK(written_[i] == entries_[i].byte_size(), path_.string(), ": tensor ", shown(entries_[i].name),
               " was announced but not written");
  }
  file_.sync();
  if (::rename(temp_path_.c_str(), path_.c_str()) != 0) throw_errno("create", path_, errno);
  file_.close();
}

}  // namespace rmoe::io
