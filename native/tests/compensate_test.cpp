// The solver of palettes: its products and its Cholesky factor against double, and what it promises.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <sstream>

#include "compression/compensate.h"
#include "kernels/palette_layout.h"
#include "tests/random_model.h"

namespace pomona::testing {
namespace {

using Floats = std::vector<float>;

// x^T x / rows of columns that have something in common and differ in size.
Floats random_moment(int cols, int rows, Random& random) {
  Floats x(static_cast<std::size_t>(rows) * cols), size(cols);
  for (float& s : size) s = std::exp(random.normal());
  for (int r = 0; r < rows; ++r) {
    const float common = random.normal();
    for (int k = 0; k < cols; ++k) x[r * cols + k] = (random.normal() + common) * size[k];
  }
  Floats moment(static_cast<std::size_t>(cols) * cols);
  for (int i = 0; i < cols; ++i)
    for (int j = 0; j < cols; ++j) {
      double sum = 0.0;
      for (int r = 0; r < rows; ++r) sum += static_cast<double>(x[r * cols + i]) * x[r * cols + j];
      moment[i * cols + j] = static_cast<float>(sum / rows);
    }
  return moment;
}

std::vector<std::int32_t> random_order(int cols, Random& random) {
  std::vector<std::int32_t> order(cols);
  std::iota(order.begin(), order.end(), 0);
  for (int i = cols - 1; i > 0; --i) std::swap(order[i], order[random.integer(0, i)]);
  return order;
}

// A matrix and all that its palettes are made from.
struct Problem {
  int rows, cols;
  Floats weights, moment, added, importance, factor;
  std::vector<std::int32_t> order;

  Problem(int rows_, int cols_, Random& random, int tokens)
      : rows(rows_), cols(cols_), weights(random.normals(static_cast<std::size_t>(rows_) * cols_)) {
    moment = random_moment(cols, tokens, random);
    added.assign(cols, 0.02f);
    for (int k = 0; k < cols; ++k) importance.push_back(moment[k * cols + k]);
    order = random_order(cols, random);
    factor = damped_cholesky(damped(), order, 1);
  }
  Damped damped() const { return {moment, 0.9f, added}; }
  Palettes solve(int bits, int table_cols, CompensateOptions options) const {
    return compensate(weights, rows, cols, importance, damped(), factor, order, bits, table_cols, options);
  }
  // tr((W - Q) H (W - Q)^T) of the groups, in double from what is stored.
  std::vector<double> errors(const Palettes& p, int bits, int table_cols) const {
    std::vector<double> result(p.groups, 0.0), e(cols);
    for (int row = 0; row < rows; ++row) {
      const int g = row / kGroupRows;
      for (int k = 0; k < cols; ++k) {
        const std::size_t t = static_cast<std::size_t>(g) * p.tables + k / table_cols;
        const int c = palette_index(bits, p.indices.data() + static_cast<std::size_t>(g) * cols * 2 * bits,
                                    row % kGroupRows, k);
        e[k] = weights[row * cols + k] - static_cast<double>(p.entries[(t << bits) + c]) *
                                             half_to_float(p.table_scales[t]) *
                                             half_to_float(p.row_scales[row]);
      }
      for (int i = 0; i < cols; ++i)
        for (int j = 0; j < cols; ++j) result[g] += e[i] * moment[i * cols + j] * e[j];
    }
    return result;
  }
};

bool same(const Palettes& a, const Palettes& b) {
  return a.indices == b.indices && a.entries == b.entries && a.table_scales == b.table_scales &&
         a.row_scales == b.row_scales && a.squared_error == b.squared_error &&
         a.squared_norm == b.squared_norm;
}

} // namespace

TEST_CASE("compensate: products of every instruction set are the scalar ones, bit for bit") {
  Random random(1);
  std::istringstream names(available_kernels());
  const Kernels& scalar = select_kernels("scalar");
  for (std::string name; names >> name;) {
    const Kernels& kernels = select_kernels(name.c_str());
    for (int trial = 0; trial < 40; ++trial) {
      const int m = random.integer(1, 14), n = random.integer(1, 150), k = random.integer(0, 20);
      const bool transposed = random.chance(0.5);
      const std::size_t a_row = transposed ? 1 : k + 3, a_step = transposed ? m + 2 : 1, stride = n + 5;
      const Floats a = random.normals(static_cast<std::size_t>(m + 2) * (k + 3)),
                   b = random.normals((k + 1) * stride), c = random.normals(m * stride);
      Floats ours = c, theirs = c;
      kernels.multiply_add(a.data(), a_row, a_step, b.data(), stride, k, ours.data(), stride, m, n);
      scalar.multiply_add(a.data(), a_row, a_step, b.data(), stride, k, theirs.data(), stride, m, n);
      REQUIRE(std::memcmp(ours.data(), theirs.data(), ours.size() * sizeof(float)) == 0);
      double sum = c[0];
      for (int t = 0; t < k; ++t) sum += static_cast<double>(a[t * a_step]) * b[t * stride];
      CHECK(ours[0] == doctest::Approx(sum).epsilon(1e-4).scale(1.0));
    }
    Floats x = random.normals(kGroupRows), middles = random.normals(15);
    std::sort(middles.begin(), middles.end());
    x[3] = middles[7]; // a tie goes to the lower entry
    std::uint8_t index[kGroupRows];
    kernels.nearest(x.data(), middles.data(), 15, index);
    for (int r = 0; r < kGroupRows; ++r)
      CHECK(index[r] == std::lower_bound(middles.begin(), middles.end(), x[r]) - middles.begin());
  }
}

TEST_CASE("compensate: the factor times its transpose is the damped moment in its order") {
  Random random(2);
  for (const int cols : {1, 5, 64, 65, 200, 320}) {
    const Floats moment = random_moment(cols, 2 * cols, random), added(cols, 0.05f);
    const std::vector<std::int32_t> order = random_order(cols, random);
    const Floats l = damped_cholesky({moment, 0.8f, added}, order, 1);
    for (int i = 0; i < cols; ++i)
      for (int j = 0; j < cols; ++j) {
        double product = 0.0;
        for (int k = 0; k <= std::min(i, j); ++k)
          product += static_cast<double>(l[i * cols + k]) * l[j * cols + k];
        const double size = std::sqrt(static_cast<double>(moment[order[i] * cols + order[i]]) *
                                      moment[order[j] * cols + order[j]]);
        const double expected = 0.8 * moment[order[i] * cols + order[j]] + (i == j ? 0.05 : 0.0);
        REQUIRE(std::fabs(product - expected) <= 1e-5 * (size + 0.05));
        if (j > i) REQUIRE(l[i * cols + j] == 0.0f);
      }
    for (const int threads : {2, 3, 7}) CHECK(damped_cholesky({moment, 0.8f, added}, order, threads) == l);
  }
}

TEST_CASE("compensate: a matrix that is not positive definite, or no matrix, is refused") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Floats moment{1.0f, 2.0f, 2.0f, 1.0f}, broken{1.0f, nan, nan, 1.0f}, none(2, 0.0f), some(2, 1.5f);
  const std::vector<std::int32_t> order{0, 1}, twice{0, 0}, outside{0, 2}, short_one{0};
  CHECK_THROWS_AS(damped_cholesky({moment, 1.0f, none}, order, 1), std::runtime_error);
  CHECK_NOTHROW(damped_cholesky({moment, 1.0f, some}, order, 1));
  CHECK_THROWS_AS(damped_cholesky({broken, 1.0f, some}, order, 1), std::invalid_argument);
  for (const auto& wrong : {twice, outside, short_one})
    CHECK_THROWS_AS(damped_cholesky({moment, 1.0f, some}, wrong, 1), std::invalid_argument);
  CHECK_THROWS_AS(damped_cholesky({moment, 1.0f, Floats(3, 1.0f)}, order, 1), std::invalid_argument);
}

TEST_CASE("compensate: no group is worse than its k-means, and the errors told are the errors") {
  Random random(3);
  for (const int bits : {4, 3, 2})
    for (const int table_cols : {64, 128}) {
      const Problem problem(96, 128, random, 300);
      const Palettes seed = palettize(problem.weights, problem.rows, problem.cols, problem.importance, bits,
                                      table_cols, RowScales::kRootMeanSquare, 1);
      const std::vector<double> before = problem.errors(seed, bits, table_cols);
      for (const CompensateOptions options :
           {CompensateOptions{0, 0, false, 1}, {1, 0, false, 1}, {1, 2, true, 1}, {3, 1, true, 1}}) {
        const Palettes ours = problem.solve(bits, table_cols, options);
        const std::vector<double> after = problem.errors(ours, bits, table_cols);
        for (int g = 0; g < ours.groups; ++g) CHECK(after[g] <= before[g] * 1.0001);
        const double sum = std::accumulate(after.begin(), after.end(), 0.0);
        CHECK(ours.squared_error == doctest::Approx(sum).epsilon(1e-3));
        if (options.rounds > 0) CHECK(sum < 0.8 * std::accumulate(before.begin(), before.end(), 0.0));
        if (options.rounds == 0) CHECK(ours.indices == seed.indices);
      }
    }
}

TEST_CASE("compensate: the same bits for any number of threads") {
  Random random(4);
  const Problem problem(16 * 9, 128, random, 200);
  const Palettes one = problem.solve(3, 64, {2, 2, true, 1});
  for (const int threads : {2, 3, 8}) CHECK(same(one, problem.solve(3, 64, {2, 2, true, threads})));
}

TEST_CASE("compensate: groups of rows have nothing to do with each other") {
  Random random(5);
  Problem problem(16 * 5, 128, random, 200);
  const Palettes all = problem.solve(4, 64, {1, 1, true, 1});
  problem.weights.erase(problem.weights.begin(), problem.weights.begin() + 16 * 128);
  problem.rows -= 16;
  const Palettes rest = problem.solve(4, 64, {1, 1, true, 1});
  CHECK(std::equal(rest.indices.begin(), rest.indices.end(), all.indices.begin() + 128 * 8));
  CHECK(std::equal(rest.row_scales.begin(), rest.row_scales.end(), all.row_scales.begin() + 16));
}

TEST_CASE("compensate: rows of zeros and inputs that are always zero") {
  Random random(6);
  Problem problem(32, 128, random, 200);
  std::fill_n(problem.weights.begin() + 3 * 128, 128, 0.0f);
  for (int i = 0; i < 128; ++i) problem.moment[i * 128 + 7] = problem.moment[7 * 128 + i] = 0.0f;
  problem.factor = damped_cholesky(problem.damped(), problem.order, 1);
  const Palettes ours = problem.solve(4, 64, {2, 2, true, 1});
  CHECK(ours.row_scales[3] == 0);
  const std::vector<double> after = problem.errors(ours, 4, 64);
  CHECK(ours.squared_error == doctest::Approx(after[0] + after[1]).epsilon(1e-3));
}

TEST_CASE("compensate: sizes that do not fit and values that are not finite are refused") {
  Random random(7);
  const Problem good(16, 64, random, 100);
  const auto refused = [&](auto&& change) {
    Problem bad = good;
    change(bad);
    CHECK_THROWS_AS(bad.solve(4, 64, {1, 1, true, 1}), std::invalid_argument);
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  refused([&](Problem& p) { p.weights[5] = nan; });
  refused([&](Problem& p) { p.moment[70] = nan; });
  refused([&](Problem& p) { p.importance[5] = -1.0f; });
  refused([&](Problem& p) { p.factor[0] = 0.0f; });
  refused([&](Problem& p) { p.factor[65] = nan; });
  refused([&](Problem& p) { p.order[9] = 64; });
  refused([&](Problem& p) { p.added.pop_back(); });
  refused([&](Problem& p) { p.moment.pop_back(); });
  refused([&](Problem& p) { p.factor.pop_back(); });
}

} // namespace pomona::testing
