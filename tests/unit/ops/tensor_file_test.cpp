#include "rmoe/ops/tensor_file.h"

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "tests/support/temp_dir.h"

namespace rmoe {
namespace {

// A file with one tensor of `shape` and `bytes` zeros, whatever they have to do with each other.
std::filesystem::path file_with(const TempDir& dir, const std::string& shape, int64_t bytes) {
  std::string header = str(R"({"x":{"dtype":"F32","shape":)", shape, R"(,"data_offsets":[0,)", bytes, "]}}");
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> 8 * i);
  write_file_atomic(dir / "x.safetensors", file + header + std::string(static_cast<size_t>(bytes), '\0'));
  return dir / "x.safetensors";
}

TEST(TensorFile, ReadsBackWhatWasSaved) {
  const TempDir dir;
  const NamedTensors tensors{{"a", at::arange(6, at::kFloat).view({2, 3})}, {"b", at::empty({0, 5}, at::kLong)}};
  save_tensors(dir / "t.safetensors", tensors);
  const auto read = read_tensors(dir / "t.safetensors");
  ASSERT_EQ(read.size(), 2u);
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(read.at(name).sizes(), tensor.sizes());
    EXPECT_TRUE(at::equal(read.at(name), tensor));
  }
}

TEST(TensorFile, ShapesWhoseProductDoesNotFitAreRefused) {
  const TempDir dir;
  for (const char* shape : {"[4611686018427387904,0]", "[0,4611686018427387904]", "[0,4294967296,4294967296]",
                            "[4294967296,0,4294967296]", "[4294967296,4294967296,0]", "[9223372036854775807]"}) {
    const auto path = file_with(dir, shape, 0);
    try {
      read_tensors(path);
      ADD_FAILURE() << shape << " was read";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Exit::kBadInput) << shape;
      EXPECT_TRUE(error.message().starts_with(path.string() + ": tensor ")) << error.message();
    }
  }
}

TEST(TensorFile, DimensionsBeyondThoseOfTorchAreRefused) {
  const TempDir dir;
  std::string ones = "[1";
  for (int i = 1; i < 65; ++i) ones += ",1";
  EXPECT_THROW(read_tensors(file_with(dir, ones + "]", 4)), Error);
  EXPECT_EQ(read_tensors(file_with(dir, "[" + ones.substr(3) + "]", 4)).at("x").dim(), 64);
}

TEST(TensorFile, LargeShapesWithoutElementsAreExact) {
  const TempDir dir;
  const Tensor x = read_tensors(file_with(dir, "[268435456,0,268435456]", 0)).at("x");
  EXPECT_EQ(x.sizes(), (at::IntArrayRef{1 << 28, 0, 1 << 28}));
  EXPECT_EQ(x.numel(), 0);
  EXPECT_TRUE(x.is_contiguous());
}

}  // namespace
}  // namespace rmoe
