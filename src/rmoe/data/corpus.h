// The documents of a list of files, folders and archives, streamed in a fixed order.
//
// A plain text file (or archive member) is one document, or several where a line of its own ends each; every line of a
// .jsonl / .ndjson file is one document, the string under one key. Documents without text are left out.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rmoe::data {

enum class InvalidUtf8 { kKeep, kRefuse, kReplace };

struct CorpusOptions {
  std::string text_key = "text";        // of a JSON line
  std::vector<std::string> extensions;  // further endings that count as text in folders and archives, without dot
  std::string member;                   // only the archive members of this name are read; empty: all that are usable
  std::string document_end;             // a text line that reads so ends a document and is no text; empty: none does
  InvalidUtf8 invalid = InvalidUtf8::kKeep;  // kReplace: each invalid byte becomes U+FFFD
};

// Receives documents in order.
class DocumentSink {
 public:
  virtual ~DocumentSink() = default;
  // A piece of the present document, never empty.
  virtual void text(std::string_view piece) = 0;
  // The document, which had text, is complete.
  virtual void end_document() = 0;
};

// Called now and then while reading, with the stored bytes read so far and the bytes of text they gave.
using ReadProgress = std::function<void(int64_t stored, int64_t text)>;

class Corpus {
 public:
  // Finds the files: folders are walked in the order of their names, hidden files left out, and only .txt, .text, .md,
  // .jsonl, .ndjson, .tokens and `extensions` (packed or not) taken; a file named directly is text whatever its ending.
  // Throws kIo for what is missing or unreadable, kBadInput for a folder without usable files and for pipes, which
  // cannot be read twice.
  Corpus(const std::vector<std::filesystem::path>& inputs, CorpusOptions options);

  struct Source {
    std::filesystem::path path;
    int64_t stored_bytes = 0;
  };
  const std::vector<Source>& sources() const { return sources_; }
  int64_t stored_bytes() const;

  // The same files with the bytes of plain text as they are, whatever they are.
  Corpus as_stored() const;

  // Reads everything once. Throws kBadInput naming file and line or byte for text that cannot be used; a kBadInput of
  // the sink gets the file's name before it.
  void read(DocumentSink& sink, const ReadProgress& progress = {}) const;

 private:
  std::vector<Source> sources_;
  CorpusOptions options_;
};

}  // namespace rmoe::data
