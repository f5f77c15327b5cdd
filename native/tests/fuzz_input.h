// The bytes of one fuzzing run, read as choices. When they are used up, every choice is the first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>

namespace pomona::testing {

class FuzzInput {
 public:
  FuzzInput(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

  bool empty() const { return left_ == 0; }
  std::uint8_t byte() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }
  std::uint32_t word() {
    std::uint32_t v = 0;
    for (int i = 0; i < 4; ++i) v = v << 8 | byte();
    return v;
  }
  // Both included; small ranges take one byte.
  int integer(int low, int high) {
    const std::uint64_t range = static_cast<std::uint64_t>(static_cast<std::int64_t>(high) - low) + 1;
    return static_cast<int>(low + static_cast<std::int64_t>((range <= 256 ? byte() : word()) % range));
  }
  bool one_in(int n) { return integer(0, n - 1) == n - 1; }
  // Mostly 0 .. 2; now and then what breaks arithmetic.
  float real() {
    constexpr float kHostile[] = {std::numeric_limits<float>::quiet_NaN(),
                                  std::numeric_limits<float>::infinity(),
                                  -std::numeric_limits<float>::infinity(),
                                  std::numeric_limits<float>::max(),
                                  std::numeric_limits<float>::denorm_min(),
                                  -1.0f,
                                  -0.0f,
                                  1e30f};
    return one_in(4) ? kHostile[integer(0, 7)] : static_cast<float>(byte()) / 128.0f;
  }
  // A number that may lie anywhere, but mostly near [low, high].
  int wild(int low, int high) {
    constexpr int kHostile[] = {std::numeric_limits<int>::min(), std::numeric_limits<int>::max(), -1,
                                1 << 16};
    if (!one_in(8)) return integer(low, high);
    const int which = integer(0, 5);
    return which < 4 ? kHostile[which] : which == 4 ? low - 1 : high + 1;
  }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
};

// Ends the run as a crash: what must hold did not.
inline void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

} // namespace pomona::testing
