// The forward pass. All threads walk the same phases; a phase splits its rows (tokens) or its output rows.
#include <algorithm>
#include <cmath>

#include "engine/engine.h"

namespace pomona {
namespace {

// Up to here the last thread to reach a barrier does all rows: cheaper than a second barrier.
constexpr int kSerialRows = 2;

bool packed(const Matrix& w) { return w.format != Format::bf16; }

} // namespace

// Waits for what came before, runs work(row) for every row, and returns when all rows are done.
template <class F>
void Engine::each_row(int t, int count, F&& work) {
  if (count <= kSerialRows) {
    pool_.barrier([&] {
      for (int row = 0; row < count; ++row) work(row);
    });
    return;
  }
  pool_.barrier();
  const auto [first, last] = share(count, t, pool_.size());
  for (int row = first; row < last; ++row) work(row);
  pool_.barrier();
}

void Engine::forward(const Wanted& wanted) {
  const int m = static_cast<int>(rows_.size());
  quant_hidden_.rows = quant_attended_.rows = quant_ffn_.rows = m;
  next_task_.store(0);
  plan_attention();
  adapted_ = false;
  low_rank_ = 0;
  for (const Run& run : runs_) {
    if (run.adapter == nullptr) continue;
    adapted_ = true;
    low_rank_ = std::max(low_rank_, run.adapter->max_rank());
  }
  lowered_.resize(static_cast<std::size_t>(m) * 3 * low_rank_);
  if (collecting_) { // entries are made here, for the threads only add to them
    for (int l = 0; l < shape_.layers; ++l) {
      const std::string prefix = "model.layers." + std::to_string(l) + ".";
      moments_[prefix + "self_attn.q_proj"].squares.resize(shape_.hidden);
      moments_[prefix + "self_attn.o_proj"].squares.resize(shape_.q_rows());
      moments_[prefix + "mlp.gate_proj"].squares.resize(shape_.hidden);
      moments_[prefix + "mlp.down_proj"].squares.resize(shape_.ffn);
    }
    moments_["lm_head"].squares.resize(shape_.hidden);
  }
  pool_.run([&](int t) { forward_thread(t, wanted); });
}

void Engine::forward_thread(int t, const Wanted& wanted) {
  const int m = static_cast<int>(rows_.size()), hidden = shape_.hidden;
  each_row(t, m, [&](int row) { prepare_row(row); });
  for (int l = 0; l < shape_.layers; ++l) {
    const Layer& layer = weights_.layers[l];
    const std::string prefix = collecting_ ? "model.layers." + std::to_string(l) + "." : "";
    each_row(t, m, [&](int row) {
      float* y = normed_.data() + static_cast<std::size_t>(row) * hidden;
      norm(x_.data() + static_cast<std::size_t>(row) * hidden, layer.input_norm, y);
      if (packed(layer.q) || packed(layer.k) || packed(layer.v)) kernels_.quantize(y, quant_hidden_, row);
    });
    observe(t, prefix + "self_attn.q_proj", normed_.data(), hidden, m);
    project_qkv(t, l);
    each_row(t, m, [&](int row) { rotate_and_store(row, layer, l); });
    run_attention(t, l);
    each_row(t, m, [&](int row) {
      finish_attention(row);
      const float* y = attended_.data() + static_cast<std::size_t>(row) * shape_.q_rows();
      if (packed(layer.o)) kernels_.quantize(y, quant_attended_, row);
    });
    observe(t, prefix + "self_attn.o_proj", attended_.data(), shape_.q_rows(), m);
    project_residual(t, l, kO, attended_.data(), quant_attended_);
    each_row(t, m, [&](int row) {
      float* y = normed_.data() + static_cast<std::size_t>(row) * hidden;
      norm(x_.data() + static_cast<std::size_t>(row) * hidden, layer.post_norm, y);
      if (packed(layer.gate) || packed(layer.up)) kernels_.quantize(y, quant_hidden_, row);
    });
    observe(t, prefix + "mlp.gate_proj", normed_.data(), hidden, m);
    project_gated(t, l);
    each_row(t, packed(layer.down) ? m : 0, [&](int row) {
      kernels_.quantize(gate_.data() + static_cast<std::size_t>(row) * shape_.ffn, quant_ffn_, row);
    });
    observe(t, prefix + "mlp.down_proj", gate_.data(), shape_.ffn, m);
    project_residual(t, l, kDown, gate_.data(), quant_ffn_);
  }
  project_head(t, wanted);
}

// Embedding row and rotation angles. The angle is formed in float32, as transformers does.
void Engine::prepare_row(int row) {
  embedding_row(weights_.embedding, rows_[row].token,
                x_.data() + static_cast<std::size_t>(row) * shape_.hidden);
  const std::size_t half = shape_.head_dim / 2;
  for (std::size_t i = 0; i < half; ++i) {
    const float angle = static_cast<float>(rows_[row].position) * static_cast<float>(inverse_frequency_[i]);
    cos_.data()[row * half + i] = std::cos(angle);
    sin_.data()[row * half + i] = std::sin(angle);
  }
}

void Engine::norm(const float* x, const std::vector<float>& weight, float* y) const {
  kernels_.rms_norm(x, weight.data(), static_cast<int>(weight.size()), shape_.rms_norm_eps, y);
}

// Row groups [g0, g1) of w times all rows of the batch.
void Engine::multiply(int t, const Matrix& w, int g0, int g1, const float* x, int x_stride,
                      const QuantRows& quantized, float* y, int y_stride) {
  if (g0 >= g1) return;
  switch (w.format) {
    case Format::palette:
      return kernels_.matmul_palette(w, g0, g1, quantized, y, y_stride, scratch_[t].data());
    case Format::int8:
      return kernels_.matmul_int8(w, g0, g1, quantized, y, y_stride, scratch_[t].data());
    case Format::bf16:
      return kernels_.matmul_bf16(w, g0 * kGroupRows, std::min(g1 * kGroupRows, w.rows), x, x_stride,
                                  quantized.rows, y, y_stride);
  }
}

// First half of the adapters: lowered_[row][slot] = A x, slot being the projection's place in the list. Ranks
// are split over the threads, so a barrier must follow before the second half.
void Engine::lower(int t, int l, std::initializer_list<Projection> projections, const float* x, int cols) {
  for (const Run& run : runs_) {
    if (run.adapter == nullptr) continue;
    int slot = 0;
    for (const Projection projection : projections) {
      const LowRank& low = run.adapter->at(l, projection);
      float* u = lowered_.data() + (static_cast<std::size_t>(run.row0) * 3 + slot++) * low_rank_;
      const auto [r0, r1] = share(low.rank, t, pool_.size());
      if (r0 < r1)
        kernels_.matmul_bf16(low.a, r0, r1, x + static_cast<std::size_t>(run.row0) * cols, cols, run.count, u,
                             3 * low_rank_);
    }
  }
}

// Second half: y += scale B lowered_, for the row groups [g0, g1) that this thread owns.
void Engine::raise(int l, Projection projection, int slot, int g0, int g1, float* y, int y_stride) {
  for (const Run& run : runs_) {
    if (run.adapter == nullptr) continue;
    const LowRank& low = run.adapter->at(l, projection);
    const float* u = lowered_.data() + (static_cast<std::size_t>(run.row0) * 3 + slot) * low_rank_;
    if (low.rank > 0)
      kernels_.add_low_rank(low.b, low.rank, g0, g1, u, 3 * low_rank_, run.count, low.scale,
                            y + static_cast<std::size_t>(run.row0) * y_stride, y_stride);
  }
}

// q, k and v share their input: their row groups are split over the threads as if they were one matrix.
void Engine::project_qkv(int t, int l) {
  const Layer& layer = weights_.layers[l];
  const int total = layer.q.groups() + layer.k.groups() + layer.v.groups();
  const auto [first, last] = share(total, t, pool_.size());
  if (adapted_) {
    lower(t, l, {kQ, kK, kV}, normed_.data(), shape_.hidden);
    pool_.barrier();
  }
  int group = 0, row = 0, slot = 0;
  for (const Matrix* w : {&layer.q, &layer.k, &layer.v}) {
    const int g0 = std::clamp(first - group, 0, w->groups()), g1 = std::clamp(last - group, 0, w->groups());
    multiply(t, *w, g0, g1, normed_.data(), shape_.hidden, quant_hidden_, qkv_.data() + row,
             shape_.qkv_rows());
    if (adapted_)
      raise(l, static_cast<Projection>(kQ + slot), slot, g0, g1, qkv_.data() + row, shape_.qkv_rows());
    group += w->groups();
    row += w->rows;
    ++slot;
  }
}

// gate and up share their input; a thread finishes the rows that it computes.
void Engine::project_gated(int t, int l) {
  const Layer& layer = weights_.layers[l];
  const int ffn = shape_.ffn, m = quant_hidden_.rows;
  const auto [g0, g1] = share(layer.gate.groups(), t, pool_.size());
  const int r0 = g0 * kGroupRows, r1 = std::min(g1 * kGroupRows, ffn);
  if (adapted_) {
    lower(t, l, {kGate, kUp}, normed_.data(), shape_.hidden);
    pool_.barrier();
  }
  multiply(t, layer.gate, g0, g1, normed_.data(), shape_.hidden, quant_hidden_, gate_.data(), ffn);
  multiply(t, layer.up, g0, g1, normed_.data(), shape_.hidden, quant_hidden_, up_.data(), ffn);
  if (adapted_) {
    raise(l, kGate, 0, g0, g1, gate_.data(), ffn);
    raise(l, kUp, 1, g0, g1, up_.data(), ffn);
  }
  for (int row = 0; row < m && r0 < r1; ++row) {
    float* gate = gate_.data() + static_cast<std::size_t>(row) * ffn;
    kernels_.swiglu(gate + r0, up_.data() + static_cast<std::size_t>(row) * ffn + r0, r1 - r0);
  }
}

// x += w input, for o and down
void Engine::project_residual(int t, int l, Projection projection, const float* x,
                              const QuantRows& quantized) {
  const Matrix& w = projection == kO ? weights_.layers[l].o : weights_.layers[l].down;
  const auto [g0, g1] = share(w.groups(), t, pool_.size());
  if (adapted_) {
    lower(t, l, {projection}, x, w.cols);
    pool_.barrier();
  }
  multiply(t, w, g0, g1, x, w.cols, quantized, y_.data(), w.rows);
  if (adapted_) raise(l, projection, 0, g0, g1, y_.data(), w.rows);
  const int r0 = g0 * kGroupRows, count = (g1 - g0) * kGroupRows;
  for (int row = 0; row < quantized.rows && count > 0; ++row) {
    const std::size_t offset = static_cast<std::size_t>(row) * w.rows + r0;
    kernels_.add(x_.data() + offset, y_.data() + offset, count);
  }
}

void Engine::project_head(int t, const Wanted& wanted) {
  const Matrix& head = weights_.head;
  const int hidden = shape_.hidden, tile = static_cast<int>(logits_.size() / shape_.vocab);
  const int count = static_cast<int>(wanted.rows.size());
  for (int done = 0; done < count; done += tile) {
    const int n = std::min(tile, count - done);
    each_row(t, n, [&](int i) {
      if (i == 0) quant_head_.rows = n; // one thread writes it; all read it after the barrier
      float* y = head_input_.data() + static_cast<std::size_t>(i) * hidden;
      norm(x_.data() + static_cast<std::size_t>(wanted.rows[done + i]) * hidden, weights_.final_norm, y);
      if (packed(head)) kernels_.quantize(y, quant_head_, i);
    });
    observe(t, "lm_head", head_input_.data(), hidden, n);
    const auto [g0, g1] = share(head.groups(), t, pool_.size());
    multiply(t, head, g0, g1, head_input_.data(), hidden, quant_head_, logits_.data(), shape_.vocab);
    each_row(t, n, [&](int i) {
      wanted.use(done + i, logits_.data() + static_cast<std::size_t>(i) * shape_.vocab);
    });
  }
}

// Each thread adds up its own columns.
void Engine::observe(int t, const std::string& module, const float* x, int cols, int rows) {
  if (!collecting_) return;
  Moments& moments = moments_.find(module)->second;
  const auto [first, last] = share(cols, t, pool_.size());
  for (int row = 0; row < rows; ++row)
    for (int c = first; c < last; ++c) {
      const double v = x[static_cast<std::size_t>(row) * cols + c];
      moments.squares[c] += v * v;
    }
  if (t == 0) moments.rows += rows;
}

} // namespace pomona
