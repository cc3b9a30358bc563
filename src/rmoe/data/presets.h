// Texts that have a name: where they come from, how they are checked, and how the literature splits and reads them.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "rmoe/data/splits.h"

namespace rmoe::data {

// What the text of one file must be.
struct Published {
  Split split;
  const char* member;  // its name in an archive or folder
  int64_t bytes;       // 0 where no size was published
  const char* sha1;
  int64_t tokens;  // by the word protocol without limits; 0 where that is not the protocol
};

struct Preset {
  const char* name;
  const char* summary;  // with its source
  const char* tokenizer;
  bool bytes_as_characters = false;  // one symbol per byte, and "character" means byte
  bool replace_invalid = false;      // the text is known to hold bytes that are not UTF-8
  // Files of the published text: one for all splits, or one per split. Empty for texts of the distribution's packages.
  std::vector<Published> published;
  const char* url = nullptr;          // where it is fetched from when no file or address is given
  int64_t valid_at = 0, test_at = 0;  // where one text is cut, in bytes
  int64_t word_vocabulary = 0;        // ids of the word protocol without limits
};

const std::vector<Preset>& presets();
// Throws kBadInput with the nearest name for an unknown one.
const Preset& find_preset(const std::string& name);

// The King James text as the package bible-kjv prints it, written to `path`: one verse per line, "Ge1:1 In the
// beginning
// ...". Throws kIo when the command is missing or its output is not the whole Bible.
void write_kjv(const std::filesystem::path& path);

// The dictionary of the package dict-gcide. Throws kIo when it is not installed.
std::filesystem::path gcide_path();

}  // namespace rmoe::data
