// Reading documents: see corpus.h.
#include "rmoe/data/corpus.h"

#include <algorithm>
#include <array>
#include <optional>
#include <system_error>

#include <nlohmann/json.hpp>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/utf8.h"
#include "rmoe/data/file_reader.h"

namespace rmoe::data {
namespace {

namespace fs = std::filesystem;

constexpr size_t kChunk = size_t{1} << 20;
constexpr size_t kLongestLine = size_t{1} << 30;
constexpr std::array<std::string_view, 6> kEndings{".txt", ".text", ".md", ".tokens", ".jsonl", ".ndjson"};

bool is_json_lines(const std::string& name) { return name.ends_with(".jsonl") || name.ends_with(".ndjson"); }

bool is_hidden(const std::string& inner_name) {
  for (const fs::path& part : fs::path(inner_name)) {
    if (part.string().starts_with('.') || part == "__MACOSX") return true;
  }
  return false;
}

bool is_usable_name(const std::string& name, const CorpusOptions& options) {
  const std::string plain = without_compression(name);
  return std::ranges::any_of(kEndings, [&](std::string_view ending) { return plain.ends_with(ending); }) ||
         std::ranges::any_of(options.extensions, [&](const std::string& e) { return plain.ends_with("." + e); });
}

std::string usable_endings(const CorpusOptions& options) {
  std::string list;
  for (const std::string_view ending : kEndings) list += str(list.empty() ? "" : " ", ending);
  for (const std::string& extension : options.extensions) list += " ." + extension;
  return list;
}

// Takes the string under one key of a JSON object; everything else is read over without being stored.
class TextOfLine : public nlohmann::json_sax<nlohmann::json> {
 public:
  TextOfLine(const std::string& wanted, std::string& text) : wanted_(wanted), text_(text) {}

  bool found = false;
  std::string keys;  // of the object, for the help line
  std::string problem;

  bool null() override { return value("null"); }
  bool boolean(bool) override { return value("a boolean"); }
  bool number_integer(number_integer_t) override { return value("a number"); }
  bool number_unsigned(number_unsigned_t) override { return value("a number"); }
  bool number_float(number_float_t, const string_t&) override { return value("a number"); }
  bool binary(binary_t&) override { return false; }
  bool string(string_t& text) override {
    if (!at_text_) return value("a string");
    at_text_ = false;
    if (found) return refuse(str("key '", wanted_, "' stands there twice"));
    found = true;
    text_ = std::move(text);
    return true;
  }
  bool key(string_t& name) override {
    if (depth_ == 1) {
      at_text_ = name == wanted_;
      if (keys.size() < 200) keys += str(keys.empty() ? "" : ", ", name);
    }
    return true;
  }
  bool start_object(size_t) override { return open("an object"); }
  bool start_array(size_t) override { return open("a list"); }
  bool end_object() override { return --depth_, true; }
  bool end_array() override { return --depth_, true; }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override {
    std::string message = error.what();
    // "[json.exception.parse_error.101] parse error at line 1, column 8: ...": the line is ours to name.
    if (const size_t at = message.find("column "); at != message.npos) message = message.substr(at);
    return refuse("not valid JSON: " + message);
  }

 private:
  bool refuse(std::string why) {
    if (problem.empty()) problem = std::move(why);
    return false;
  }
  bool value(const char* what) {
    if (depth_ == 0) return refuse(str("is ", what, ", expected an object"));
    if (at_text_) return refuse(str("key '", wanted_, "' holds ", what, ", expected a string"));
    return true;
  }
  bool open(const char* what) {
    if (depth_ == 0 && std::string_view(what) != "an object") return value(what);
    if (depth_ > 0 && at_text_) return value(what);
    if (++depth_ > 64) return refuse("nested more than 64 deep");
    return true;
  }

  const std::string& wanted_;
  std::string& text_;
  int depth_ = 0;
  bool at_text_ = false;
};

// Cuts a stream into lines, for JSON lines and for text with a line that ends documents.
class LineCutter {
 public:
  // Calls take(line without its line feed, whether it had one) for every complete line.
  template <class Take>
  void feed(std::string_view chunk, const std::string& name, Take take) {
    while (true) {
      const size_t end = chunk.find('\n');
      if (end == chunk.npos) break;
      ++number;
      if (held_.empty()) {
        take(chunk.substr(0, end), true);
      } else {
        held_.append(chunk.substr(0, end));
        take(std::string_view(held_), true);
        held_.clear();
      }
      chunk.remove_prefix(end + 1);
    }
    held_.append(chunk);
    RMOE_CHECK(held_.size() <= kLongestLine, name, ":", number + 1, ": a line of more than ",
               human_bytes(static_cast<int64_t>(kLongestLine)));
  }
  template <class Take>
  void finish(Take take) {
    if (held_.empty()) return;
    ++number;
    take(std::string_view(held_), false);
    held_.clear();
  }

  int64_t number = 0;  // of the line being taken, from 1

 private:
  std::string held_;
};

// Passes the text of one file on, with its UTF-8 checked or mended, and documents opened and closed.
class Documents {
 public:
  Documents(DocumentSink& sink, const CorpusOptions& options, std::string name, int64_t& text_bytes)
      : sink_(sink), options_(options), name_(std::move(name)), text_bytes_(text_bytes) {}

  // Text whose characters may be cut by the ends of pieces.
  void text(std::string_view piece) {
    if (options_.invalid == InvalidUtf8::kKeep) return pass(piece);
    if (!held_.empty()) {
      held_.append(piece);
      const std::string joined = std::exchange(held_, {});
      return checked(joined);
    }
    checked(piece);
  }

  void end() {
    if (!held_.empty()) {
      const std::string rest = std::exchange(held_, {});
      if (options_.invalid == InvalidUtf8::kRefuse) refuse(position_, rest.front());
      replace(rest);
    }
    if (in_document_) named([&] { sink_.end_document(); });
    in_document_ = false;
  }

 private:
  void pass(std::string_view piece) {
    if (piece.empty()) return;
    in_document_ = true;
    text_bytes_ += static_cast<int64_t>(piece.size());
    named([&] { sink_.text(piece); });
  }

  // What the sink cannot take is a fault of this file.
  template <class Call>
  void named(Call call) const {
    try {
      call();
    } catch (const Error& error) {
      if (error.code() != Exit::kBadInput) throw;
      throw Error(error.code(), str(name_, ": ", error.message()), error.help());
    }
  }

  void checked(std::string_view piece) {
    const auto whole = piece.size() - static_cast<size_t>(unfinished_tail(piece));
    held_.assign(piece.substr(whole));
    piece = piece.substr(0, whole);
    const auto bad = first_invalid(piece);
    if (bad && options_.invalid == InvalidUtf8::kRefuse) refuse(position_ + *bad, piece[static_cast<size_t>(*bad)]);
    position_ += static_cast<int64_t>(whole);
    bad ? replace(piece) : pass(piece);
  }

  void replace(std::string_view piece) {
    while (!piece.empty()) {
      const auto bad = first_invalid(piece);
      if (!bad) return pass(piece);
      pass(piece.substr(0, static_cast<size_t>(*bad)));
      pass("\xEF\xBF\xBD");
      piece.remove_prefix(static_cast<size_t>(*bad) + 1);
    }
  }

  [[noreturn]] void refuse(int64_t at, char byte) const {
    std::ostringstream value;
    value << std::hex << static_cast<int>(static_cast<unsigned char>(byte));
    throw Error(Exit::kBadInput, str(name_, ": not valid UTF-8: byte 0x", value.str(), " at offset ", at),
                "--invalid-utf8 replace puts U+FFFD there; the byte tokenizer takes any bytes");
  }

  DocumentSink& sink_;
  const CorpusOptions& options_;
  std::string name_, held_;
  int64_t& text_bytes_;
  int64_t position_ = 0;  // bytes of the file before held_
  bool in_document_ = false;
};

}  // namespace

Corpus::Corpus(const std::vector<fs::path>& inputs, CorpusOptions options) : options_(std::move(options)) {
  const auto add = [&](const fs::path& path) {
    std::error_code error;
    const auto size = fs::file_size(path, error);
    if (error) io_error("cannot read ", path.string(), ": ", error.message());
    sources_.push_back({path, static_cast<int64_t>(size)});
  };
  for (const fs::path& input : inputs) {
    std::error_code error;
    const fs::file_status status = fs::status(input, error);
    if (!fs::exists(status)) io_error("cannot read ", input.string(), ": ", errno_text(ENOENT));
    if (fs::is_regular_file(status)) {
      add(input);
      continue;
    }
    RMOE_CHECK(fs::is_directory(status), input.string(),
               ": is a pipe or device, expected a file: it is read more than once");
    std::vector<fs::path> found;
    fs::recursive_directory_iterator walk(input, error), end;
    for (; !error && walk != end; walk.increment(error)) {
      const std::string name = walk->path().filename().string();
      if (name.starts_with('.')) {
        walk.disable_recursion_pending();
      } else if (walk->is_regular_file() && is_usable_name(name, options_)) {
        found.push_back(walk->path());
      }
    }
    if (error) io_error("cannot read ", input.string(), ": ", error.message());
    if (found.empty()) {
      throw Error(Exit::kBadInput, str(input.string(), ": no usable file in this folder"),
                  str("usable: ", usable_endings(options_), " (also packed); --extension takes others as text"));
    }
    std::ranges::sort(found);
    std::ranges::for_each(found, add);
  }
}

Corpus Corpus::as_stored() const {
  Corpus corpus = *this;
  corpus.options_.invalid = InvalidUtf8::kKeep;
  return corpus;
}

int64_t Corpus::stored_bytes() const {
  int64_t sum = 0;
  for (const Source& source : sources_) sum += source.stored_bytes;
  return sum;
}

void Corpus::read(DocumentSink& sink, const ReadProgress& progress) const {
  std::vector<char> buffer(kChunk);
  int64_t stored_before = 0, text_bytes = 0;
  for (const Source& source : sources_) {
    FileReader reader(source.path);
    const bool is_archive = is_archive_name(source.path.string());
    const auto is_wanted = [&](const std::string& inner) {
      if (!options_.member.empty()) return fs::path(inner).filename() == options_.member;
      return !is_hidden(inner) && is_usable_name(inner, options_);
    };
    int64_t members = 0;
    while (reader.next()) {
      if (is_archive && !is_wanted(reader.inner_name())) continue;
      ++members;
      const std::string name = reader.name();
      Documents documents(sink, options_, name, text_bytes);
      LineCutter lines;
      const bool json = is_json_lines(reader.inner_name());
      const auto take_json = [&](std::string_view line, bool) {
        if (line.find_first_not_of(" \t\r") == line.npos) return;
        std::string text;
        TextOfLine handler(options_.text_key, text);
        const bool parsed = nlohmann::json::sax_parse(line, &handler);
        RMOE_CHECK(parsed, name, ":", lines.number, ": ", handler.problem);
        if (!handler.found) {
          throw Error(Exit::kBadInput, str(name, ":", lines.number, ": no key '", options_.text_key, "'"),
                      str("the keys are ", handler.keys, "; --text-key names the one with the text"));
        }
        documents.text(text);
        documents.end();
      };
      const auto take_text = [&](std::string_view line, bool has_line_feed) {
        if (line == options_.document_end) return documents.end();
        documents.text(line);
        if (has_line_feed) documents.text("\n");
      };
      while (const int64_t count = reader.read(buffer)) {
        const std::string_view chunk(buffer.data(), static_cast<size_t>(count));
        if (json) {
          lines.feed(chunk, name, take_json);
        } else if (!options_.document_end.empty()) {
          lines.feed(chunk, name, take_text);
        } else {
          documents.text(chunk);
        }
        if (progress) progress(stored_before + std::min(reader.stored_position(), source.stored_bytes), text_bytes);
      }
      if (json) lines.finish(take_json);
      if (!json) lines.finish(take_text);
      documents.end();
    }
    RMOE_CHECK(!is_archive || members > 0 || options_.member.empty(), source.path.string(), ": no ", options_.member,
               " in this archive");
    if (is_archive && members == 0) {
      throw Error(Exit::kBadInput, str(source.path.string(), ": no usable file in this archive"),
                  str("usable: ", usable_endings(options_), "; --extension takes others as text"));
    }
    stored_before += source.stored_bytes;
  }
}

}  // namespace rmoe::data
