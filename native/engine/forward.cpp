// The forward pass. All threads walk the same phases. A small batch is split anew in every phase, by tokens
// or by output rows, so that a weight is read once. In a large one every thread keeps the tokens that it has:
// it reads all weights, which then cost little beside the arithmetic, and next to nothing that another has
// made.
#include <algorithm>
#include <cmath>

#include "engine/engine.h"

namespace pomona {
namespace {

// Up to here the last thread to reach a barrier does all rows: cheaper than a second barrier.
constexpr int kSerialRows = 2;
// Up to so many rows under one adapter, the threads divide its A and not the rows: each reads half of it.
constexpr int kSegmentRows = 16;
// From so many rows on, times the square of the threads, a thread keeps its rows through all phases. Of T
// threads each reads all weights for a T-th of the rows: T times as many bytes, in a T-th of the time.
constexpr int kKeptPackedRows = 2;
constexpr int kKeptDenseRows = 16;            // bf16: four times as many bytes
constexpr std::size_t kMaxPartials = 1 << 16; // floats, of the rows of one adapter

// The beginning of a stream that is read soon, which no earlier reading could announce.
void fetch(const std::uint8_t* data) {
  constexpr int kBytes = 2048;
  for (int i = 0; i < kBytes; i += 64) __builtin_prefetch(data + i);
}
void fetch_unit(const LowerFactor& a, int unit) {
  fetch(a.data + static_cast<std::size_t>(unit) * kGroupRows * kBlock * (a.format == Format::bf16 ? 2 : 1));
}
void fetch_group(const RaiseFactor& b, int group) {
  fetch(b.data + static_cast<std::size_t>(group) * kGroupRows * b.rank * (b.format == Format::bf16 ? 2 : 1));
}

bool packed(const Matrix& w) { return w.format != Format::bf16; }

// Some of the rows.
QuantRows part_of(const QuantRows& x, int first, int count) {
  QuantRows part = x;
  const std::size_t blocks = static_cast<std::size_t>(first) * x.blocks();
  part.rows = count;
  part.q += static_cast<std::size_t>(first) * 2 * x.cols;
  part.scale += blocks;
  part.offset += blocks;
  part.fine += blocks;
  return part;
}

} // namespace

// Whether threads should keep their rows, of `count`.
bool Engine::worth_keeping(int count) const {
  const int least = packed(weights_.layers.front().gate) ? kKeptPackedRows : kKeptDenseRows;
  return pool_.size() > 1 && count >= least * pool_.size() * pool_.size();
}

// Tokens of a product that thread t makes, of `count`.
std::pair<int, int> Engine::own_rows(int t, int count) const {
  return keeps_rows_ ? share(count, t, pool_.size()) : std::pair(0, count);
}

// Groups of output rows of a product that thread t makes.
std::pair<int, int> Engine::own_groups(int t, int count) const {
  return keeps_rows_ ? std::pair(0, count) : share(count, t, pool_.size());
}

// Waits for what came before, runs work(row) for every row, and returns when all rows are done. Where threads
// keep their rows nobody waits.
template <class F>
void Engine::each_row(int t, int count, F&& work) {
  if (keeps_rows_) {
    const auto [first, last] = own_rows(t, count);
    for (int row = first; row < last; ++row) work(row);
    return;
  }
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
  keeps_rows_ = part_ == nullptr && worth_keeping(m);
  plan_attention();
  // Layer by layer the count goes on from what the layers before would have left.
  next_task_.store((part_ != nullptr ? part_->first : 0) * (static_cast<int>(tasks_.size()) + pool_.size()));
  plan_adapters();
  pool_.run([&](int t) { forward_thread(t, wanted); });
}

void Engine::forward_thread(int t, const Wanted& wanted) {
  const int m = static_cast<int>(rows_.size()), hidden = shape_.hidden;
  each_row(t, m, [&](int row) { prepare_row(row); });
  const int first = part_ != nullptr ? part_->first : 0,
            last = part_ != nullptr ? std::min(part_->last, shape_.layers) : shape_.layers;
  for (int l = first; l < last; ++l) {
    const Layer& layer = weights_.layers[l];
    const auto watch = [&](const char* module, const float* x, int cols) {
      if (part_ != nullptr)
        observe(t, observed("model.layers." + std::to_string(l) + "." + module), x, cols, m);
    };
    each_row(t, m, [&](int row) {
      float* y = normed_.data() + static_cast<std::size_t>(row) * hidden;
      norm(x_.data() + static_cast<std::size_t>(row) * hidden, layer.input_norm, y);
      if (packed(layer.q) || packed(layer.k) || packed(layer.v)) kernels_.quantize(y, quant_hidden_, row);
    });
    watch("self_attn.q_proj", normed_.data(), hidden);
    project_qkv(t, l);
    each_row(t, m, [&](int row) { rotate_and_store(row, layer, l); });
    // Without `own_attention_` a token may see keys that another thread has made, and tasks go to anybody.
    if (keeps_rows_ && !own_attention_) pool_.barrier();
    run_attention(t, l);
    if (keeps_rows_ && !own_attention_) pool_.barrier();
    each_row(t, m, [&](int row) {
      finish_attention(row);
      const float* y = attended_.data() + static_cast<std::size_t>(row) * shape_.q_rows();
      if (packed(layer.o)) kernels_.quantize(y, quant_attended_, row);
    });
    watch("self_attn.o_proj", attended_.data(), shape_.q_rows());
    project_residual(t, l, kO, attended_.data(), quant_attended_);
    each_row(t, m, [&](int row) {
      float* y = normed_.data() + static_cast<std::size_t>(row) * hidden;
      norm(x_.data() + static_cast<std::size_t>(row) * hidden, layer.post_norm, y);
      if (packed(layer.gate) || packed(layer.up)) kernels_.quantize(y, quant_hidden_, row);
    });
    watch("mlp.gate_proj", normed_.data(), hidden);
    project_gated(t, l);
    each_row(t, packed(layer.down) ? m : 0, [&](int row) {
      kernels_.quantize(gate_.data() + static_cast<std::size_t>(row) * shape_.ffn, quant_ffn_, row);
    });
    watch("mlp.down_proj", gate_.data(), shape_.ffn);
    project_residual(t, l, kDown, gate_.data(), quant_ffn_);
  }
  if (part_ != nullptr && !part_->logits) return finish_part(t);
  project_head(t, wanted);
}

// Keeps the residual stream, and has the final norm's output observed.
void Engine::finish_part(int t) {
  const int m = static_cast<int>(rows_.size()), hidden = shape_.hidden;
  const bool head = part_->last > shape_.layers;
  each_row(t, m, [&](int row) {
    const std::size_t offset = static_cast<std::size_t>(row) * hidden;
    std::copy_n(x_.data() + offset, hidden, part_->residual + offset);
    if (head) norm(x_.data() + offset, weights_.final_norm, normed_.data() + offset);
  });
  if (head) observe(t, observed("lm_head"), normed_.data(), hidden, m);
}

// Embedding row (or the residual of an earlier part) and rotation angles. The angle is formed in float32, as
// transformers does.
void Engine::prepare_row(int row) {
  float* x = x_.data() + static_cast<std::size_t>(row) * shape_.hidden;
  if (part_ != nullptr && part_->first > 0)
    std::copy_n(part_->residual + static_cast<std::size_t>(row) * shape_.hidden, shape_.hidden, x);
  else
    embedding_row(weights_.embedding, rows_[row].token, x);
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

// Row groups [g0, g1) of w times the rows of the batch that are this thread's.
void Engine::multiply(int t, const Matrix& w, int g0, int g1, const float* x, int x_stride,
                      const QuantRows& quantized, float* y, int y_stride) {
  const auto [first, last] = own_rows(t, quantized.rows);
  if (g0 >= g1 || first >= last) return;
  const Profile::Scope scope = profile_.product(t, w);
  const QuantRows own = part_of(quantized, first, last - first);
  x += static_cast<std::size_t>(first) * x_stride;
  y += static_cast<std::size_t>(first) * y_stride;
  switch (w.format) {
    case Format::palette:
      return kernels_.matmul_palette(w, g0, g1, own, y, y_stride, scratch_[t].data());
    case Format::int8:
      return kernels_.matmul_int8(w, g0, g1, own, y, y_stride, scratch_[t].data());
    case Format::bf16:
      return kernels_.matmul_bf16(w, g0 * kGroupRows, std::min(g1 * kGroupRows, w.rows), x, x_stride,
                                  own.rows, y, y_stride);
  }
}

// Which rows run under which adapter, and how the threads divide the first half of the products.
void Engine::plan_adapters() {
  adapted_.clear();
  lanes_ = 0;
  lowering_.reset();
  for (const Run& run : runs_) {
    if (run.adapter == nullptr) continue;
    lanes_ = std::max(lanes_, run.adapter->max_lanes());
    AdaptedRows* last = adapted_.empty() ? nullptr : &adapted_.back();
    if (last != nullptr && last->adapter == run.adapter && last->row0 + last->count == run.row0)
      last->count += run.count;
    else
      adapted_.push_back({run.adapter, run.row0, run.count, false, 0, 0});
  }
  std::size_t by_row = 0, by_segment = 0, partials = 0;
  for (AdaptedRows& rows : adapted_) {
    const std::size_t needed = static_cast<std::size_t>(rows.count) * rows.adapter->max_partials();
    rows.by_row = keeps_rows_ || rows.count > kSegmentRows || needed > kMaxPartials;
    std::size_t& next = rows.by_row ? by_row : by_segment;
    rows.first = next * lanes_;
    next += rows.count;
    rows.partial0 = partials;
    if (!rows.by_row) partials += needed;
  }
  lowered_.resize(by_row * lanes_);
  partials_.resize(partials);
  for (std::vector<float>& u : gathered_) u.resize(by_segment * lanes_);
}

// First half of the adapters, A x of all projections of one input. Where rows are few, the threads divide the
// weights; where they are many, the rows. What the others make is needed only after gather().
void Engine::lower(int t, int l, Source source, const float* x, int cols) {
  if (adapted_.empty()) return;
  int total = 0;
  for (const AdaptedRows& rows : adapted_)
    if (!rows.by_row) total += rows.adapter->lowering(l, source).a.units();
  const auto [first, last] = share(total, t, pool_.size());
  int unit = 0;
  for (std::size_t i = 0; i < adapted_.size(); ++i) {
    const AdaptedRows& rows = adapted_[i];
    const Lowering& lowering = rows.adapter->lowering(l, source);
    const LowerFactor& a = lowering.a;
    if (i + 1 < adapted_.size()) fetch_unit(adapted_[i + 1].adapter->lowering(l, source).a, 0);
    if (a.lanes == 0) continue;
    const float* from = x + static_cast<std::size_t>(rows.row0) * cols;
    if (!rows.by_row) {
      const int u0 = std::clamp(first - unit, 0, a.units()), u1 = std::clamp(last - unit, 0, a.units());
      unit += a.units();
      if (u0 < u1)
        kernels_.lower(a, u0, u1, from, cols, rows.count, partials_.data() + rows.partial0,
                       static_cast<std::size_t>(a.segments()) * a.lanes, a.lanes);
      continue;
    }
    const auto [r0, r1] = lowered_rows(t, rows);
    if (r0 >= r1) continue;
    float* u = lowered_.data() + rows.first + static_cast<std::size_t>(r0) * lanes_;
    kernels_.lower(a, 0, a.units(), from + static_cast<std::size_t>(r0) * cols, cols, r1 - r0, u, lanes_, 0);
    for (int row = r0; row < r1; ++row, u += lanes_)
      for (int lane = 0; lane < a.lanes; ++lane) u[lane] *= lowering.factors[lane];
  }
  if (!keeps_rows_) lowering_.arrive();
}

// Of rows that are divided by row, those whose first half thread t makes.
std::pair<int, int> Engine::lowered_rows(int t, const AdaptedRows& rows) const {
  if (!keeps_rows_) return share(rows.count, t, pool_.size());
  const auto [first, last] = own_rows(t, static_cast<int>(rows_.size()));
  return {std::clamp(first - rows.row0, 0, rows.count), std::clamp(last - rows.row0, 0, rows.count)};
}

// Waits for the first half and adds up its segments, every thread for itself.
void Engine::gather(int t, int l, Source source) {
  if (adapted_.empty() || keeps_rows_) return;
  lowering_.wait((l * kSources + source + 1) * pool_.size());
  for (const AdaptedRows& rows : adapted_) {
    const Lowering& lowering = rows.adapter->lowering(l, source);
    if (rows.by_row || lowering.a.lanes == 0) continue;
    const std::size_t row_partials = static_cast<std::size_t>(lowering.a.segments()) * lowering.a.lanes;
    for (int row = 0; row < rows.count; ++row)
      sum_segments(kernels_, lowering, partials_.data() + rows.partial0 + row * row_partials,
                   gathered_[t].data() + rows.first + static_cast<std::size_t>(row) * lanes_);
  }
}

// Second half: y += B u. Adapter by adapter, for what outputs of one input need lies together.
void Engine::raise(int t, int l, std::initializer_list<Raised> outputs) {
  for (std::size_t i = 0; i < adapted_.size(); ++i) {
    const AdaptedRows& rows = adapted_[i];
    const auto [r0, r1] = keeps_rows_ ? lowered_rows(t, rows) : std::pair(0, rows.count);
    const float* u = (rows.by_row ? lowered_.data() : gathered_[t].data()) + rows.first +
                     static_cast<std::size_t>(r0) * lanes_;
    for (const Raised& out : outputs) {
      const Raising& raising = rows.adapter->raising(l, out.projection);
      if (i + 1 < adapted_.size()) fetch_group(adapted_[i + 1].adapter->raising(l, out.projection).b, out.g0);
      if (raising.b.rank == 0 || out.g0 >= out.g1 || r0 >= r1) continue;
      kernels_.raise(raising.b, out.g0, out.g1, u + raising.lane, lanes_, r1 - r0,
                     out.y + static_cast<std::size_t>(rows.row0 + r0) * out.stride, out.stride);
    }
  }
}

// q, k and v share their input: their row groups are split over the threads as if they were one matrix.
void Engine::project_qkv(int t, int l) {
  const Layer& layer = weights_.layers[l];
  const int total = layer.q.groups() + layer.k.groups() + layer.v.groups();
  const auto [first, last] = own_groups(t, total);
  lower(t, l, kSourceQkv, normed_.data(), shape_.hidden);
  int group = 0, row = 0;
  for (const Matrix* w : {&layer.q, &layer.k, &layer.v}) {
    const int g0 = std::clamp(first - group, 0, w->groups()), g1 = std::clamp(last - group, 0, w->groups());
    multiply(t, *w, g0, g1, normed_.data(), shape_.hidden, quant_hidden_, qkv_.data() + row,
             shape_.qkv_rows());
    group += w->groups();
    row += w->rows;
  }
  gather(t, l, kSourceQkv);
  if (adapted_.empty()) return;
  const int q = layer.q.groups(), k = layer.k.groups(), v = layer.v.groups(), stride = shape_.qkv_rows();
  float* y = qkv_.data();
  raise(t, l,
        {{kQ, std::min(first, q), std::min(last, q), y, stride},
         {kK, std::clamp(first - q, 0, k), std::clamp(last - q, 0, k), y + layer.q.rows, stride},
         {kV, std::clamp(first - q - k, 0, v), std::clamp(last - q - k, 0, v),
          y + layer.q.rows + layer.k.rows, stride}});
}

// gate and up share their input; a thread finishes the rows that it computes.
void Engine::project_gated(int t, int l) {
  const Layer& layer = weights_.layers[l];
  const int ffn = shape_.ffn;
  const auto [first, last] = own_rows(t, quant_hidden_.rows);
  const auto [g0, g1] = own_groups(t, layer.gate.groups());
  const int r0 = g0 * kGroupRows, r1 = std::min(g1 * kGroupRows, ffn);
  lower(t, l, kSourceGated, normed_.data(), shape_.hidden);
  multiply(t, layer.gate, g0, g1, normed_.data(), shape_.hidden, quant_hidden_, gate_.data(), ffn);
  multiply(t, layer.up, g0, g1, normed_.data(), shape_.hidden, quant_hidden_, up_.data(), ffn);
  gather(t, l, kSourceGated);
  raise(t, l, {{kGate, g0, g1, gate_.data(), ffn}, {kUp, g0, g1, up_.data(), ffn}});
  for (int row = first; row < last && r0 < r1; ++row) {
    float* gate = gate_.data() + static_cast<std::size_t>(row) * ffn;
    kernels_.swiglu(gate + r0, up_.data() + static_cast<std::size_t>(row) * ffn + r0, r1 - r0);
  }
}

// x += w input, for o and down
void Engine::project_residual(int t, int l, Projection projection, const float* x,
                              const QuantRows& quantized) {
  const Matrix& w = projection == kO ? weights_.layers[l].o : weights_.layers[l].down;
  const auto [first, last] = own_rows(t, quantized.rows);
  const auto [g0, g1] = own_groups(t, w.groups());
  lower(t, l, source_of(projection), x, w.cols);
  multiply(t, w, g0, g1, x, w.cols, quantized, y_.data(), w.rows);
  gather(t, l, source_of(projection));
  raise(t, l, {{projection, g0, g1, y_.data(), w.rows}});
  const int r0 = g0 * kGroupRows, count = (g1 - g0) * kGroupRows;
  for (int row = first; row < last && count > 0; ++row) {
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
    // What is wanted may be few rows, and of others than this thread.
    if (keeps_rows_)
      pool_.barrier([&] {
        quant_head_.rows = n;
        keeps_rows_ = worth_keeping(n);
      });
    each_row(t, n, [&](int i) {
      if (i == 0 && !keeps_rows_) quant_head_.rows = n; // one writes it; all read it after the barrier
      float* y = head_input_.data() + static_cast<std::size_t>(i) * hidden;
      norm(x_.data() + static_cast<std::size_t>(wanted.rows[done + i]) * hidden, weights_.final_norm, y);
      if (packed(head)) kernels_.quantize(y, quant_head_, i);
    });
    const auto [g0, g1] = own_groups(t, head.groups());
    multiply(t, head, g0, g1, head_input_.data(), hidden, quant_head_, logits_.data(), shape_.vocab);
    each_row(t, n, [&](int i) {
      wanted.use(done + i, logits_.data() + static_cast<std::size_t>(i) * shape_.vocab);
    });
  }
}

} // namespace pomona
