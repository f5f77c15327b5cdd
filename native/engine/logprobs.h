// What the model thought of the tokens that a step sampled, and of the likeliest others.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/kernels.h"

namespace pomona {

inline constexpr int kMaxTopLogprobs = 64;

// Natural logarithms of the model's own probabilities: before masks, biases, penalties and temperature.
struct TokenLogprobs {
  float chosen = 0.0f;
  std::vector<std::pair<std::int32_t, float>> top; // the likeliest first; of equal ones the smaller id
};

// A place for them, which the caller keeps: a step fills it, one entry for each token that it gives.
class Logprobs {
 public:
  explicit Logprobs(int top) : top_(top) {}

  void begin(std::size_t places) { entries_.assign(places, {}); }
  // Different places may be written by different threads. `logits` [V]: as the model made them.
  void note(std::size_t place, const Kernels& kernels, std::span<const float> logits, std::int32_t token);
  void keep(std::size_t places) { entries_.resize(places); }
  const std::vector<TokenLogprobs>& entries() const { return entries_; }

 private:
  int top_;
  std::vector<TokenLogprobs> entries_;
};

} // namespace pomona
