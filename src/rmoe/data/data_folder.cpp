// rmoe data info: see data_folder.h.
#include "rmoe/data/data_folder.h"

#include <algorithm>
#include <iomanip>
#include <sstream>
#include <vector>

#include "rmoe/base/error.h"
#include "rmoe/data/hash.h"
#include "rmoe/data/splits.h"
#include "rmoe/data/token_file.h"
#include "rmoe/data/tokenizer.h"

namespace rmoe::data {
namespace {

namespace fs = std::filesystem;

TokenHeader checked_header(const fs::path& path, bool verify) {
  const TokenFile file = TokenFile::open(path);
  if (verify) file.verify();
  return file.header();
}

Json file_info(const fs::path& path, bool verify) {
  const TokenHeader h = checked_header(path, verify);
  return {{"file", path.string()},
          {"tokens", h.count},
          {"vocab_size", h.vocab_size},
          {"bytes_per_token", h.bytes_per_token},
          {"tokenizer_hash", hex16(h.tokenizer_hash)},
          {"documents", h.documents},
          {"bytes", h.bytes},
          {"characters", h.characters},
          {"words", h.words}};
}

Json folder_info(const fs::path& folder, bool verify) {
  const fs::path path = folder / "data.json";
  const std::string what = path.string();
  Json data = read_json_file(path);
  RMOE_CHECK(data.is_object() && data.contains("format") && data["format"] == "rmoe-data", what,
             ": not a data folder of rmoe: \"format\" is not \"rmoe-data\"");
  const int64_t version = json_int(data, "version", what);
  RMOE_CHECK(version == 1, what, ": data folder of version ", version, ", expected 1");
  const auto tokenizer = Tokenizer::load(folder);
  const Json& splits = json_member(data, "splits", what);
  RMOE_CHECK(splits.is_object() && splits.contains("train"), what, ": 'splits' has no 'train'");
  for (const auto& [name, split] : splits.items()) {
    const fs::path file = folder / (name + ".tok");
    const TokenHeader h = checked_header(file, verify);
    RMOE_CHECK(h.tokenizer_hash == tokenizer->hash(), file.string(), ": made with another tokenizer (hash ",
               hex16(h.tokenizer_hash), ", tokenizer.json has ", hex16(tokenizer->hash()), ")");
    RMOE_CHECK(h.count == json_int(split, "tokens", what), file.string(), ": ", h.count, " tokens, data.json says ",
               json_int(split, "tokens", what));
  }
  return data;
}

// 1234567 as "1 234 567".
std::string grouped(int64_t number) {
  std::string text = std::to_string(number);
  for (auto at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3) text.insert(static_cast<size_t>(at), 1, ' ');
  return text;
}

// Columns as wide as their widest cell, the first to the left, the others to the right.
std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows.front().size());
  for (const auto& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string text;
  for (const auto& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) {
      const std::string pad(widths[c] - row[c].size(), ' ');
      text += c == 0 ? row[c] + pad : "  " + pad + row[c];
    }
    text += '\n';
  }
  return text;
}

}  // namespace

Json info(const fs::path& path, bool verify) {
  return fs::is_directory(path) ? folder_info(path, verify) : file_info(path, verify);
}

std::string info_text(const Json& info) {
  constexpr const char* kCounts[] = {"tokens", "documents", "bytes", "characters", "words"};
  std::ostringstream out;
  if (!info.contains("splits")) {
    out << info["file"].get<std::string>() << ": vocabulary " << info["vocab_size"] << ", " << info["bytes_per_token"]
        << " bytes per token, tokenizer " << info["tokenizer_hash"].get<std::string>() << "\n";
    for (const char* count : kCounts) {
      out << std::left << std::setw(12) << count << grouped(info[count].get<int64_t>()) << "\n";
    }
    return out.str();
  }
  const Json& tokenizer = info["tokenizer"];
  out << "tokenizer  " << tokenizer["description"].get<std::string>() << ", " << tokenizer["vocab_size"]
      << " ids, hash " << tokenizer["hash"].get<std::string>() << "\n";
  std::vector<std::vector<std::string>> rows{{"split"}};
  for (const char* count : kCounts) rows[0].push_back(count);
  rows[0].push_back("tokens/word");
  for (const auto& [name, split] : info["splits"].items()) {
    std::vector<std::string> row{name};
    for (const char* count : kCounts) row.push_back(grouped(split[count].get<int64_t>()));
    std::ostringstream ratio;
    const auto words = static_cast<double>(std::max<int64_t>(split["words"].get<int64_t>(), 1));
    ratio << std::fixed << std::setprecision(2) << static_cast<double>(split["tokens"].get<int64_t>()) / words;
    row.push_back(ratio.str());
    rows.push_back(std::move(row));
  }
  return out.str() + table(rows);
}

}  // namespace rmoe::data
