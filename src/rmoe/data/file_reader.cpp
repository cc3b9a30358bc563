// Unpacking by zlib and libarchive. gzip goes through zlib even below libarchive, whose own gzip filter does not check
// the check sum.
#include "rmoe/data/file_reader.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <vector>

#include <archive.h>
#include <archive_entry.h>

#include "rmoe/base/error.h"

namespace rmoe::data {
namespace {

constexpr size_t kChunk = size_t{1} << 18;

struct Packing {
  const char* ending;
  const char* name;
  int filter;  // libarchive's code; ARCHIVE_FILTER_GZIP stands for zlib
};
constexpr std::array kPackings{
    Packing{".gz", "gzip", ARCHIVE_FILTER_GZIP}, Packing{".tgz", "gzip", ARCHIVE_FILTER_GZIP},
    Packing{".dz", "gzip", ARCHIVE_FILTER_GZIP}, Packing{".zst", "Zstandard", ARCHIVE_FILTER_ZSTD},
    Packing{".xz", "xz", ARCHIVE_FILTER_XZ},     Packing{".bz2", "bzip2", ARCHIVE_FILTER_BZIP2},
};

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return text;
}

const Packing* packing_of(const std::string& name) {
  for (const Packing& packing : kPackings) {
    if (lower(name).ends_with(packing.ending)) return &packing;
  }
  return nullptr;
}

struct CloseGz {
  void operator()(gzFile_s* file) const { gzclose(file); }
};
struct FreeArchive {
  void operator()(archive* a) const { archive_read_free(a); }
};

}  // namespace

std::string without_compression(const std::string& name) {
  const Packing* packing = packing_of(name);
  if (!packing || std::string_view(packing->ending) == ".tgz") return name;
  return name.substr(0, name.size() - std::string_view(packing->ending).size());
}

bool is_archive_name(const std::string& name) {
  const std::string inner = lower(without_compression(name));
  return inner.ends_with(".zip") || inner.ends_with(".tar") || inner.ends_with(".tgz");
}

struct FileReader::State {
  std::filesystem::path path;
  bool is_archive = false, is_zip = false;
  std::unique_ptr<gzFile_s, CloseGz> gz;
  std::unique_ptr<archive, FreeArchive> reader;
  std::vector<char> buffer = std::vector<char>(kChunk);
  std::string name, inner;
  std::string gz_error;
  int read_error = 0;  // errno, where it was not the contents that failed
  bool started = false, at_end = false;

  [[noreturn]] void fail() const {
    if (read_error != 0) io_error("cannot read ", path.string(), ": ", errno_text(read_error));
    const char* message = archive_error_string(reader.get());
    const std::string why = !gz_error.empty() ? gz_error : message ? message : "unknown error";
    input_error((name.empty() ? path.string() : name), ": cannot be unpacked: ", why);
  }

  // libarchive asks for the next stored bytes: zlib's output where the file is gzip, else the file itself.
  static la_ssize_t more(archive* a, void* self, const void** out) {
    auto& state = *static_cast<State*>(self);
    const int count = gzread(state.gz.get(), state.buffer.data(), static_cast<unsigned>(state.buffer.size()));
    int code = Z_OK;
    const char* message = gzerror(state.gz.get(), &code);
    // A cut-off file gives what it has first, and says so only at the end.
    if (count < 0 || (count == 0 && code != Z_OK && code != Z_STREAM_END)) {
      if (code == Z_ERRNO) state.read_error = errno;
      state.gz_error = message;
      if (state.gz_error.starts_with(state.path.string() + ": "))
        state.gz_error.erase(0, state.path.string().size() + 2);
      archive_set_error(a, EIO, "%s", state.gz_error.c_str());
      return ARCHIVE_FATAL;
    }
    *out = state.buffer.data();
    return count;
  }

  void open() {
    const std::string file = path.string();
    if (std::filesystem::is_directory(path)) input_error(file, ": is a folder, expected a file");
    gz.reset(gzopen(file.c_str(), "rb"));
    if (!gz) io_error("cannot read ", file, ": ", errno_text(errno));
    gzbuffer(gz.get(), kChunk);
    reader.reset(archive_read_new());
    archive* a = reader.get();
    is_zip = lower(file).ends_with(".zip");
    const Packing* packing = is_zip ? nullptr : packing_of(file);
    is_archive = is_archive_name(file);
    if (is_zip) {
      archive_read_support_format_zip(a);
    } else {
      archive_read_support_filter_zstd(a);
      archive_read_support_filter_xz(a);
      archive_read_support_filter_bzip2(a);
      is_archive ? archive_read_support_format_tar(a) : archive_read_support_format_raw(a);
      archive_read_support_format_empty(a);
    }
    // The index of a zip stands at its end, so it is read by seeking.
    const int opened = is_zip ? archive_read_open_filename(a, file.c_str(), kChunk)
                              : archive_read_open2(a, this, nullptr, &State::more, nullptr, nullptr);
    if (opened != ARCHIVE_OK) fail();
    if (packing) {
      const bool found = packing->filter == ARCHIVE_FILTER_GZIP ? gzdirect(gz.get()) == 0
                                                                : archive_filter_code(a, 0) == packing->filter;
      RMOE_CHECK(found, file, ": its name says ", packing->name, ", but its contents are not");
    }
  }
};

FileReader::FileReader(const std::filesystem::path& path) : state_(std::make_unique<State>()) {
  state_->path = path;
  state_->open();
}

FileReader::~FileReader() = default;

bool FileReader::next() {
  State& s = *state_;
  while (!s.at_end) {
    archive_entry* entry = nullptr;
    const int code = archive_read_next_header(s.reader.get(), &entry);
    if (code == ARCHIVE_EOF) {
      // An empty file is one member without bytes; an archive may have none.
      if (s.started || s.is_archive) return false;
      s.at_end = true;
    } else if (code != ARCHIVE_OK && code != ARCHIVE_WARN) {
      s.fail();
    }
    s.started = true;
    if (!s.is_archive) {
      s.name = s.path.string();
      s.inner = without_compression(s.path.filename().string());
      return true;
    }
    if (archive_entry_filetype(entry) != AE_IFREG) continue;
    const char* inner = archive_entry_pathname_utf8(entry);
    if (!inner) inner = archive_entry_pathname(entry);
    s.inner = inner ? inner : "?";
    s.name = s.path.string() + ":" + s.inner;
    return true;
  }
  return false;
}

const std::string& FileReader::name() const { return state_->name; }
const std::string& FileReader::inner_name() const { return state_->inner; }

int64_t FileReader::read(std::span<char> out) {
  if (state_->at_end) return 0;
  const la_ssize_t count = archive_read_data(state_->reader.get(), out.data(), out.size());
  if (count < 0) state_->fail();
  return count;
}

int64_t FileReader::stored_position() const {
  const State& s = *state_;
  return s.is_zip ? archive_filter_bytes(s.reader.get(), -1) : gzoffset(s.gz.get());
}

}  // namespace rmoe::data
