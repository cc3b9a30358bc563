// The few protobuf messages are encoded by hand; tensorboard.h lists their fields.
#include "rmoe/io/tensorboard.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstring>
#include <string>
#include <system_error>

#include "rmoe/base/error.h"

namespace rmoe::io {
namespace {

static_assert(std::endian::native == std::endian::little, "records are little-endian");

constexpr std::array<uint32_t, 256> kCrcTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1) != 0 ? 0x82f63b78u : 0u);
    table[i] = c;
  }
  return table;
}();

uint32_t masked_crc(std::string_view bytes) {
  return std::rotr(crc32c(std::as_bytes(std::span(bytes))), 15) + 0xa282ead8u;
}

template <class T>
std::string raw(T value) {
  std::string out(sizeof(T), '\0');
  std::memcpy(out.data(), &value, sizeof(T));
  return out;
}

// A protobuf message under construction.
class Message {
 public:
  Message& varint(int field, int64_t value) {
    key(field, 0);
    put_varint(static_cast<uint64_t>(value));
    return *this;
  }
  Message& fixed(int field, double value) {
    key(field, 1);
    bytes_ += raw(value);
    return *this;
  }
  Message& fixed(int field, float value) {
    key(field, 5);
    bytes_ += raw(value);
    return *this;
  }
  Message& text(int field, std::string_view value) {
    key(field, 2);
    put_varint(value.size());
    bytes_ += value;
    return *this;
  }
  Message& message(int field, const Message& value) { return text(field, value.bytes_); }

  const std::string& bytes() const { return bytes_; }

 private:
  void key(int field, int wire_type) {
    put_varint(static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(wire_type));
  }
  void put_varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>((value & 0x7f) | 0x80);
    bytes_ += static_cast<char>(value);
  }
  std::string bytes_;
};

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

Message event(int64_t step, std::optional<double> wall_time) {
  return Message().fixed(1, wall_time.value_or(now())).varint(2, step);
}

// Unique over processes and machines that share a folder, and within this process.
std::string file_name() {
  static std::atomic<int> counter{0};
  std::array<char, 256> buffer{};
  ::gethostname(buffer.data(), buffer.size() - 1);
  std::string host = buffer[0] != '\0' ? buffer.data() : "localhost";
  return str("events.out.tfevents.", static_cast<int64_t>(now()), ".", host, ".", ::getpid(), ".", counter++);
}

}  // namespace

uint32_t crc32c(std::span<const std::byte> data) {
  uint32_t c = ~0u;
  for (std::byte b : data) c = kCrcTable[(c ^ static_cast<uint32_t>(b)) & 0xff] ^ (c >> 8);
  return ~c;
}

EventWriter::EventWriter(const std::filesystem::path& dir, std::optional<int64_t> purge_from) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) io_error("cannot create ", dir.string(), ": ", error.message());
  path_ = dir / file_name();
  file_ = Descriptor::open(path_, O_WRONLY | O_CREAT | O_EXCL | O_APPEND);
  write_event(Message().fixed(1, now()).text(3, "brain.Event:2").bytes());
  if (purge_from) write_event(event(*purge_from, {}).message(7, Message().varint(1, 1)).bytes());
}

void EventWriter::add_scalar(std::string_view tag, int64_t step, double value, std::optional<double> wall_time) {
  Message entry = Message().text(1, tag).fixed(2, static_cast<float>(value));
  write_event(event(step, wall_time).message(5, Message().message(1, entry)).bytes());
}

void EventWriter::add_text(std::string_view tag, int64_t step, std::string_view text, std::optional<double> wall_time) {
  constexpr int64_t kString = 7;
  Message shape = Message().message(2, Message().varint(1, 1));  // one dimension of size 1
  Message tensor = Message().varint(1, kString).message(2, shape).text(8, text);
  Message metadata = Message().message(1, Message().text(1, "text"));
  Message entry = Message().text(1, str(tag, "/text_summary")).message(8, tensor).message(9, metadata);
  write_event(event(step, wall_time).message(5, Message().message(1, entry)).bytes());
}

void EventWriter::write_event(std::string_view event) {
  std::string length = raw(static_cast<uint64_t>(event.size()));
  std::string record = length + raw(masked_crc(length));
  record += event;
  record += raw(masked_crc(event));
  file_.append(record);
}

}  // namespace rmoe::io
