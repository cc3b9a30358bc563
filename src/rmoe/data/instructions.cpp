#include "rmoe/data/instructions.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/base/rng.h"
#include "rmoe/data/file_reader.h"
#include "rmoe/data/hash.h"

namespace rmoe::data {
namespace {

namespace fs = std::filesystem;

constexpr size_t kLongestLine = size_t{1} << 26;
constexpr int64_t kLongestList = int64_t{1} << 30;
constexpr int64_t kIgnored = -100;  // the target of what is no answer
// Lengths of batches are multiples of this (as far as the block allows): few different shapes.
constexpr int64_t kLengthStep = 16;

struct Message {
  enum Role { kSystem, kUser, kAssistant } role;
  std::string content;
};

std::string replaced(std::string text, std::string_view place, std::string_view value) {
  const size_t at = text.find(place);
  return text.replace(at, place.size(), value);
}

std::string input_message(const std::string& form, const std::string& instruction, const std::string& input) {
  // Found before either is put in: what is put in may look like a place.
  const size_t first = form.find("{instruction}"), second = form.find("{input}");
  if (first < second) {
    return form.substr(0, first) + instruction + form.substr(first + 13, second - first - 13) + input +
           form.substr(second + 7);
  }
  return form.substr(0, second) + input + form.substr(second + 7, first - second - 7) + instruction +
         form.substr(first + 13);
}

bool is_blank(std::string_view text) { return text.find_first_not_of(" \t\r\n") == text.npos; }

Message message_of(const Json& item, const std::string& where) {
  RMOE_CHECK(item.is_object(), where, ": an item of 'messages' is no object");
  const std::string role = json_string(item, "role", where);
  Message message{.role = Message::kUser, .content = json_string(item, "content", where)};
  if (role == "system") {
    message.role = Message::kSystem;
  } else if (role == "assistant") {
    message.role = Message::kAssistant;
  } else {
    RMOE_CHECK(role == "user", where, ": unknown role '", role, "', expected system, user or assistant");
  }
  return message;
}

std::vector<Message> messages_of(const Json& line, const InstructConfig& config, const std::string& where) {
  RMOE_CHECK(line.is_object(), where, ": expected an object with 'instruction' and 'output', or with 'messages'");
  std::vector<Message> messages;
  if (line.contains("messages")) {
    RMOE_CHECK(!line.contains("instruction"), where, ": has both 'messages' and 'instruction', expected one of them");
    const Json& list = line.at("messages");
    RMOE_CHECK(list.is_array(), where, ": 'messages' is no list");
    for (const Json& item : list) messages.push_back(message_of(item, where));
  } else {
    const std::string instruction = json_string(line, "instruction", where);
    const std::string output = json_string(line, "output", where);
    const std::string input = line.contains("input") ? json_string(line, "input", where) : "";
    messages.push_back(
        {Message::kUser, is_blank(input) ? instruction : input_message(config.input, instruction, input)});
    messages.push_back({Message::kAssistant, output});
  }
  for (size_t i = 1; i < messages.size(); ++i) {
    RMOE_CHECK(messages[i].role != Message::kSystem, where, ": message ", i + 1,
               " has the role system, which is for the first one only");
  }
  const bool has_system = !messages.empty() && messages[0].role == Message::kSystem;
  if (!config.preamble.empty() && !has_system) {
    messages.insert(messages.begin(), {Message::kSystem, config.preamble});
  }
  return messages;
}

class Encoding {
 public:
  Encoding(const Tokenizer& tokenizer, const InstructConfig& config) : tokenizer_(tokenizer), config_(config) {}

  // Without ids: no message is an answer.
  Instruction operator()(const std::vector<Message>& messages) const {
    Instruction sample;
    std::string question;
    size_t system = 0;  // of the question: what stays when a question without an answer goes
    for (const Message& message : messages) {
      if (message.role == Message::kSystem) {
        question += replaced(config_.system, "{content}", message.content);
        system = question.size();
        continue;
      }
      if (message.role == Message::kUser) {
        question += replaced(config_.user, "{content}", message.content);
        continue;
      }
      if (is_blank(message.content)) {
        question.resize(system);
        continue;
      }
      question += config_.assistant.substr(0, config_.assistant.size() - std::string_view("{content}").size());
      append(sample, question);
      if (sample.ids.empty()) append_end(sample);  // an answer is never the first token
      question.clear();
      system = 0;
      const auto begin = static_cast<int32_t>(sample.ids.size());
      append(sample, message.content);
      append_end(sample);
      sample.answers.emplace_back(begin, static_cast<int32_t>(sample.ids.size()));
      sample.characters += characters(message.content);
    }
    return sample;
  }

  // What is left of a sample within `most` ids.
  Instruction cut(Instruction sample, int64_t most) const {
    const auto last = static_cast<int32_t>(most);
    sample.ids.resize(static_cast<size_t>(most));
    std::erase_if(sample.answers, [&](const auto& answer) { return answer.first >= last; });
    sample.characters = 0;
    for (auto& [begin, end] : sample.answers) {
      end = std::min(end, last);
      std::string text = tokenizer_.decode(std::vector<int64_t>(sample.ids.begin() + begin, sample.ids.begin() + end));
      if (!tokenizer_.separator() && text.ends_with(config_.end)) text.resize(text.size() - config_.end.size());
      sample.characters += characters(text);
    }
    return sample;
  }

 private:
  void append(Instruction& sample, const std::string& text) const {
    const auto ids = sample.ids.empty() ? tokenizer_.encode(text) : tokenizer_.encode_more(text);
    for (const int64_t id : ids) sample.ids.push_back(static_cast<int32_t>(id));
  }
  void append_end(Instruction& sample) const {
    if (tokenizer_.separator()) {
      sample.ids.push_back(static_cast<int32_t>(*tokenizer_.separator()));
    } else {
      append(sample, config_.end);
    }
  }
  int64_t characters(const std::string& text) const {
    if (tokenizer_.characters_are_bytes()) return static_cast<int64_t>(text.size());
    return std::count_if(text.begin(), text.end(),
                         [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
  }

  const Tokenizer& tokenizer_;
  const InstructConfig& config_;
};

// Of a text of one line, the parser's "file:line:1:column: " is "file:line:column: ".
Json parsed_line(std::string_view text, const std::string& where) {
  try {
    return parse_json(text, where);
  } catch (const Error& error) {
    std::string message = error.message();
    if (message.starts_with(where + ":1:")) message.erase(where.size(), 2);
    throw Error(error.code(), message, error.help());
  }
}

// Calls take(sample, place) for every line that is not blank, place being "file:line", or for every item of a JSON
// list, place being "file: sample n".
template <class Take>
void for_each_sample(const fs::path& path, Take&& take) {
  FileReader reader(path);
  std::vector<char> buffer(size_t{1} << 18);
  bool any = false;
  while (reader.next()) {
    any = true;
    int64_t number = 0;
    bool begun = false, is_list = false;
    std::string held;  // read and not taken: the beginning of a line, or all of a list
    const auto line = [&](std::string_view text) {
      const std::string where = str(reader.name(), ":", ++number);
      if (!is_blank(text)) take(parsed_line(text, where), where);
    };
    while (const int64_t count = reader.read(buffer)) {
      held.append(buffer.data(), static_cast<size_t>(count));
      if (!begun) {
        const size_t start = held.find_first_not_of(" \t\r\n");
        begun = start != held.npos;
        is_list = begun && held[start] == '[';
      }
      if (!begun || is_list) continue;
      size_t from = 0;
      for (size_t end; (end = held.find('\n', from)) != held.npos; from = end + 1) {
        line(std::string_view(held).substr(from, end - from));
      }
      held.erase(0, from);
      RMOE_CHECK(held.size() <= kLongestLine, reader.name(), ":", number + 1, ": a line of more than ",
                 human_bytes(static_cast<int64_t>(kLongestLine)));
    }
    if (!is_list) {
      line(held);
      continue;
    }
    const Json samples = parse_json(held, reader.name(), {.bytes = kLongestList});
    for (size_t i = 0; i < samples.size(); ++i) take(samples[i], str(reader.name(), ": sample ", i + 1));
  }
  RMOE_CHECK(any, path.string(), ": has no file in it");
}

// Best fit: a sample goes to the row that it fills most, in the order of `order`.
std::vector<std::vector<int64_t>> packed(const InstructionSet& set, const std::vector<int64_t>& order, int64_t most) {
  std::vector<std::vector<int64_t>> rows;
  std::multimap<int64_t, size_t> room;  // ids left -> row
  for (const int64_t i : order) {
    const auto size = std::ssize(set.samples[static_cast<size_t>(i)].ids);
    auto found = room.lower_bound(size);
    size_t row = rows.size();
    int64_t left = most;
    if (found == room.end()) {
      rows.emplace_back();
    } else {
      left = found->first, row = found->second;
      room.erase(found);
    }
    rows[row].push_back(i);
    if (left > size) room.emplace(left - size, row);
  }
  return rows;
}

}  // namespace

int64_t Instruction::answer_tokens() const {
  int64_t count = 0;
  for (const auto& [begin, end] : answers) count += end - begin;
  return count;
}

int64_t InstructionSet::tokens() const {
  return std::accumulate(samples.begin(), samples.end(), int64_t{0},
                         [](int64_t sum, const Instruction& s) { return sum + std::ssize(s.ids); });
}

int64_t InstructionSet::answer_tokens() const {
  return std::accumulate(samples.begin(), samples.end(), int64_t{0},
                         [](int64_t sum, const Instruction& s) { return sum + s.answer_tokens(); });
}

double InstructionSet::characters_per_token() const {
  int64_t characters = 0;
  for (const Instruction& sample : samples) characters += sample.characters;
  return static_cast<double>(characters) / static_cast<double>(std::max<int64_t>(answer_tokens(), 1));
}

InstructionSet read_instructions(const fs::path& path, const Tokenizer& tokenizer, const InstructConfig& config,
                                 int64_t block) {
  InstructionSet set;
  set.path = path;
  const Encoding encode(tokenizer, config);
  for_each_sample(path, [&](const Json& given, const std::string& where) {
    const auto messages = messages_of(given, config, where);
    Instruction sample;
    try {
      sample = encode(messages);
    } catch (const Error& error) {
      if (error.code() != Exit::kBadInput) throw;
      throw Error(error.code(), str(where, ": ", error.message()), error.help());
    }
    if (sample.answers.empty()) {
      if (set.without_answer++ == 0) set.first_without_answer = where;
      return;
    }
    // What follows the last answer teaches nothing.
    sample.ids.resize(static_cast<size_t>(sample.answers.back().second));
    const int64_t most = block + 1;
    if (std::ssize(sample.ids) > most) {
      RMOE_CHECK(config.too_long != TooLong::kRefuse, where, ": the sample has ", sample.ids.size(),
                 " tokens, expected at most train.block + 1 = ", most);
      if (config.too_long == TooLong::kCut) sample = encode.cut(std::move(sample), most);
      if (config.too_long == TooLong::kLeaveOut || sample.answers.empty()) {
        if (set.too_long++ == 0) set.first_too_long = where;
        return;
      }
      ++set.cut;
    }
    set.samples.push_back(std::move(sample));
  });
  if (set.samples.empty()) {
    throw Error(Exit::kBadInput,
                str(path.string(), ": no sample is left: ", set.without_answer, " without an answer, ", set.too_long,
                    " longer than train.block + 1 = ", block + 1, " tokens"),
                "one JSON object a line, with 'instruction' and 'output', or with 'messages'");
  }
  return set;
}

Instructions read_instructions(const InstructConfig& config, const Tokenizer& tokenizer, int64_t block) {
  Instructions data;
  data.train = read_instructions(config.train, tokenizer, config, block);
  if (!config.valid.empty()) {
    data.valid = read_instructions(config.valid, tokenizer, config, block);
    return data;
  }
  std::vector<Instruction> all = std::move(data.train.samples);
  const auto count = std::ssize(all);
  const auto wanted = static_cast<int64_t>(std::ceil(config.valid_share * static_cast<double>(count)));
  const int64_t held_out = std::min(wanted, count - 1);
  if (held_out < 1) {
    throw Error(Exit::kBadInput, str(config.train, ": one sample is too few to hold one out for validation"),
                "data.instruct.valid names a file to evaluate on");
  }
  // By what a sample says, so that the same samples are held out when the file gets others or another order.
  std::vector<std::pair<uint64_t, int64_t>> order;
  for (int64_t i = 0; i < count; ++i) {
    const auto& ids = all[static_cast<size_t>(i)].ids;
    const std::string_view bytes(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(ids[0]));
    order.emplace_back(mix(hash_text(bytes), kDataStream, 0), i);
  }
  std::sort(order.begin(), order.end());
  std::vector<bool> is_valid(all.size(), false);
  for (int64_t i = 0; i < held_out; ++i) is_valid[static_cast<size_t>(order[static_cast<size_t>(i)].second)] = true;
  data.train.samples.clear();
  data.valid.path = data.train.path;
  for (size_t i = 0; i < all.size(); ++i) {
    (is_valid[i] ? data.valid : data.train).samples.push_back(std::move(all[i]));
  }
  return data;
}

std::string question_text(const Instruction& sample, const Tokenizer& tokenizer) {
  const std::vector<int64_t> ids(sample.ids.begin(), sample.ids.begin() + sample.answers.front().first);
  return tokenizer.decode(ids);
}

Batch instruction_batch(const InstructionSet& set, const std::vector<std::vector<int64_t>>& rows, int64_t block) {
  int64_t longest = 1;
  for (const auto& row : rows) {
    int64_t size = 0;
    for (const int64_t i : row) size += std::ssize(set.samples.at(static_cast<size_t>(i)).ids);
    RMOE_ASSERT(size <= block + 1, "a row of ", size, " ids");
    longest = std::max(longest, size - 1);
  }
  Batch batch;
  batch.batch = std::ssize(rows);
  batch.length = std::min(block, (longest + kLengthStep - 1) / kLengthStep * kLengthStep);
  const int64_t L = batch.length;
  batch.tokens.assign(static_cast<size_t>(batch.batch * (L + 1)), 0);
  batch.targets.assign(static_cast<size_t>(batch.batch * L), kIgnored);
  batch.valid.assign(static_cast<size_t>(batch.batch * L), 0);
  for (int64_t r = 0; r < batch.batch; ++r) {
    int64_t* tokens = batch.tokens.data() + r * (L + 1);
    int64_t* targets = batch.targets.data() + r * L;
    int64_t at = 0;
    for (const int64_t i : rows[static_cast<size_t>(r)]) {
      const Instruction& sample = set.samples.at(static_cast<size_t>(i));
      std::copy(sample.ids.begin(), sample.ids.end(), tokens + at);
      for (const auto& [begin, end] : sample.answers) {
        for (int64_t j = begin; j < end; ++j) targets[at + j - 1] = sample.ids[static_cast<size_t>(j)];
      }
      at += std::ssize(sample.ids);
    }
    std::fill_n(batch.valid.begin() + r * L, at - 1, uint8_t{1});
  }
  return batch;
}

InstructionBatcher::InstructionBatcher(std::shared_ptr<const InstructionSet> set, int64_t batch, int64_t block,
                                       bool pack, uint64_t seed)
    : set_(std::move(set)), batch_(batch), block_(block), seed_(seed) {
  RMOE_CHECK(batch > 0 && block > 0, "batches of ", batch, " x ", block, " tokens: both must be at least 1");
  RMOE_CHECK(!set_->samples.empty(), set_->path.string(), ": no sample to train on");
  const auto count = std::ssize(set_->samples);
  if (pack) {
    const Permutation draw(count, mix(seed_, kDataStream, 0));
    std::vector<int64_t> order;
    for (int64_t i = 0; i < count; ++i) order.push_back(draw(i));
    rows_ = packed(*set_, order, block_ + 1);
  } else {
    for (int64_t i = 0; i < count; ++i) rows_.push_back({i});
  }
}

Batch InstructionBatcher::get(int64_t step, int64_t first_row, int64_t last_row) const {
  RMOE_ASSERT(step >= 0 && first_row >= 0 && first_row < last_row && last_row <= batch_);
  std::vector<std::vector<int64_t>> rows;
  const int64_t per_epoch = rows_per_epoch();
  for (int64_t row = first_row; row < last_row; ++row) {
    const int64_t index = step * batch_ + row, epoch = index / per_epoch;
    const Permutation order(per_epoch, mix(seed_, kDataStream, static_cast<uint64_t>(2 * epoch + 1)));
    rows.push_back(rows_[static_cast<size_t>(order(index % per_epoch))]);
  }
  Batch batch = instruction_batch(*set_, rows, block_);
  batch.epoch = (step * batch_ + first_row) / per_epoch;
  return batch;
}

}  // namespace rmoe::data
