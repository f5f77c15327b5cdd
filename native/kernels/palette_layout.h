// Where the index of one palettised weight lies. The layouts are those in which the kernels read: an aligned
// 64-byte line at a time, row r of a group of 16 in the 32-bit lane r, four columns (a step of a VNNI
// product) at a time.
//
//   4 bits  [rows/16][cols/8][64]      byte 4 r + j of a line = index[k+j] | index[k+4+j] << 4
//   2 bits  [rows/16][cols/16][64]     byte 4 r + j of a line = index[k+4i+j] << 2 i, i = 0 .. 3
//   3 bits  [rows/16][cols/32][3][64]  the 64-bit word p of three lines holds 192 bits for the rows 2 p and
//                                      2 p + 1: step i = 0 .. 7 at bit 24 i, in it row r, column j of the
//                                      step at bit 3 (4 (r % 2) + j)
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"

namespace pomona {

// Bit position within a group's bytes; an index of 3 bits may go on in the same word of the next line.
struct IndexPlace {
  std::size_t byte;
  int shift;
};

inline IndexPlace index_place(int bits, int r, int k) {
  if (bits == 3) {
    const int bit = 24 * (k % 32 / 4) + 3 * (4 * (r % 2) + k % 4);
    const std::size_t line = static_cast<std::size_t>(k / 32) * 3 + bit / 64;
    return {line * 64 + static_cast<std::size_t>(r / 2) * 8 + bit % 64 / 8, bit % 8};
  }
  const int columns = 32 / bits; // of a line
  return {static_cast<std::size_t>(k / columns) * 64 + r * 4 + k % 4, bits * (k % columns / 4)};
}

// The byte in which an index of 3 bits goes on.
inline std::size_t next_byte(std::size_t byte) { return byte % 8 == 7 ? byte + 57 : byte + 1; }

inline int palette_index(int bits, const std::uint8_t* group, int r, int k) {
  const IndexPlace place = index_place(bits, r, k);
  unsigned value = group[place.byte];
  if (place.shift + bits > 8) value |= static_cast<unsigned>(group[next_byte(place.byte)]) << 8;
  return static_cast<int>(value >> place.shift & ((1u << bits) - 1));
}

// The group's bytes must be zero before.
inline void set_palette_index(int bits, std::uint8_t* group, int r, int k, int index) {
  const IndexPlace place = index_place(bits, r, k);
  const unsigned value = static_cast<unsigned>(index) << place.shift;
  group[place.byte] = static_cast<std::uint8_t>(group[place.byte] | (value & 255u));
  if (place.shift + bits > 8) {
    const std::size_t next = next_byte(place.byte);
    group[next] = static_cast<std::uint8_t>(group[next] | value >> 8);
  }
}

// The indices of whole lines, the columns [k0, k1): codes [16][stride], where k0 has its first.
inline void pack_palette_indices(int bits, const std::uint8_t* codes, std::size_t stride, int k0, int k1,
                                 std::uint8_t* group) {
  std::uint8_t* line = group + static_cast<std::size_t>(k0) * 2 * bits;
  if (bits == 3) {
    for (int k = 0; k < k1 - k0; k += 32, line += 192)
      for (int p = 0; p < kGroupRows / 2; ++p) {
        std::uint64_t words[3] = {};
        for (int i = 0; i < 8; ++i) {
          std::uint64_t step = 0; // 24 bits
          for (int r = 0; r < 2; ++r)
            for (int j = 0; j < 4; ++j)
              step |= std::uint64_t{codes[(2 * p + r) * stride + k + 4 * i + j]} << (3 * (4 * r + j));
          const int bit = 24 * i;
          words[bit / 64] |= step << (bit % 64);
          if (bit % 64 > 40) words[bit / 64 + 1] |= step >> (64 - bit % 64);
        }
        for (int w = 0; w < 3; ++w) std::memcpy(line + 64 * w + 8 * p, &words[w], 8);
      }
    return;
  }
  const int columns = 32 / bits; // of a line
  for (int k = 0; k < k1 - k0; k += columns, line += 64)
    for (int r = 0; r < kGroupRows; ++r) {
      std::uint32_t lane = 0; // four columns side by side in its bytes
      for (int i = 0; i < columns / 4; ++i) {
        std::uint32_t step;
        std::memcpy(&step, codes + r * stride + k + 4 * i, 4);
        lane |= step << (bits * i);
      }
      std::memcpy(line + 4 * r, &lane, 4);
    }
}

} // namespace pomona
