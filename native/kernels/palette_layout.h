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

} // namespace pomona
