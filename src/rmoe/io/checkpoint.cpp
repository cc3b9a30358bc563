#include "rmoe/io/checkpoint.h"

#define XXH_INLINE_ALL
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <iterator>
#include <memory>
#include <span>
#include <system_error>
#include <type_traits>
#include <utility>

#include <xxhash.h>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/json.h"

namespace rmoe::io {
namespace {

namespace fs = std::filesystem;

constexpr char kManifest[] = "manifest.json";
constexpr char kFormat[] = "rmoe-checkpoint";
constexpr int64_t kVersion = 1;
constexpr int64_t kMaxManifest = int64_t{16} << 20;
constexpr std::string_view kStepPrefix = "step_";
constexpr std::string_view kTempPrefix = ".tmp-";
constexpr std::string_view kOldPrefix = ".old-";

std::string step_name(int64_t step) { return str(kStepPrefix, step); }

// N of "step_N" as step_name writes it.
std::optional<int64_t> parse_step(std::string_view name) {
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  std::string_view digits = name.substr(kStepPrefix.size());
  int64_t step = 0;
  auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  if (error != std::errc() || end != digits.data() + digits.size() || step < 0 || step_name(step) != name) {
    return std::nullopt;
  }
  return step;
}

std::string hex(uint64_t value) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out(16, '0');
  for (std::size_t i = 16; i-- > 0; value >>= 4) out[i] = kDigits[value & 15];
  return out;
}

std::optional<uint64_t> parse_hex(std::string_view text) {
  uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || end != text.data() + text.size() || hex(value) != text) return std::nullopt;
  return value;
}

uint64_t hash_bytes(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

// Read in pieces and not through a map: a file that shrinks meanwhile must not end the process.
uint64_t hash_file(const Descriptor& file) {
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state(XXH3_createState());
  RMOE_ASSERT(state != nullptr, "no memory for a hash");
  XXH3_64bits_reset(state.get());
  std::vector<std::byte> buffer(std::size_t{1} << 20);
  for (int64_t offset = 0;;) {
    int64_t n = file.read_at(offset, buffer);
    if (n == 0) break;
    XXH3_64bits_update(state.get(), buffer.data(), static_cast<std::size_t>(n));
    offset += n;
  }
  return XXH3_64bits_digest(state.get());
}

// A name that stays inside the folder and means the same everywhere.
bool is_plain_name(std::string_view name) {
  auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  };
  return !name.empty() && name.size() <= 255 && name[0] != '.' && name != kManifest && std::ranges::all_of(name, plain);
}

// The manifest's last two lines; the hash is over all bytes before them.
std::string manifest_end(uint64_t hash) { return str("\"xxh3\": \"", hex(hash), "\"\n}\n"); }

std::string manifest_text(const Manifest& manifest) {
  std::string out = str("{\n\"format\": \"", kFormat, "\",\n\"version\": ", kVersion, ",\n\"step\": ", manifest.step,
                        ",\n\"files\": [\n");
  for (std::size_t i = 0; i < manifest.files.size(); ++i) {
    const ManifestFile& f = manifest.files[i];
    out += str("{\"name\": \"", f.name, "\", \"size\": ", f.size, ", \"xxh3\": \"", hex(f.xxh3), "\"}",
               i + 1 < manifest.files.size() ? ",\n" : "\n");
  }
  out += "],\n";
  return out + manifest_end(hash_bytes(out));
}

// The manifest, whole and sensible, or Error(kBadInput) naming it.
Manifest read_manifest(const fs::path& dir) {
  fs::path path = dir / kManifest;
  std::string name = path.string();
  std::optional<Descriptor> in = Descriptor::open_if_there(path);
  if (!in) input_error(name, ": missing, so the checkpoint is not complete");
  if (int64_t size = in->size(); size > kMaxManifest) input_error(name, ": altered: ", size, " bytes are too many");
  std::string text(static_cast<std::size_t>(in->size()), '\0');
  text.resize(static_cast<std::size_t>(in->read_at(0, std::as_writable_bytes(std::span(text)))));
  std::size_t end_size = manifest_end(0).size();
  if (text.size() < end_size) input_error(name, ": truncated to ", text.size(), " bytes");
  std::string_view body = std::string_view(text).substr(0, text.size() - end_size);
  if (text.substr(body.size()) != manifest_end(hash_bytes(body))) {
    input_error(name, ": truncated or altered: its own hash does not agree");
  }
  Json json = parse_json(text, name);
  if (json_string(json, "format", name) != kFormat) input_error(name, ": 'format' is not ", kFormat);
  if (int64_t version = json_int(json, "version", name); version != kVersion) {
    input_error(name, ": version ", version, " is not known, expected ", kVersion);
  }
  Manifest manifest;
  manifest.step = json_int(json, "step", name);
  const Json& files = json_member(json, "files", name);
  if (!files.is_array()) input_error(name, ": 'files' is not a list");
  for (const Json& entry : files) {
    ManifestFile file;
    file.name = json_string(entry, "name", name);
    file.size = json_int(entry, "size", name);
    std::optional<uint64_t> hash = parse_hex(json_string(entry, "xxh3", name));
    if (!is_plain_name(file.name) || file.size < 0 || !hash ||
        (!manifest.files.empty() && manifest.files.back().name >= file.name)) {
      input_error(name, ": entry ", manifest.files.size(), " of 'files' is not valid");
    }
    file.xxh3 = *hash;
    manifest.files.push_back(std::move(file));
  }
  if (std::optional<int64_t> step = parse_step(dir.filename().string()); step && *step != manifest.step) {
    input_error(name, ": belongs to step ", manifest.step, ", but the folder is ", dir.filename().string());
  }
  return manifest;
}

// The manifest after comparing that every file is there with its size.
Manifest read_complete(const fs::path& dir) {
  Manifest manifest = read_manifest(dir);
  for (const ManifestFile& f : manifest.files) {
    fs::path path = dir / f.name;
    std::optional<Descriptor> file = Descriptor::open_if_there(path);
    if (!file) input_error(path.string(), ": missing, expected ", f.size, " bytes");
    if (int64_t size = file->size(); size != f.size) {
      input_error(path.string(), ": has ", size, " bytes, expected ", f.size);
    }
  }
  return manifest;
}

bool is_complete(const fs::path& dir) {
  try {
    read_complete(dir);
    return true;
  } catch (const Error&) {
    return false;
  }
}

// Whatever it is: a folder, a file, a link to nothing.
bool is_there(const fs::path& path) {
  std::error_code error;
  fs::file_status status = fs::symlink_status(path, error);
  if (status.type() == fs::file_type::none) io_error("cannot look at ", path.string(), ": ", error.message());
  return status.type() != fs::file_type::not_found;
}

void rename_or_throw(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw_errno(str("rename ", from.string(), " to"), to, errno);
}

void remove_folder(const fs::path& dir) {
  std::error_code error;
  fs::remove_all(dir, error);
  if (error) io_error("cannot remove ", dir.string(), ": ", error.message());
}

// Names in a folder; empty when there is none.
std::vector<std::string> names_in(const fs::path& dir) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator entries(dir, error);
  if (error == std::errc::no_such_file_or_directory) return names;
  for (fs::directory_iterator end; !error && entries != end; entries.increment(error)) {
    names.push_back(entries->path().filename().string());
  }
  if (error) io_error("cannot list ", dir.string(), ": ", error.message());
  std::ranges::sort(names);
  return names;
}

// Creates a folder and makes its own name durable.
void create_folder(const fs::path& dir) {
  std::error_code error;
  if (fs::is_directory(dir, error)) return;
  fs::path parent = fs::absolute(dir).lexically_normal().parent_path();
  if (parent != dir) create_folder(parent);
  fs::create_directory(dir, error);
  if (error) io_error("cannot create ", dir.string(), ": ", error.message());
  fsync_path(parent);
}

}  // namespace

fs::path checkpoints_dir(const fs::path& run_dir) { return run_dir / "checkpoints"; }

fs::path checkpoint_dir(const fs::path& run_dir, int64_t step) { return checkpoints_dir(run_dir) / step_name(step); }

std::vector<int64_t> list_checkpoints(const fs::path& run_dir) {
  std::vector<int64_t> steps;
  for (const std::string& name : names_in(checkpoints_dir(run_dir))) {
    if (std::optional<int64_t> step = parse_step(name)) steps.push_back(*step);
  }
  std::ranges::sort(steps);
  return steps;
}

Manifest verify(const fs::path& dir) {
  Manifest manifest = read_complete(dir);
  for (const ManifestFile& f : manifest.files) {
    fs::path path = dir / f.name;
    if (hash_file(Descriptor::open_to_read(path)) != f.xxh3) {
      input_error(path.string(), ": altered: its hash does not agree with ", kManifest);
    }
  }
  return manifest;
}

std::optional<Checkpoint> newest_valid(const fs::path& run_dir, const OnBroken& on_broken) {
  std::vector<int64_t> steps = list_checkpoints(run_dir);
  for (std::size_t i = steps.size(); i-- > 0;) {
    fs::path dir = checkpoint_dir(run_dir, steps[i]);
    try {
      Manifest manifest = verify(dir);
      return Checkpoint{steps[i], dir, std::move(manifest)};
    } catch (const Error& error) {
      if (on_broken) on_broken(dir, error.what());
    }
  }
  return std::nullopt;
}

std::vector<int64_t> prune(const fs::path& run_dir, int64_t keep_last, std::optional<int64_t> best) {
  RMOE_CHECK(keep_last >= 1, "checkpoints: keep_last is ", keep_last, ", expected at least 1");
  std::vector<int64_t> steps = list_checkpoints(run_dir);
  int64_t kept = 0;
  std::size_t older = steps.size();  // steps before this position are older than all kept ones
  while (older > 0 && kept < keep_last) {
    --older;
    if (is_complete(checkpoint_dir(run_dir, steps[older]))) ++kept;
  }
  if (kept < keep_last) return {};
  std::vector<int64_t> removed;
  for (std::size_t i = 0; i < older; ++i) {
    if (steps[i] == best) continue;
    // Renamed first: a crash must not leave half a checkpoint under a checkpoint's name.
    fs::path dir = checkpoint_dir(run_dir, steps[i]);
    fs::path doomed = checkpoints_dir(run_dir) / str(kTempPrefix, "pruned-", step_name(steps[i]));
    remove_folder(doomed);
    rename_or_throw(dir, doomed);
    remove_folder(doomed);
    removed.push_back(steps[i]);
  }
  return removed;
}

void remove_leftovers(const fs::path& run_dir) {
  fs::path parent = checkpoints_dir(run_dir);
  for (const std::string& name : names_in(parent)) {
    if (name.starts_with(kOldPrefix)) {
      fs::path replacement = parent / name.substr(kOldPrefix.size());
      if (!is_there(replacement)) {
        rename_or_throw(parent / name, replacement);
        fsync_path(parent);
        continue;
      }
    }
    if (name.starts_with(kOldPrefix) || name.starts_with(kTempPrefix)) remove_folder(parent / name);
  }
}

CheckpointWriter::CheckpointWriter(const fs::path& run_dir, int64_t step)
    : run_dir_(run_dir), temp_dir_(checkpoints_dir(run_dir) / str(kTempPrefix, step_name(step))), step_(step) {
  RMOE_CHECK(step >= 0, "checkpoint: step is ", step, ", expected at least 0");
  create_folder(checkpoints_dir(run_dir));
  remove_leftovers(run_dir);
  std::error_code error;
  fs::create_directory(temp_dir_, error);
  if (error) io_error("cannot create ", temp_dir_.string(), ": ", error.message());
}

CheckpointWriter::~CheckpointWriter() {
  if (renamed_) return;
  std::error_code ignored;
  fs::remove_all(temp_dir_, ignored);
}

fs::path CheckpointWriter::file(std::string_view name) const {
  RMOE_CHECK(is_plain_name(name), "checkpoint: ", json_text(std::string(name)), " is not a plain file name");
  return temp_dir_ / name;
}

void CheckpointWriter::commit(const CommitHook& hook) {
  RMOE_CHECK(!renamed_, "checkpoint: step ", step_, " was committed twice");
  auto before = [&](std::string_view step) {
    if (hook) hook(step);
  };
  Manifest manifest;
  manifest.step = step_;
  for (const std::string& name : names_in(temp_dir_)) {
    RMOE_CHECK(is_plain_name(name), "checkpoint: ", (temp_dir_ / name).string(), " does not belong there");
    before(str("sync ", name));
    Descriptor file = Descriptor::open_to_read(temp_dir_ / name);
    file.sync();
    manifest.files.push_back({name, file.size(), hash_file(file)});
  }
  RMOE_CHECK(!manifest.files.empty(), "checkpoint: step ", step_, " has no files");
  before("write manifest");
  Descriptor out = Descriptor::open(temp_dir_ / kManifest, O_WRONLY | O_CREAT | O_EXCL | O_APPEND);
  out.append(manifest_text(manifest));
  out.sync();
  out.close();
  before("sync folder");
  fsync_path(temp_dir_);

  before("rename");
  fs::path parent = checkpoints_dir(run_dir_);
  fs::path dir = checkpoint_dir(run_dir_, step_);
  // What has to go after the parent is synced: the former step_N, where there was one.
  std::optional<fs::path> replaced;
  if (is_there(dir)) {
    replaced = temp_dir_;
    if (::renameat2(AT_FDCWD, temp_dir_.c_str(), AT_FDCWD, dir.c_str(), RENAME_EXCHANGE) != 0) {
      if (errno != EINVAL && errno != ENOSYS) throw_errno("replace", dir, errno);  // else: no exchange here
      replaced = parent / str(kOldPrefix, step_name(step_));
      rename_or_throw(dir, *replaced);
      before("second rename");
      rename_or_throw(temp_dir_, dir);
    }
  } else {
    rename_or_throw(temp_dir_, dir);
  }
  renamed_ = true;
  before("sync parent");
  fsync_path(parent);
  if (replaced) {
    before("remove replaced");
    remove_folder(*replaced);
  }
  before("done");
}

std::string untrained_state() {
  const Json state = {{"step", 0},
                      {"tokens", 0},
                      {"seconds", 0.0},
                      {"best", {{"step", 0}, {"loss", nullptr}, {"bits", nullptr}}},
                      {"rates", Json::array()}};
  return json_text(state, 2) + "\n";
}

RunLock::RunLock(const fs::path& run_dir) : run_dir_(run_dir), made_folder_(!fs::exists(run_dir)) {
  create_folder(run_dir);
  file_ = Descriptor::open(run_dir / ".lock", O_RDWR | O_CREAT | O_APPEND);
  if (::flock(file_.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) throw_errno("lock", file_.path(), errno);
    std::string holder(32, '\0');
    holder.resize(static_cast<std::size_t>(file_.read_at(0, std::as_writable_bytes(std::span(holder)))));
    holder.resize(std::min(holder.size(), holder.find_first_not_of("0123456789")));
    throw Error(Exit::kBadInput,
                str(run_dir.string(), ": another trainer is using this run folder",
                    holder.empty() ? "" : str(" (process ", holder, ")")),
                "wait until it ends, or choose another folder");
  }
  file_.truncate(0);
  file_.append(str(::getpid(), "\n"));
}

RunLock::~RunLock() {
  if (!made_folder_) return;
  std::error_code failed;
  const auto files = std::distance(fs::directory_iterator(run_dir_, failed), fs::directory_iterator());
  if (failed || files != 1) return;
  fs::remove(run_dir_ / ".lock", failed);
  fs::remove(run_dir_, failed);
}

bool is_locked(const fs::path& run_dir) {
  const std::optional<Descriptor> file = Descriptor::open_if_there(run_dir / ".lock");
  // Shared, so that two readers do not take each other for a trainer; given back at once.
  return file && ::flock(file->get(), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

}  // namespace rmoe::io
