// One model, its key/value cache and its sequences; a step runs one forward pass over a ragged batch.
//
// Walk of a token: forward.cpp embeds it, runs the layers and the head; attention.cpp reads and writes the
// cache; sampler.cpp chooses. Results do not depend on the batch, the chunking or the number of threads (see
// kernels.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "engine/adapter.h"
#include "engine/arena.h"
#include "engine/kv_cache.h"
#include "engine/late_mask.h"
#include "engine/logprobs.h"
#include "engine/prefix_cache.h"
#include "engine/profile.h"
#include "engine/sampler.h"
#include "engine/thread_pool.h"
#include "engine/weights.h"

namespace pomona {

inline constexpr float kLogSteps = 2048.0f; // a stored log probability reaches down to -32
inline constexpr int kAttendRows = 48;      // query rows of an attention task at the most

struct EngineOptions {
  int threads = 1;
  std::string isa = "auto";
  int kv_tokens = 8192;   // positions that all sequences share
  int batch_tokens = 512; // tokens of one step at the most
  bool huge_pages = true;
  bool prefix_cache = false; // keep full pages for later sequences with the same beginning and adapter
  // And copy pages that only begin alike. Who can ask such an engine, and see how long it takes, can guess
  // the prompts of others token by token and no longer page by page: not for servers.
  bool partial_pages = false;
  Format kv_cache = Format::bf16; // or int8
};

// The tokens that one sequence brings to a step, after those that it already holds.
struct StepInput {
  int sequence = 0;
  std::vector<std::int32_t> tokens;
  Sampling sampling;
  // One bit per token that may come next, [1 + drafts][(vocab + 31) / 32], the first for the place after
  // `tokens`; empty: all may.
  std::vector<std::uint32_t> mask;
  std::vector<std::int32_t> drafts = {};         // what may follow `tokens`: a guess that the step verifies
  std::shared_ptr<LateMask> late_mask = nullptr; // instead of `mask`: one that need not be computed yet
  std::shared_ptr<Logprobs> logprobs = nullptr;  // filled with those of the tokens that the step gives
};

struct Target {
  int place;
  std::int32_t token;
};
struct Scored {
  float log_p; // natural logarithm
  bool likeliest;
};

// Sums over the inputs x of a linear layer, for calibration.
struct Moments {
  std::vector<double> squares; // of x_k^2, per column
  std::vector<float> products; // of x_j x_k, [cols][cols]; empty: not wanted
  std::int64_t rows = 0;
};

class Engine {
 public:
  Engine(const ModelShape& shape, const TensorMap& tensors, const EngineOptions& options);

  // The sequence keeps the adapter alive: it goes on with the version that it started with.
  int new_sequence(std::shared_ptr<const Adapter> adapter = nullptr);
  void free_sequence(int sequence);
  int length(int sequence);
  void truncate(int sequence, int length); // forgets the tokens from `length` on

  // Appends the tokens of every input, samples one next token for each. Drafts are appended as far as they
  // are what sampling gives at their places: the result of an input is its accepted drafts and one token
  // more, as steps without drafts would give them. std::invalid_argument for bad ids or sizes, KvCacheFull
  // when the cache does not suffice; in both cases no sequence has changed.
  std::vector<std::vector<int>> step(const std::vector<StepInput>& inputs);
  // Appends tokens to one sequence and writes the logits of each, [tokens, vocab].
  void logits(int sequence, std::span<const std::int32_t> tokens, float* out);
  // Appends tokens; out[i] = log p(targets[i] | everything up to tokens[i]); a negative target gives 0.
  void score(int sequence, std::span<const std::int32_t> tokens, std::span<const std::int32_t> targets,
             float* out);

  // Takes what the prefix cache has of these tokens, as far as they go on from the sequence's own; gives the
  // sequence's length then. At least the last token is left to be appended.
  int reuse(int sequence, std::span<const std::int32_t> tokens);
  // Appends the tokens and drafts of every input, all of them, and says of each target how likely it is at
  // its place: place 0 is after the tokens, place i after draft i. Errors as step().
  std::vector<std::vector<Scored>> score_places(const std::vector<StepInput>& inputs,
                                                const std::vector<std::vector<Target>>& targets);

  // From now on run_layers() adds up what these modules read, with all products or the squares alone. What
  // was added up before is dropped. A module is named by the first linear layer that reads its input, e.g.
  // model.layers.0.self_attn.q_proj; others are refused with std::invalid_argument.
  void collect_moments(const std::vector<std::string>& modules, bool products);
  // The sums so far, which are handed out and forgotten; nothing more is collected.
  std::map<std::string, Moments> take_moments();
  // Runs a text from its beginning through the layers [first, last) alone. residual [tokens][hidden]: what
  // enters layer `first` (not read when it is 0) and then what leaves layer last - 1. With `last` one more
  // than there are layers, the final norm runs too: the head's input is observed, no logits are made.
  void run_layers(std::span<const std::int32_t> tokens, int first, int last, float* residual);
  // What the model says after each token of a text from its beginning: out [tokens][vocab] holds -log p in
  // units of 1 / kLogSteps nats, at most 65535 of them. residual: what enters layer `first`, as run_layers()
  // leaves it; not read when `first` is 0.
  void distributions(std::span<const std::int32_t> tokens, int first, const float* residual,
                     std::uint16_t* out);
  // out[i]: the KL, in nats, of what this model says after token i from what distributions() gave of another.
  void divergences(std::span<const std::int32_t> tokens, int first, const float* residual,
                   const std::uint16_t* reference, double* out);

  // From now on steps measure where their time goes; off: no longer. take_profile(): Profile::take().
  void profile(bool on);
  std::map<std::string, double> take_profile();

  const ModelShape& shape() const { return shape_; }
  const char* isa() const { return kernels_.name; }
  int threads() const { return pool_.size(); }
  int batch_tokens() const { return options_.batch_tokens; }
  int free_tokens();
  int reused_tokens(int sequence); // of its tokens, how many step() found in the prefix cache
  int kv_tokens() const { return cache_.pages() * kPageTokens; }
  std::size_t bytes_per_token() const { return weights_.bytes_per_token(); }
  std::size_t kv_bytes_per_token() const { return cache_.page_bytes() / kPageTokens; }

 private:
  struct Sequence {
    bool used = false;
    std::vector<int> pages;
    std::vector<int> nodes; // the leading pages that the prefix cache owns
    std::vector<std::int32_t> tokens;
    std::shared_ptr<const Adapter> adapter;
    int reused = 0;

    std::uint64_t adapter_number() const { return adapter != nullptr ? adapter->number() : 0; }
    int last_node() const { return nodes.empty() ? PrefixCache::kRoot : nodes.back(); }
  };
  // A sequence's rows in the current batch.
  struct Run {
    int sequence;
    int row0;
    int count;
    int start; // position of the first of them
    const Adapter* adapter;
    int partial_row0 = -1; // where its rows lie in partial_*, when its context is split over tasks
    int chunks = 0;        // of 256 keys
    int drafts = 0;        // the last rows of `count`
  };
  struct Row {
    int run;
    int position;
    std::int32_t token;
  };
  // Neighbouring rows under one adapter.
  struct AdaptedRows {
    const Adapter* adapter;
    int row0;
    int count;
    bool by_row;          // threads divide A x by rows; otherwise by segments of columns
    std::size_t first;    // where the rows lie in lowered_ or in a thread's gathered_
    std::size_t partial0; // where they begin in partials_
  };
  // Row groups of a projection's output [M][stride] that a thread owns.
  struct Raised {
    Projection projection;
    int g0, g1;
    float* y;
    int stride;
  };
  // Rows whose logits are wanted, and what to do with them (called on any thread).
  struct Wanted {
    std::vector<int> rows;
    std::function<void(int index, float* logits)> use;
  };
  struct AttentionTask {
    int run;
    int head; // key/value head
    int row0, rows;
    int chunk0, chunks;
    bool partial; // results wait in partial_* for their fold
  };

  Sequence& sequence(int id);
  // Validates, takes what the prefix cache has, allocates pages, fills runs_ and rows_.
  void append(std::span<const StepInput> inputs, bool reuse);
  void reuse_prefix(Sequence& s, std::span<const std::int32_t> tokens);
  void copy_beginning(Sequence& s, std::span<const std::int32_t> tokens);
  void share_pages(Sequence& s); // hands full pages to the prefix cache
  void cut(Sequence& s, int length);
  int free_pages() const { return cache_.free_pages() + prefixes_.evictable(); }
  int take_page();
  void forward(const Wanted& wanted);
  void forward_thread(int t, const Wanted& wanted);

  // forward.cpp: what thread t does in a phase
  template <class F>
  void each_row(int t, int count, F&& work);
  bool worth_keeping(int count) const;
  std::pair<int, int> own_rows(int t, int count) const;
  std::pair<int, int> own_groups(int t, int count) const;
  void prepare_row(int row);
  void norm(const float* x, const std::vector<float>& weight, float* y) const;
  void multiply(int t, const Matrix& w, int g0, int g1, const float* x, int x_stride,
                const QuantRows& quantized, float* y, int y_stride);
  void project_qkv(int t, int l);
  void project_gated(int t, int l);
  void project_residual(int t, int l, Projection projection, const float* x, const QuantRows& quantized);
  void plan_adapters();
  void lower(int t, int l, Source source, const float* x, int cols);
  std::pair<int, int> lowered_rows(int t, const AdaptedRows& rows) const;
  void gather(int t, int l, Source source);
  void raise(int t, int l, std::initializer_list<Raised> outputs);
  void project_head(int t, const Wanted& wanted);
  void finish_part(int t);

  // moments.cpp
  Moments* observed(const std::string& module);
  void observe(int t, Moments* moments, const float* x, int cols, int rows);
  void add_products(int t, Moments& moments, int cols, int rows);

  // attention.cpp
  void plan_attention();
  bool sequences_stay_apart() const;
  void rotate_and_store(int row, const Layer& layer, int l);
  void run_attention(int t, int l);
  void attend(int t, int l, const AttentionTask& task);
  void finish_attention(int row);

  const ModelShape shape_;
  const EngineOptions options_;
  const Kernels& kernels_;
  ThreadPool pool_;
  Weights weights_;
  KvCache cache_;
  PrefixCache prefixes_;
  std::mutex mutex_;
  std::vector<Sequence> sequences_;

  Profile profile_;
  std::vector<Run> runs_;
  std::vector<Row> rows_;
  std::vector<AttentionTask> tasks_;
  std::atomic<int> next_task_{0};

  bool keeps_rows_ = false;    // in this batch a thread keeps its tokens through all phases,
  bool own_attention_ = false; // attention among them
  std::vector<double> inverse_frequency_;
  std::vector<AdaptedRows> adapted_;         // of this batch; empty: no sequence has an adapter
  int lanes_ = 0;                            // the most ranks that an input of theirs is lowered to
  std::vector<float> lowered_;               // [rows that are divided by row][lanes_]: A x
  std::vector<float> partials_;              // of the others: A x by segments of columns
  std::vector<std::vector<float>> gathered_; // per thread, [their rows][lanes_]: sums of partials_
  Meeting lowering_;
  HugeArray<float> cos_, sin_;                                                         // [M][D/2]
  HugeArray<float> x_, normed_, qkv_, attended_, gate_, up_, y_, head_input_, logits_; // [M][...]
  std::vector<HugeArray<std::uint8_t>> quant_bytes_;
  std::vector<HugeArray<float>> quant_scales_;
  std::vector<HugeArray<std::int32_t>> quant_offsets_;
  std::vector<HugeArray<std::uint8_t>> quant_fine_;
  QuantRows quant_hidden_, quant_attended_, quant_ffn_, quant_head_;
  std::vector<HugeArray<std::uint8_t>> scratch_;               // per thread: matmul tile
  std::vector<HugeArray<float>> attend_scratch_;               // per thread
  int partial_chunks_ = 0;                                     // chunks of the longest split run
  std::vector<float> partial_max_, partial_sum_, partial_out_; // [split rows][heads][partial_chunks_]([D])

  // Of run_layers() and its kin: which layers, and where the residual stream is kept.
  struct Part {
    int first, last;
    float* residual;     // of the batch
    bool logits = false; // goes on to the head, and leaves `residual` as it is
  };
  void run_part(std::span<const std::int32_t> tokens, const Part& part,
                const std::function<void(std::size_t token, const float* logits)>& use);
  const Part* part_ = nullptr; // in other calls: all layers
  std::map<std::string, Moments> moments_;
  std::vector<float> panels_; // the observed rows as [cols / 64][rows][64]
};

} // namespace pomona
