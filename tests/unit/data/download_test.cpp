// Fetching files from a small server of the test's own.
#include "rmoe/data/download.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include <gtest/gtest.h>

#include "rmoe/base/files.h"
#include "rmoe/base/log.h"
#include "rmoe/data/prepare.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/data/expect_error.h"

namespace rmoe::data {
namespace {

// Answers every GET on 127.0.0.1: /text, /cut (closes early), /moved (to /text), anything else 404.
class Server {
 public:
  explicit Server(std::string text) : text_(std::move(text)) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener_, 8) != 0 ||
        getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
      throw std::runtime_error("no server");
    }
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { serve(); });
  }
  ~Server() {
    shutdown(listener_, SHUT_RDWR);
    thread_.join();
    close(listener_);
  }
  std::string url(const std::string& path) const { return "http://127.0.0.1:" + std::to_string(port_) + path; }

 private:
  void serve() {
    while (true) {
      const int client = accept(listener_, nullptr, nullptr);
      if (client < 0) return;
      std::string request;
      char buffer[4096];
      while (request.find("\r\n\r\n") == request.npos) {
        const ssize_t count = recv(client, buffer, sizeof buffer, 0);
        if (count <= 0) break;
        request.append(buffer, static_cast<size_t>(count));
      }
      const std::string path = request.substr(4, request.find(' ', 4) - 4);
      std::string answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
      const std::string head = "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(text_.size()) + "\r\n\r\n";
      if (path.starts_with("/text")) answer = head + text_;
      if (path == "/cut") answer = head + text_.substr(0, text_.size() / 2);
      if (path == "/moved") answer = "HTTP/1.1 301 Moved\r\nLocation: /text\r\nContent-Length: 0\r\n\r\n";
      if (path == "/elsewhere")
        answer = "HTTP/1.1 301 Moved\r\nLocation: file:///etc/hostname\r\nContent-Length: 0\r\n\r\n";
      for (size_t sent = 0; sent < answer.size();) {
        const ssize_t count = send(client, answer.data() + sent, answer.size() - sent, MSG_NOSIGNAL);
        if (count <= 0) break;
        sent += static_cast<size_t>(count);
      }
      close(client);
    }
  }

  std::string text_;
  int listener_ = -1;
  uint16_t port_ = 0;
  std::thread thread_;
};

class Download : public testing::Test {
 protected:
  static std::string sample() {
    std::string text;
    for (int i = 0; i < 50'000; ++i) text += "line " + std::to_string(i) + "\n";
    return text;
  }

  TempDir dir_;
  const std::string text_ = sample();
  const Server server_{text_};
};

TEST_F(Download, StoresWhatTheAddressHolds) {
  int64_t last = 0, all = 0;
  download(server_.url("/text"), dir_ / "a", [&](int64_t done, int64_t total) {
    last = done;
    all = total;
  });
  EXPECT_EQ(read_file(dir_ / "a"), text_);
  EXPECT_EQ(last, static_cast<int64_t>(text_.size()));
  EXPECT_EQ(all, last);
  download(server_.url("/moved"), dir_ / "b");
  EXPECT_EQ(read_file(dir_ / "b"), text_);
}

TEST_F(Download, LeavesNothingWhenItFails) {
  EXPECT_ERROR(download(server_.url("/none"), dir_ / "a"), Exit::kIo, "cannot download http://127.0.0.1", "404");
  EXPECT_ERROR(download(server_.url("/cut"), dir_ / "a"), Exit::kIo, "/cut", "a file that is already here");
  EXPECT_ERROR(download(server_.url("/elsewhere"), dir_ / "a"), Exit::kIo, "/elsewhere");
  EXPECT_ERROR(download("http://127.0.0.1:1/x", dir_ / "a"), Exit::kIo, "127.0.0.1");
  EXPECT_ERROR(download(server_.url("/text"), dir_ / "no" / "a"), Exit::kIo, "cannot write", "no/a");
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
}

TEST_F(Download, PrepareTakesAddresses) {
  set_log_level(Level::kQuiet);
  PrepareOptions o;
  o.inputs = {server_.url("/text.txt?v=1")};
  o.out = dir_ / "out";
  const Json result = prepare(o);
  EXPECT_EQ(result["sources"][0]["path"], o.inputs[0]);
  EXPECT_EQ(result["sources"][0]["stored_bytes"], text_.size());
  for (const auto& entry : std::filesystem::directory_iterator(o.out)) {
    EXPECT_FALSE(entry.path().filename().string().starts_with("source")) << entry.path();
  }
  o.sha256 = std::string(64, 'a');
  o.overwrite = true;
  EXPECT_ERROR(prepare(o), Exit::kBadInput, "/text.txt?v=1: SHA-256 is ");
  o.sha256.clear();
  o.preset = "enwik8";
  EXPECT_ERROR(prepare(o), Exit::kBadInput, "/text.txt?v=1: enwik8 has ");
  set_log_level(Level::kNormal);
}

TEST(IsUrl, IsHttpOnly) {
  EXPECT_TRUE(is_url("https://example.org/a") && is_url("http://x"));
  EXPECT_FALSE(is_url("file:///etc/passwd") || is_url("a.txt") || is_url("ftp://x"));
}

}  // namespace
}  // namespace rmoe::data
