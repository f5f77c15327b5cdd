// Whole distributions of a text, and how far another model's lie from them.
#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>

#include "engine/engine.h"

namespace pomona {
namespace {

// exp(-q / kLogSteps) for 16 bits, as the product of two tables that stay in the first-level cache.
struct Exponentials {
  std::array<float, 256> high, low;
  Exponentials() {
    for (int i = 0; i < 256; ++i) {
      high[i] = static_cast<float>(std::exp(-256.0 * i / kLogSteps));
      low[i] = static_cast<float>(std::exp(-1.0 * i / kLogSteps));
    }
  }
  float operator()(std::uint16_t q) const { return high[q >> 8] * low[q & 255]; }
};

// The stored probabilities do not sum to 1 exactly, so they are divided by their sum.
double divergence(const Exponentials& exponentials, const std::uint16_t* reference, const float* logits,
                  int vocab, float log_total) {
  constexpr int kLanes = 4; // sums that do not wait for each other
  std::array<double, kLanes> mass{}, sum{};
  const auto add = [&](int v, int lane) {
    const double p = exponentials(reference[v]);
    mass[lane] += p;
    sum[lane] += p * (static_cast<float>(reference[v]) * (-1.0f / kLogSteps) - logits[v]);
  };
  int v = 0;
  for (; v + kLanes <= vocab; v += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) add(v + lane, lane);
  for (; v < vocab; ++v) add(v, 0);
  const double total = mass[0] + mass[1] + mass[2] + mass[3];
  return (sum[0] + sum[1] + sum[2] + sum[3]) / total - std::log(total) + log_total;
}

} // namespace

void Engine::distributions(std::span<const std::int32_t> tokens, int first, const float* residual,
                           std::uint16_t* out) {
  const std::lock_guard lock(mutex_);
  if (first < 0 || first > shape_.layers) throw std::invalid_argument("no such layer");
  // With logits, the residual is only read.
  run_part(tokens, {first, shape_.layers, const_cast<float*>(residual)},
           [&](std::size_t token, const float* logits) {
             const float log_total = kernels_.log_sum_exp(logits, shape_.vocab);
             std::uint16_t* row = out + token * shape_.vocab;
             for (int v = 0; v < shape_.vocab; ++v)
               row[v] = static_cast<std::uint16_t>(
                   std::clamp((log_total - logits[v]) * kLogSteps + 0.5f, 0.0f, 65535.0f));
           });
}

void Engine::divergences(std::span<const std::int32_t> tokens, int first, const float* residual,
                         const std::uint16_t* reference, double* out) {
  static const Exponentials exponentials;
  const std::lock_guard lock(mutex_);
  if (first < 0 || first > shape_.layers) throw std::invalid_argument("no such layer");
  run_part(tokens, {first, shape_.layers, const_cast<float*>(residual)},
           [&](std::size_t token, const float* logits) {
             out[token] = divergence(exponentials, reference + token * shape_.vocab, logits, shape_.vocab,
                                     kernels_.log_sum_exp(logits, shape_.vocab));
           });
}

} // namespace pomona
