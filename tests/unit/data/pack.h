// Packed files for tests, written by libarchive and zlib.
#pragma once

#include <zlib.h>

#include <filesystem>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <archive.h>
#include <archive_entry.h>

#include "rmoe/base/files.h"

namespace rmoe::data {

inline void write_gz(const std::filesystem::path& path, const std::string& text) {
  gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
  gzclose(file);
}

using Members = std::vector<std::pair<std::string, std::string>>;  // name, text

// `format` and `filter` are libarchive's setters.
inline void write_archive(const std::filesystem::path& path, int (*format)(archive*), int (*filter)(archive*),
                          const Members& members) {
  archive* a = archive_write_new();
  format(a);
  filter(a);
  if (archive_write_open_filename(a, path.c_str()) != ARCHIVE_OK) throw std::runtime_error(archive_error_string(a));
  for (const auto& [name, text] : members) {
    archive_entry* entry = archive_entry_new();
    archive_entry_set_pathname(entry, name.c_str());
    archive_entry_set_filetype(entry, name.ends_with('/') ? AE_IFDIR : AE_IFREG);
    archive_entry_set_perm(entry, 0755);
    archive_entry_set_size(entry, static_cast<la_int64_t>(text.size()));
    if (archive_write_header(a, entry) != ARCHIVE_OK) throw std::runtime_error(archive_error_string(a));
    archive_write_data(a, text.data(), text.size());
    archive_entry_free(entry);
  }
  archive_write_close(a);
  archive_write_free(a);
}

inline void write_zip(const std::filesystem::path& path, const Members& members) {
  write_archive(path, archive_write_set_format_zip, archive_write_add_filter_none, members);
}

// Cuts a file in half.
inline void truncate_half(const std::filesystem::path& path) {
  std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
}

// Flips one bit; negative offsets count from the end.
inline void flip_bit(const std::filesystem::path& path, int64_t offset) {
  std::string bytes = read_file(path);
  bytes[static_cast<size_t>(offset < 0 ? static_cast<int64_t>(bytes.size()) + offset : offset)] ^= 0x10;
  write_file_atomic(path, bytes);
}

}  // namespace rmoe::data
