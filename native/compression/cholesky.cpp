#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "compression/compensate.h"
#include "engine/thread_pool.h"
#include "kernels/kernels.h"

namespace pomona {
namespace {

constexpr int kStep = 64;  // columns that are eliminated together
constexpr int kRows = 192; // rows of the rest that a thread updates at a time

class Cholesky {
 public:
  Cholesky(std::vector<float>& a, int n, int threads)
      : a_(a), n_(n), pool_(threads), kernels_(select_kernels("auto")) {}

  bool run() {
    pool_.run([this](int t) { work(t); });
    return !failed_;
  }

 private:
  float* row(int i) { return a_.data() + static_cast<std::size_t>(i) * n_; }

  void work(int t) {
    for (int b0 = 0; b0 < n_; b0 += kStep) {
      const int b1 = std::min(b0 + kStep, n_);
      pool_.barrier([&] {
        if (!failed_) failed_ = !factor_block(b0, b1);
        negative_.resize(static_cast<std::size_t>(kStep) * (n_ - b1));
      });
      if (failed_) return;
      const auto [r0, r1] = share(n_ - b1, t, pool_.size());
      for (int i = b1 + r0; i < b1 + r1; ++i) solve_row(i, b0, b1);
      pool_.barrier();
      for (int block = 0, i = b1; i < n_; i += kRows, ++block)
        if (block % pool_.size() == t) update(i, std::min(i + kRows, n_), b0, b1);
    }
  }

  bool factor_block(int b0, int b1) {
    for (int i = b0; i < b1; ++i)
      for (int j = b0; j <= i; ++j) {
        double sum = row(i)[j];
        for (int k = b0; k < j; ++k) sum -= static_cast<double>(row(i)[k]) * row(j)[k];
        if (j < i) {
          row(i)[j] = static_cast<float>(sum / row(j)[j]);
        } else {
          // Rounding leaves about n epsilon of the diagonal; what is no larger than that is not a number.
          if (!(sum > 0.0)) return false;
          row(i)[i] = static_cast<float>(std::sqrt(sum));
          if (!(row(i)[i] > 0.0f)) return false;
        }
      }
    return true;
  }

  void solve_row(int i, int b0, int b1) {
    float* x = row(i);
    const int rest = n_ - b1;
    for (int j = b0; j < b1; ++j) {
      const float* l = row(j);
      float sum = x[j];
      for (int k = b0; k < j; ++k) sum -= x[k] * l[k];
      x[j] = sum / l[j];
      negative_[static_cast<std::size_t>(j - b0) * rest + (i - b1)] = -x[j];
    }
  }

  void update(int i0, int i1, int b0, int b1) {
    kernels_.multiply_add(row(i0) + b0, n_, 1, negative_.data(), n_ - b1, b1 - b0, row(i0) + b1, n_, i1 - i0,
                          i1 - b1);
  }

  std::vector<float>& a_;
  int n_;
  ThreadPool pool_;
  const Kernels& kernels_;
  std::vector<float> negative_; // the eliminated columns below their block, transposed: [kStep][rest]
  bool failed_ = false;
};

} // namespace

std::vector<float> damped_cholesky(const Damped& damped, std::span<const std::int32_t> order, int threads) {
  const std::size_t n = damped.added.size();
  if (n < 1 || n > 1 << 16 || damped.moment.size() != n * n || order.size() != n)
    throw std::invalid_argument(
        "the second moment must be [cols, cols], and an order of its columns is needed");
  std::vector<bool> seen(n);
  for (const std::int32_t k : order) {
    if (k < 0 || static_cast<std::size_t>(k) >= n || seen[k])
      throw std::invalid_argument("the order of columns must name each once");
    seen[k] = true;
  }
  std::vector<float> a(n * n, 0.0f);
  for (std::size_t i = 0; i < n; ++i) {
    const float* from = damped.moment.data() + static_cast<std::size_t>(order[i]) * n;
    for (std::size_t j = 0; j <= i; ++j) a[i * n + j] = damped.keep * from[order[j]];
    a[i * n + i] += damped.added[order[i]];
  }
  for (const float v : a)
    if (!std::isfinite(v)) throw std::invalid_argument("the second moment holds a value that is not finite");
  if (!Cholesky(a, static_cast<int>(n), std::clamp(threads, 1, 1024)).run())
    throw std::runtime_error("the second moment is not positive definite; damp it more");
  for (std::size_t i = 0; i < n; ++i) std::fill(a.begin() + i * n + i + 1, a.begin() + (i + 1) * n, 0.0f);
  return a;
}

} // namespace pomona
