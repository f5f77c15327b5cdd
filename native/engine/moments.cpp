// Calibration: a text runs through some of the layers, and what their linear layers read is added up.
#include <algorithm>
#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>

#include "engine/engine.h"

namespace pomona {
namespace {

constexpr int kPanel = 64;  // columns: a pair of panels is what a thread multiplies at a time
constexpr int kDepth = 256; // rows of a panel that are read together

} // namespace

void Engine::collect_moments(const std::vector<std::string>& modules, bool products) {
  const std::lock_guard lock(mutex_);
  std::map<std::string, int> columns{{"lm_head", shape_.hidden}};
  for (int l = 0; l < shape_.layers; ++l) {
    const std::string prefix = "model.layers." + std::to_string(l) + ".";
    columns[prefix + "self_attn.q_proj"] = columns[prefix + "mlp.gate_proj"] = shape_.hidden;
    columns[prefix + "self_attn.o_proj"] = shape_.q_rows();
    columns[prefix + "mlp.down_proj"] = shape_.ffn;
  }
  std::map<std::string, Moments> moments;
  for (const std::string& module : modules) {
    const auto it = columns.find(module);
    if (it == columns.end()) throw std::invalid_argument("no input is collected under the name " + module);
    const std::size_t cols = it->second;
    Moments& m = moments[module];
    m.squares.assign(cols, 0.0);
    if (products) m.products.assign(cols * cols, 0.0f);
  }
  moments_ = std::move(moments);
}

std::map<std::string, Moments> Engine::take_moments() {
  const std::lock_guard lock(mutex_);
  for (auto& [name, m] : moments_) { // only one of a pair was added up
    const std::size_t cols = m.products.empty() ? 0 : m.squares.size();
    for (std::size_t i = 0; i < cols; ++i)
      for (std::size_t j = i + 1; j < cols; ++j) m.products[j * cols + i] = m.products[i * cols + j];
  }
  panels_ = {};
  return std::exchange(moments_, {});
}

void Engine::run_layers(std::span<const std::int32_t> tokens, int first, int last, float* residual) {
  const std::lock_guard lock(mutex_);
  if (first < 0 || first >= last || last > shape_.layers + 1)
    throw std::invalid_argument("no such range of layers");
  run_part(tokens, {first, last, residual}, nullptr);
}

// A fresh text through the layers of `part`, whose residual belongs to the whole text. `use`: what to do with
// the logits of a token; without it there are none.
void Engine::run_part(std::span<const std::int32_t> tokens, const Part& part,
                      const std::function<void(std::size_t token, const float* logits)>& use) {
  auto it = std::find_if(sequences_.begin(), sequences_.end(), [](const Sequence& s) { return !s.used; });
  if (it == sequences_.end()) it = sequences_.emplace(sequences_.end());
  it->used = true;
  const int id = static_cast<int>(it - sequences_.begin());
  const auto close = [this](const int* s) {
    part_ = nullptr;
    cut(sequences_[*s], 0);
    sequences_[*s] = Sequence{};
  };
  const std::unique_ptr<const int, decltype(close)> guard(&id, close);
  const std::size_t step = options_.batch_tokens;
  for (std::size_t start = 0; start < tokens.size(); start += step) {
    const auto chunk = tokens.subspan(start, std::min(step, tokens.size() - start));
    append(std::vector{StepInput{id, {chunk.begin(), chunk.end()}, {}, {}}}, false);
    Part here = part;
    if (here.residual != nullptr) here.residual += start * shape_.hidden;
    here.logits = use != nullptr;
    part_ = &here;
    Wanted wanted;
    if (use) {
      for (int i = 0; i < static_cast<int>(chunk.size()); ++i) wanted.rows.push_back(i);
      wanted.use = [&](int index, const float* logits) { use(start + index, logits); };
    }
    forward(wanted);
  }
}

Moments* Engine::observed(const std::string& module) {
  const auto it = moments_.find(module);
  return it == moments_.end() ? nullptr : &it->second;
}

// Each thread adds up its own columns; between this call and the next there is a barrier.
void Engine::observe(int t, Moments* moments, const float* x, int cols, int rows) {
  if (moments == nullptr) return;
  const auto [first, last] = share(cols, t, pool_.size());
  for (int row = 0; row < rows; ++row)
    for (int c = first; c < last; ++c) {
      const double v = x[static_cast<std::size_t>(row) * cols + c];
      moments->squares[c] += v * v;
    }
  if (t == 0) moments->rows += rows;
  if (moments->products.empty()) return;
  const int panels = (cols + kPanel - 1) / kPanel;
  pool_.barrier([&] { panels_.resize(static_cast<std::size_t>(panels) * rows * kPanel); });
  const auto [p0, p1] = share(panels, t, pool_.size());
  for (int p = p0; p < p1; ++p) {
    const int c0 = p * kPanel, width = std::min(kPanel, cols - c0);
    float* to = panels_.data() + static_cast<std::size_t>(p) * rows * kPanel;
    for (int row = 0; row < rows; ++row, to += kPanel) {
      std::copy_n(x + static_cast<std::size_t>(row) * cols + c0, width, to);
      std::fill(to + width, to + kPanel, 0.0f);
    }
  }
  pool_.barrier();
  add_products(t, *moments, cols, rows);
}

// x^T x of the batch in float32, block by block of the upper half, added to the sums. A block is one
// thread's, so the bits do not depend on how many there are.
void Engine::add_products(int t, Moments& moments, int cols, int rows) {
  const int panels = (cols + kPanel - 1) / kPanel;
  const std::size_t panel = static_cast<std::size_t>(rows) * kPanel;
  std::vector<float> block(kPanel * kPanel);
  int turn = 0;
  for (int i = 0; i < panels; ++i)
    for (int j = i; j < panels; ++j) {
      if (turn++ % pool_.size() != t) continue;
      std::fill(block.begin(), block.end(), 0.0f);
      for (int row = 0; row < rows; row += kDepth) {
        const std::size_t offset = static_cast<std::size_t>(row) * kPanel;
        kernels_.multiply_add(panels_.data() + i * panel + offset, 1, kPanel,
                              panels_.data() + j * panel + offset, kPanel, std::min(kDepth, rows - row),
                              block.data(), kPanel, kPanel, kPanel);
      }
      const int height = std::min(kPanel, cols - i * kPanel), width = std::min(kPanel, cols - j * kPanel);
      for (int r = 0; r < height; ++r) {
        float* sums = moments.products.data() + static_cast<std::size_t>(i * kPanel + r) * cols + j * kPanel;
        for (int c = 0; c < width; ++c) sums[c] += block[r * kPanel + c];
      }
    }
}

} // namespace pomona
