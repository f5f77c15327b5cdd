// Palettes by weighted one-dimensional k-means (AFM report 6.2; format in kernels.h).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace pomona {

struct Palettes {
  int groups = 0, tables = 0;                          // of 16 rows; of table_cols columns within a group
  std::vector<std::uint8_t> indices;                   // as kernels/palette_layout.h says
  std::vector<std::int8_t> entries;                    // [groups][tables][2^bits]
  std::vector<std::uint16_t> table_scales, row_scales; // float16; [groups][tables], [groups * 16]
  double squared_error = 0.0, squared_norm = 0.0;      // weighted by the column importance
};

// How a row is scaled before its group is palettised: by its root mean square; or by that or its largest
// value, whichever leaves the smaller error in the group, in twice the time. Rows with long tails like the
// latter.
enum class RowScales { kRootMeanSquare, kBetter };

// bits: 4, 3 or 2. Minimises sum importance[k] (w[r][k] - palette value)^2 per table. weights [rows][cols];
// importance [cols], positive. Deterministic for any number of threads. std::invalid_argument for values that
// are not finite.
Palettes palettize(std::span<const float> weights, int rows, int cols, std::span<const float> importance,
                   int bits, int table_cols, RowScales scales, int threads);

std::uint16_t float_to_half(float f); // nearest even

} // namespace pomona
