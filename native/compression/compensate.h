// Palettes that are fitted to what a layer's inputs are (DESIGN: Compression, step 2; GPTQ, GANQ and GPTVQ
// have the ideas): the error of a weight is made good by the weights that are rounded after it, and tables,
// row scales and single indices are then improved in turn. All of it minimises sum over rows of (w - q) H (w
// - q)^T, H being the second moment of the inputs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "compression/kmeans.h"

namespace pomona {

// keep * H + diag(added): what stands for H in the choices, so that they do not rest on chance.
struct Damped {
  std::span<const float> moment; // [cols][cols], symmetric
  float keep = 1.0f;
  std::span<const float> added; // [cols], not negative
};

struct CompensateOptions {
  int rounds = 2;     // of an assignment from nothing and what follows
  int sweeps = 2;     // over all tables of a round: indices, then the entries
  bool scales = true; // refit the row scales after a sweep
  int threads = 1;
};

// The lower factor L, L L^T = the damped moment with rows and columns in `order`; above the diagonal are
// zeros. [cols][cols]. std::invalid_argument for sizes that do not fit and values that are not finite;
// std::runtime_error where the matrix is not positive definite in float32: damp it more.
std::vector<float> damped_cholesky(const Damped& damped, std::span<const std::int32_t> order, int threads);

// weights [rows][cols]. importance [cols]: for the k-means that the tables begin with. factor and order: see
// damped_cholesky; columns are rounded from the last of `order` to the first. squared_error and squared_norm
// of the result are those of the moment itself, not damped; no group of 16 rows has a larger error than the
// k-means alone. The same bits for any number of threads. Errors as palettize.
Palettes compensate(std::span<const float> weights, int rows, int cols, std::span<const float> importance,
                    const Damped& damped, std::span<const float> factor, std::span<const std::int32_t> order,
                    int bits, int table_cols, const CompensateOptions& options);

} // namespace pomona
