#include "rmoe/io/checkpoint.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <gtest/gtest.h>
#define XXH_INLINE_ALL
#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <iomanip>
#include <set>
#include <sstream>

#include <xxhash.h>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/io/safetensors.h"
#include "tests/support/child.h"
#include "tests/support/temp_dir.h"

// The calls that make a checkpoint durable go through here, so that tests see their order and can let them fail.
namespace {

struct Calls {
  bool recording = false;
  std::vector<std::string> log;
  int fail_fsync = -1;  // this many fsyncs succeed, the next fails; -1: all succeed
  bool no_exchange = false;
  bool pretend_fsync = false;  // a busy disk would make these tests slow, and nothing here can see the difference

  void add(std::string call) {
    if (recording) log.push_back(std::move(call));
  }
};
Calls calls;

int result_of(long value) { return static_cast<int>(value); }

}  // namespace

extern "C" int fsync(int fd) {
  if (calls.recording) {
    std::array<char, 4096> path{};
    std::string link = "/proc/self/fd/" + std::to_string(fd);
    if (::readlink(link.c_str(), path.data(), path.size() - 1) > 0) calls.add(std::string("fsync ") + path.data());
  }
  int left = calls.fail_fsync;
  if (left >= 0) --calls.fail_fsync;
  if (left == 0) {
    errno = EIO;
    return -1;
  }
  return calls.pretend_fsync ? 0 : result_of(::syscall(SYS_fsync, fd));
}

extern "C" int rename(const char* from, const char* to) noexcept {
  calls.add(std::string("rename ") + from + " " + to);
  return result_of(::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}

extern "C" int renameat2(int from_dir, const char* from, int to_dir, const char* to, unsigned flags) noexcept {
  if (calls.no_exchange && flags == RENAME_EXCHANGE) {
    errno = EINVAL;
    return -1;
  }
  calls.add(std::string("exchange ") + from + " " + to);
  return result_of(::syscall(SYS_renameat2, from_dir, from, to_dir, to, flags));
}

extern "C" int unlinkat(int dir, const char* name, int flags) noexcept {
  calls.add(std::string("unlink ") + name);
  return result_of(::syscall(SYS_unlinkat, dir, name, flags));
}

namespace rmoe::io {
namespace {

namespace fs = std::filesystem;

void put(const fs::path& path, std::string_view bytes) {
  fs::remove(path);  // some filesystems sync a file that is truncated and written again
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out.good()) throw std::runtime_error("cannot write " + path.string());
}

template <class Call>
Error error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no Error was thrown";
  return Error(Exit::kDone, "nothing");
}

void expect_error(const Error& error, Exit code, const std::string& part) {
  EXPECT_EQ(error.code(), code) << error.what();
  EXPECT_NE(error.message().find(part), std::string::npos) << error.what() << "\nhas no: " << part;
  EXPECT_EQ(error.message().find('\n'), std::string::npos) << error.what();
}

constexpr const char* kFiles[] = {"model.safetensors", "optimizer.safetensors", "state.json"};

// Contents differ from save to save by `version`.
void write_files(const CheckpointWriter& writer, const std::string& version) {
  for (const char* name : {"model.safetensors", "optimizer.safetensors"}) {
    SafetensorsWriter tensors(writer.file(name), {{"w", DType::kU8, {5}}}, {{"version", version}});
    tensors.write("w", std::as_bytes(std::span("12345", 5)));
    tensors.finish();
  }
  put(writer.file("state.json"), "{\"version\": \"" + version + "\"}\n");
}

void save(const fs::path& run, int64_t step, const std::string& version = "1", const CommitHook& hook = {}) {
  CheckpointWriter writer(run, step);
  write_files(writer, version);
  writer.commit(hook);
}

std::string version_of(const fs::path& dir) {
  return SafetensorsFile::open(dir / "model.safetensors").metadata().at("version");
}

// Step and version of the newest valid checkpoint, such as "20:1"; "none" without one.
std::string newest(const fs::path& run) {
  std::optional<Checkpoint> found = newest_valid(run);
  return found ? str(found->step, ":", version_of(found->dir)) : "none";
}

std::set<std::string> names_in(const fs::path& dir) {
  std::set<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(dir)) names.insert(entry.path().filename());
  return names;
}

std::string hash_hex(const std::string& bytes) {
  std::ostringstream out;
  out << std::hex << std::setw(16) << std::setfill('0') << XXH3_64bits(bytes.data(), bytes.size());
  return out.str();
}

// A manifest that agrees with itself, whatever its body says.
std::string sealed(const std::string& body) { return body + "\"xxh3\": \"" + hash_hex(body) + "\"\n}\n"; }

class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override { calls.pretend_fsync = true; }
  void TearDown() override { calls = {}; }

  TempDir dir_;
  fs::path run_ = dir_ / "run";
};

TEST_F(CheckpointTest, CommitMakesAFolderWithAManifestOfTheDocumentedForm) {
  CheckpointWriter writer(run_, 200);
  put(writer.file("b.json"), "hello\n");
  put(writer.file("a.bin"), "");
  EXPECT_TRUE(list_checkpoints(run_).empty());
  writer.commit();
  fs::path dir = run_ / "checkpoints" / "step_200";
  EXPECT_EQ(names_in(run_ / "checkpoints"), std::set<std::string>{"step_200"});
  EXPECT_EQ(read_file(dir / "manifest.json"),
            sealed("{\n\"format\": \"rmoe-checkpoint\",\n\"version\": 1,\n\"step\": 200,\n\"files\": [\n"
                   "{\"name\": \"a.bin\", \"size\": 0, \"xxh3\": \"2d06800538d394c2\"},\n"
                   "{\"name\": \"b.json\", \"size\": 6, \"xxh3\": \"" +
                   hash_hex("hello\n") + "\"}\n],\n"));
  Manifest manifest = verify(dir);
  EXPECT_EQ(manifest.step, 200);
  ASSERT_EQ(manifest.files.size(), 2u);
  EXPECT_EQ(manifest.files[1].name, "b.json");
  EXPECT_EQ(manifest.files[1].size, 6);
}

TEST_F(CheckpointTest, AnUnfinishedSaveLeavesNothing) {
  {
    CheckpointWriter writer(run_, 1);
    write_files(writer, "1");
    EXPECT_EQ(names_in(run_ / "checkpoints").size(), 1u);
  }
  EXPECT_TRUE(fs::is_empty(run_ / "checkpoints"));
}

TEST_F(CheckpointTest, FilesHavePlainNames) {
  CheckpointWriter writer(run_, 1);
  for (const char* name : {"", ".", "..", "../x", "a/b", "/etc/x", ".hidden", "manifest.json", "a\nb", "a\"b", "a\\b",
                           "a b", "\xc3\xa9"}) {
    expect_error(error_of([&] { writer.file(name); }), Exit::kBadInput, "is not a plain file name");
  }
  expect_error(error_of([&] { writer.commit(); }), Exit::kBadInput, "step 1 has no files");
  fs::create_directory(writer.dir() / "folder");
  expect_error(error_of([&] { writer.commit(); }), Exit::kBadInput, "folder: is a folder");
  expect_error(error_of([&] { CheckpointWriter(run_, -1); }), Exit::kBadInput, "step is -1");
}

TEST_F(CheckpointTest, ListKnowsOnlyCanonicalNames) {
  for (const char* name : {"step_10", "step_9", "step_0", "step_01", "step_-1", "step_5x", "step_", "step_+5", "x",
                           "step_99999999999999999999", ".tmp-step_7", ".old-step_8"}) {
    fs::create_directories(checkpoints_dir(run_) / name);
  }
  EXPECT_EQ(list_checkpoints(run_), (std::vector<int64_t>{0, 9, 10}));
  EXPECT_TRUE(list_checkpoints(dir_ / "nowhere").empty());
  EXPECT_EQ(newest_valid(dir_ / "nowhere"), std::nullopt);
}

TEST_F(CheckpointTest, EveryTruncationIsFoundAndNamed) {
  save(run_, 7);
  fs::path dir = checkpoint_dir(run_, 7);
  for (std::string name : {kFiles[0], kFiles[1], kFiles[2], "manifest.json"}) {
    std::string whole = read_file(dir / name);
    ASSERT_FALSE(whole.empty());
    for (size_t n = 0; n < whole.size(); ++n) {
      put(dir / name, whole.substr(0, n));
      expect_error(error_of([&] { verify(dir); }), Exit::kBadInput, (dir / name).string() + ": ");
    }
    put(dir / name, whole + "x");
    expect_error(error_of([&] { verify(dir); }), Exit::kBadInput, (dir / name).string() + ": ");
    fs::remove(dir / name);
    expect_error(error_of([&] { verify(dir); }), Exit::kBadInput, (dir / name).string() + ": missing");
    put(dir / name, whole);
    EXPECT_EQ(verify(dir).step, 7);
  }
}

TEST_F(CheckpointTest, EveryFlippedBitIsFoundAndNamed) {
  save(run_, 7);
  fs::path dir = checkpoint_dir(run_, 7);
  for (std::string name : {kFiles[0], kFiles[1], kFiles[2], "manifest.json"}) {
    std::string whole = read_file(dir / name);
    for (size_t at = 0; at < whole.size(); ++at) {
      for (int bit = 0; bit < 8; ++bit) {
        std::string altered = whole;
        altered[at] = static_cast<char>(altered[at] ^ (1 << bit));
        put(dir / name, altered);
        expect_error(error_of([&] { verify(dir); }), Exit::kBadInput, (dir / name).string() + ": ");
      }
    }
    put(dir / name, whole);
    EXPECT_EQ(verify(dir).step, 7);
  }
}

TEST_F(CheckpointTest, FilesThatTheManifestDoesNotNameAreIgnored) {
  save(run_, 7);
  put(checkpoint_dir(run_, 7) / "notes.txt", "mine");
  EXPECT_EQ(verify(checkpoint_dir(run_, 7)).files.size(), 3u);
}

TEST_F(CheckpointTest, AManifestMustMakeSenseEvenWhenItsHashAgrees) {
  save(run_, 7);
  fs::path dir = checkpoint_dir(run_, 7);
  auto reason = [&](const std::string& format, const std::string& version, const std::string& step,
                    const std::string& files) {
    put(dir / "manifest.json", sealed("{\n\"format\": " + format + ",\n\"version\": " + version +
                                      ",\n\"step\": " + step + ",\n\"files\": " + files + ",\n"));
    Error error = error_of([&] { verify(dir); });
    expect_error(error, Exit::kBadInput, (dir / "manifest.json").string() + ": ");
    return error.message().substr((dir / "manifest.json").string().size() + 2);
  };
  std::string format = "\"rmoe-checkpoint\"";
  auto file = [](const char* name, const char* size = "1", const char* hash = "0123456789abcdef") {
    return std::string("{\"name\": \"") + name + "\", \"size\": " + size + ", \"xxh3\": \"" + hash + "\"}";
  };
  EXPECT_EQ(reason("\"zip\"", "1", "7", "[]"), "'format' is not rmoe-checkpoint");
  EXPECT_EQ(reason(format, "2", "7", "[]"), "version 2 is not known, expected 1");
  EXPECT_EQ(reason(format, "1", "8", "[]"), "belongs to step 8, but the folder is step_7");
  EXPECT_EQ(reason(format, "1", "7", "{}"), "'files' is not a list");
  for (const std::string& entry : {file("../../secret"), file("/etc/passwd"), file(""), file("manifest.json"),
                                   file("x", "-1"), file("x", "1", "0"), file("x", "1", "0123456789ABCDEF"),
                                   file("x", "1", "0123456789abcdefg"), file("x") + ", " + file("x")}) {
    EXPECT_NE(reason(format, "1", "7", "[" + entry + "]").find("of 'files' is not valid"), std::string::npos) << entry;
  }
  reason(format, "1", "7", "[1]");
  reason(format, "1", "7", "[" + file("x", "1.5") + "]");
  reason(format, "1", "7", "[" + file("x", "99999999999999999999") + "]");
  reason(format, "1.0", "7", "[]");
  reason(format, "1", "7", "[" + std::string(100'000, '['));
}

TEST_F(CheckpointTest, NewestValidSkipsBrokenOnesAndSaysWhy) {
  for (int64_t step : {10, 20, 30, 40, 100}) save(run_, step, std::to_string(step));
  put(checkpoint_dir(run_, 100) / "state.json", "");
  fs::remove(checkpoint_dir(run_, 40) / "manifest.json");
  std::string model = read_file(checkpoint_dir(run_, 30) / "model.safetensors");
  model.back() ^= 1;
  put(checkpoint_dir(run_, 30) / "model.safetensors", model);
  std::vector<std::string> reasons;
  std::optional<Checkpoint> found = newest_valid(run_, [&](const fs::path& dir, const std::string& reason) {
    EXPECT_NE(reason.find(dir.string() + "/"), std::string::npos) << reason;
    reasons.push_back(dir.filename().string() + " " + reason.substr(reason.rfind('/') + 1));
  });
  ASSERT_TRUE(found);
  EXPECT_EQ(found->step, 20);
  EXPECT_EQ(found->dir, checkpoint_dir(run_, 20));
  EXPECT_EQ(found->manifest.files.size(), 3u);
  ASSERT_EQ(reasons.size(), 3u);
  EXPECT_EQ(reasons[0].find("step_100 state.json: has 0 bytes, expected "), 0u) << reasons[0];
  EXPECT_EQ(reasons[1], "step_40 manifest.json: missing, so the checkpoint is not complete");
  EXPECT_EQ(reasons[2], "step_30 model.safetensors: altered: its hash does not agree with manifest.json");
}

TEST_F(CheckpointTest, ACheckpointUnderAnotherStepsNameIsBroken) {
  save(run_, 10);
  fs::rename(checkpoint_dir(run_, 10), checkpoint_dir(run_, 999));
  EXPECT_EQ(newest(run_), "none");
  fs::rename(checkpoint_dir(run_, 999), run_ / "mine");
  EXPECT_EQ(verify(run_ / "mine").step, 10);
}

TEST_F(CheckpointTest, SavingAStepAgainReplacesIt) {
  save(run_, 10, "1");
  save(run_, 20, "1");
  put(checkpoint_dir(run_, 20) / "stray", "");
  save(run_, 20, "2");
  EXPECT_EQ(newest(run_), "20:2");
  EXPECT_FALSE(fs::exists(checkpoint_dir(run_, 20) / "stray"));
  EXPECT_EQ(names_in(checkpoints_dir(run_)), (std::set<std::string>{"step_10", "step_20"}));
}

TEST_F(CheckpointTest, SavingAStepAgainWorksWithoutAtomicExchange) {
  save(run_, 20, "1");
  calls.no_exchange = true;
  save(run_, 20, "2");
  EXPECT_EQ(newest(run_), "20:2");
  EXPECT_EQ(names_in(checkpoints_dir(run_)), std::set<std::string>{"step_20"});
}

// All that a power cut may undo is synced before something depends on it.
TEST_F(CheckpointTest, EverythingIsSyncedBeforeTheRenameAndTheParentAfterIt) {
  fs::path canonical = fs::canonical(dir_.path()) / "run";
  for (bool again : {false, true}) {
    CheckpointWriter writer(canonical, 5);
    write_files(writer, "1");
    calls.recording = true;
    writer.commit();
    calls.recording = false;
    std::vector<std::string> log = std::exchange(calls.log, {});
    std::string temp = writer.dir().string();
    auto position = [&](const std::string& call) {
      auto at = std::ranges::find(log, call);
      EXPECT_NE(at, log.end()) << call;
      return at - log.begin();
    };
    auto moved = position((again ? "exchange " : "rename ") + temp + " " + checkpoint_dir(canonical, 5).string());
    auto manifest = position("fsync " + temp + "/manifest.json");
    for (const char* name : kFiles) EXPECT_LT(position("fsync " + temp + "/" + name), manifest);
    auto folder = position("fsync " + temp);
    EXPECT_LT(manifest, folder);
    EXPECT_LT(folder, moved);
    auto parent = position("fsync " + checkpoints_dir(canonical).string());
    EXPECT_LT(moved, parent);
    auto removal = std::ranges::find_if(log, [](const std::string& call) { return call.starts_with("unlink "); });
    EXPECT_EQ(removal != log.end(), again);
    if (again) {
      EXPECT_LT(parent, removal - log.begin());
    }
  }
}

TEST_F(CheckpointTest, NewFoldersAreSyncedIntoTheirParents) {
  fs::path canonical = fs::canonical(dir_.path()) / "a" / "b";
  calls.recording = true;
  CheckpointWriter writer(canonical, 5);
  for (const fs::path& parent : {canonical, canonical.parent_path(), canonical.parent_path().parent_path()}) {
    EXPECT_NE(std::ranges::find(calls.log, "fsync " + parent.string()), calls.log.end()) << parent;
  }
}

// Kills a save at each of its steps in turn. The newest valid checkpoint is then the one before or the new one, never
// anything else, and the next save works and leaves no traces.
void kill_at_every_step(const fs::path& run, int64_t step, const std::string& before, bool no_exchange) {
  std::vector<std::string> names;
  for (size_t victim = 0;; ++victim) {
    fs::remove_all(run);
    save(run, 10, "1");
    if (before.starts_with("20")) save(run, 20, "1");
    ChildResult result = run_in_child([&]() -> std::string {
      calls.no_exchange = no_exchange;
      size_t at = 0;
      save(run, step, "2", [&](std::string_view) {
        if (at++ == victim) ::raise(SIGKILL);
      });
      return "lived";
    });
    if (result.text == "lived") break;
    ASSERT_EQ(result.signal, SIGKILL) << result.text;
    std::string after = str(step, ":2");
    // What a reader sees, then what a trainer sees that resumes.
    std::string seen = newest(run);
    if (!no_exchange) {
      EXPECT_TRUE(seen == before || seen == after) << seen << " after step " << victim;
    }
    remove_leftovers(run);
    seen = newest(run);
    EXPECT_TRUE(seen == before || seen == after) << seen << " after step " << victim;
    names.push_back(seen);
    EXPECT_EQ(verify(checkpoint_dir(run, 10)).step, 10);
    for (const std::string& name : names_in(checkpoints_dir(run))) EXPECT_TRUE(name.starts_with("step_")) << name;
    save(run, step, "3");
    EXPECT_EQ(newest(run), str(step, ":3"));
  }
  // Both outcomes were met, in this order.
  EXPECT_TRUE(std::ranges::is_sorted(names, {}, [&](const std::string& name) { return name != before; }));
  EXPECT_EQ(names.front(), before);
  EXPECT_EQ(names.back(), str(step, ":2"));
  EXPECT_GE(names.size(), 8u);
}

TEST_F(CheckpointTest, AKilledSaveLosesNothing) { kill_at_every_step(run_, 20, "10:1", false); }

TEST_F(CheckpointTest, AKilledSaveOfAnExistingStepLosesNothing) { kill_at_every_step(run_, 20, "20:1", false); }

TEST_F(CheckpointTest, AKilledSaveWithoutAtomicExchangeLosesNothing) { kill_at_every_step(run_, 20, "20:1", true); }

TEST_F(CheckpointTest, AnExceptionAtAnyStepLosesNothing) {
  for (size_t victim = 0;; ++victim) {
    fs::remove_all(run_);
    save(run_, 10);
    size_t at = 0;
    bool threw = false;
    try {
      save(run_, 20, "2", [&](std::string_view) {
        if (at++ == victim) throw std::runtime_error("stop");
      });
    } catch (const std::runtime_error&) {
      threw = true;
    }
    if (!threw) break;
    EXPECT_TRUE(newest(run_) == "10:1" || newest(run_) == "20:2");
    EXPECT_FALSE(fs::exists(checkpoints_dir(run_) / ".tmp-step_20"));
    EXPECT_LT(victim, 20u);
  }
}

TEST_F(CheckpointTest, AFailedSyncIsAnErrorAndLosesNothing) {
  int failures = 0;
  for (int victim = 0;; ++victim) {
    fs::remove_all(run_);
    save(run_, 10);
    CheckpointWriter writer(run_, 20);
    write_files(writer, "2");
    calls.fail_fsync = victim;
    bool committed = false;
    try {
      writer.commit();
      committed = true;
    } catch (const Error& error) {
      ++failures;
      expect_error(error, Exit::kIo, checkpoints_dir(run_).string());
      expect_error(error, Exit::kIo, "Input/output error");
    }
    calls.fail_fsync = -1;
    if (committed) break;
    EXPECT_EQ(verify(checkpoint_dir(run_, 10)).step, 10);
  }
  EXPECT_EQ(failures, 6);  // three files, manifest, folder, parent
}

TEST_F(CheckpointTest, LeftoversAreFinishedOrRemoved) {
  save(run_, 10, "1");
  save(run_, 20, "1");
  fs::path parent = checkpoints_dir(run_);
  fs::create_directories(parent / ".tmp-step_30" / "deep");
  put(parent / ".tmp-step_30" / "model.safetensors", "half");
  fs::create_directories(parent / ".tmp-pruned-step_5");
  fs::copy(checkpoint_dir(run_, 10), parent / ".old-step_10");    // the replacement arrived
  fs::rename(checkpoint_dir(run_, 20), parent / ".old-step_20");  // the replacement did not
  put(parent / "notes.txt", "mine");
  remove_leftovers(run_);
  EXPECT_EQ(names_in(parent), (std::set<std::string>{"step_10", "step_20", "notes.txt"}));
  EXPECT_EQ(newest(run_), "20:1");
  remove_leftovers(dir_ / "nowhere");
}

TEST_F(CheckpointTest, PruneKeepsTheLastAndTheBest) {
  for (int64_t step : {1, 2, 3, 10, 20}) save(run_, step);
  EXPECT_EQ(prune(run_, 2, 2), (std::vector<int64_t>{1, 3}));
  EXPECT_EQ(list_checkpoints(run_), (std::vector<int64_t>{2, 10, 20}));
  EXPECT_TRUE(prune(run_, 2, 2).empty());
  EXPECT_TRUE(prune(run_, 3).empty());
  EXPECT_EQ(prune(run_, 1, 20), (std::vector<int64_t>{2, 10}));
  EXPECT_EQ(names_in(checkpoints_dir(run_)), std::set<std::string>{"step_20"});
  expect_error(error_of([&] { prune(run_, 0); }), Exit::kBadInput, "keep_last is 0");
  EXPECT_TRUE(prune(dir_ / "nowhere", 1).empty());
}

TEST_F(CheckpointTest, PruneDoesNotCountBrokenOnes) {
  for (int64_t step : {1, 2, 3, 4, 5}) save(run_, step);
  fs::remove(checkpoint_dir(run_, 1) / "manifest.json");
  put(checkpoint_dir(run_, 4) / "model.safetensors", "cut");
  fs::remove(checkpoint_dir(run_, 5) / "state.json");
  EXPECT_EQ(prune(run_, 2), std::vector<int64_t>{1});  // 2 and 3 are the newest complete ones
  EXPECT_EQ(list_checkpoints(run_), (std::vector<int64_t>{2, 3, 4, 5}));
  EXPECT_EQ(prune(run_, 1), std::vector<int64_t>{2});
  EXPECT_EQ(newest(run_), "3:1");
}

TEST_F(CheckpointTest, PruneKeepsEverythingWithoutEnoughCompleteOnes) {
  for (int64_t step : {1, 2, 3}) {
    save(run_, step);
    fs::remove(checkpoint_dir(run_, step) / "state.json");
  }
  EXPECT_TRUE(prune(run_, 1).empty());
  EXPECT_EQ(list_checkpoints(run_).size(), 3u);
}

// Saves larger and larger checkpoints until one fails, on a disk too small for them.
std::string fill_disk(const fs::path& run, bool safetensors) {
  save(run, 10);
  for (int64_t step = 11; step < 40; ++step) {
    int64_t size = int64_t{1} << (step - 1);
    try {
      CheckpointWriter writer(run, step);
      put(writer.file("state.json"), "{}");
      if (safetensors) {
        SafetensorsWriter tensors(writer.file("model.safetensors"), {{"w", DType::kU8, {size}}});
        tensors.write("w", std::vector<std::byte>(static_cast<size_t>(size)));
        tensors.finish();
      } else {
        Descriptor file = Descriptor::open(writer.file("model.bin"), O_WRONLY | O_CREAT | O_APPEND);
        file.append(std::string(static_cast<size_t>(size), 'x'));
      }
      writer.commit();
    } catch (const Error& error) {
      if (error.code() != Exit::kIo) return "wrong code";
      for (int64_t older = 10; older < step; ++older) verify(checkpoint_dir(run, older));
      if (list_checkpoints(run).back() != step - 1) return "a checkpoint too many";
      if (fs::exists(checkpoints_dir(run) / str(".tmp-step_", step))) return "left something";
      save(run, step);  // what was taken is free again
      return error.what();
    }
  }
  return "never full";
}

TEST_F(CheckpointTest, AFullDiskLeavesOlderCheckpointsIntact) {
  for (bool safetensors : {false, true}) {
    ChildResult result = run_in_child([&]() -> std::string {
      if (!mount_small_disk(dir_.path(), 512 << 10)) return "no right to mount";
      return fill_disk(run_, safetensors);
    });
    if (result.text == "no right to mount") GTEST_SKIP() << result.text;
    EXPECT_NE(result.text.find(checkpoints_dir(run_).string() + "/.tmp-step_"), std::string::npos) << result.text;
    EXPECT_NE(result.text.find("No space left on device"), std::string::npos) << result.text;
    EXPECT_NE(result.text.find(safetensors ? "/model.safetensors" : "/model.bin"), std::string::npos) << result.text;
  }
}

TEST_F(CheckpointTest, AFullDiskWhileTheManifestIsWrittenLeavesOlderCheckpointsIntact) {
  ChildResult result = run_in_child([&]() -> std::string {
    if (!mount_small_disk(dir_.path(), 512 << 10)) return "no right to mount";
    save(run_, 10);
    try {
      save(run_, 20, "2", [&](std::string_view step) {
        if (step != "write manifest") return;
        std::ofstream filler(dir_ / "filler");
        while (filler << std::string(4096, 'x') && filler.flush()) {
        }
      });
    } catch (const Error& error) {
      if (newest(run_) != "10:1") return "lost";
      return error.what();
    }
    return "saved";
  });
  if (result.text == "no right to mount") GTEST_SKIP() << result.text;
  EXPECT_NE(result.text.find("/.tmp-step_20/manifest.json: No space left on device"), std::string::npos) << result.text;
}

TEST_F(CheckpointTest, AFileThatMayNotGrowLeavesOlderCheckpointsIntact) {
  for (bool safetensors : {false, true}) {
    ChildResult result = run_in_child([&] {
      limit_file_size(100'000);
      return fill_disk(run_, safetensors);
    });
    EXPECT_EQ(result.signal, 0);
    EXPECT_NE(result.text.find(": File too large"), std::string::npos) << result.text;
    fs::remove_all(run_);
  }
}

TEST_F(CheckpointTest, ARunFolderHasOneTrainer) {
  std::optional<RunLock> lock(run_);
  Error error = error_of([&] { RunLock second(run_); });
  expect_error(error, Exit::kBadInput, run_.string() + ": another trainer is using this run folder");
  EXPECT_NE(error.message().find(str("(process ", ::getpid(), ")")), std::string::npos) << error.what();
  EXPECT_FALSE(error.help().empty());
  RunLock other(dir_ / "other");
  lock.reset();
  RunLock again(run_);
}

TEST_F(CheckpointTest, ARunThatNeverBeganLeavesNoFolder) {
  {
    const RunLock lock(run_);
  }
  EXPECT_FALSE(fs::exists(run_));
  {
    const RunLock lock(run_);
    put(run_ / "config.toml", "");
  }
  EXPECT_TRUE(fs::exists(run_ / "config.toml"));
  fs::remove(run_ / "config.toml");
  {
    const RunLock lock(run_);
  }
  EXPECT_TRUE(fs::exists(run_)) << "it was there before the lock";
}

TEST_F(CheckpointTest, TheLockEndsWithItsProcess) {
  ChildResult result = run_in_child([&]() -> std::string {
    RunLock lock(run_);
    ::raise(SIGKILL);
    return "";
  });
  EXPECT_EQ(result.signal, SIGKILL);
  RunLock lock(run_);
}

TEST_F(CheckpointTest, AFolderThatCannotBeMadeIsAnErrorThatNamesIt) {
  put(dir_ / "file", "");
  expect_error(error_of([&] { CheckpointWriter(dir_ / "file", 1); }), Exit::kIo, (dir_ / "file").string());
  expect_error(error_of([&] { RunLock((dir_ / "file") / "run"); }), Exit::kIo, (dir_ / "file").string());
}

}  // namespace
}  // namespace rmoe::io
