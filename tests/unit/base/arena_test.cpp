#include "rmoe/base/arena.h"

#include <sys/resource.h>

#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace rmoe {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

int64_t page_faults() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

TEST(Arena, GivesOutWhatWasFreedWithoutAPageFault) {
  Arena arena(256 * kMiB, 256 * kMiB);
  std::vector<void*> blocks(20);
  const auto round = [&] {
    for (void*& block : blocks) {
      block = arena.allocate(3 * kMiB);
      std::memset(block, 1, 3 * kMiB);
    }
    for (void* block : blocks) arena.free(block);
  };
  round();
  const size_t extent = arena.extent();
  const int64_t before = page_faults();
  round();
  EXPECT_LE(page_faults() - before, 16);
  EXPECT_EQ(arena.extent(), extent);
  EXPECT_LE(extent, 60 * kMiB + 16 * kMiB);
}

TEST(Arena, MergesNeighbours) {
  Arena arena(64 * kMiB, 64 * kMiB);
  std::vector<void*> blocks;
  for (int i = 0; i < 64; ++i) blocks.push_back(arena.allocate(kMiB));
  EXPECT_EQ(arena.allocate(kMiB), nullptr);
  for (const int i : {1, 3, 2}) arena.free(blocks[static_cast<size_t>(i)]);
  EXPECT_EQ(arena.allocate(3 * kMiB), blocks[1]);
  EXPECT_EQ(arena.used(), 64 * kMiB);
}

TEST(Arena, TakesTheSmallestFreeBlockThatFits) {
  Arena arena(64 * kMiB, 64 * kMiB);
  void* large = arena.allocate(8 * kMiB);
  void* fence = arena.allocate(kMiB);
  void* small = arena.allocate(2 * kMiB);
  arena.allocate(kMiB);
  arena.free(large);
  arena.free(small);
  EXPECT_EQ(arena.allocate(kMiB + 1), small);
  EXPECT_EQ(arena.allocate(6 * kMiB), large);
  EXPECT_TRUE(arena.owns(fence));
  EXPECT_FALSE(arena.owns(&arena));
}

TEST(Arena, RefusesWhatDoesNotFit) {
  Arena arena(4 * kMiB, 4 * kMiB);
  EXPECT_EQ(arena.allocate(5 * kMiB), nullptr);
  EXPECT_EQ(arena.allocate(~size_t{0}), nullptr);
  void* all = arena.allocate(4 * kMiB);
  ASSERT_NE(all, nullptr);
  EXPECT_EQ(arena.allocate(1), nullptr);
  arena.free(all);
  void* nothing = arena.allocate(0);
  EXPECT_NE(nothing, nullptr);
  arena.free(nothing);
  EXPECT_EQ(arena.used(), 0u);
}

TEST(Arena, WithoutAddressesGivesNothing) {
  Arena arena(size_t{1} << 60, 0);
  EXPECT_EQ(arena.allocate(1), nullptr);
  EXPECT_FALSE(arena.owns(&arena));
}

TEST(Arena, BeyondItsBoundFreePagesGoBack) {
  Arena arena(256 * kMiB, 64 * kMiB);
  void* first = arena.allocate(48 * kMiB);
  std::memset(first, 1, 48 * kMiB);
  void* fence = arena.allocate(4096);
  arena.free(first);
  ASSERT_NE(arena.allocate(49 * kMiB), nullptr);
  void* again = arena.allocate(48 * kMiB);
  ASSERT_EQ(again, first);
  EXPECT_EQ(*static_cast<char*>(again), 0);  // a fresh page
  arena.free(fence);
}

// 5 MiB that begin off a boundary, given back when more is taken, then zeros where pages went back.
std::string pages_after_going_back(size_t keep) {
  Arena arena(256 * kMiB, keep);
  arena.allocate(1024);
  auto* block = static_cast<char*>(arena.allocate(5 * kMiB));
  std::memset(block, 1, 5 * kMiB);
  arena.allocate(1024);
  arena.free(block);
  arena.allocate(64 * kMiB);
  EXPECT_EQ(arena.allocate(5 * kMiB), block);
  const auto at = [&](size_t byte) { return block[byte] == 0 ? '0' : '1'; };
  // Before the first huge page, in whole ones, behind the last.
  return {at(0), at(kMiB), at(2 * kMiB - 1024), at(4 * kMiB - 1025), at(4 * kMiB - 1024), at(5 * kMiB - 1024 - 1),
          at(5 * kMiB - 1)};
}

TEST(Arena, WhereThatIsRoutineOnlyWholeHugePagesGoBack) {
  EXPECT_EQ(pages_after_going_back(0), "1100111");
  EXPECT_EQ(pages_after_going_back(1), "1000001");  // all but the pages that others share
}

TEST(Arena, BlocksNeverOverlap) {
  Arena arena(64 * kMiB, 64 * kMiB);
  const auto work = [&arena](unsigned seed) {
    std::mt19937 random(seed);
    std::vector<std::pair<unsigned char*, size_t>> blocks;
    for (int i = 0; i < 2000; ++i) {
      if (blocks.size() < 20 && random() % 2) {
        const size_t size = 1 + random() % 200000;
        auto* block = static_cast<unsigned char*>(arena.allocate(size));
        ASSERT_NE(block, nullptr);
        std::memset(block, static_cast<int>(seed), size);
        blocks.emplace_back(block, size);
      } else if (!blocks.empty()) {
        std::swap(blocks[random() % blocks.size()], blocks.back());
        const auto [block, size] = blocks.back();
        ASSERT_EQ(block[0], seed);
        ASSERT_EQ(std::memcmp(block, block + 1, size - 1), 0);
        arena.free(block);
        blocks.pop_back();
      }
    }
    for (const auto& [block, size] : blocks) arena.free(block);
  };
  std::thread one(work, 1), two(work, 2);
  one.join();
  two.join();
  EXPECT_EQ(arena.used(), 0u);
}

}  // namespace
}  // namespace rmoe
