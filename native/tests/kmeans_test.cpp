// Palettes against their definition, written down the slow way: the same bits for any input. Models' bytes,
// and with them the adapters that were trained for those, depend on it.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <sstream>

#include "compression/kmeans.h"
#include "kernels/palette_layout.h"
#include "tests/random_model.h"

namespace pomona::testing {
namespace {

using Floats = std::vector<float>;
using Edges = std::vector<std::size_t>;
constexpr double kNever = std::numeric_limits<double>::infinity();

// The values of one table, and sums over what comes before each place.
struct Table {
  std::vector<std::pair<float, float>> values; // with their weights
  std::vector<double> w{0.0}, wv{0.0}, wvv{0.0};

  void sort() {
    std::sort(values.begin(), values.end());
    for (const auto& [v, weight] : values) {
      const double value = v, one = weight;
      w.push_back(w.back() + one);
      wv.push_back(wv.back() + one * value);
      wvv.push_back(wvv.back() + one * value * value);
    }
  }
  double cost(std::size_t a, std::size_t b) const {
    const double mass = w[b] - w[a], sum = wv[b] - wv[a];
    return mass > 0.0 ? std::max(0.0, (wvv[b] - wvv[a]) - sum * sum / mass) : 0.0;
  }
  double mean(std::size_t a, std::size_t b) const {
    const double mass = w[b] - w[a];
    if (mass > 0.0) return (wv[b] - wv[a]) / mass;
    return a < values.size() ? values[a].first : values.back().first;
  }
  std::size_t first_not_below(double bound) const {
    std::size_t i = 0;
    while (i < values.size() && values[i].first < bound) ++i;
    return i;
  }
  // At most 256 different values are bins of their own; else there are 128 of equal count and 128 of equal
  // width.
  Edges bins() const {
    Edges edges;
    for (std::size_t i = 0; i < values.size(); ++i)
      if (i == 0 || values[i].first != values[i - 1].first) edges.push_back(i);
    if (edges.size() > 256) {
      edges.clear();
      const float low = values.front().first, width = values.back().first - low;
      for (int b = 0; b < 128; ++b) {
        edges.push_back(first_not_below(values[values.size() * b / 128].first));
        edges.push_back(first_not_below(low + width * (static_cast<float>(b) / 128)));
      }
      std::sort(edges.begin(), edges.end());
      edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
    }
    edges.push_back(values.size());
    return edges;
  }
  // The best intervals of bins, by dynamic programming: the choice for the middle of a range bounds those of
  // its halves.
  Edges intervals(const Edges& edges, int colors) const {
    const int n = static_cast<int>(edges.size()) - 1;
    std::vector<double> previous(n + 1), best(n + 1);
    for (int j = 0; j <= n; ++j) previous[j] = cost(0, edges[j]);
    std::vector<std::vector<int>> choices(colors, std::vector<int>(n + 1));
    for (int color = 1; color < colors; ++color) {
      const std::function<void(int, int, int, int)> solve = [&](int j0, int j1, int i0, int i1) {
        if (j0 > j1) return;
        const int j = (j0 + j1) / 2;
        int from = i0;
        best[j] = kNever;
        for (int i = i0; i <= std::min(i1, j); ++i)
          if (const double c = previous[i] + cost(edges[i], edges[j]); c < best[j]) {
            best[j] = c;
            from = i;
          }
        choices[color][j] = from;
        solve(j0, j - 1, i0, from);
        solve(j + 1, j1, from, i1);
      };
      solve(0, n, 0, n);
      previous = best;
    }
    Edges cuts(colors + 1, n);
    for (int color = colors - 1; color >= 1; --color) cuts[color] = choices[color][cuts[color + 1]];
    cuts[0] = 0;
    for (std::size_t& cut : cuts) cut = edges[cut];
    return cuts;
  }
  std::vector<double> centres(int colors) {
    sort();
    Edges cuts = intervals(bins(), colors);
    std::vector<double> centre(colors);
    for (int round = 0; round < 50; ++round) {
      for (int c = 0; c < colors; ++c) centre[c] = mean(cuts[c], cuts[c + 1]);
      std::sort(centre.begin(), centre.end());
      const Edges before = cuts;
      for (int c = 1; c < colors; ++c) cuts[c] = first_not_below(0.5 * (centre[c - 1] + centre[c]));
      if (cuts == before) break;
    }
    return centre;
  }
};

struct Input {
  int rows, cols;
  Floats weights, importance;
};

Palettes by_definition(const Input& in, int bits, int table_cols) {
  const int colors = 1 << bits;
  Palettes out;
  out.groups = in.rows / kGroupRows;
  out.tables = in.cols / table_cols;
  out.indices.assign(static_cast<std::size_t>(out.groups) * in.cols * 2 * bits, 0);
  for (int g = 0; g < out.groups; ++g) {
    double error = 0.0, norm = 0.0;
    float scales[kGroupRows];
    for (int r = 0; r < kGroupRows; ++r) {
      double squares = 0.0;
      for (int k = 0; k < in.cols; ++k)
        squares += static_cast<double>(in.weights[(g * kGroupRows + r) * in.cols + k]) *
                   in.weights[(g * kGroupRows + r) * in.cols + k];
      out.row_scales.push_back(float_to_half(static_cast<float>(std::sqrt(squares / in.cols))));
      scales[r] = half_to_float(out.row_scales.back());
    }
    for (int k0 = 0; k0 < in.cols; k0 += table_cols) {
      Table table;
      for (int r = 0; r < kGroupRows; ++r)
        for (int k = k0; k < k0 + table_cols; ++k)
          if (scales[r] != 0.0f)
            table.values.emplace_back(in.weights[(g * kGroupRows + r) * in.cols + k] / scales[r],
                                      in.importance[k] * scales[r] * scales[r]);
      Floats entry(colors, 0.0f);
      float scale = 0.0f;
      if (!table.values.empty()) {
        const std::vector<double> centre = table.centres(colors);
        out.table_scales.push_back(float_to_half(
            static_cast<float>(std::max(std::fabs(centre.front()), std::fabs(centre.back())) / 127.0)));
        scale = half_to_float(out.table_scales.back());
        for (int c = 0; c < colors; ++c) {
          const double q = scale > 0.0f ? std::clamp(std::nearbyint(centre[c] / scale), -127.0, 127.0) : 0.0;
          out.entries.push_back(static_cast<std::int8_t>(q));
          entry[c] = out.entries.back() * scale;
        }
      } else {
        out.table_scales.push_back(0);
        out.entries.insert(out.entries.end(), colors, 0);
      }
      for (int r = 0; r < kGroupRows; ++r)
        for (int k = k0; k < k0 + table_cols; ++k) {
          const float w = in.weights[(g * kGroupRows + r) * in.cols + k];
          int index = 0;
          for (int c = 0; c + 1 < colors && scales[r] > 0.0f; ++c)
            index += w / scales[r] > 0.5f * (entry[c] + entry[c + 1]);
          set_palette_index(bits, out.indices.data() + static_cast<std::size_t>(g) * in.cols * 2 * bits, r, k,
                            index);
          const double e = w - entry[index] * scales[r];
          error += in.importance[k] * e * e;
          norm += in.importance[k] * static_cast<double>(w) * w;
        }
    }
    out.squared_error += error;
    out.squared_norm += norm;
  }
  return out;
}

// Weights of a kind that is awkward to sort, to cut or to scale.
Input awkward(int kind, Random& random) {
  Input in{16 * random.integer(1, 2), 64 * random.integer(1, 4), {}, {}};
  const Floats levels = random.normals(random.integer(1, 20));
  for (int row = 0; row < in.rows; ++row) {
    const float size = std::pow(10.0f, -3.0f + 4.0f * static_cast<float>(random.uniform()));
    for (int k = 0; k < in.cols; ++k) {
      float w = random.normal() * size;
      if (kind == 1) w = levels[random.integer(0, static_cast<int>(levels.size()) - 1)] * size; // ties
      if (kind == 2) w = std::round(random.normal() * 3.0f); // ties between rows
      if (kind == 3) w = levels[0];                          // all the same
      if (kind == 4) w = row % 3 == 0 ? 0.0f : w;            // rows of zeros
      if (kind == 5) w = random.chance(0.5) ? -0.0f : random.chance(0.5) ? 0.0f : w;
      if (kind == 6) w = random.normal() * 1e-39f; // subnormal: every scale is 0
      if (kind == 7) w = random.normal() * std::pow(2.0f, -18.0f - static_cast<float>(row % 9)); // or some
      if (kind == 8) w = k == 5 ? 1e4f * size : w; // an outlier in each row
      in.weights.push_back(w);
    }
  }
  const int uneven = random.integer(0, 5);
  for (int k = 0; k < in.cols; ++k) {
    const double u = random.uniform();
    in.importance.push_back(static_cast<float>(uneven == 0   ? 1.0
                                               : uneven == 1 ? u
                                               : uneven == 2 ? std::exp(8.0 * u - 4.0)
                                               : uneven == 3 ? (u < 0.5 ? 0.0 : u) // nothing counts there
                                               : uneven == 4 ? 1e-41 * u
                                                             : 0.0));
  }
  return in;
}

bool same(const Palettes& a, const Palettes& b) {
  return a.indices == b.indices && a.entries == b.entries && a.table_scales == b.table_scales &&
         a.row_scales == b.row_scales && a.squared_error == b.squared_error &&
         a.squared_norm == b.squared_norm;
}

} // namespace

TEST_CASE("kmeans: palettes are those of the definition, bit for bit") {
  Random random(1);
  for (int trial = 0; trial < 180; ++trial) {
    const Input in = awkward(trial % 9, random);
    const int bits = random.integer(2, 4), blocks = in.cols / 64;
    const int table_cols = blocks % 2 == 0 && random.chance(0.5) ? in.cols / 2 : in.cols;
    CAPTURE(trial);
    REQUIRE(same(palettize(in.weights, in.rows, in.cols, in.importance, bits, table_cols,
                           RowScales::kRootMeanSquare, 1 + trial % 3),
                 by_definition(in, bits, table_cols)));
  }
}

TEST_CASE("kmeans: a table of thousands of values too, which is sorted by longer digits") {
  Random random(2);
  for (const int kind : {0, 1, 8}) {
    Input in = awkward(kind, random);
    in.rows = kGroupRows;
    in.cols = 320;
    in.weights = random.normals(static_cast<std::size_t>(in.rows) * in.cols);
    if (kind == 1)
      for (float& w : in.weights) w = std::round(4.0f * w) / 4.0f;
    in.importance.assign(in.cols, 1.0f);
    for (int k = 0; k < in.cols; k += 3) in.importance[k] = static_cast<float>(random.uniform());
    for (const int bits : {2, 3, 4})
      REQUIRE(same(palettize(in.weights, in.rows, in.cols, in.importance, bits, in.cols,
                             RowScales::kRootMeanSquare, 2),
                   by_definition(in, bits, in.cols)));
  }
}

TEST_CASE("kmeans: of two kinds of row scales the better one is taken, group by group") {
  Random random(4);
  const auto solve = [](const Input& in, RowScales scales, int threads) {
    return palettize(in.weights, in.rows, in.cols, in.importance, 4, in.cols, scales, threads);
  };
  for (int trial = 0; trial < 90; ++trial) {
    const Input in = awkward(trial % 9, random);
    CAPTURE(trial);
    const Palettes better = solve(in, RowScales::kBetter, 1);
    REQUIRE(better.squared_error <= solve(in, RowScales::kRootMeanSquare, 1).squared_error * (1 + 1e-12));
    REQUIRE(same(better, solve(in, RowScales::kBetter, 3)));
  }
  // One large value in every row, which one entry serves when it is 1 in all of them.
  Input in{64, 640, random.normals(64 * 640), std::vector<float>(640, 1.0f)};
  for (int r = 0; r < 64; ++r) in.weights[r * 640 + 7 * r] = 8.0f + 0.2f * static_cast<float>(r % 16);
  REQUIRE(solve(in, RowScales::kBetter, 1).squared_error <
          0.95 * solve(in, RowScales::kRootMeanSquare, 1).squared_error);
  in.weights[0] = 70000.0f; // the largest value of a row, beyond what float16 holds
  REQUIRE(std::isfinite(solve(in, RowScales::kBetter, 1).squared_error));
}

TEST_CASE("kmeans: the cheapest cut of every instruction set is the first of the least costs") {
  Random random(3);
  std::istringstream names(available_kernels());
  for (std::string name; names >> name;) {
    const Kernels& kernels = select_kernels(name.c_str());
    for (int trial = 0; trial < 400; ++trial) {
      const int n = random.integer(1, 60), j = random.integer(0, n), first = random.integer(0, j),
                last = random.integer(first, j);
      std::vector<double> previous(n + 1 + kCutLanes), w(previous.size()), wv(w), wvv(w);
      for (int i = 1; i <= n; ++i) {
        const double weight = random.chance(0.3) ? 0.0 : random.uniform(),
                     value = trial % 2 == 0 ? random.normal() : random.integer(-1, 1);
        w[i] = w[i - 1] + weight;
        wv[i] = wv[i - 1] + weight * value;
        wvv[i] = wvv[i - 1] + weight * value * value;
        previous[i] = trial % 3 == 0 ? 0.0 : random.uniform();
      }
      double least = kNever, best = 0.0;
      int at = first;
      for (int i = first; i <= last; ++i) {
        const double mass = w[j] - w[i], sum = wv[j] - wv[i];
        const double cost =
            previous[i] + (mass > 0.0 ? std::max(0.0, (wvv[j] - wvv[i]) - sum * sum / mass) : 0.0);
        if (cost < least) {
          least = cost;
          at = i;
        }
      }
      CAPTURE(name);
      REQUIRE(kernels.cheapest_cut(previous.data(), w.data(), wv.data(), wvv.data(), first, last, j, &best) ==
              at);
      REQUIRE(best == least);
    }
  }
}

TEST_CASE("kmeans: indices are packed where the kernels read them, and nothing else is touched") {
  Random random(4);
  for (const int bits : {2, 3, 4})
    for (const auto& [cols, k0, k1] : {std::array{64, 0, 64}, std::array{256, 64, 192}}) {
      const std::size_t stride = k1 - k0;
      std::vector<std::uint8_t> codes(kGroupRows * stride), group(static_cast<std::size_t>(cols) * 2 * bits),
          expected(group);
      for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(random.integer(0, (1 << bits) - 1));
      pack_palette_indices(bits, codes.data(), stride, k0, k1, group.data());
      for (int r = 0; r < kGroupRows; ++r)
        for (int k = k0; k < k1; ++k)
          set_palette_index(bits, expected.data(), r, k, codes[r * stride + k - k0]);
      CHECK(group == expected);
    }
}

} // namespace pomona::testing
