// Factors of low-rank adapters into the layouts of kernels.h.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace pomona {

// a [lanes][cols] -> to, lanes a multiple of 16, cols of 2. int8 also fills scales [units] and multiplies
// factors [lanes] by what it takes out of a lane.
void pack_lower(Format format, const std::vector<float>& a, int lanes, int cols, std::uint8_t* to,
                float* scales, float* factors);

// b [rows][rank] -> to, rows a multiple of 16, rank of 2. int8 also fills scales [rows/16] and multiplies
// factors [rank] by what it takes out of a rank.
void pack_raise(Format format, const std::vector<float>& b, int rows, int rank, std::uint8_t* to,
                float* scales, float* factors);

} // namespace pomona
