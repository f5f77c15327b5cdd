#include "compression/compensate.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "engine/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/palette_layout.h"

// Within a bundle of groups, everything is [column][row]: rows are the lanes of the products.
namespace pomona {
namespace {

constexpr int kMaxColors = 16;
constexpr int kBundle = 4;  // groups of 16 rows that a thread works on together
constexpr int kDepth = 256; // terms of a product that are added together
constexpr int kStep = 128;  // columns whose errors are passed on together

// What is stored, in the form in which it is worked with.
struct Group {
  std::vector<std::int8_t> entries;        // [tables][colors]
  std::vector<std::uint16_t> table_scales; // [tables]
  std::array<std::uint16_t, kGroupRows> row_scales;
  std::vector<std::uint8_t> codes; // [cols][16]
  double error = 0.0, damped = 0.0;
};

class Compensator {
 public:
  Compensator(std::span<const float> weights, int cols, const Damped& damped, std::span<const float> factor,
              std::span<const std::int32_t> order, int bits, int table_cols, const CompensateOptions& options,
              const Palettes& start, Palettes& palettes)
      : weights_(weights),
        cols_(cols),
        damped_(damped),
        factor_(factor),
        order_(order),
        bits_(bits),
        colors_(1 << bits),
        table_cols_(table_cols),
        tables_(cols / table_cols),
        options_(options),
        kernels_(select_kernels("auto")),
        start_(start),
        out_(palettes),
        errors_(palettes.groups),
        norms_(palettes.groups) {}

  void run() {
    const int threads = std::clamp(options_.threads, 1, 1024),
              bundles = (out_.groups + kBundle - 1) / kBundle;
    ThreadPool pool(std::min(threads, bundles));
    std::atomic<int> next{0};
    pool.run([&](int) {
      Bundle bundle(*this);
      for (int b = next.fetch_add(1); b < bundles; b = next.fetch_add(1))
        bundle.work(b * kBundle, std::min((b + 1) * kBundle, out_.groups));
    });
    out_.squared_error = out_.squared_norm = 0.0;
    for (int g = 0; g < out_.groups; ++g) { // in order: the same sum for any number of threads
      out_.squared_error += errors_[g];
      out_.squared_norm += norms_[g];
    }
  }

 private:
  class Bundle {
   public:
    explicit Bundle(Compensator& all)
        : all_(all),
          kernels_(all.kernels_),
          cols_(all.cols_),
          colors_(all.colors_),
          width_(all.table_cols_) {}

    void work(int g0, int g1) {
      lanes_ = (g1 - g0) * kGroupRows;
      load(g0, g1);
      std::vector<Group> best = groups_; // by the damped error; the k-means at first
      for (std::size_t i = 0; i < groups_.size(); ++i) take_tables(all_.start_, g0 + i, groups_[i]);
      for (int round = 0; round < all_.options_.rounds; ++round) {
        for (std::size_t i = 0; i < groups_.size(); ++i) unpack_tables(i);
        assign();
        for (int sweep = 0; sweep < all_.options_.sweeps; ++sweep) {
          for (int t = 0; t < all_.tables_; ++t) improve_table(t);
          if (all_.options_.scales) fit_row_scales();
        }
        for (std::size_t i = 0; i < groups_.size(); ++i) {
          measure(i);
          if (groups_[i].damped < best[i].damped)
            best[i] = groups_[i];
          else
            groups_[i] = best[i];
        }
      }
      for (std::size_t i = 0; i < groups_.size(); ++i)
        if (best[i].error < seeds_[i]) store(g0 + static_cast<int>(i), best[i]);
    }

   private:
    std::size_t at(int k) const { return static_cast<std::size_t>(k) * lanes_; }
    const float* moment(int k) const {
      return all_.damped_.moment.data() + static_cast<std::size_t>(k) * cols_;
    }
    float* values(std::size_t group, int table) {
      return values_.data() + (group * all_.tables_ + table) * kMaxColors;
    }

    // Weights and the k-means, with its error.
    void load(int g0, int g1) {
      const std::size_t size = at(cols_), count = g1 - g0;
      for (auto* array : {&w_, &e_, &g_, &hw_, &sums_, &passed_}) array->assign(size, 0.0f);
      values_.assign(count * all_.tables_ * kMaxColors, 0.0f);
      scale_.assign(lanes_, 0.0f);
      inverse_.assign(lanes_, 0.0f);
      groups_.assign(count, {});
      seeds_.assign(count, 0.0);
      for (int lane = 0; lane < lanes_; ++lane) {
        const float* row = all_.weights_.data() + (static_cast<std::size_t>(g0) * kGroupRows + lane) * cols_;
        for (int k = 0; k < cols_; ++k) w_[at(k) + lane] = row[k];
      }
      const Palettes& seed = all_.out_;
      for (std::size_t i = 0; i < count; ++i) {
        Group& group = groups_[i];
        const std::size_t g = g0 + i;
        take_tables(seed, g, group);
        std::copy_n(seed.row_scales.begin() + g * kGroupRows, kGroupRows, group.row_scales.begin());
        group.codes.resize(static_cast<std::size_t>(cols_) * kGroupRows);
        const std::uint8_t* packed = seed.indices.data() + g * cols_ * 2 * all_.bits_;
        for (int k = 0; k < cols_; ++k)
          for (int r = 0; r < kGroupRows; ++r)
            group.codes[k * kGroupRows + r] =
                static_cast<std::uint8_t>(palette_index(all_.bits_, packed, r, k));
        unpack_tables(i);
        for (int k = 0; k < cols_; ++k) set_errors(i, k);
      }
      multiply(w_.data(), hw_.data());
      multiply(e_.data(), g_.data());
      for (std::size_t i = 0; i < count; ++i) {
        measure(i);
        seeds_[i] = groups_[i].error;
        double norm = 0.0;
        for (int k = 0; k < cols_; ++k)
          for (std::size_t l = i * kGroupRows; l < (i + 1) * kGroupRows; ++l)
            norm += static_cast<double>(w_[at(k) + l]) * hw_[at(k) + l];
        all_.errors_[g0 + i] = seeds_[i];
        all_.norms_[g0 + i] = norm;
      }
    }

    void take_tables(const Palettes& from, std::size_t g, Group& group) const {
      const std::size_t tables = all_.tables_;
      group.entries.assign(from.entries.begin() + g * tables * colors_,
                           from.entries.begin() + (g + 1) * tables * colors_);
      group.table_scales.assign(from.table_scales.begin() + g * tables,
                                from.table_scales.begin() + (g + 1) * tables);
    }

    void unpack_tables(std::size_t i) {
      const Group& group = groups_[i];
      for (int t = 0; t < all_.tables_; ++t) {
        const float scale = half_to_float(group.table_scales[t]);
        for (int c = 0; c < colors_; ++c) values(i, t)[c] = group.entries[t * colors_ + c] * scale;
      }
      for (int r = 0; r < kGroupRows; ++r) set_scale(i, r, group.row_scales[r]);
    }

    void set_scale(std::size_t i, int r, std::uint16_t half) {
      groups_[i].row_scales[r] = half;
      const float s = half_to_float(half);
      scale_[i * kGroupRows + r] = s;
      inverse_[i * kGroupRows + r] = s > 0.0f ? 1.0f / s : 0.0f;
    }

    // e = w - q of a column of a group, from the indices.
    void set_errors(std::size_t i, int k) {
      const float* table = values(i, k / width_);
      const std::size_t first = at(k) + i * kGroupRows;
      const std::uint8_t* codes = groups_[i].codes.data() + static_cast<std::size_t>(k) * kGroupRows;
      const float* scale = scale_.data() + i * kGroupRows;
      for (int r = 0; r < kGroupRows; ++r) e_[first + r] = w_[first + r] - table[codes[r]] * scale[r];
    }

    // y += H x
    void multiply(const float* x, float* y) {
      for (int k = 0; k < cols_; k += kDepth)
        kernels_.multiply_add(moment(0) + k, cols_, 1, x + at(k), lanes_, std::min(kDepth, cols_ - k), y,
                              lanes_, cols_, lanes_);
    }

    // The indices nearest to `wanted` (of all lanes) in column k, and their errors.
    void round_column(int k, const float* wanted) {
      for (std::size_t i = 0; i < groups_.size(); ++i) {
        const float* table = values(i, k / width_);
        float middles[kMaxColors], x[kGroupRows];
        for (int c = 0; c + 1 < colors_; ++c) middles[c] = 0.5f * (table[c] + table[c + 1]);
        for (int r = 0; r < kGroupRows; ++r) x[r] = wanted[i * kGroupRows + r] * inverse_[i * kGroupRows + r];
        kernels_.nearest(x, middles, colors_ - 1,
                         groups_[i].codes.data() + static_cast<std::size_t>(k) * kGroupRows);
        set_errors(i, k);
      }
    }

    // Column by column: the error so far, as the factor has it, is made good by the next.
    void assign() {
      std::fill(sums_.begin(), sums_.end(), 0.0f);
      std::vector<float> wanted(lanes_);
      for (int i1 = cols_; i1 > 0; i1 -= std::min(kStep, i1)) {
        const int i0 = std::max(0, i1 - kStep);
        for (int i = i1 - 1; i >= i0; --i) {
          const float* l = all_.factor_.data() + static_cast<std::size_t>(i) * cols_;
          const int k = all_.order_[i];
          const float inverse = 1.0f / l[i];
          for (int lane = 0; lane < lanes_; ++lane)
            wanted[lane] = w_[at(k) + lane] + sums_[at(i) + lane] * inverse;
          round_column(k, wanted.data());
          std::copy_n(e_.data() + at(k), lanes_, passed_.data() + at(i));
          kernels_.multiply_add(l + i0, 1, 0, passed_.data() + at(i), lanes_, 1, sums_.data() + at(i0),
                                lanes_, i - i0, lanes_);
        }
        kernels_.multiply_add(all_.factor_.data() + static_cast<std::size_t>(i0) * cols_, 1, cols_,
                              passed_.data() + at(i0), lanes_, i1 - i0, sums_.data(), lanes_, i0, lanes_);
      }
      std::fill(g_.begin(), g_.end(), 0.0f);
      multiply(e_.data(), g_.data());
    }

    // In the columns of a table: each index anew while all others stand, then the entries by least squares.
    void improve_table(int t) {
      const int k0 = t * width_, k1 = k0 + width_;
      old_.assign(e_.begin() + at(k0), e_.begin() + at(k1));
      old_g_.assign(g_.begin() + at(k0), g_.begin() + at(k1));
      std::vector<float> wanted(lanes_), change(lanes_);
      for (int k = k0; k < k1; ++k) {
        const float added = all_.damped_.added[k], curvature = all_.damped_.keep * moment(k)[k] + added;
        if (!(curvature > 0.0f)) continue;
        const float keep = all_.damped_.keep / curvature, more = added / curvature;
        const float *w = &w_[at(k)], *e = &e_[at(k)], *g = &g_[at(k)];
        for (int lane = 0; lane < lanes_; ++lane) {
          wanted[lane] = w[lane] - e[lane] + (keep * g[lane] + more * e[lane]);
          change[lane] = -e[lane];
        }
        round_column(k, wanted.data());
        bool changed = false;
        for (int lane = 0; lane < lanes_; ++lane) {
          change[lane] += e[lane];
          changed |= change[lane] != 0.0f;
        }
        if (changed)
          kernels_.multiply_add(moment(k) + k0, 1, 0, change.data(), lanes_, 1, &g_[at(k0)], lanes_, width_,
                                lanes_);
      }
      for (std::size_t i = 0; i < groups_.size(); ++i) fit_table(i, t);
      for (std::size_t n = 0; n < old_.size(); ++n) old_[n] = e_[at(k0) + n] - old_[n];
      std::copy(old_g_.begin(), old_g_.end(), g_.begin() + at(k0));
      for (int k = 0; k < width_; k += kDepth)
        kernels_.multiply_add(moment(0) + k0 + k, cols_, 1, old_.data() + at(k), lanes_,
                              std::min(kDepth, width_ - k), g_.data(), lanes_, cols_, lanes_);
    }

    // The best entries for the indices as they are, everything else fixed: M change = b.
    void fit_table(std::size_t i, int t) {
      const int k0 = t * width_;
      std::array<double, kMaxColors> b{};
      Square m{};
      const std::uint8_t* codes = groups_[i].codes.data() + static_cast<std::size_t>(k0) * kGroupRows;
      by_color_.resize(static_cast<std::size_t>(colors_) * width_);
      for (int r = 0; r < kGroupRows; ++r) {
        const std::size_t lane = i * kGroupRows + r;
        const double s = scale_[lane];
        if (s == 0.0) continue;
        std::fill(by_color_.begin(), by_color_.end(), 0.0f);
        for (int k = 0; k < width_; ++k)
          kernels_.add(by_color_.data() + codes[k * kGroupRows + r] * width_, moment(k0 + k) + k0, width_);
        std::array<float, kMaxColors * kMaxColors> pairs{};
        for (int c = 0; c < colors_; ++c)
          for (int k = 0; k < width_; ++k)
            pairs[codes[k * kGroupRows + r] * kMaxColors + c] += by_color_[c * width_ + k];
        for (int n = 0; n < kMaxColors * kMaxColors; ++n) m[n] += s * s * all_.damped_.keep * pairs[n];
        for (int k = 0; k < width_; ++k) {
          const int c = codes[k * kGroupRows + r];
          const double added = all_.damped_.added[k0 + k], e = e_[at(k0 + k) + lane];
          b[c] += s * (all_.damped_.keep * static_cast<double>(g_[at(k0 + k) + lane]) + added * e);
          m[c * kMaxColors + c] += s * s * added;
        }
      }
      std::array<double, kMaxColors> entries{}, change = solve(m, b);
      double largest = 0.0;
      for (int c = 0; c < colors_; ++c) {
        entries[c] = values(i, t)[c] + change[c];
        largest = std::max(largest, std::fabs(entries[c]));
      }
      const std::uint16_t half = float_to_half(static_cast<float>(largest / 127.0));
      const float scale = half_to_float(half);
      if (!(scale > 0.0f) || !std::isfinite(scale)) return;
      std::array<std::int8_t, kMaxColors> stored{};
      for (int c = 0; c < colors_; ++c) {
        stored[c] = static_cast<std::int8_t>(std::clamp(std::nearbyint(entries[c] / scale), -127.0, 127.0));
        change[c] = static_cast<double>(stored[c] * scale) - values(i, t)[c];
      }
      double gain = 0.0; // as stored; a rounding may cost more than the fit gains
      for (int c = 0; c < colors_; ++c) {
        double row = 0.0;
        for (int d = 0; d < colors_; ++d) row += m[c * kMaxColors + d] * change[d];
        gain += change[c] * (2.0 * b[c] - row);
      }
      if (gain > 0.0) replace_table(i, t, stored, half);
    }

    // Entries stay in ascending order, as the search for the nearest needs them.
    void replace_table(std::size_t i, int t, const std::array<std::int8_t, kMaxColors>& stored,
                       std::uint16_t half) {
      std::array<int, kMaxColors> order{};
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.begin() + colors_,
                       [&](int a, int b) { return stored[a] < stored[b]; });
      std::array<std::uint8_t, kMaxColors> place{};
      const float scale = half_to_float(half);
      for (int c = 0; c < colors_; ++c) {
        place[order[c]] = static_cast<std::uint8_t>(c);
        groups_[i].entries[t * colors_ + c] = stored[order[c]];
        values(i, t)[c] = stored[order[c]] * scale;
      }
      groups_[i].table_scales[t] = half;
      std::uint8_t* codes = groups_[i].codes.data() + static_cast<std::size_t>(t) * width_ * kGroupRows;
      for (int n = 0; n < width_ * kGroupRows; ++n) codes[n] = place[codes[n]];
      for (int k = t * width_; k < (t + 1) * width_; ++k) set_errors(i, k);
    }

    using Square = std::array<double, kMaxColors * kMaxColors>;

    // By Cholesky. An entry that no weight uses does not change.
    std::array<double, kMaxColors> solve(const Square& m, std::array<double, kMaxColors> x) const {
      double largest = 0.0;
      for (int c = 0; c < colors_; ++c) largest = std::max(largest, m[c * kMaxColors + c]);
      if (!(largest > 0.0)) return {};
      Square l{};
      for (int i = 0; i < colors_; ++i)
        for (int j = 0; j <= i; ++j) {
          double sum = m[i * kMaxColors + j] + (i == j ? 1e-6 * largest : 0.0);
          for (int k = 0; k < j; ++k) sum -= l[i * kMaxColors + k] * l[j * kMaxColors + k];
          l[i * kMaxColors + j] =
              i == j ? std::sqrt(std::max(sum, 1e-9 * largest)) : sum / l[j * kMaxColors + j];
        }
      for (int i = 0; i < colors_; ++i) {
        for (int k = 0; k < i; ++k) x[i] -= l[i * kMaxColors + k] * x[k];
        x[i] /= l[i * kMaxColors + i];
      }
      for (int i = colors_ - 1; i >= 0; --i) {
        for (int k = i + 1; k < colors_; ++k) x[i] -= l[k * kMaxColors + i] * x[k];
        x[i] /= l[i * kMaxColors + i];
      }
      return x;
    }

    // The best factor on each row's palette values; what changes in H e follows from H w.
    void fit_row_scales() {
      const float keep = all_.damped_.keep;
      for (int lane = 0; lane < lanes_; ++lane) {
        const float s = scale_[lane];
        if (s == 0.0f) continue;
        double along = 0.0, curvature = 0.0;
        for (int k = 0; k < cols_; ++k) {
          const std::size_t n = at(k) + lane;
          const double q = w_[n] - e_[n], added = all_.damped_.added[k];
          along += q * (keep * g_[n] + added * e_[n]);
          curvature += q * (keep * (hw_[n] - g_[n]) + added * q);
        }
        if (!(curvature > 0.0)) continue;
        const std::uint16_t half = float_to_half(static_cast<float>(s * (1.0 + along / curvature)));
        const double change = static_cast<double>(half_to_float(half)) / s - 1.0;
        if (!(std::fabs(change) < 0.5) || !(change * (2.0 * along - change * curvature) > 0.0)) continue;
        set_scale(lane / kGroupRows, lane % kGroupRows, half);
        for (int k = 0; k < cols_; ++k) {
          const std::size_t n = at(k) + lane;
          g_[n] -= static_cast<float>(change) * (hw_[n] - g_[n]);
        }
      }
      for (std::size_t i = 0; i < groups_.size(); ++i)
        for (int k = 0; k < cols_; ++k) set_errors(i, k);
    }

    void measure(std::size_t i) {
      double error = 0.0, damping = 0.0;
      for (int k = 0; k < cols_; ++k)
        for (std::size_t l = i * kGroupRows; l < (i + 1) * kGroupRows; ++l) {
          const double e = e_[at(k) + l];
          error += e * g_[at(k) + l];
          damping += all_.damped_.added[k] * e * e;
        }
      groups_[i].error = error;
      groups_[i].damped = all_.damped_.keep * error + damping;
    }

    void store(int g, const Group& group) {
      Palettes& out = all_.out_;
      const std::size_t tables = all_.tables_;
      std::copy(group.entries.begin(), group.entries.end(), out.entries.begin() + g * tables * colors_);
      std::copy(group.table_scales.begin(), group.table_scales.end(), out.table_scales.begin() + g * tables);
      std::copy(group.row_scales.begin(), group.row_scales.end(), out.row_scales.begin() + g * kGroupRows);
      const std::size_t bytes = static_cast<std::size_t>(cols_) * 2 * all_.bits_;
      std::uint8_t* packed = out.indices.data() + g * bytes;
      std::fill_n(packed, bytes, std::uint8_t{0});
      for (int k = 0; k < cols_; ++k)
        for (int r = 0; r < kGroupRows; ++r)
          set_palette_index(all_.bits_, packed, r, k, group.codes[k * kGroupRows + r]);
      all_.errors_[g] = group.error;
    }

    Compensator& all_;
    const Kernels& kernels_;
    int cols_, colors_, width_, lanes_ = 0;
    std::vector<float> w_, e_, g_, hw_;  // [cols][lanes]: weights, w - q, H e, H w
    std::vector<float> sums_, passed_;   // [cols][lanes] in the order of rounding
    std::vector<float> values_;          // [groups][tables][16]: entry * table scale
    std::vector<float> scale_, inverse_; // [lanes]
    std::vector<float> old_, old_g_, by_color_;
    std::vector<Group> groups_;
    std::vector<double> seeds_; // errors of the k-means
  };

  std::span<const float> weights_;
  int cols_;
  const Damped& damped_;
  std::span<const float> factor_;
  std::span<const std::int32_t> order_;
  int bits_, colors_, table_cols_, tables_;
  const CompensateOptions& options_;
  const Kernels& kernels_;
  const Palettes& start_; // whose tables the first assignment takes
  Palettes& out_;         // the k-means, group by group replaced by what is better
  std::vector<double> errors_, norms_;
};

} // namespace

Palettes compensate(std::span<const float> weights, int rows, int cols, std::span<const float> importance,
                    const Damped& damped, std::span<const float> factor, std::span<const std::int32_t> order,
                    int bits, int table_cols, const CompensateOptions& options) {
  Palettes palettes = palettize(weights, rows, cols, importance, bits, table_cols, RowScales::kRootMeanSquare,
                                options.threads);
  const std::size_t n = cols;
  if (damped.moment.size() != n * n || damped.added.size() != n || factor.size() != n * n ||
      order.size() != n)
    throw std::invalid_argument("second moment, factor and order must be those of the matrix's columns");
  if (options.rounds < 0 || options.sweeps < 0) throw std::invalid_argument("rounds and sweeps are counts");
  for (std::size_t i = 0; i < n; ++i) {
    if (order[i] < 0 || order[i] >= cols)
      throw std::invalid_argument("the order names a column that is not there");
    if (!(factor[i * n + i] > 0.0f) || !std::isfinite(factor[i * n + i]))
      throw std::invalid_argument("the factor's diagonal must be positive");
  }
  for (const float v : damped.moment)
    if (!std::isfinite(v)) throw std::invalid_argument("the second moment holds a value that is not finite");
  // A column's error is made good by those that are rounded later; what remains of it counts as the square of
  // the factor's diagonal says. Tables that are fitted to that are the better start.
  std::vector<float> remaining(n);
  double mean = 0.0;
  for (std::size_t i = 0; i < n; ++i) {
    const double d = factor[i * n + i];
    remaining[order[i]] = static_cast<float>(d * d);
    mean += d * d / static_cast<double>(n);
  }
  for (float& r : remaining) r = std::max(static_cast<float>(r / mean), 1e-6f);
  const Palettes start = palettize(weights, rows, cols, remaining, bits, table_cols,
                                   RowScales::kRootMeanSquare, options.threads);
  Compensator(weights, cols, damped, factor, order, bits, table_cols, options, start, palettes).run();
  return palettes;
}

} // namespace pomona
