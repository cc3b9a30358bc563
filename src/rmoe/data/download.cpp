// Transfers by libcurl.
#include "rmoe/data/download.h"

#include <cerrno>
#include <cstdio>
#include <memory>
#include <system_error>

#include <curl/curl.h>

#include "rmoe/base/error.h"

namespace rmoe::data {
namespace {

struct Transfer {
  std::FILE* file = nullptr;
  int write_error = 0;
  const std::function<void(int64_t, int64_t)>* progress = nullptr;
};

size_t store(char* bytes, size_t, size_t count, void* self) {
  auto& transfer = *static_cast<Transfer*>(self);
  const size_t stored = std::fwrite(bytes, 1, count, transfer.file);
  if (stored != count) transfer.write_error = errno;
  return stored;
}

int report(void* self, curl_off_t all, curl_off_t done, curl_off_t, curl_off_t) {
  const auto& progress = *static_cast<Transfer*>(self)->progress;
  if (progress) progress(done, all);
  return 0;
}

struct RemoveUnlessKept {
  std::filesystem::path path;
  bool keep = false;
  ~RemoveUnlessKept() {
    std::error_code ignored;
    if (!keep) std::filesystem::remove(path, ignored);
  }
};

}  // namespace

bool is_url(const std::string& text) { return text.starts_with("http://") || text.starts_with("https://"); }

void download(const std::string& url, const std::filesystem::path& path,
              const std::function<void(int64_t, int64_t)>& progress) {
  static const CURLcode ready = curl_global_init(CURL_GLOBAL_DEFAULT);
  const std::unique_ptr<CURL, void (*)(CURL*)> curl(ready == CURLE_OK ? curl_easy_init() : nullptr, curl_easy_cleanup);
  if (!curl) io_error("download: libcurl does not start");
  RemoveUnlessKept guard{path};
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "wb"), std::fclose);
  if (!file) io_error("cannot write ", path.string(), ": ", errno_text(errno));
  Transfer transfer{file.get(), 0, &progress};
  char reason[CURL_ERROR_SIZE] = "";
  CURL* c = curl.get();
  curl_easy_setopt(c, CURLOPT_URL, url.c_str());
  curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
  curl_easy_setopt(c, CURLOPT_MAXREDIRS, 10L);
  curl_easy_setopt(c, CURLOPT_FAILONERROR, 1L);
  curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, 30L);
  curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
  curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, 60L);
  curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(c, CURLOPT_USERAGENT, "rmoe");
  curl_easy_setopt(c, CURLOPT_ERRORBUFFER, reason);
  curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, &store);
  curl_easy_setopt(c, CURLOPT_WRITEDATA, &transfer);
  curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, &report);
  curl_easy_setopt(c, CURLOPT_XFERINFODATA, &transfer);
  const CURLcode code = curl_easy_perform(c);
  if (transfer.write_error) io_error("cannot write ", path.string(), ": ", errno_text(transfer.write_error));
  if (code != CURLE_OK) {
    throw Error(Exit::kIo, str("cannot download ", url, ": ", reason[0] ? reason : curl_easy_strerror(code)),
                "a file that is already here can be given in place of the address");
  }
  if (std::fclose(file.release()) != 0) io_error("cannot write ", path.string(), ": ", errno_text(errno));
  guard.keep = true;
}

}  // namespace rmoe::data
