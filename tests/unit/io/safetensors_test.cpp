#include "rmoe/io/safetensors.h"

#include <sys/stat.h>

#include <cstring>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <sstream>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "tests/support/child.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/io/safetensors_corpus.h"

namespace rmoe::io {
namespace {

namespace fs = std::filesystem;

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void put(const fs::path& path, std::string_view bytes) {
  fs::remove(path);  // some filesystems sync a file that is truncated and written again
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  ASSERT_TRUE(out.good()) << path;
}

std::string get(const fs::path& path) { return read_file(path); }

// What `call` threw; fails the test when it threw nothing.
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

TEST(Safetensors, WritesTheBytesOfTheFormat) {
  TempDir dir;
  SafetensorsWriter writer(dir / "a", {{"b", DType::kU8, {3}}, {"attn.w", DType::kF32, {1, 2}}, {"a", DType::kU8, {}}},
                           {{"format", "pt"}});
  writer.write("b", bytes_of("xyz"));
  writer.write("a", bytes_of("w"));
  writer.write("attn.w", bytes_of("01234567"));
  writer.finish();
  // As the safetensors package writes them: largest type first, then by name; padded to 8 bytes.
  std::string header =
      R"({"__metadata__":{"format":"pt"},"attn.w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},)"
      R"("a":{"dtype":"U8","shape":[],"data_offsets":[8,9]},"b":{"dtype":"U8","shape":[3],"data_offsets":[9,12]}})";
  ASSERT_EQ(header.size(), 196u);
  EXPECT_EQ(get(dir / "a"), safetensors_bytes(header + "    ", "01234567wxyz"));
}

TEST(Safetensors, WritesAnEmptyFile) {
  TempDir dir;
  SafetensorsWriter writer(dir / "a", {});
  writer.finish();
  EXPECT_EQ(get(dir / "a"), safetensors_bytes("{}      ", ""));
  EXPECT_TRUE(SafetensorsFile::open(dir / "a").entries().empty());
}

TEST(Safetensors, RoundTripsEveryTypeAndShape) {
  TempDir dir;
  std::vector<TensorSpec> specs;
  std::map<std::string, std::string> contents;
  for (const auto& [dtype, name] : EnumNames<DType>::names) {
    for (const std::vector<int64_t>& shape : {std::vector<int64_t>{4}, {0}, {3, 4, 5}, {2, 0, 7}, {8, 1, 1, 1}}) {
      specs.push_back({str(name, "/", shape, "\"\xc3\xa9\n"), dtype, shape});
    }
  }
  SafetensorsWriter writer(dir / "a", specs, {{"one", "1"}, {"quote\"", "\xe2\x82\xac"}});
  unsigned seed = 1;
  for (const TensorEntry& e : writer.entries()) {
    std::string data;
    for (int64_t i = 0; i < e.byte_size(); ++i) data += static_cast<char>((seed = seed * 1664525u + 1013904223u) >> 24);
    writer.write(e.name, bytes_of(data));
    contents[e.name] = data;
  }
  writer.finish();

  SafetensorsFile file = SafetensorsFile::open(dir / "a");
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"one", "1"}, {"quote\"", "\xe2\x82\xac"}}));
  ASSERT_EQ(file.entries().size(), specs.size());
  for (const TensorSpec& spec : specs) {
    const TensorEntry& e = file.at(spec.name);
    EXPECT_EQ(e.dtype, spec.dtype);
    EXPECT_EQ(e.shape, spec.shape);
    EXPECT_EQ(e.numel() * dtype_bits(e.dtype), e.byte_size() * 8);
    EXPECT_EQ(text_of(file.bytes(e)), contents[spec.name]);
    std::string copy(static_cast<size_t>(e.byte_size()), '?');
    file.read(e, std::as_writable_bytes(std::span(copy)));
    EXPECT_EQ(copy, contents[spec.name]);
  }
  EXPECT_EQ(file.find("nothing"), nullptr);
  expect_error(error_of([&] { file.at("nothing"); }), Exit::kBadInput,
               (dir / "a").string() + ": has no tensor \"nothing\"");
}

TEST(Safetensors, DataOfOneTypeIsAligned) {
  TempDir dir;
  SafetensorsWriter writer(dir / "a", {{"b", DType::kBool, {3}}, {"h", DType::kBF16, {5}}, {"x", DType::kF64, {1}}});
  for (const TensorEntry& e : writer.entries()) {
    writer.write(e.name, std::vector<std::byte>(static_cast<size_t>(e.byte_size())));
  }
  writer.finish();
  SafetensorsFile file = SafetensorsFile::open(dir / "a");
  for (const TensorEntry& e : file.entries()) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(file.bytes(e).data()) % static_cast<uintptr_t>(dtype_bits(e.dtype) / 8), 0u);
  }
}

TEST(Safetensors, BytesStayWhileKeepAliveLives) {
  TempDir dir;
  put(dir / "a", safetensors_bytes(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "data"));
  std::shared_ptr<const void> owner;
  std::span<const std::byte> bytes;
  {
    SafetensorsFile file = SafetensorsFile::open(dir / "a");
    owner = file.keep_alive();
    bytes = file.bytes(file.at("a"));
  }
  fs::remove(dir / "a");
  EXPECT_EQ(text_of(bytes), "data");
}

TEST(Safetensors, TypeNamesAreUniqueAndGoBothWays) {
  std::set<std::string> names;
  for (const auto& [dtype, name] : EnumNames<DType>::names) {
    EXPECT_TRUE(names.insert(name).second) << name;
    EXPECT_EQ(dtype_from_name(enum_name(dtype)), dtype);
  }
  EXPECT_EQ(dtype_from_name("f32"), std::nullopt);
  EXPECT_EQ(dtype_from_name(""), std::nullopt);
}

TEST(Safetensors, AcceptsAndRefusesTheCorpusInOneLineEach) {
  TempDir dir;
  fs::path path = dir / "model.safetensors";
  std::vector<SafetensorsCase> corpus = safetensors_corpus();
  EXPECT_GE(corpus.size(), 100u);
  for (const SafetensorsCase& c : corpus) {
    SCOPED_TRACE(c.name);
    put(path, c.bytes);
    std::string message;
    try {
      SafetensorsFile file = SafetensorsFile::open(path);
      for (const TensorEntry& e : file.entries()) EXPECT_EQ(file.at(e.name).byte_size(), e.byte_size());
    } catch (const Error& error) {
      expect_error(error, Exit::kBadInput, path.string() + ": ");
      message = error.what();
    }
    EXPECT_EQ(message.empty(), c.accepted) << message;
    EXPECT_LT(message.size(), path.string().size() + 500) << message;
    for (char character : message) EXPECT_TRUE(character >= ' ' && character < 0x7f) << message;
  }
}

TEST(Safetensors, NamesTheTensorAndTheMistake) {
  TempDir dir;
  auto message = [&](const std::string& header, const std::string& data) {
    put(dir / "a", safetensors_bytes(header, data));
    return error_of([&] { SafetensorsFile::open(dir / "a"); }).message().substr((dir / "a").string().size());
  };
  auto one = [](const char* fields) { return std::string("{\"w\":{") + fields + "}}"; };
  EXPECT_EQ(message(one(R"("dtype":"F32","shape":[2,-3],"data_offsets":[0,24])"), ""),
            ": tensor \"w\": shape holds -3, expected whole numbers from 0 to 9223372036854775807");
  EXPECT_EQ(message(one(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), "dddd"),
            ": tensor \"w\": F32 [2] takes 8 bytes but data_offsets [0, 4] hold 4");
  EXPECT_EQ(message(one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])"), "ddd"),
            ": tensor \"w\": data_offsets [0, 4] reach past the end of the file, which has 3 bytes of data");
  EXPECT_EQ(message(one(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), "dddddddd"),
            ": bytes 0 to 4 of the data belong to no tensor");
  EXPECT_EQ(message(one(R"("dtype":"F32")"), ""), ": tensor \"w\": has no shape");
  EXPECT_EQ(message("{\"w\":}", ""),
            ": the header is not valid JSON at byte 13: syntax error while parsing value - "
            "unexpected '}'; expected '[', '{', or a literal");
  EXPECT_EQ(message("{}", "x"), ": the tensors take 0 bytes but the file has 1 bytes of data");
}

// A small file with two tensors and metadata.
std::string small_file() {
  return safetensors_bytes(R"({"__metadata__":{"k":"v"},"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},)"
                           R"("b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}})",
                           "01234567xyz");
}

TEST(Safetensors, RefusesEveryPrefix) {
  TempDir dir;
  std::string whole = small_file();
  for (size_t n = 0; n < whole.size(); ++n) {
    put(dir / "a", whole.substr(0, n));
    expect_error(error_of([&] { SafetensorsFile::open(dir / "a"); }), Exit::kBadInput, (dir / "a").string());
  }
  put(dir / "a", whole);
  EXPECT_EQ(SafetensorsFile::open(dir / "a").entries().size(), 2u);
}

TEST(Safetensors, AnyChangedByteIsRefusedOrLeavesASoundFile) {
  TempDir dir;
  std::string whole = small_file();
  for (size_t at = 0; at < whole.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bytes = whole;
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << bit));
      put(dir / "a", bytes);
      try {
        SafetensorsFile file = SafetensorsFile::open(dir / "a");
        int64_t sum = 0;
        for (const TensorEntry& e : file.entries()) {
          EXPECT_EQ(e.numel() * dtype_bits(e.dtype), 8 * e.byte_size());
          EXPECT_EQ(text_of(file.bytes(e)).size(), static_cast<size_t>(e.byte_size()));
          sum += e.byte_size();
        }
        EXPECT_EQ(sum, 11);
      } catch (const Error& error) {
        expect_error(error, Exit::kBadInput, (dir / "a").string());
      }
    }
  }
}

TEST(Safetensors, DeclaredSizesCostNoMemory) {
  TempDir dir;
  ChildResult result = run_in_child([&] {
    auto peak_kib = [] {
      std::ifstream status("/proc/self/status");
      for (std::string line; std::getline(status, line);) {
        if (line.starts_with("VmHWM:")) return std::stol(line.substr(6));
      }
      return -1L;
    };
    int refused = 0;
    auto open = [&](const std::string& bytes) {
      put(dir / "a", bytes);
      try {
        SafetensorsFile::open(dir / "a");
      } catch (const Error&) {
        ++refused;
      }
    };
    open("short");  // the first exception reads unwind tables, megabytes of them where libtorch is loaded
    refused = 0;
    const long before = peak_kib();
    open(safetensors_bytes(R"({"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}})", ""));
    open(safetensors_bytes(R"({"a":{"dtype":"F32","shape":[1000000000,0],"data_offsets":[0,0]}})", ""));
    open(safetensors_bytes("{}", "", 99'999'999));
    if (refused != 2) return std::string("999999");
    return std::to_string(peak_kib() - before);
  });
  ASSERT_EQ(result.signal, 0);
  EXPECT_LT(std::stol(result.text), 4096) << "KiB";
}

TEST(Safetensors, AFileShortenedAfterOpeningIsAnErrorNotASignal) {
  TempDir dir;
  std::string header = R"({"a":{"dtype":"U8","shape":[100000],"data_offsets":[0,100000]}})";
  put(dir / "a", safetensors_bytes(header, std::string(100000, 'd')));
  SafetensorsFile file = SafetensorsFile::open(dir / "a");
  fs::resize_file(dir / "a", 50000);
  const std::string place = (dir / "a").string() + ": tensor \"a\": the file was shortened";
  expect_error(error_of([&] { file.bytes(file.at("a")); }), Exit::kBadInput, place);
  std::vector<std::byte> out(100000);
  expect_error(error_of([&] { file.read(file.at("a"), out); }), Exit::kBadInput, place);
  expect_error(error_of([&] { file.read_part(file.at("a"), 49000, std::span(out).first(10000)); }), Exit::kBadInput,
               place);
  file.read_part(file.at("a"), 1000, std::span(out).first(1000));  // what is left can be read
  EXPECT_EQ(out[999], std::byte{'d'});
}

TEST(Safetensors, OpensOnlyRegularFiles) {
  TempDir dir;
  expect_error(error_of([&] { SafetensorsFile::open(dir / "missing"); }), Exit::kIo,
               (dir / "missing").string() + ": No such file or directory");
  expect_error(error_of([&] { SafetensorsFile::open(dir.path()); }), Exit::kBadInput,
               dir.path().string() + ": is a folder");
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  expect_error(error_of([&] { SafetensorsFile::open(dir / "pipe"); }), Exit::kBadInput, "not a regular file");
}

TEST(SafetensorsWriter, RefusesWhatTheFormatCannotHold) {
  TempDir dir;
  auto message = [&](const std::vector<TensorSpec>& specs, const std::map<std::string, std::string>& metadata = {}) {
    Error error = error_of([&] { SafetensorsWriter(dir / "a", specs, metadata); });
    EXPECT_EQ(error.code(), Exit::kBadInput);
    EXPECT_TRUE(fs::is_empty(dir.path()));
    return error.message();
  };
  EXPECT_NE(message({{"x", DType::kU8, {1}}, {"x", DType::kF32, {2}}}).find("two tensors are called \"x\""),
            std::string::npos);
  EXPECT_NE(message({{"__metadata__", DType::kU8, {1}}}).find("__metadata__"), std::string::npos);
  EXPECT_NE(message({{"x", DType::kU8, {-1}}}).find("[-1] has no valid size"), std::string::npos);
  EXPECT_NE(message({{"x", DType::kF4, {3}}}).find("no valid size"), std::string::npos);
  EXPECT_NE(message({{"x", DType::kF64, {int64_t{1} << 61}}}).find("no valid size"), std::string::npos);
  EXPECT_NE(
      message({{"x", DType::kU8, {int64_t{1} << 62}}, {"y", DType::kU8, {int64_t{1} << 62}}, {"z", DType::kU8, {8}}})
          .find("no valid size"),
      std::string::npos);
  EXPECT_NE(message({{"\xff", DType::kU8, {1}}}).find("not valid UTF-8"), std::string::npos);
  EXPECT_NE(message({}, {{"k", "\xc3"}}).find("not valid UTF-8"), std::string::npos);
}

TEST(SafetensorsWriter, EveryTensorIsWrittenOnceAndWhole) {
  TempDir dir;
  SafetensorsWriter writer(dir / "a", {{"x", DType::kU8, {3}}, {"y", DType::kU8, {1}}});
  expect_error(error_of([&] { writer.write("z", bytes_of("xyz")); }), Exit::kBadInput, "\"z\" was not announced");
  expect_error(error_of([&] { writer.write("x", bytes_of("xy")); }), Exit::kBadInput, "has 2 bytes, expected 3");
  writer.write("x", bytes_of("xyz"));
  expect_error(error_of([&] { writer.write("x", bytes_of("xyz")); }), Exit::kBadInput, "written twice");
  expect_error(error_of([&] { writer.finish(); }), Exit::kBadInput, "\"y\" was announced but not written");
  writer.write("y", bytes_of("1"));
  writer.finish();
  expect_error(error_of([&] { writer.finish(); }), Exit::kBadInput, "twice");
  EXPECT_EQ(text_of(SafetensorsFile::open(dir / "a").bytes(SafetensorsFile::open(dir / "a").at("x"))), "xyz");
}

TEST(SafetensorsWriter, PartsOfATensorFollowEachOther) {
  TempDir dir;
  SafetensorsWriter writer(dir / "a", {{"x", DType::kU8, {5}}, {"y", DType::kU8, {2}}, {"z", DType::kU8, {0}}});
  writer.write_part("x", bytes_of("ab"));
  writer.write_part("y", bytes_of("12"));
  expect_error(error_of([&] { writer.write_part("x", bytes_of("cdef")); }), Exit::kBadInput, "has 6 bytes, expected 5");
  expect_error(error_of([&] { writer.finish(); }), Exit::kBadInput, "\"x\" was announced but not written");
  writer.write_part("x", bytes_of("cde"));
  writer.write("z", {});
  writer.finish();
  const SafetensorsFile file = SafetensorsFile::open(dir / "a");
  std::string x(5, ' '), middle(3, ' ');
  file.read(file.at("x"), std::as_writable_bytes(std::span(x)));
  file.read_part(file.at("x"), 1, std::as_writable_bytes(std::span(middle)));
  EXPECT_EQ(x, "abcde");
  EXPECT_EQ(middle, "bcd");
}

TEST(SafetensorsWriter, LeavesAnOlderFileAloneUntilItFinishes) {
  TempDir dir;
  put(dir / "a", "old");
  {
    SafetensorsWriter writer(dir / "a", {{"x", DType::kU8, {3}}});
    writer.write("x", bytes_of("xyz"));
    EXPECT_EQ(get(dir / "a"), "old");
  }
  EXPECT_EQ(get(dir / "a"), "old");
  EXPECT_FALSE(fs::exists(dir / "a.tmp"));
  SafetensorsWriter writer(dir / "a", {{"x", DType::kU8, {3}}});
  writer.write("x", bytes_of("xyz"));
  writer.finish();
  EXPECT_EQ(SafetensorsFile::open(dir / "a").entries().size(), 1u);
  EXPECT_FALSE(fs::exists(dir / "a.tmp"));
}

// What a writer of 1 MB meets; "" when it works.
std::string write_a_megabyte(const fs::path& path) {
  try {
    SafetensorsWriter writer(path, {{"x", DType::kU8, {1 << 20}}});
    writer.write("x", std::vector<std::byte>(1 << 20));
    writer.finish();
  } catch (const Error& error) {
    if (error.code() != Exit::kIo) return "wrong code";
    if (!fs::is_empty(path.parent_path())) return "left something";
    return error.what();
  }
  return "";
}

TEST(SafetensorsWriter, AFullDiskIsAnErrorThatNamesTheFile) {
  TempDir dir;
  ChildResult result = run_in_child([&]() -> std::string {
    if (!mount_small_disk(dir.path(), 256 << 10)) return "no right to mount";
    return write_a_megabyte(dir / "model.safetensors");
  });
  if (result.text == "no right to mount") GTEST_SKIP() << result.text;
  EXPECT_NE(result.text.find((dir / "model.safetensors").string()), std::string::npos) << result.text;
  EXPECT_NE(result.text.find("No space left on device"), std::string::npos) << result.text;
}

TEST(SafetensorsWriter, AFileThatMayNotGrowIsAnErrorThatNamesTheFile) {
  TempDir dir;
  ChildResult result = run_in_child([&] {
    limit_file_size(256 << 10);
    return write_a_megabyte(dir / "model.safetensors");
  });
  EXPECT_EQ(result.signal, 0);
  EXPECT_NE(result.text.find((dir / "model.safetensors").string()), std::string::npos) << result.text;
  EXPECT_NE(result.text.find("File too large"), std::string::npos) << result.text;
}

}  // namespace
}  // namespace rmoe::io
