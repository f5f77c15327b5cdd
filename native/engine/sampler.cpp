#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace pomona {
namespace {

// splitmix64 of (seed, position): uniform in [0, 1).
double uniform(std::uint64_t seed, std::int64_t position) {
  std::uint64_t z = seed + 0x9e3779b97f4a7c15ull * (static_cast<std::uint64_t>(position) + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  z = (z + 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1.0p-53;
}

void penalize(std::span<float> logits, float penalty, std::span<const std::int32_t> history) {
  std::vector<std::int32_t> seen(history.begin(), history.end());
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  for (const std::int32_t token : seen)
    logits[token] = logits[token] > 0 ? logits[token] / penalty : logits[token] * penalty;
}

void penalize_answer(std::span<float> logits, const Sampling& sampling,
                     std::span<const std::int32_t> history) {
  const auto start =
      static_cast<std::size_t>(std::clamp<std::int64_t>(sampling.answer_start, 0, std::ssize(history)));
  std::vector<std::int32_t> said(history.begin() + start, history.end());
  std::sort(said.begin(), said.end());
  for (auto first = said.begin(); first != said.end();) {
    const auto last = std::upper_bound(first, said.end(), *first);
    logits[*first] -=
        sampling.presence_penalty + sampling.frequency_penalty * static_cast<float>(last - first);
    first = last;
  }
}

// exp(x - top) of finite and of minus infinite logits; a NaN logit is never drawn.
double weight_of(double logit, double top) {
  const double w = std::exp(logit - top);
  return w >= 0.0 ? w : 0.0;
}

constexpr int kDrawBlock = 512;

// Draws from the whole distribution: first a block of tokens, by the sum of its weights, then a token of it.
// Only of one block are exponentials taken in double and one by one, which costs more than everything else
// here.
int draw(const Kernels& kernels, std::span<const float> logits, double top, double chance, int best) {
  const int vocabulary = static_cast<int>(logits.size()), blocks = (vocabulary + kDrawBlock - 1) / kDrawBlock;
  const auto part = [&](int block) {
    const int start = block * kDrawBlock;
    return logits.subspan(start, std::min(kDrawBlock, vocabulary - start));
  };
  const auto exact = [&](int block) {
    double sum = 0.0;
    for (const float logit : part(block)) sum += weight_of(logit, top);
    return sum;
  };
  std::vector<double> mass(blocks);
  double total = 0.0;
  for (int block = 0; block < blocks; ++block) {
    const auto values = part(block);
    const double log_sum = kernels.log_sum_exp(values.data(), static_cast<int>(values.size()));
    mass[block] = std::isnan(log_sum) ? exact(block) : std::exp(log_sum - top);
    total += mass[block];
  }
  double left = chance * total;
  int chosen = 0; // the last block that weighs anything, if a rounding error leads beyond it
  for (int block = 0; block < blocks; ++block) {
    if (mass[block] == 0.0) continue;
    chosen = block;
    if (left < mass[block]) break;
    left -= mass[block];
  }
  left *= exact(chosen) / mass[chosen];
  int token = best;
  for (int i = 0; const float logit : part(chosen)) {
    const double w = weight_of(logit, top);
    if (w > 0.0) token = chosen * kDrawBlock + i;
    if ((left -= w) < 0.0) break;
    ++i;
  }
  return token;
}

} // namespace

void apply_mask(std::span<float> logits, std::span<const std::uint32_t> mask) {
  for (std::size_t word = 0; word < mask.size(); ++word) {
    if (mask[word] == 0xffffffffu) continue;
    const std::size_t end = std::min(logits.size(), (word + 1) * 32);
    for (std::size_t i = word * 32; i < end; ++i)
      if ((mask[word] >> (i % 32) & 1u) == 0) logits[i] = -std::numeric_limits<float>::infinity();
  }
}

int sample(const Kernels& kernels, std::span<float> logits, const Sampling& sampling,
           std::span<const std::int32_t> history, std::int64_t position) {
  const int vocabulary = static_cast<int>(logits.size());
  if (sampling.repetition_penalty != 1.0f) penalize(logits, sampling.repetition_penalty, history);
  if (sampling.presence_penalty != 0.0f || sampling.frequency_penalty != 0.0f)
    penalize_answer(logits, sampling, history);
  for (const auto& [token, value] : sampling.bias) logits[token] += value;
  const int best = kernels.argmax(logits.data(), vocabulary);
  if (sampling.temperature <= 0.0f || sampling.top_k == 1) return best;

  const double top = logits[best], inverse = 1.0 / sampling.temperature;
  if (!std::isfinite(top)) return best;
  const double chance = uniform(sampling.seed, position);
  if ((sampling.top_k <= 0 || sampling.top_k >= vocabulary) && sampling.top_p >= 1.0f &&
      sampling.min_p <= 0.0f) {
    if (sampling.temperature != 1.0f)
      for (float& logit : logits) logit = static_cast<float>(logit * inverse);
    return draw(kernels, logits, logits[best], chance, best);
  }
  std::vector<double> weight(vocabulary);
  for (int i = 0; i < vocabulary; ++i) {
    const double w = std::exp((logits[i] - top) * inverse);
    weight[i] = w >= 0.0 ? w : 0.0; // a NaN logit is never drawn
  }
  const auto heavier = [&](int a, int b) { return weight[a] != weight[b] ? weight[a] > weight[b] : a < b; };

  // Candidates, heaviest first where a filter needs an order. min-p is a threshold on the weight itself, for
  // the heaviest token always weighs 1.
  std::vector<int> order(vocabulary);
  std::iota(order.begin(), order.end(), 0);
  std::size_t kept = order.size();
  if (sampling.top_k > 0 && sampling.top_k < vocabulary) {
    kept = sampling.top_k;
    std::nth_element(order.begin(), order.begin() + kept, order.end(), heavier);
    order.resize(kept);
  }
  if (sampling.top_p < 1.0f) {
    double total = 0.0;
    for (const int i : order) total += weight[i];
    double mass = 0.0;
    std::size_t sorted = 0;
    kept = 0;
    // Sort only as far as the mass needs: few tokens as a rule.
    for (std::size_t step = 64; kept == 0; step *= 8) {
      const std::size_t end = std::min(sorted + step, order.size());
      std::partial_sort(order.begin() + sorted, order.begin() + end, order.end(), heavier);
      for (std::size_t i = sorted; i < end && kept == 0; ++i) {
        mass += weight[order[i]];
        if (mass >= sampling.top_p * total) kept = i + 1;
      }
      sorted = end;
      if (sorted == order.size() && kept == 0) kept = sorted;
    }
    order.resize(kept);
  }
  if (sampling.min_p > 0.0f) std::erase_if(order, [&](int i) { return weight[i] < sampling.min_p; });

  double total = 0.0;
  for (const int i : order) total += weight[i];
  double left = chance * total;
  for (const int i : order) {
    left -= weight[i];
    if (left < 0.0) return i;
  }
  // The draw fell into the last rounding error: the last token that can be drawn at all.
  const auto last = std::find_if(order.rbegin(), order.rend(), [&](int i) { return weight[i] > 0.0; });
  return last == order.rend() ? best : *last;
}

} // namespace pomona
