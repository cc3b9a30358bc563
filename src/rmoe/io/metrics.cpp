#include "rmoe/io/metrics.h"

#include <fcntl.h>

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"

namespace rmoe::io {
namespace {

// The object in a line, or nothing.
std::optional<Json> parse_line(std::string_view line) {
  try {
    Json object = parse_json(line, "");
    return object.is_object() ? std::optional(std::move(object)) : std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

// Takes the first line off `rest`, without its '\n'. `torn`: it had none.
std::string_view next_line(std::string_view& rest, bool& torn) {
  std::size_t end = rest.find('\n');
  torn = end == rest.npos;
  std::string_view line = rest.substr(0, end);
  rest.remove_prefix(torn ? rest.size() : end + 1);
  return line;
}

}  // namespace

MetricsWriter::MetricsWriter(std::filesystem::path path) : path_(std::move(path)) { open(); }

void MetricsWriter::open() {
  file_ = Descriptor::open(path_, O_RDWR | O_CREAT | O_APPEND);
  // Find the last '\n' from the end: what follows it was not written whole.
  int64_t size = file_.size();
  std::string tail;
  while (static_cast<int64_t>(tail.size()) < size && tail.find('\n') == tail.npos) {
    int64_t begin = std::max<int64_t>(0, size - static_cast<int64_t>(tail.size()) - 65536);
    std::string piece(static_cast<std::size_t>(size - begin) - tail.size(), '\0');
    if (file_.read_at(begin, std::as_writable_bytes(std::span(piece))) != static_cast<int64_t>(piece.size())) {
      io_error("cannot read ", path_.string(), ": it was shortened meanwhile");
    }
    tail.insert(0, piece);
  }
  std::size_t last = tail.rfind('\n');
  std::string_view torn = std::string_view(tail).substr(last == tail.npos ? 0 : last + 1);
  if (torn.empty()) return;
  if (parse_line(torn)) {
    file_.append("\n");  // whole but for its end, as an editor may leave it
  } else {
    file_.truncate(size - static_cast<int64_t>(torn.size()));
  }
}

void MetricsWriter::write(const Json& object) {
  RMOE_ASSERT(object.is_object(), "a line of metrics is an object");
  file_.append(json_text(object) + '\n');
}

int64_t MetricsWriter::truncate_after(int64_t step) {
  std::string text = read_file(path_);
  std::string kept;
  int64_t removed = 0;
  bool torn = false;
  for (std::string_view rest = text; !rest.empty();) {
    std::string_view line = next_line(rest, torn);
    std::optional<Json> object = parse_line(line);
    auto at = object ? object->find("step") : Json::iterator();
    bool later = object && at != object->end() && at->is_number() && at->get<double>() > static_cast<double>(step);
    if (object && !later) {
      kept.append(line).push_back('\n');
    } else {
      ++removed;
    }
  }
  if (removed > 0) {
    write_file_atomic(path_, kept);
    open();
  }
  return removed;
}

std::vector<Json> read_metrics(const std::filesystem::path& path) {
  std::string text = read_file(path);
  std::vector<Json> lines;
  int64_t number = 0;
  bool torn = false;
  for (std::string_view rest = text; !rest.empty();) {
    std::string_view line = next_line(rest, torn);
    std::string where = str(path.string(), ":", ++number);
    if (torn) {
      if (std::optional<Json> object = parse_line(line)) lines.push_back(std::move(*object));
      break;
    }
    Json object = parse_json(line, where);
    if (!object.is_object()) input_error(where, ": not a JSON object");
    lines.push_back(std::move(object));
  }
  return lines;
}

}  // namespace rmoe::io
