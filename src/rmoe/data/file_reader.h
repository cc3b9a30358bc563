// One stream of bytes out of a file, whatever it is packed in: plain, .gz/.dz, .zst, .xz, .bz2, and the members of .zip
// and .tar (.tar.gz, .tgz, .tar.zst, ...) archives. Memory use does not depend on the file's size.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

namespace rmoe::data {

class FileReader {
 public:
  // Throws Error(kIo) when the file cannot be read, kBadInput when it is not what its name says.
  explicit FileReader(const std::filesystem::path& path);
  ~FileReader();
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;

  // Goes to the next member that is a file, false after the last. A file that is not an archive has one.
  bool next();
  // The member as errors name it: "a/b.txt.gz", "a.zip:b/c.txt".
  const std::string& name() const;
  // The member's own name, without packing: "b.txt", "b/c.txt".
  const std::string& inner_name() const;
  // The next bytes, at least one; 0 at the end of the member. Throws kBadInput naming the file when it is damaged.
  int64_t read(std::span<char> out);
  // How much of the stored file has been read.
  int64_t stored_position() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The name without the endings of compression: "b.txt" for "b.txt.gz".
std::string without_compression(const std::string& name);
// Whether the name is that of an archive (.zip, .tar, .tgz, .tar.*).
bool is_archive_name(const std::string& name);

}  // namespace rmoe::data
