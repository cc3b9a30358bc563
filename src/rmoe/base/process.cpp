#include "rmoe/base/process.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <thread>

namespace rmoe {
namespace {

// The rest of the first line of `path` that begins with `key`, without ':' and blanks.
std::string line_after(const char* path, std::string_view key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.compare(0, key.size(), key) != 0) continue;
    const size_t start = line.find_first_not_of(" \t:", key.size());
    return start == std::string::npos ? "" : line.substr(start);
  }
  return "";
}

}  // namespace

int64_t memory_now_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t total = 0, resident = 0;
  file >> total >> resident;
  return file ? resident * ::sysconf(_SC_PAGESIZE) : 0;
}

int64_t memory_peak_bytes() {
  const std::string kib = line_after("/proc/self/status", "VmHWM");
  return kib.empty() ? 0 : std::strtoll(kib.c_str(), nullptr, 10) * 1024;
}

int64_t page_faults() {
  rusage usage{};
  return ::getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_minflt : 0;
}

int64_t memory_total_bytes() {
  const int64_t total = std::max<int64_t>(0, ::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGESIZE);
  std::ifstream limit_file("/sys/fs/cgroup/memory.max");  // cgroup v2: bytes or "max"
  int64_t limit = 0;
  return limit_file >> limit && limit > 0 ? std::min(total, limit) : total;
}

int usable_cpus() {
  int cpus = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) == 0) cpus = std::max(1, CPU_COUNT(&set));
  // cgroup v2: "QUOTA PERIOD" in microseconds, or "max PERIOD".
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (quota_file >> quota >> period && quota > 0 && period > 0) {
    cpus = std::clamp(static_cast<int>(std::ceil(quota / period)), 1, cpus);
  }
  return cpus;
}

std::string cpu_model() {
  std::string name = line_after("/proc/cpuinfo", "model name");
  return name.empty() ? "unknown" : name;
}

}  // namespace rmoe
