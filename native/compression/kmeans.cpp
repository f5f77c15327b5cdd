#include "compression/kmeans.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "engine/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/palette_layout.h"

namespace pomona {
namespace {

constexpr int kMaxColors = 16;
constexpr int kBins = 128;     // of equal count, and as many of equal width: outliers get bins of their own
constexpr int kDistinct = 256; // up to this many different values each is its own bin
constexpr int kRefinements = 50;

struct Weighted {
  float value, weight;
};

// Sums of weight, weight * value, weight * value^2 of everything before i.
struct Prefix {
  std::vector<double> w, wv, wvv;
  void build(std::span<const Weighted> sorted) {
    w.assign(sorted.size() + 1, 0.0);
    wv = wvv = w;
    for (std::size_t i = 0; i < sorted.size(); ++i) {
      const double weight = sorted[i].weight, value = sorted[i].value;
      w[i + 1] = w[i] + weight;
      wv[i + 1] = wv[i] + weight * value;
      wvv[i + 1] = wvv[i] + weight * value * value;
    }
  }
  double mean(std::size_t a, std::size_t b, double otherwise) const {
    const double mass = w[b] - w[a];
    return mass > 0.0 ? (wv[b] - wv[a]) / mass : otherwise;
  }
  // Weighted squared distance of [a, b) to its mean.
  double cost(std::size_t a, std::size_t b) const {
    const double mass = w[b] - w[a];
    if (mass <= 0.0) return 0.0;
    const double sum = wv[b] - wv[a];
    return std::max(0.0, (wvv[b] - wvv[a]) - sum * sum / mass);
  }
};

// Optimal cut of the bins into intervals. best[j] = min over i of previous[i] + cost(i, j); the minimising
// i grows with j, so each row is solved by divide and conquer in O(n log n).
class IntervalSolver {
 public:
  std::array<int, kMaxColors + 1> solve(const Prefix& prefix, const std::vector<std::size_t>& edges,
                                        int colors) {
    prefix_ = &prefix;
    edges_ = &edges;
    const int n = static_cast<int>(edges.size()) - 1;
    previous_.resize(n + 1);
    for (int j = 0; j <= n; ++j) previous_[j] = prefix.cost(edges[0], edges[j]);
    for (int color = 1; color < colors; ++color) {
      best_.assign(n + 1, 0.0);
      choice_[color].assign(n + 1, 0);
      solve_row(choice_[color], 0, n, 0, n);
      previous_.swap(best_);
    }
    std::array<int, kMaxColors + 1> cuts{};
    cuts[colors] = n;
    for (int color = colors - 1; color >= 1; --color) cuts[color] = choice_[color][cuts[color + 1]];
    return cuts;
  }

 private:
  void solve_row(std::vector<int>& choice, int j0, int j1, int i0, int i1) {
    if (j0 > j1) return;
    const int j = (j0 + j1) / 2;
    double best = std::numeric_limits<double>::infinity();
    int from = i0;
    for (int i = i0; i <= std::min(i1, j); ++i) {
      const double c = previous_[i] + prefix_->cost((*edges_)[i], (*edges_)[j]);
      if (c < best) {
        best = c;
        from = i;
      }
    }
    best_[j] = best;
    choice[j] = from;
    solve_row(choice, j0, j - 1, i0, from);
    solve_row(choice, j + 1, j1, from, i1);
  }

  const Prefix* prefix_ = nullptr;
  const std::vector<std::size_t>* edges_ = nullptr;
  std::vector<double> previous_, best_;
  std::array<std::vector<int>, kMaxColors> choice_;
};

// Working memory of one thread.
struct Worker {
  std::vector<Weighted> values;
  Prefix prefix;
  IntervalSolver solver;

  std::size_t first_not_below(float value) const {
    return std::lower_bound(values.begin(), values.end(), value,
                            [](const Weighted& v, float x) { return v.value < x; }) -
           values.begin();
  }

  // Where the sorted values may be cut at first: never between equals.
  std::vector<std::size_t> bin_edges() const {
    const std::size_t n = values.size();
    std::vector<std::size_t> edges;
    for (std::size_t i = 0; i < n && edges.size() <= kDistinct; ++i)
      if (i == 0 || values[i].value != values[i - 1].value) edges.push_back(i);
    if (edges.size() > kDistinct) {
      edges.clear();
      const float low = values.front().value, width = values.back().value - low;
      for (int b = 0; b < kBins; ++b) {
        edges.push_back(first_not_below(values[n * b / kBins].value));
        edges.push_back(first_not_below(low + width * (static_cast<float>(b) / kBins)));
      }
      std::sort(edges.begin(), edges.end());
      edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
    }
    edges.push_back(n);
    return edges;
  }

  // Ascending centres of `values`, which it sorts.
  std::array<double, kMaxColors> centres(int colors) {
    std::sort(values.begin(), values.end(), [](const Weighted& a, const Weighted& b) {
      return a.value != b.value ? a.value < b.value : a.weight < b.weight;
    });
    prefix.build(values);
    const std::size_t n = values.size();
    const std::vector<std::size_t> edges = bin_edges();
    const std::array<int, kMaxColors + 1> cuts = solver.solve(prefix, edges, colors);
    std::array<std::size_t, kMaxColors + 1> cut{};
    for (int c = 0; c <= colors; ++c) cut[c] = edges[cuts[c]];
    std::array<double, kMaxColors> centre{};
    for (int round = 0; round < kRefinements; ++round) {
      for (int c = 0; c < colors; ++c)
        centre[c] = prefix.mean(cut[c], cut[c + 1], cut[c] < n ? values[cut[c]].value : values.back().value);
      std::sort(centre.begin(), centre.begin() + colors);
      const auto before = cut;
      for (int c = 1; c < colors; ++c) {
        const double middle = 0.5 * (centre[c - 1] + centre[c]);
        cut[c] = std::lower_bound(values.begin(), values.end(), middle,
                                  [](const Weighted& v, double m) { return v.value < m; }) -
                 values.begin();
      }
      if (cut == before) break;
    }
    return centre;
  }
};

class Palettizer {
 public:
  Palettizer(std::span<const float> weights, int rows, int cols, std::span<const float> importance, int bits,
             int table_cols)
      : weights_(weights),
        cols_(cols),
        importance_(importance),
        bits_(bits),
        colors_(1 << bits),
        table_cols_(table_cols) {
    out_.groups = rows / kGroupRows;
    out_.tables = cols / table_cols;
    out_.indices.assign(static_cast<std::size_t>(out_.groups) * cols * 2 * bits, 0);
    out_.entries.assign(static_cast<std::size_t>(out_.groups) * out_.tables * colors_, 0);
    out_.table_scales.assign(static_cast<std::size_t>(out_.groups) * out_.tables, 0);
    out_.row_scales.assign(static_cast<std::size_t>(out_.groups) * kGroupRows, 0);
    errors_.assign(out_.groups, 0.0);
    norms_.assign(out_.groups, 0.0);
  }

  Palettes run(int threads) {
    ThreadPool pool(threads);
    std::vector<Worker> workers(threads);
    std::atomic<int> next{0};
    pool.run([&](int t) {
      for (int g = next.fetch_add(1); g < out_.groups; g = next.fetch_add(1)) group(g, workers[t]);
    });
    for (int g = 0; g < out_.groups; ++g) { // in order: the same sum for any number of threads
      out_.squared_error += errors_[g];
      out_.squared_norm += norms_[g];
    }
    return std::move(out_);
  }

 private:
  void group(int g, Worker& worker) {
    const int first = g * kGroupRows;
    float scales[kGroupRows] = {};
    for (int r = 0; r < kGroupRows; ++r) {
      double squares = 0.0;
      for (int k = 0; k < cols_; ++k) {
        const double w = weights_[static_cast<std::size_t>(first + r) * cols_ + k];
        squares += w * w;
      }
      const std::uint16_t half = float_to_half(static_cast<float>(std::sqrt(squares / cols_)));
      out_.row_scales[first + r] = half;
      scales[r] = half_to_float(half);
    }
    for (int table = 0; table < out_.tables; ++table) fill_table(g, table, first, scales, worker);
  }

  void fill_table(int g, int table, int first, const float* scales, Worker& worker) {
    const int k0 = table * table_cols_, k1 = k0 + table_cols_;
    worker.values.clear();
    for (int r = 0; r < kGroupRows; ++r) {
      if (scales[r] == 0.0f) continue;
      for (int k = k0; k < k1; ++k)
        worker.values.push_back({weights_[static_cast<std::size_t>(first + r) * cols_ + k] / scales[r],
                                 importance_[k] * scales[r] * scales[r]});
    }
    if (worker.values.empty()) { // rows of zeros, or so small that their scale is: scale 0 says it all
      for (int r = 0; r < kGroupRows; ++r)
        for (int k = k0; k < k1; ++k) {
          const double w = weights_[static_cast<std::size_t>(first + r) * cols_ + k];
          errors_[g] += importance_[k] * w * w;
          norms_[g] += importance_[k] * w * w;
        }
      return;
    }
    const std::array<double, kMaxColors> centres = worker.centres(colors_);
    const double largest = std::max(std::fabs(centres[0]), std::fabs(centres[colors_ - 1]));
    const std::size_t t = static_cast<std::size_t>(g) * out_.tables + table;
    const std::uint16_t half = float_to_half(static_cast<float>(largest / 127.0));
    const float scale = half_to_float(half);
    out_.table_scales[t] = half;
    float entry[kMaxColors];
    for (int c = 0; c < colors_; ++c) {
      const double q = scale > 0.0f ? std::nearbyint(centres[c] / scale) : 0.0;
      out_.entries[t * colors_ + c] = static_cast<std::int8_t>(std::clamp(q, -127.0, 127.0));
      entry[c] = out_.entries[t * colors_ + c] * scale;
    }
    float middle[kMaxColors - 1];
    for (int c = 0; c + 1 < colors_; ++c) middle[c] = 0.5f * (entry[c] + entry[c + 1]);
    for (int r = 0; r < kGroupRows; ++r) {
      for (int k = k0; k < k1; ++k) {
        const float w = weights_[static_cast<std::size_t>(first + r) * cols_ + k];
        int index = 0;
        if (scales[r] > 0.0f)
          for (int c = 0; c + 1 < colors_; ++c) index += w / scales[r] > middle[c];
        set_palette_index(bits_, out_.indices.data() + static_cast<std::size_t>(g) * cols_ * 2 * bits_, r, k,
                          index);
        const double error = w - entry[index] * scales[r];
        errors_[g] += importance_[k] * error * error;
        norms_[g] += importance_[k] * static_cast<double>(w) * w;
      }
    }
  }

  std::span<const float> weights_;
  int cols_;
  std::span<const float> importance_;
  int bits_, colors_, table_cols_;
  Palettes out_;
  std::vector<double> errors_, norms_;
};

} // namespace

std::uint16_t float_to_half(float f) {
  std::uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const float magnitude = std::fabs(f);
  if (!(magnitude < 65520.0f)) return static_cast<std::uint16_t>(sign | (std::isnan(f) ? 0x7e00u : 0x7c00u));
  if (magnitude < 0x1.0p-14f) // subnormal: a whole number of 2^-24
    return static_cast<std::uint16_t>(sign |
                                      static_cast<std::uint16_t>(std::nearbyint(magnitude * 0x1.0p24f)));
  std::memcpy(&bits, &magnitude, 4);
  bits += 0xfffu + ((bits >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((bits >> 13) - (112u << 10)));
}

Palettes palettize(std::span<const float> weights, int rows, int cols, std::span<const float> importance,
                   int bits, int table_cols, int threads) {
  if (bits < 2 || bits > 4) throw std::invalid_argument("bits must be 4, 3 or 2");
  if (rows < kGroupRows || rows % kGroupRows != 0)
    throw std::invalid_argument("palettize needs a multiple of 16 rows");
  if (cols < 1 || weights.size() != static_cast<std::size_t>(rows) * cols ||
      importance.size() != static_cast<std::size_t>(cols))
    throw std::invalid_argument("palettize needs weights [rows, cols] and importance [cols]");
  if (table_cols < kBlock || table_cols % kBlock != 0 || cols % table_cols != 0)
    throw std::invalid_argument("table_columns must be a multiple of 64 that divides the matrix's columns");
  for (int r = 0; r < rows; ++r) {
    double squares = 0.0;
    for (const float w : weights.subspan(static_cast<std::size_t>(r) * cols, cols))
      squares += static_cast<double>(w) * w;
    if (!std::isfinite(squares)) throw std::invalid_argument("the matrix holds a value that is not finite");
    if (std::sqrt(squares / cols) > 60000.0)
      throw std::invalid_argument("a row is too large for its float16 scale");
  }
  for (const float i : importance)
    if (!std::isfinite(i) || i < 0.0f) throw std::invalid_argument("an importance is negative or not finite");
  return Palettizer(weights, rows, cols, importance, bits, table_cols).run(std::clamp(threads, 1, 1024));
}

} // namespace pomona
