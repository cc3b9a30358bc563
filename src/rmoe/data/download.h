// Fetching a file by http or https.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace rmoe::data {

bool is_url(const std::string& text);

// Stores what the address holds at `path`, following redirects. `progress` gets the bytes so far and in all (0:
// unknown). Throws kIo naming address or file when the transfer fails, is cut short or stands still for a minute, or
// the disk is full; then `path` does not exist.
void download(const std::string& url, const std::filesystem::path& path,
              const std::function<void(int64_t done, int64_t all)>& progress = {});

}  // namespace rmoe::data
