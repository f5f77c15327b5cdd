#include "compression/kmeans.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "compression/intervals.h"
#include "compression/sorted_values.h"
#include "engine/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/palette_layout.h"

namespace pomona {
namespace {

constexpr int kBins = 128;     // of equal count, and as many of equal width: outliers get bins of their own
constexpr int kDistinct = 256; // up to this many different values each is its own bin
constexpr int kRefinements = 50;

using Centres = std::array<double, kMaxIntervals>;

// Where the sorted values may be cut at first: never between equals.
void set_bin_edges(const SortedValues& sorted, std::vector<std::size_t>& edges) {
  const std::vector<float>& v = sorted.values();
  const std::size_t n = v.size();
  edges.clear();
  for (std::size_t i = 0; i < n && edges.size() <= kDistinct; ++i)
    if (i == 0 || v[i] != v[i - 1]) edges.push_back(i);
  if (edges.size() > kDistinct) {
    edges.resize(2 * kBins);
    const float low = v.front(), width = v.back() - low;
    std::size_t equal_width = 0;
    for (int b = 0; b < kBins; ++b) {
      const std::size_t i = n * b / kBins;
      edges[b] = sorted.first_not_below(v[i], i);
      equal_width = sorted.first_not_below(low + width * (static_cast<float>(b) / kBins), equal_width);
      edges[kBins + b] = equal_width;
    }
    std::inplace_merge(edges.begin(), edges.begin() + kBins, edges.end());
    edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
  }
  edges.push_back(n);
}

// Working memory of one thread.
struct Worker {
  Worker(const Kernels& kernels, int table_cols)
      : solver(kernels),
        ratios(static_cast<std::size_t>(table_cols) * kGroupRows),
        weights(table_cols),
        codes(ratios.size()) {}

  SortedValues sorted;
  IntervalSolver solver;
  std::vector<std::size_t> edges;
  std::vector<float> ratios;       // [16][table columns]: weight / row scale
  std::vector<float> weights;      // [table columns]: of a row, what they count
  std::vector<std::uint8_t> codes; // [16][table columns]: indices

  // Ascending centres of `sorted`, which it sorts.
  Centres centres(int colors) {
    sorted.sort();
    set_bin_edges(sorted, edges);
    const std::vector<float>& v = sorted.values();
    const std::vector<Sums>& sums = sorted.sums();
    const auto cuts = solver.solve(sums, edges, colors);
    std::array<std::size_t, kMaxIntervals + 1> cut{};
    for (int c = 0; c <= colors; ++c) cut[c] = edges[cuts[c]];
    Centres centre{};
    for (int round = 0; round < kRefinements; ++round) {
      for (int c = 0; c < colors; ++c)
        centre[c] = mean_between(sums[cut[c]], sums[cut[c + 1]], cut[c] < v.size() ? v[cut[c]] : v.back());
      std::sort(centre.begin(), centre.begin() + colors);
      const auto before = cut;
      for (int c = 1; c < colors; ++c)
        cut[c] = sorted.first_not_below(0.5 * (centre[c - 1] + centre[c]), cut[c]);
      if (cut == before) break;
    }
    return centre;
  }
};

// Squares of 16 rows at a time: sums that do not wait for each other.
void add_squares(const float* rows, int cols, double* squares) {
  std::fill_n(squares, kGroupRows, 0.0);
  for (int k = 0; k < cols; ++k)
    for (int r = 0; r < kGroupRows; ++r) {
      const double w = rows[static_cast<std::size_t>(r) * cols + k];
      squares[r] += w * w;
    }
}

class Palettizer {
 public:
  Palettizer(std::span<const float> weights, int rows, int cols, std::span<const float> importance, int bits,
             int table_cols, RowScales scales, int threads)
      : weights_(weights),
        cols_(cols),
        importance_(importance),
        bits_(bits),
        colors_(1 << bits),
        table_cols_(table_cols),
        scales_(scales),
        groups_(rows / kGroupRows),
        kernels_(select_kernels("auto")),
        pool_(std::min(threads, groups_)),
        workers_(pool_.size(), Worker(kernels_, table_cols)) {}

  Palettes run() {
    check();
    out_.groups = groups_;
    out_.tables = cols_ / table_cols_;
    out_.indices.assign(static_cast<std::size_t>(groups_) * cols_ * 2 * bits_, 0);
    out_.entries.assign(static_cast<std::size_t>(groups_) * out_.tables * colors_, 0);
    out_.table_scales.assign(static_cast<std::size_t>(groups_) * out_.tables, 0);
    out_.row_scales.assign(static_cast<std::size_t>(groups_) * kGroupRows, 0);
    errors_.assign(groups_, 0.0);
    norms_.assign(groups_, 0.0);
    order_columns();
    for_groups([this](int g, Worker& worker) { group(g, worker); });
    for (int g = 0; g < groups_; ++g) { // in order: the same sum for any number of threads
      out_.squared_error += errors_[g];
      out_.squared_norm += norms_[g];
    }
    return std::move(out_);
  }

 private:
  template <class Work>
  void for_groups(const Work& work) {
    std::atomic<int> next{0};
    pool_.run([&](int t) {
      for (int g = next.fetch_add(1); g < groups_; g = next.fetch_add(1)) work(g, workers_[t]);
    });
  }

  const float* row(int g, int r) const {
    return weights_.data() + (static_cast<std::size_t>(g) * kGroupRows + r) * cols_;
  }

  void check() {
    squares_.resize(static_cast<std::size_t>(groups_) * kGroupRows);
    for_groups([this](int g, Worker&) { add_squares(row(g, 0), cols_, squares_.data() + g * kGroupRows); });
    for (const double squares : squares_) {
      if (!std::isfinite(squares)) throw std::invalid_argument("the matrix holds a value that is not finite");
      if (std::sqrt(squares / cols_) > 60000.0)
        throw std::invalid_argument("a row is too large for its float16 scale");
    }
    for (const float i : importance_)
      if (!std::isfinite(i) || i < 0.0f)
        throw std::invalid_argument("an importance is negative or not finite");
  }

  // Within each table by ascending importance, as the sorting of equal values likes it.
  void order_columns() {
    order_.resize(cols_);
    for (int k0 = 0; k0 < cols_; k0 += table_cols_) {
      const auto first = order_.begin() + k0, last = first + table_cols_;
      std::iota(first, last, 0);
      std::sort(first, last, [&](int a, int b) { return importance_[k0 + a] < importance_[k0 + b]; });
    }
  }

  void group(int g, Worker& worker) {
    fill_group(g, root_mean_squares(g), worker);
    if (scales_ == RowScales::kBetter) {
      const Filled by_mean = filled(g);
      fill_group(g, largest(g), worker);
      if (!(errors_[g] < by_mean.error)) put_back(g, by_mean); // NaN: a value beyond float16
    }
  }

  std::array<float, kGroupRows> root_mean_squares(int g) const {
    std::array<float, kGroupRows> scales;
    for (int r = 0; r < kGroupRows; ++r)
      scales[r] =
          static_cast<float>(std::sqrt(squares_[static_cast<std::size_t>(g) * kGroupRows + r] / cols_));
    return scales;
  }

  std::array<float, kGroupRows> largest(int g) const {
    std::array<float, kGroupRows> scales{};
    for (int r = 0; r < kGroupRows; ++r)
      for (int k = 0; k < cols_; ++k) scales[r] = std::max(scales[r], std::fabs(row(g, r)[k]));
    return scales;
  }

  void fill_group(int g, const std::array<float, kGroupRows>& row_scales, Worker& worker) {
    float scales[kGroupRows] = {};
    errors_[g] = norms_[g] = 0.0;
    for (int r = 0; r < kGroupRows; ++r) {
      const std::size_t n = static_cast<std::size_t>(g) * kGroupRows + r;
      out_.row_scales[n] = float_to_half(row_scales[r]);
      scales[r] = half_to_float(out_.row_scales[n]);
    }
    for (int table = 0; table < out_.tables; ++table) fill_table(g, table, scales, worker);
  }

  // What fill_group makes.
  struct Filled {
    std::vector<std::uint8_t> indices;
    std::vector<std::int8_t> entries;
    std::vector<std::uint16_t> table_scales, row_scales;
    double error;
  };

  Filled filled(int g) const {
    return {part(out_.indices, g), part(out_.entries, g), part(out_.table_scales, g),
            part(out_.row_scales, g), errors_[g]};
  }

  void put_back(int g, const Filled& from) {
    const auto put = [g](const auto& part, auto& all) {
      std::copy(part.begin(), part.end(), all.begin() + g * part.size());
    };
    put(from.indices, out_.indices);
    put(from.entries, out_.entries);
    put(from.table_scales, out_.table_scales);
    put(from.row_scales, out_.row_scales);
    errors_[g] = from.error;
  }

  template <class T>
  std::vector<T> part(const std::vector<T>& all, int g) const {
    const std::size_t size = all.size() / groups_;
    return {all.begin() + g * size, all.begin() + (g + 1) * size};
  }

  void fill_table(int g, int table, const float* scales, Worker& worker) {
    const int k0 = table * table_cols_;
    worker.sorted.clear();
    for (int r = 0; r < kGroupRows; ++r) {
      if (scales[r] == 0.0f) continue;
      const float *from = row(g, r) + k0, *importance = importance_.data() + k0;
      float* ratios = worker.ratios.data() + static_cast<std::size_t>(r) * table_cols_;
      for (int k = 0; k < table_cols_; ++k) {
        ratios[k] = from[k] / scales[r];
        worker.weights[k] = importance[k] * scales[r] * scales[r];
      }
      worker.sorted.add(ratios, worker.weights.data(), {order_.data() + k0, worker.weights.size()});
    }
    float entry[kMaxIntervals] = {}; // of rows of zeros, or so small that their scale is: scale 0 says it all
    if (!worker.sorted.empty()) {
      store_entries(static_cast<std::size_t>(g) * out_.tables + table, worker.centres(colors_), entry);
      find_nearest(entry, scales, worker);
      pack_palette_indices(bits_, worker.codes.data(), table_cols_, k0, k0 + table_cols_,
                           out_.indices.data() + static_cast<std::size_t>(g) * cols_ * 2 * bits_);
    } else {
      std::fill(worker.codes.begin(), worker.codes.end(), std::uint8_t{0});
    }
    add_errors(g, k0, entry, scales, worker);
  }

  // Centres as they are stored, and what that makes of them.
  void store_entries(std::size_t t, const Centres& centres, float* entry) {
    const double largest = std::max(std::fabs(centres[0]), std::fabs(centres[colors_ - 1]));
    const std::uint16_t half = float_to_half(static_cast<float>(largest / 127.0));
    const float scale = half_to_float(half);
    out_.table_scales[t] = half;
    for (int c = 0; c < colors_; ++c) {
      const double q = scale > 0.0f ? std::nearbyint(centres[c] / scale) : 0.0;
      out_.entries[t * colors_ + c] = static_cast<std::int8_t>(std::clamp(q, -127.0, 127.0));
      entry[c] = out_.entries[t * colors_ + c] * scale;
    }
  }

  void find_nearest(const float* entry, const float* scales, Worker& worker) const {
    float middles[kMaxIntervals - 1];
    for (int c = 0; c + 1 < colors_; ++c) middles[c] = 0.5f * (entry[c] + entry[c + 1]);
    for (int r = 0; r < kGroupRows; ++r) {
      const std::size_t first = static_cast<std::size_t>(r) * table_cols_;
      std::uint8_t* codes = worker.codes.data() + first;
      if (scales[r] > 0.0f)
        for (int k = 0; k < table_cols_; k += kGroupRows)
          kernels_.nearest(worker.ratios.data() + first + k, middles, colors_ - 1, codes + k);
      else
        std::fill_n(codes, table_cols_, std::uint8_t{0});
    }
  }

  void add_errors(int g, int k0, const float* entry, const float* scales, const Worker& worker) {
    double errors = errors_[g], norms = norms_[g];
    for (int r = 0; r < kGroupRows; ++r) {
      float value[kMaxIntervals];
      for (int c = 0; c < colors_; ++c) value[c] = entry[c] * scales[r];
      const float *from = row(g, r) + k0, *importance = importance_.data() + k0;
      const std::uint8_t* codes = worker.codes.data() + static_cast<std::size_t>(r) * table_cols_;
      for (int k = 0; k < table_cols_; ++k) {
        const double w = from[k], error = from[k] - value[codes[k]];
        errors += importance[k] * error * error;
        norms += importance[k] * w * w;
      }
    }
    errors_[g] = errors;
    norms_[g] = norms;
  }

  std::span<const float> weights_;
  int cols_;
  std::span<const float> importance_;
  int bits_, colors_, table_cols_;
  RowScales scales_;
  int groups_;
  const Kernels& kernels_;
  ThreadPool pool_;
  std::vector<Worker> workers_;     // one for each thread
  std::vector<std::int32_t> order_; // of the columns of each table
  std::vector<double> squares_;     // of each row
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
                   int bits, int table_cols, RowScales scales, int threads) {
  if (bits < 2 || bits > 4) throw std::invalid_argument("bits must be 4, 3 or 2");
  if (rows < kGroupRows || rows % kGroupRows != 0)
    throw std::invalid_argument("palettize needs a multiple of 16 rows");
  if (cols < 1 || weights.size() != static_cast<std::size_t>(rows) * cols ||
      importance.size() != static_cast<std::size_t>(cols))
    throw std::invalid_argument("palettize needs weights [rows, cols] and importance [cols]");
  if (table_cols < kBlock || table_cols % kBlock != 0 || cols % table_cols != 0)
    throw std::invalid_argument("table_columns must be a multiple of 64 that divides the matrix's columns");
  return Palettizer(weights, rows, cols, importance, bits, table_cols, scales, std::clamp(threads, 1, 1024))
      .run();
}

} // namespace pomona
