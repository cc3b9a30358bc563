// tokenizer.json of Hugging Face, by Hugging Face's own `tokenizers`: a Python process holds the tokenizer and answers
// lines of JSON with lines of JSON. Rewriting normalizers, pre-tokenizers and decoders would never be the same thing.
#include <link.h>

#include <mutex>

#include "rmoe/base/child.h"
#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/base/utf8.h"
#include "rmoe/data/hash.h"
#include "rmoe/data/tokenizer.h"

namespace rmoe::data {
namespace {

namespace fs = std::filesystem;

constexpr char kModelName[] = "tokenizer.hf.json";
constexpr size_t kLongestPart = size_t{16} << 20;
constexpr JsonLimits kLimits{.bytes = int64_t{1} << 30, .depth = 256};

// Reads requests from standard input, one object a line: {"load": text of tokenizer.json}, {"encode": text},
// {"decode": ids}, {"id": token}. Padding and truncation belong to batches, not to a text.
constexpr char kProgram[] = R"(
import json, sys
sys.path[:] = [p for p in sys.path if p]
def say(answer):
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
try:
    import tokenizers
    say({"version": tokenizers.__version__})
except Exception as error:
    say({"error": "%s: %s" % (type(error).__name__, error)})
    sys.exit(0)
tokenizer = None
for line in sys.stdin.buffer:
    request = json.loads(line)
    try:
        if "encode" in request:
            say({"ids": tokenizer.encode(request["encode"], add_special_tokens=False).ids})
        elif "decode" in request:
            say({"text": tokenizer.decode(request["decode"], skip_special_tokens=True)})
        elif "id" in request:
            say({"id": tokenizer.token_to_id(request["id"])})
        else:
            tokenizer = tokenizers.Tokenizer.from_str(request["load"])
            tokenizer.no_padding()
            tokenizer.no_truncation()
            plain = tokenizer.encode("a", add_special_tokens=False).ids
            whole = tokenizer.encode("a").ids
            at = next((i for i in range(len(whole)) if whole[i:i + len(plain)] == plain), 0) if plain else 0
            size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
            say({"size": size, "begin": whole[:at]})
    except BaseException as error:
        say({"error": "%s: %s" % (type(error).__name__, error)})
)";

// Pythons to ask, the likeliest first.
std::vector<std::string> pythons() {
  std::vector<std::string> found;
  // .../lib/python3.x/site-packages/torch/lib/libtorch_cpu.so lies in the environment that has bin/python3.
  ::dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        const fs::path library = info->dlpi_name ? info->dlpi_name : "";
        if (library.filename() != "libtorch_cpu.so") return 0;
        const fs::path packages = library.parent_path().parent_path().parent_path();
        const fs::path python = packages.parent_path().parent_path().parent_path() / "bin" / "python3";
        std::error_code none;
        if (fs::exists(python, none)) static_cast<std::vector<std::string>*>(out)->push_back(python.string());
        return 1;
      },
      &found);
  found.emplace_back("python3");
  return found;
}

// The first line of a message from elsewhere.
std::string first_line(std::string text) {
  text = text.substr(0, text.find('\n'));
  return text.size() > 200 ? text.substr(0, 197) + "..." : text;
}

// The process. One question at a time.
class Server {
 public:
  Server(const std::string& file, const std::string& name) : name_(name) {
    std::string tried;
    for (const std::string& python : pythons()) {
      std::string reason;
      try {
        auto child = std::make_unique<Child>(str(name, ": the tokenizer's process"), python,
                                             std::vector<std::string>{"-c", kProgram}, std::vector<std::string>{});
        const Json greeting = parse_json(child->read_line(), name);
        if (greeting.contains("version")) {
          child_ = std::move(child);
          break;
        }
        reason = json_string(greeting, "error", name);
      } catch (const Error& error) {
        reason = error.message();
      }
      tried += str(tried.empty() ? "" : "; ", python, ": ", first_line(reason));
    }
    if (!child_) {
      throw Error(Exit::kIo, str(name, ": needs a Python with the package tokenizers; tried ", tried),
                  "pip install tokenizers, into one of these; a tokenizer.model of SentencePiece needs no Python");
    }
    const Json loaded = ask({{"load", file}});
    size_ = json_int(loaded, "size", name);
    begin_ = loaded.at("begin").get<std::vector<int64_t>>();
    RMOE_CHECK(size_ > 0, name, ": a tokenizer without tokens");
  }

  std::vector<int64_t> encode(std::string_view text) const {
    return ask({{"encode", std::string(text)}}).at("ids").get<std::vector<int64_t>>();
  }
  std::string decode(std::span<const int64_t> ids) const {
    return ask({{"decode", std::vector<int64_t>(ids.begin(), ids.end())}}).at("text").get<std::string>();
  }
  std::optional<int64_t> id_of(const std::string& token) const {
    const Json answer = ask({{"id", token}});
    return answer.at("id").is_null() ? std::nullopt : std::optional(answer.at("id").get<int64_t>());
  }

  int64_t size() const { return size_; }
  const std::vector<int64_t>& begin() const { return begin_; }
  const std::string& name() const { return name_; }

 private:
  Json ask(const Json& request) const {
    const std::lock_guard lock(mutex_);
    child_->write_line(json_text(request));
    Json answer = parse_json(child_->read_line(), name_, {.bytes = int64_t{1} << 34});
    if (answer.contains("error")) input_error(name_, ": ", first_line(json_string(answer, "error", name_)));
    return answer;
  }

  std::string name_;
  std::unique_ptr<Child> child_;
  mutable std::mutex mutex_;
  int64_t size_ = 0;
  std::vector<int64_t> begin_;
};

// The tokenizer's process, started when it is first needed: who only compares hashes needs no Python.
class LazyServer {
 public:
  LazyServer(std::string file, std::string name, std::optional<HuggingfaceFacts> facts)
      : file_(std::move(file)), name_(std::move(name)), facts_(std::move(facts)) {
    if (!facts_) facts_ = HuggingfaceFacts{.size = get().size(), .begin = get().begin(), .separator = {}};
  }
  const Server& get() const {
    if (server_) return *server_;
    auto server = std::make_unique<Server>(file_, name_);
    RMOE_CHECK(!facts_ || (server->size() == facts_->size && server->begin() == facts_->begin), name_,
               ": the installed tokenizers package reads it otherwise than the one that tokenizer.json was made with");
    server_ = std::move(server);
    return *server_;
  }
  const HuggingfaceFacts& facts() const { return *facts_; }
  const std::string& file() const { return file_; }
  const std::string& name() const { return name_; }

 private:
  std::string file_, name_;
  std::optional<HuggingfaceFacts> facts_;
  mutable std::unique_ptr<Server> server_;
};

class HuggingfaceEncoder : public Encoder {
 public:
  explicit HuggingfaceEncoder(const LazyServer& server) : server_(server) {}

  void feed(std::string_view text, std::vector<int64_t>& out) override {
    held_.append(text);
    while (held_.size() > kLongestPart) {
      const std::string_view part = std::string_view(held_).substr(0, kLongestPart);
      const size_t line_feed = part.rfind('\n');
      const size_t size =
          line_feed != part.npos ? line_feed + 1 : kLongestPart - static_cast<size_t>(unfinished_tail(part));
      take(part.substr(0, size), out);
      held_.erase(0, size);
    }
  }

  void finish(std::vector<int64_t>& out, bool) override {
    take(held_, out);
    held_.clear();
    started_ = false;
  }

 private:
  void take(std::string_view text, std::vector<int64_t>& out) {
    if (!std::exchange(started_, true)) out.insert(out.end(), begin().begin(), begin().end());
    if (text.empty()) return;
    const std::vector<int64_t> ids = server_.get().encode(text);
    out.insert(out.end(), ids.begin(), ids.end());
  }

  const std::vector<int64_t>& begin() const { return server_.facts().begin; }

  const LazyServer& server_;
  std::string held_;
  bool started_ = false;
};

// What an id adds to the text depends on those before it (a first space is dropped, bytes make up a character): a
// window of ids is decoded with and without the new ones, and its text is certain when it does not end in the
// replacement character. The window begins where a text was certain before, so that it stays short.
class HuggingfaceDecoder : public Decoder {
 public:
  explicit HuggingfaceDecoder(const LazyServer& server) : server_(server) {}

 private:
  void bytes_of(int64_t id, std::string& out) override {
    const int64_t size = server_.facts().size;
    RMOE_CHECK(id >= 0 && id < size, server_.name(), ": id ", id, ", expected 0 to ", size - 1);
    window_.push_back(id);
    const std::string text = server_.get().decode(window_);
    if (text.ends_with("\xEF\xBF\xBD") || text.size() <= known_.size()) return;
    put(text, out);
    // The ids since the last certain text are the next window's beginning.
    window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(certain_));
    certain_ = window_.size();
    known_ = server_.get().decode(window_);
  }

  void bytes_left(std::string& out) override {
    if (!window_.empty()) put(server_.get().decode(window_), out);
  }

  void put(const std::string& text, std::string& out) const {
    if (text.size() > known_.size()) out += text.substr(known_.size());
  }

  const LazyServer& server_;
  std::vector<int64_t> window_;
  size_t certain_ = 0;  // ids of the window whose text is out
  std::string known_;   // that text, as the window's beginning decodes
};

class HuggingfaceTokenizer : public Tokenizer {
 public:
  HuggingfaceTokenizer(std::string file, const std::string& name, const std::string& separator,
                       std::optional<HuggingfaceFacts> facts)
      : server_(std::move(file), name, facts) {
    vocab_size_ = server_.facts().size;
    if (facts) separator_ = facts->separator;
    if (!facts && !separator.empty()) {
      separator_ = server_.get().id_of(separator);
      RMOE_CHECK(separator_, name, ": has no token '", separator, "', which is said to end a text");
    }
    seal();
  }

  std::unique_ptr<Encoder> encoder() const override { return std::make_unique<HuggingfaceEncoder>(server_); }
  std::unique_ptr<Decoder> decoder() const override { return std::make_unique<HuggingfaceDecoder>(server_); }
  // Many put a prefix in front of whatever they are given: here it is in front of a line feed, which goes again.
  std::vector<int64_t> encode_more(std::string_view text) const override {
    const std::vector<int64_t> guard = server_.get().encode("\n"), all = server_.get().encode("\n" + std::string(text));
    if (!std::equal(guard.begin(), guard.end(), all.begin(),
                    all.begin() + std::min(std::ssize(guard), std::ssize(all))))
      return server_.get().encode(text);
    return {all.begin() + std::ssize(guard), all.end()};
  }
  std::string kind() const override { return "huggingface"; }
  bool needs_utf8() const override { return true; }
  Json huggingface_form() const override { return parse_json(server_.file(), server_.name(), kLimits); }
  std::string describe() const override { return str("huggingface: ", vocab_size_, " tokens"); }

 private:
  Json contents() const override {
    Json object = common_contents();
    object["begin"] = server_.facts().begin;
    object["model"] = kModelName;
    object["model_hash"] = hex16(xxh3(server_.file()));
    return object;
  }
  void save_more(const fs::path& folder) const override { write_file_atomic(folder / kModelName, server_.file()); }

  LazyServer server_;
};

// A special token of tokenizer_config.json: text, or an object whose content is the text.
std::string special_token(const Json& config, const char* key) {
  if (!config.is_object() || !config.contains(key)) return "";
  const Json& token = config.at(key);
  if (token.is_string()) return token.get<std::string>();
  if (token.is_object() && token.contains("content") && token.at("content").is_string()) {
    return token.at("content").get<std::string>();
  }
  return "";
}

}  // namespace

std::string token_text(const Json& tokenizer, int64_t id) {
  if (tokenizer.contains("added_tokens") && tokenizer.at("added_tokens").is_array()) {
    for (const Json& token : tokenizer.at("added_tokens")) {
      if (token.value("id", int64_t{-1}) == id) return token.value("content", "");
    }
  }
  const Json* vocabulary = tokenizer.at("model").contains("vocab") ? &tokenizer.at("model").at("vocab") : nullptr;
  if (vocabulary && vocabulary->is_object()) {
    for (const auto& [text, value] : vocabulary->items()) {
      if (value.is_number_integer() && value.get<int64_t>() == id) return text;
    }
  }
  return "";
}

std::unique_ptr<Tokenizer> make_huggingface_tokenizer(std::string file, const std::string& name,
                                                      const std::string& separator,
                                                      std::optional<HuggingfaceFacts> facts) {
  return std::make_unique<HuggingfaceTokenizer>(std::move(file), name, separator, std::move(facts));
}

std::unique_ptr<Tokenizer> load_foreign_tokenizer(const fs::path& folder_or_file) {
  const bool is_folder = fs::is_directory(folder_or_file);
  const fs::path folder = is_folder ? folder_or_file : folder_or_file.parent_path();
  fs::path file = folder_or_file;
  if (is_folder) {
    for (const char* name : {"rmoe_tokenizer.json", "tokenizer.json", "tokenizer.model"}) {
      file = folder / name;
      if (fs::exists(file)) break;
    }
    if (!fs::exists(file)) return nullptr;
  }
  const fs::path settings = folder / "tokenizer_config.json";
  const Json config = fs::exists(settings) ? read_json_file(settings) : Json::object();
  std::string text = read_file(file, kLimits.bytes);
  if (file.extension() != ".json") {
    const bool begin = !config.contains("add_bos_token") || config.at("add_bos_token") == true;
    return make_foreign_sentencepiece_tokenizer(std::move(text), file.string(), begin);
  }
  const Json object = parse_json(text, file.string(), kLimits);
  RMOE_CHECK(object.is_object(), file.string(), ": not a tokenizer: expected an object");
  if (object.contains("format") && object.at("format") == "rmoe-tokenizer") return Tokenizer::load(file);
  RMOE_CHECK(object.contains("model") && object.at("model").is_object(), file.string(),
             ": not a tokenizer.json of Hugging Face: 'model' is missing");
  std::string end = special_token(config, "eos_token");
  const fs::path model = folder / "config.json";
  if (end.empty() && fs::exists(model)) {
    const auto ids = json_ints(read_json_file(model), "eos_token_id", model.string());
    if (!ids.empty()) end = token_text(object, ids.front());
  }
  return make_huggingface_tokenizer(std::move(text), file.string(), end);
}

}  // namespace rmoe::data
