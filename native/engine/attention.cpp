// Attention over the paged cache. A query row folds its keys in chunks of 256, always cut at the same
// positions, so a token's result is the same whether it came in a prefill, in a smaller chunk, or alone.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/engine.h"

namespace pomona {
namespace {

constexpr int kSplitTokens = 4;  // runs of so few tokens spread their context over the threads
constexpr int kTaskTokens = 16;  // otherwise a task takes so many tokens (fewer when many heads share a key)
constexpr double kUneven = 1.25; // times its equal share that a thread may have of the keys
constexpr float kNoScore = -1e30f;

} // namespace

void Engine::plan_attention() {
  const int shared = shape_.heads / shape_.kv_heads;
  const int tile = std::clamp(kAttendRows / shared, 1, kTaskTokens);
  tasks_.clear();
  partial_chunks_ = 0;
  int partial_rows = 0;
  for (int r = 0; r < static_cast<int>(runs_.size()); ++r) {
    Run& run = runs_[r];
    run.chunks = (run.start + run.count + kChunkTokens - 1) / kChunkTokens;
    const bool split = !keeps_rows_ && run.count <= std::min(kSplitTokens, tile) && run.chunks > 1;
    if (split) {
      run.partial_row0 = partial_rows;
      partial_rows += run.count;
      partial_chunks_ = std::max(partial_chunks_, run.chunks);
    }
    // Late tokens see most: they go first.
    for (int row = (run.count - 1) / tile * tile; row >= 0; row -= tile) {
      const int rows = std::min(tile, run.count - row);
      const int chunks = (run.start + row + rows + kChunkTokens - 1) / kChunkTokens;
      for (int head = 0; head < shape_.kv_heads; ++head) {
        if (!split) {
          tasks_.push_back({r, head, run.row0 + row, rows, 0, chunks, false});
          continue;
        }
        for (int chunk = 0; chunk < chunks; ++chunk)
          tasks_.push_back({r, head, run.row0 + row, rows, chunk, 1, true});
      }
    }
  }
  const std::size_t partials = static_cast<std::size_t>(partial_rows) * shape_.heads * partial_chunks_;
  partial_max_.resize(partials);
  partial_sum_.resize(partials);
  partial_out_.resize(partials * shape_.head_dim);
  own_attention_ = keeps_rows_ && sequences_stay_apart();
}

// Whether every sequence lies with one thread, and none has much more to read than the others.
bool Engine::sequences_stay_apart() const {
  double most = 0.0, total = 0.0;
  std::size_t run = 0;
  for (int t = 0; t < pool_.size(); ++t) {
    const int last = own_rows(t, static_cast<int>(rows_.size())).second;
    double keys = 0.0;
    for (; run < runs_.size() && runs_[run].row0 < last; ++run) {
      if (runs_[run].row0 + runs_[run].count > last) return false;
      keys += static_cast<double>(runs_[run].count) * (runs_[run].start + runs_[run].count);
    }
    most = std::max(most, keys);
    total += keys;
  }
  return most * pool_.size() <= kUneven * total;
}

// Bias, per-head normalisation, rotation; the query is scaled by D^-1/2; key and value go into the cache.
void Engine::rotate_and_store(int row, const Layer& layer, int l) {
  const int d = shape_.head_dim;
  float* qkv = qkv_.data() + static_cast<std::size_t>(row) * shape_.qkv_rows();
  if (shape_.qkv_bias) kernels_.add(qkv, layer.qkv_bias.data(), shape_.qkv_rows());
  const float* cos = cos_.data() + static_cast<std::size_t>(row) * d / 2;
  const float* sin = sin_.data() + static_cast<std::size_t>(row) * d / 2;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  for (int h = 0; h < shape_.heads + shape_.kv_heads; ++h) {
    float* head = qkv + h * d;
    const bool query = h < shape_.heads;
    if (shape_.qk_norm) norm(head, query ? layer.q_norm : layer.k_norm, head);
    kernels_.rope(head, d, cos, sin);
    if (query)
      for (int i = 0; i < d; ++i) head[i] *= scale;
  }
  const Row& r = rows_[row];
  const int page = sequences_[runs_[r.run].sequence].pages[r.position / kPageTokens];
  for (int h = 0; h < shape_.kv_heads; ++h)
    kernels_.store_kv(cache_.format(), cache_.block(page, l, h), r.position % kPageTokens,
                      qkv + shape_.q_rows() + h * d, qkv + shape_.q_rows() + shape_.kv_rows() + h * d, d);
}

// A thread's own tasks, or tasks go to whoever is free. Every thread draws once too often, so layer l starts
// at l (tasks + threads).
void Engine::run_attention(int t, int l) {
  const Profile::Scope scope = profile_.attention(t);
  if (own_attention_) {
    const auto [first, last] = own_rows(t, static_cast<int>(rows_.size()));
    for (const AttentionTask& task : tasks_)
      if (first <= task.row0 && task.row0 < last) attend(t, l, task);
    return;
  }
  const int count = static_cast<int>(tasks_.size());
  const int base = l * (count + pool_.size());
  for (int i = next_task_.fetch_add(1) - base; i < count; i = next_task_.fetch_add(1) - base)
    attend(t, l, tasks_[i]);
}

void Engine::attend(int t, int l, const AttentionTask& task) {
  const int d = shape_.head_dim, shared = shape_.heads / shape_.kv_heads, rows = task.rows * shared;
  const Run& run = runs_[task.run];
  float* q = attend_scratch_[t].data();
  float* chunk_out = q + static_cast<std::size_t>(kAttendRows) * d;
  float* out = chunk_out + static_cast<std::size_t>(kAttendRows) * d;
  float maxima[kAttendRows], sums[kAttendRows], chunk_max[kAttendRows], chunk_sum[kAttendRows];
  int visible[kAttendRows];
  for (int i = 0; i < task.rows; ++i) {
    const float* source =
        qkv_.data() + static_cast<std::size_t>(task.row0 + i) * shape_.qkv_rows() + task.head * shared * d;
    std::memcpy(q + static_cast<std::size_t>(i) * shared * d, source, sizeof(float) * shared * d);
  }
  std::fill_n(maxima, rows, kNoScore);
  std::fill_n(sums, rows, 0.0f);
  std::fill_n(out, static_cast<std::size_t>(rows) * d, 0.0f);

  const std::vector<int>& pages = sequences_[run.sequence].pages;
  const int last =
      run.start + (task.row0 - run.row0) + task.rows; // positions that the last of these tokens sees
  for (int chunk = task.chunk0; chunk < task.chunk0 + task.chunks; ++chunk) {
    const int first = chunk * kChunkTokens;
    const std::uint8_t* blocks[kChunkPages];
    AttendArgs args;
    args.format = cache_.format();
    args.tokens = std::min(kChunkTokens, last - first);
    for (int p = 0; p * kPageTokens < args.tokens; ++p)
      blocks[p] = cache_.block(pages[first / kPageTokens + p], l, task.head);
    for (int i = 0; i < rows; ++i)
      visible[i] = std::clamp(rows_[task.row0 + i / shared].position + 1 - first, 0, args.tokens);
    args.rows = rows;
    args.head_dim = d;
    args.q = q;
    args.pages = blocks;
    args.visible = visible;
    args.max = chunk_max;
    args.sum = chunk_sum;
    args.out = chunk_out;
    kernels_.attend(args);
    for (int i = 0; i < rows; ++i) {
      const float* from = chunk_out + static_cast<std::size_t>(i) * d;
      if (!task.partial) {
        kernels_.fold(&maxima[i], &sums[i], out + static_cast<std::size_t>(i) * d, chunk_max[i], chunk_sum[i],
                      from, d);
        continue;
      }
      const int row = run.partial_row0 + task.row0 - run.row0 + i / shared,
                head = task.head * shared + i % shared;
      const std::size_t index =
          (static_cast<std::size_t>(row) * shape_.heads + head) * partial_chunks_ + chunk;
      partial_max_[index] = chunk_max[i];
      partial_sum_[index] = chunk_sum[i];
      std::memcpy(partial_out_.data() + index * d, from, sizeof(float) * d);
    }
  }
  if (task.partial) return;
  for (int i = 0; i < rows; ++i) {
    float* to = attended_.data() + static_cast<std::size_t>(task.row0 + i / shared) * shape_.q_rows() +
                (task.head * shared + i % shared) * d;
    for (int j = 0; j < d; ++j) to[j] = out[static_cast<std::size_t>(i) * d + j] / sums[i];
  }
}

// Folds the chunks of a split run.
void Engine::finish_attention(int row) {
  const Run& run = runs_[rows_[row].run];
  if (run.partial_row0 < 0) return;
  const int d = shape_.head_dim, partial_row = run.partial_row0 + row - run.row0;
  for (int head = 0; head < shape_.heads; ++head) {
    float* out = attended_.data() + static_cast<std::size_t>(row) * shape_.q_rows() + head * d;
    float largest = kNoScore, sum = 0.0f;
    std::fill_n(out, d, 0.0f);
    for (int chunk = 0; chunk < run.chunks; ++chunk) {
      const std::size_t index =
          (static_cast<std::size_t>(partial_row) * shape_.heads + head) * partial_chunks_ + chunk;
      kernels_.fold(&largest, &sum, out, partial_max_[index], partial_sum_[index],
                    partial_out_.data() + index * d, d);
    }
    for (int j = 0; j < d; ++j) out[j] /= sum;
  }
}

} // namespace pomona
