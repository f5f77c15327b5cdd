#include "engine/adapter_pack.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

namespace pomona {
namespace {

// Largest absolute value. Compared as whole numbers, in whose order non-negative floats stand too: such a
// loop becomes vectors.
float largest(const float* values, std::size_t count) {
  std::int32_t result = 0;
  for (std::size_t i = 0; i < count; ++i)
    result = std::max(result, std::bit_cast<std::int32_t>(values[i]) & 0x7fffffff);
  return std::bit_cast<float>(result);
}

// The size of what one rank multiplies: the median of the largest values of its pieces that are not zero (a
// piece shares a scale with other ranks). The largest of all would let one outlier decide for every piece.
float typical(std::vector<float> pieces) {
  std::erase(pieces, 0.0f);
  if (pieces.empty()) return 0.0f;
  const auto middle = pieces.begin() + static_cast<std::ptrdiff_t>(pieces.size() / 2);
  std::nth_element(pieces.begin(), middle, pieces.end());
  return std::max(*middle, 1e-6f * largest(pieces.data(), pieces.size())); // so that no quotient overflows
}

// to_bf16 of a finite value
std::uint16_t bf16_of(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float inverse(float x) { return x > 1e-30f ? 1.0f / x : 0.0f; }

// values / scale as whole numbers of -127 .. 127; gives the scale. The sum with 1.5 * 2^23 has the nearest
// whole number in its last bits, and loops over it become vectors.
float round_piece(const float* values, std::size_t count, std::int8_t* to) {
  const float size = largest(values, count);
  const float step = size / 127.0f, factor = size > 1e-30f ? 127.0f / size : 0.0f;
  for (std::size_t i = 0; i < count; ++i)
    to[i] = static_cast<std::int8_t>(std::bit_cast<std::int32_t>(values[i] * factor + 12582912.0f));
  return step;
}

// 16 rows of halves, `stride` apart, as pairs of columns: 16 rows of the first pair, then of the next.
// Rounding and turning are apart because the first becomes vectors and the second is whole words.
void turn_pairs(const std::uint16_t* halves, std::size_t stride, int cols, std::uint16_t* to) {
  for (int k = 0; k < cols; k += 2)
    for (int r = 0; r < kGroupRows; ++r, to += 2) std::memcpy(to, halves + r * stride + k, 4);
}

void round_bf16(const float* from, std::size_t count, std::uint16_t* to) {
  for (std::size_t i = 0; i < count; ++i) to[i] = bf16_of(from[i]);
}

void lower_bf16(const std::vector<float>& a, int lanes, int cols, std::uint16_t* to) {
  std::array<std::uint16_t, kGroupRows * kBlock> tile; // stays in the first-level cache
  for (int l0 = 0; l0 < lanes; l0 += kGroupRows)
    for (int k0 = 0; k0 < cols; k0 += kBlock) {
      const int count = std::min(kBlock, cols - k0);
      for (int l = 0; l < kGroupRows; ++l)
        round_bf16(a.data() + static_cast<std::size_t>(l0 + l) * cols + k0, count, tile.data() + l * kBlock);
      turn_pairs(tile.data(), kBlock, count, to);
      to += count * kGroupRows;
    }
}

void lower_int8(const std::vector<float>& a, int lanes, int cols, std::int8_t* to, float* scales,
                float* factors) {
  std::vector<float> inverses(lanes), unit(static_cast<std::size_t>(kBlock) * kGroupRows);
  for (int l = 0; l < lanes; ++l) {
    std::vector<float> pieces;
    for (int k0 = 0; k0 < cols; k0 += kBlock)
      pieces.push_back(
          largest(a.data() + static_cast<std::size_t>(l) * cols + k0, std::min(kBlock, cols - k0)));
    const float size = typical(std::move(pieces));
    inverses[l] = inverse(size);
    factors[l] *= size;
  }
  for (int l0 = 0; l0 < lanes; l0 += kGroupRows)
    for (int k0 = 0; k0 < cols; k0 += kBlock) {
      const int count = std::min(kBlock, cols - k0);
      for (int l = 0; l < kGroupRows; ++l) {
        const float* from = a.data() + static_cast<std::size_t>(l0 + l) * cols + k0;
        for (int k = 0; k < count; ++k)
          unit[static_cast<std::size_t>(k) * kGroupRows + l] = from[k] * inverses[l0 + l];
      }
      *scales++ = round_piece(unit.data(), static_cast<std::size_t>(count) * kGroupRows, to);
      to += count * kGroupRows;
    }
}

void raise_bf16(const std::vector<float>& b, int rows, int rank, std::uint16_t* to) {
  std::vector<std::uint16_t> group(static_cast<std::size_t>(kGroupRows) * rank);
  for (int r0 = 0; r0 < rows; r0 += kGroupRows, to += group.size()) {
    round_bf16(b.data() + static_cast<std::size_t>(r0) * rank, group.size(), group.data());
    turn_pairs(group.data(), rank, rank, to);
  }
}

void raise_int8(const std::vector<float>& b, int rows, int rank, std::int8_t* to, float* scales,
                float* factors) {
  const int groups = rows / kGroupRows;
  std::vector<float> sizes(static_cast<std::size_t>(groups) * rank, 0.0f), inverses(rank);
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < rank; ++j) {
      float& size = sizes[static_cast<std::size_t>(r / kGroupRows) * rank + j];
      size = std::max(size, std::fabs(b[static_cast<std::size_t>(r) * rank + j]));
    }
  for (int j = 0; j < rank; ++j) {
    std::vector<float> pieces;
    for (int g = 0; g < groups; ++g) pieces.push_back(sizes[static_cast<std::size_t>(g) * rank + j]);
    const float size = typical(std::move(pieces));
    inverses[j] = inverse(size);
    factors[j] *= size;
  }
  std::vector<float> group(static_cast<std::size_t>(rank) * kGroupRows);
  for (int r0 = 0; r0 < rows; r0 += kGroupRows, to += rank * kGroupRows) {
    for (int r = 0; r < kGroupRows; ++r)
      for (int j = 0; j < rank; ++j)
        group[static_cast<std::size_t>(j) * kGroupRows + r] =
            b[static_cast<std::size_t>(r0 + r) * rank + j] * inverses[j];
    *scales++ = round_piece(group.data(), group.size(), to);
  }
}

} // namespace

void pack_lower(Format format, const std::vector<float>& a, int lanes, int cols, std::uint8_t* to,
                float* scales, float* factors) {
  if (format == Format::int8)
    lower_int8(a, lanes, cols, reinterpret_cast<std::int8_t*>(to), scales, factors);
  else
    lower_bf16(a, lanes, cols, reinterpret_cast<std::uint16_t*>(to));
}

void pack_raise(Format format, const std::vector<float>& b, int rows, int rank, std::uint8_t* to,
                float* scales, float* factors) {
  if (format == Format::int8)
    raise_int8(b, rows, rank, reinterpret_cast<std::int8_t*>(to), scales, factors);
  else
    raise_bf16(b, rows, rank, reinterpret_cast<std::uint16_t*>(to));
}

} // namespace pomona
