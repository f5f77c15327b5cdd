#include "engine/profile.h"

namespace pomona {

void Profile::start(const Weights& weights, bool tied, int threads) {
  stop();
  names_.push_back("attention");
  const auto add = [&](const Matrix& matrix, std::string name) {
    places_[&matrix] = names_.size();
    names_.push_back(std::move(name));
  };
  for (std::size_t l = 0; l < weights.layers.size(); ++l) {
    const Layer& layer = weights.layers[l];
    const std::string prefix = "model.layers." + std::to_string(l) + ".";
    add(layer.q, prefix + "self_attn.q_proj");
    add(layer.k, prefix + "self_attn.k_proj");
    add(layer.v, prefix + "self_attn.v_proj");
    add(layer.o, prefix + "self_attn.o_proj");
    add(layer.gate, prefix + "mlp.gate_proj");
    add(layer.up, prefix + "mlp.up_proj");
    add(layer.down, prefix + "mlp.down_proj");
  }
  add(weights.head, tied ? "model.embed_tokens" : "lm_head");
  // The capacity keeps the rows of two threads in different lines.
  constexpr std::size_t kPadding = 16;
  sums_.resize(threads);
  for (std::vector<std::int64_t>& row : sums_) {
    row.reserve(names_.size() + kPadding);
    row.assign(names_.size(), 0);
  }
}

void Profile::stop() {
  names_.clear();
  places_.clear();
  sums_.clear();
}

std::map<std::string, double> Profile::take() {
  std::map<std::string, double> result;
  for (std::size_t i = 0; i < names_.size(); ++i) {
    std::int64_t total = 0;
    for (std::vector<std::int64_t>& row : sums_) {
      total += row[i];
      row[i] = 0;
    }
    result[names_[i]] = static_cast<double>(total) / static_cast<double>(sums_.size());
  }
  return result;
}

} // namespace pomona
