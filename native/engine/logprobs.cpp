#include "engine/logprobs.h"

#include <algorithm>

namespace pomona {

void Logprobs::note(std::size_t place, const Kernels& kernels, std::span<const float> logits,
                    std::int32_t token) {
  const int vocabulary = static_cast<int>(logits.size());
  const float total = kernels.log_sum_exp(logits.data(), vocabulary);
  TokenLogprobs& entry = entries_[place];
  entry.chosen = logits[token] - total;
  auto& top = entry.top;
  const std::size_t wanted = std::min(static_cast<std::size_t>(top_), logits.size());
  if (wanted == 0) return;
  top.reserve(wanted + 1);
  // Few are wanted of many: nearly every logit fails the first comparison.
  for (std::int32_t i = 0; i < vocabulary; ++i) {
    if (top.size() == wanted && !(logits[i] > top.back().second)) continue;
    const auto place_of =
        std::upper_bound(top.begin(), top.end(), logits[i],
                         [](float value, const auto& other) { return value > other.second; });
    top.insert(place_of, {i, logits[i]});
    if (top.size() > wanted) top.pop_back();
  }
  for (auto& [id, value] : top) value -= total;
}

} // namespace pomona
